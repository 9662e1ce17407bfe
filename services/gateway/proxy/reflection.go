package proxy

import (
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/reflection"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/marquee-ads/marquee/services/gateway/catalog"
)

// registerReflection lets clients ask the gateway what it serves: the services
// in the catalog, with the descriptors they gave of themselves.
func registerReflection(server *grpc.Server, c *catalog.Catalog) {
	options := reflection.ServerOptions{
		Services:           catalogServices{c},
		DescriptorResolver: catalogDescriptors{c},
	}
	reflectionv1.RegisterServerReflectionServer(server, reflection.NewServerV1(options))
	reflectionv1alpha.RegisterServerReflectionServer(server, reflection.NewServer(options))
}

type catalogServices struct{ catalog *catalog.Catalog }

// GetServiceInfo implements reflection.ServiceInfoProvider, which uses the names.
func (s catalogServices) GetServiceInfo() map[string]grpc.ServiceInfo {
	info := make(map[string]grpc.ServiceInfo)
	for _, service := range s.catalog.Snapshot().Services() {
		for _, name := range service.GRPCServices {
			info[name] = grpc.ServiceInfo{}
		}
	}
	return info
}

type catalogDescriptors struct{ catalog *catalog.Catalog }

// FindFileByPath implements protodesc.Resolver. Files that several services
// have, such as imports, come from the first.
func (d catalogDescriptors) FindFileByPath(path string) (protoreflect.FileDescriptor, error) {
	for _, service := range d.catalog.Snapshot().Services() {
		if service.Files == nil {
			continue
		}
		if file, err := service.Files.FindFileByPath(path); err == nil {
			return file, nil
		}
	}
	return nil, protoregistry.NotFound
}

// FindDescriptorByName implements protodesc.Resolver. A gRPC service comes from
// whoever serves it.
func (d catalogDescriptors) FindDescriptorByName(name protoreflect.FullName) (protoreflect.Descriptor, error) {
	services := d.catalog.Snapshot().Services()
	owner := slices.IndexFunc(services, func(s catalog.Service) bool { return slices.Contains(s.GRPCServices, string(name)) })
	if owner >= 0 {
		return services[owner].Files.FindDescriptorByName(name)
	}
	for _, service := range services {
		if service.Files == nil {
			continue
		}
		if found, err := service.Files.FindDescriptorByName(name); err == nil {
			return found, nil
		}
	}
	return nil, protoregistry.NotFound
}
