package transcode

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
)

var benchSignUp = []byte(`{"requestId":"3f0e8a0a-7d5b-4c55-9e0c-0d8a7ad7c1b2","name":"someone@example.com","password":"correct horse battery staple"}`)

func benchResponse(b *testing.B) (wire []byte, desc protoreflect.MessageDescriptor) {
	b.Helper()
	m := &accountv1.LogInResponse{
		Account: &accountv1.Account{
			AccountId:  "acc_01HZX5T2K9V3QJ8M4N6P7R0S1T",
			Name:       "someone@example.com",
			CreateTime: &timestamppb.Timestamp{Seconds: 1795255200, Nanos: 123456000},
		},
		AccessToken: "eyJhbGciOiJFZERTQSIsImtpZCI6ImsxIn0.eyJpc3MiOiJtYXJxdWVlL2FjY291bnQifQ.c2lnbmF0dXJl",
		ExpireTime:  &timestamppb.Timestamp{Seconds: 1795255500},
	}
	wire, err := proto.Marshal(m)
	require.NoError(b, err)
	return wire, m.ProtoReflect().Descriptor()
}

// accountRoutes are the routes of the account service.
func accountRoutes(b *testing.B) *Routes {
	b.Helper()
	methods := accountv1.File_marquee_account_v1_account_proto.Services().Get(0).Methods()
	var descs []protoreflect.MethodDescriptor
	for i := range methods.Len() {
		descs = append(descs, methods.Get(i))
	}
	routes, errs := NewRoutes(descs)
	require.Empty(b, errs)
	return routes
}

func BenchmarkRequest(b *testing.B) {
	b.Run("SignUp/transcode", func(b *testing.B) {
		binding, params, _, ok := accountRoutes(b).Match("POST", "/v1/accounts")
		require.True(b, ok)
		var buf []byte
		b.ReportAllocs()
		for b.Loop() {
			var err error
			if buf, err = binding.Request(buf[:0], params, "", benchSignUp); err != nil {
				b.Fatal(err)
			}
		}
	})
	benchUnmarshal := func(name string, fresh func() proto.Message) {
		b.Run(name, func(b *testing.B) {
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				m := fresh()
				if err := protojson.Unmarshal(benchSignUp, m); err != nil {
					b.Fatal(err)
				}
				var err error
				if buf, err = (proto.MarshalOptions{}).MarshalAppend(buf[:0], m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	desc := (&accountv1.SignUpRequest{}).ProtoReflect().Descriptor()
	benchUnmarshal("SignUp/dynamicpb", func() proto.Message { return dynamicpb.NewMessage(desc) })
	benchUnmarshal("SignUp/generated", func() proto.Message { return &accountv1.SignUpRequest{} })
	b.Run("GetAccount/transcode", func(b *testing.B) {
		routes := accountRoutes(b)
		var buf []byte
		b.ReportAllocs()
		for b.Loop() {
			binding, params, _, ok := routes.Match("GET", "/v1/accounts/acc_01HZX5T2K9V3QJ8M4N6P7R0S1T")
			if !ok {
				b.Fatal("no match")
			}
			var err error
			if buf, err = binding.Request(buf[:0], params, "", nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkResponse(b *testing.B) {
	wire, desc := benchResponse(b)
	b.Run("transcode", func(b *testing.B) {
		codec, err := NewCodec(desc)
		require.NoError(b, err)
		var buf []byte
		b.ReportAllocs()
		for b.Loop() {
			if buf, err = codec.AppendJSON(buf[:0], wire); err != nil {
				b.Fatal(err)
			}
		}
	})
	benchMarshal := func(name string, fresh func() proto.Message) {
		b.Run(name, func(b *testing.B) {
			options := protojson.MarshalOptions{EmitDefaultValues: true}
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				m := fresh()
				if err := proto.Unmarshal(wire, m); err != nil {
					b.Fatal(err)
				}
				var err error
				if buf, err = options.MarshalAppend(buf[:0], m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	benchMarshal("dynamicpb", func() proto.Message { return dynamicpb.NewMessage(desc) })
	benchMarshal("generated", func() proto.Message { return &accountv1.LogInResponse{} })
}

func BenchmarkMatch(b *testing.B) {
	var methods []string
	for i := range 100 {
		methods = append(methods, libraryMethod(fmt.Sprintf("M%d", i), "Shelf", fmt.Sprintf(`get: "/v1/things%d/{name}/parts/{theme}:check"`, i)))
	}
	routes, errs := libraryRoutes(b, methods...)
	require.Empty(b, errs)
	for name, path := range map[string]string{"OK": "/v1/things77/abc/parts/x%20y:check", "None": "/v1/things77/abc/parts"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, _, ok := routes.Match("GET", path); ok != (name == "OK") {
					b.Fatal("matched wrong")
				}
			}
		})
	}
}
