package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	accessv1 "github.com/marquee-ads/marquee/proto/gen/marquee/access/v1"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// The document holds what the options say that are linked in here. (That there is
// no more in it, make check-generate sees.)
func TestDocumentIsUpToDate(t *testing.T) {
	document, err := os.ReadFile("../../../../docs/authorisation.md")
	require.NoError(t, err)
	before, _, _ := strings.Cut(page, place)
	require.True(t, strings.HasPrefix(string(document), before), "docs/authorisation.md is out of date: run make generate")
	services := 0
	for _, file := range []protoreflect.FileDescriptor{
		accountv1.File_marquee_account_v1_account_proto, accountv1.File_marquee_account_v1_organisation_proto, echov1.File_marquee_echo_v1_echo_proto,
	} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			table, err := tableOf(string(service.FullName()), protodesc.ToServiceDescriptorProto(service))
			require.NoError(t, err)
			require.Contains(t, string(document), table, "docs/authorisation.md is out of date: run make generate")
			services++
		}
	}
	require.Equal(t, 3, services)
}

func method(rule *accessv1.Access) *descriptorpb.MethodDescriptorProto {
	options := &descriptorpb.MethodOptions{}
	if rule != nil {
		proto.SetExtension(options, accessv1.E_Access, rule)
	}
	return &descriptorpb.MethodDescriptorProto{Name: proto.String("Do"), Options: options}
}

func TestRow(t *testing.T) {
	account := accessv1.Caller_CALLER_ACCOUNT
	for want, rule := range map[string]*accessv1.Access{
		"| `Do` | gRPC only | yes | yes | yes | yes | yes | yes | yes |\n": {Caller: accessv1.Caller_CALLER_ANYONE},
		"| `Do` | gRPC only |  | yes | yes | yes | yes | yes |  |\n":       {Caller: account},
		"| `Do` | gRPC only |  |  | yes |  |  |  |  |\n":                   {Caller: account, Roles: []accessv1.Role{accessv1.Role_ROLE_OWNER}},
		"| `Do` | gRPC only |  |  | yes |  |  | yes | by its role |\n":     {Caller: account, Roles: []accessv1.Role{accessv1.Role_ROLE_VIEWER, accessv1.Role_ROLE_OWNER}},
		"| `Do` | only from order, device |  |  |  |  |  |  |  |\n":        {Caller: accessv1.Caller_CALLER_SERVICE, Services: []string{"order", "device"}},
	} {
		got, err := rowOf(method(rule))
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for _, rule := range []*accessv1.Access{nil, {}} {
		_, err := rowOf(method(rule))
		require.ErrorContains(t, err, "it does not say who may call it")
	}
}

func TestRun(t *testing.T) {
	image := func(methods ...*descriptorpb.MethodDescriptorProto) []byte {
		file := &descriptorpb.FileDescriptorProto{Name: proto.String("x.proto"), Package: proto.String("x.v1")}
		if len(methods) > 0 {
			file.Service = []*descriptorpb.ServiceDescriptorProto{{Name: proto.String("XService"), Method: methods}}
		}
		set, err := proto.Marshal(&descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{file}})
		require.NoError(t, err)
		return set
	}
	var out bytes.Buffer
	require.NoError(t, run(bytes.NewReader(image(method(&accessv1.Access{Caller: accessv1.Caller_CALLER_ANYONE}))), &out))
	require.Contains(t, out.String(), "## x.v1.XService\n")
	for want, in := range map[string][]byte{
		"x.v1.XService.Do: it does not say who may call it": image(method(nil)),
		"the descriptors hold no service":                   image(),
		"give it the output of buf build":                   []byte("no descriptors"),
	} {
		require.ErrorContains(t, run(bytes.NewReader(in), &bytes.Buffer{}), want)
	}
}
