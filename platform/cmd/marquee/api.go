package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"

	"google.golang.org/grpc"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	// Their types are wanted when errors' details are printed.
	_ "google.golang.org/genproto/googleapis/rpc/errdetails"

	accessv1 "github.com/marquee-ads/marquee/proto/gen/marquee/access/v1"
)

// api is what a server says it serves, by reflection.
type api struct {
	services []protoreflect.ServiceDescriptor // sorted by name
	files    *protoregistry.Files
}

// reflectAPI asks the server behind conn what it serves.
func reflectAPI(ctx context.Context, conn grpc.ClientConnInterface) (*api, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking for reflection: %w", err)
	}
	r := &conversation{stream: stream, files: make(map[string]*descriptorpb.FileDescriptorProto)}
	names, err := r.serviceNames()
	if err != nil {
		return nil, fmt.Errorf("asking which services there are: %w", err)
	}
	for _, name := range names {
		request := &reflectionv1.ServerReflectionRequest{
			MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: name},
		}
		if err := r.fetch(request); err != nil {
			return nil, fmt.Errorf("asking for the description of %s: %w", name, err)
		}
	}
	if err := r.fetchImports(); err != nil {
		return nil, err
	}
	return newAPI(names, r.files)
}

func newAPI(names []string, files map[string]*descriptorpb.FileDescriptorProto) (*api, error) {
	set := &descriptorpb.FileDescriptorSet{}
	for _, file := range files {
		set.File = append(set.File, file)
	}
	resolved, err := protodesc.FileOptions{AllowUnresolvable: true}.NewFiles(set)
	if err != nil {
		return nil, fmt.Errorf("putting the descriptions together: %w", err)
	}
	a := &api{files: resolved}
	for _, name := range names {
		found, err := resolved.FindDescriptorByName(protoreflect.FullName(name))
		if err != nil {
			return nil, fmt.Errorf("finding the description of %s: %w", name, err)
		}
		if service, ok := found.(protoreflect.ServiceDescriptor); ok {
			a.services = append(a.services, service)
		}
	}
	sort.Slice(a.services, func(i, j int) bool { return a.services[i].FullName() < a.services[j].FullName() })
	return a, nil
}

// conversation is one conversation over the reflection service.
type conversation struct {
	stream reflectionv1.ServerReflection_ServerReflectionInfoClient
	files  map[string]*descriptorpb.FileDescriptorProto // by path
}

func (r *conversation) ask(request *reflectionv1.ServerReflectionRequest) (*reflectionv1.ServerReflectionResponse, error) {
	if err := r.stream.Send(request); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	response, err := r.stream.Recv()
	if err != nil {
		return nil, err
	}
	if refused := response.GetErrorResponse(); refused != nil {
		return nil, errors.New(refused.GetErrorMessage())
	}
	return response, nil
}

func (r *conversation) serviceNames() ([]string, error) {
	response, err := r.ask(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, service := range response.GetListServicesResponse().GetService() {
		// What every gRPC server serves is no part of the API.
		if !strings.HasPrefix(service.GetName(), "grpc.") {
			names = append(names, service.GetName())
		}
	}
	return names, nil
}

func (r *conversation) fetch(request *reflectionv1.ServerReflectionRequest) error {
	response, err := r.ask(request)
	if err != nil {
		return err
	}
	for _, raw := range response.GetFileDescriptorResponse().GetFileDescriptorProto() {
		file := &descriptorpb.FileDescriptorProto{}
		if err := proto.Unmarshal(raw, file); err != nil {
			return fmt.Errorf("decoding a file description: %w", err)
		}
		r.files[file.GetName()] = file
	}
	return nil
}

// fetchImports asks for the files that the known ones import until none is
// missing. One that the server does not give and that this program knows is
// taken from here; one that nobody knows is left out.
func (r *conversation) fetchImports() error {
	tried := make(map[string]bool)
	for {
		var missing []string
		for _, file := range r.files {
			for _, path := range file.GetDependency() {
				if r.files[path] == nil && !tried[path] && !slices.Contains(missing, path) {
					missing = append(missing, path)
				}
			}
		}
		if len(missing) == 0 {
			return nil
		}
		for _, path := range missing {
			tried[path] = true
			if known, err := protoregistry.GlobalFiles.FindFileByPath(path); err == nil {
				r.files[path] = protodesc.ToFileDescriptorProto(known)
				continue
			}
			request := &reflectionv1.ServerReflectionRequest{
				MessageRequest: &reflectionv1.ServerReflectionRequest_FileByFilename{FileByFilename: path},
			}
			if err := r.fetch(request); err != nil && r.stream.Context().Err() != nil {
				return fmt.Errorf("asking for the description of %s: %w", path, err)
			}
		}
	}
}

// resolver finds the types in Any fields: those the server serves, then those
// this program knows.
func (a *api) resolver() *typeResolver {
	return &typeResolver{served: dynamicpb.NewTypes(a.files)}
}

type typeResolver struct{ served *dynamicpb.Types }

func (t *typeResolver) FindMessageByName(name protoreflect.FullName) (protoreflect.MessageType, error) {
	if found, err := t.served.FindMessageByName(name); err == nil {
		return found, nil
	}
	return protoregistry.GlobalTypes.FindMessageByName(name)
}

func (t *typeResolver) FindMessageByURL(url string) (protoreflect.MessageType, error) {
	return t.FindMessageByName(protoreflect.FullName(url[strings.LastIndexByte(url, '/')+1:]))
}

func (t *typeResolver) FindExtensionByName(name protoreflect.FullName) (protoreflect.ExtensionType, error) {
	if found, err := t.served.FindExtensionByName(name); err == nil {
		return found, nil
	}
	return protoregistry.GlobalTypes.FindExtensionByName(name)
}

func (t *typeResolver) FindExtensionByNumber(message protoreflect.FullName, n protoreflect.FieldNumber) (protoreflect.ExtensionType, error) {
	if found, err := t.served.FindExtensionByNumber(message, n); err == nil {
		return found, nil
	}
	return protoregistry.GlobalTypes.FindExtensionByNumber(message, n)
}

// method finds SERVICE/METHOD or SERVICE.METHOD. The service may be shortened to
// its last part, AccountService, when no other one ends so.
func (a *api) method(name string) (protoreflect.MethodDescriptor, error) {
	name = strings.TrimPrefix(name, "/")
	cut := strings.LastIndexAny(name, "/.")
	if cut < 0 {
		return nil, fmt.Errorf("%q names no method: want SERVICE/METHOD, for example marquee.account.v1.AccountService/GetAccount", name)
	}
	service, err := a.service(name[:cut])
	if err != nil {
		return nil, err
	}
	method := service.Methods().ByName(protoreflect.Name(name[cut+1:]))
	if method == nil {
		var names []string
		for i := range service.Methods().Len() {
			names = append(names, string(service.Methods().Get(i).Name()))
		}
		return nil, fmt.Errorf("%s has no method %q; it has %s", service.FullName(), name[cut+1:], strings.Join(names, ", "))
	}
	return method, nil
}

func (a *api) service(name string) (protoreflect.ServiceDescriptor, error) {
	var found []protoreflect.ServiceDescriptor
	for _, service := range a.services {
		if string(service.FullName()) == name {
			return service, nil
		}
		if strings.HasSuffix(string(service.FullName()), "."+name) {
			found = append(found, service)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	var names []string
	for _, service := range a.services {
		names = append(names, string(service.FullName()))
	}
	return nil, fmt.Errorf("no service is called %q; there are %s", name, strings.Join(names, ", "))
}

// probe picks the method that watching a Consul service calls: one of a proto
// service whose package has the name as a part (account: marquee.account.v1),
// that changes nothing, that anyone may call, and that takes an empty request.
func (a *api) probe(consulService string) (protoreflect.MethodDescriptor, error) {
	var best protoreflect.MethodDescriptor
	served := false
	for _, service := range a.services {
		if !slices.Contains(strings.Split(string(service.ParentFile().Package()), "."), consulService) {
			continue
		}
		served = true
		for i := range service.Methods().Len() {
			method := service.Methods().Get(i)
			options, _ := method.Options().(*descriptorpb.MethodOptions)
			access, _ := proto.GetExtension(options, accessv1.E_Access).(*accessv1.Access)
			fits := options.GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS &&
				access.GetCaller() == accessv1.Caller_CALLER_ANYONE &&
				!method.IsStreamingClient() && !method.IsStreamingServer()
			if fits && (best == nil || method.Input().Fields().Len() < best.Input().Fields().Len()) {
				best = method
			}
		}
	}
	if !served {
		return nil, fmt.Errorf("the gateways serve nothing of the service %q: marquee status shows which run, marquee list what can be named with --method", consulService)
	}
	if best == nil {
		return nil, fmt.Errorf("no method of the service %q changes nothing and may be called by anyone: name one with --method", consulService)
	}
	return best, nil
}
