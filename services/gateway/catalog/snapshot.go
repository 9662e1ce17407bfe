package catalog

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/marquee-ads/marquee/platform/fault"
	accessv1 "github.com/marquee-ads/marquee/proto/gen/marquee/access/v1"
	"github.com/marquee-ads/marquee/services/gateway/backend"
	"github.com/marquee-ads/marquee/services/gateway/transcode"
)

// Method is one method that the gateway serves. It is immutable.
type Method struct {
	// Path is the method on the wire, "/marquee.account.v1.AccountService/GetAccount".
	Path       string
	Descriptor protoreflect.MethodDescriptor
	// Backend is the service that serves it.
	Backend *backend.Backend
	// Idempotent methods may be sent again when nobody knows whether they were
	// done: their idempotency_level is NO_SIDE_EFFECTS or IDEMPOTENT.
	Idempotent    bool
	ClientStreams bool
	ServerStreams bool
	// Access says who may call; never CALLER_SERVICE. The service enforces it.
	Access accessv1.Caller
}

// Unary is a method with one request and one response.
func (m *Method) Unary() bool { return !m.ClientStreams && !m.ServerStreams }

// Service is what the catalog knows of one service in the registry.
type Service struct {
	// Name is the name in the registry.
	Name string
	// GRPCServices are the full names of the gRPC services served for it, sorted.
	GRPCServices []string
	// Files are its descriptors, nil as long as they could not be read.
	Files *protoregistry.Files
}

// Snapshot is what the gateway serves at one moment. It is immutable and safe
// for concurrent use.
type Snapshot struct {
	methods  map[string]*Method
	byName   map[protoreflect.FullName]*Method
	routes   *transcode.Routes
	services []Service
	complete bool
}

// ErrIncomplete is the answer for a method or path that is not known while not
// every service in the registry was read: after the start, or when one cannot be
// reached. It may exist.
var ErrIncomplete = fault.New(fault.Unavailable, "CATALOG_INCOMPLETE",
	"this is not known here, but not all services could be asked yet; try again").WithRetryAfter(time.Second)

// Complete says whether everything that the registry names was read, so that
// what is not in the snapshot does not exist.
func (s *Snapshot) Complete() bool { return s.complete }

// Method finds a method by its path on the wire.
func (s *Snapshot) Method(path string) (*Method, bool) {
	m, ok := s.methods[path]
	return m, ok
}

// MethodOf finds the method that a route's binding belongs to; the descriptor
// comes from this snapshot's Routes.
func (s *Snapshot) MethodOf(d protoreflect.MethodDescriptor) *Method { return s.byName[d.FullName()] }

// Routes are the HTTP routes of all methods.
func (s *Snapshot) Routes() *transcode.Routes { return s.routes }

// Services are all services in the registry, by name.
func (s *Snapshot) Services() []Service { return s.services }

// known is a service whose descriptors were read.
type known struct {
	name    string
	backend *backend.Backend
	files   *protoregistry.Files // nil before the first success
	grpc    []protoreflect.FullName
}

// newSnapshot puts together what the services offer. Of two services that claim
// the same gRPC service or the same route the first by name has it. What is
// left out is returned as complaints.
func newSnapshot(services []known) (*Snapshot, []string) {
	services = slices.SortedFunc(slices.Values(services), func(a, b known) int { return strings.Compare(a.name, b.name) })
	s := &Snapshot{methods: make(map[string]*Method), byName: make(map[protoreflect.FullName]*Method)}
	owners := make(map[protoreflect.FullName]string)
	var complaints []string
	var routed []protoreflect.MethodDescriptor
	for _, svc := range services {
		entry := Service{Name: svc.name, Files: svc.files}
		for _, name := range slices.Sorted(slices.Values(svc.grpc)) {
			if owner, taken := owners[name]; taken {
				complaints = append(complaints, fmt.Sprintf("%s offers %s, which belongs to %s: not served", svc.name, name, owner))
				continue
			}
			d, err := svc.files.FindDescriptorByName(name)
			service, ok := d.(protoreflect.ServiceDescriptor)
			if err != nil || !ok {
				complaints = append(complaints, fmt.Sprintf("%s offers %s, but its descriptors do not have it: not served", svc.name, name))
				continue
			}
			owners[name] = svc.name
			methods, refused := methodsOf(service, svc.backend)
			complaints = append(complaints, refused...)
			if len(methods) > 0 {
				entry.GRPCServices = append(entry.GRPCServices, string(name))
			}
			for _, m := range methods {
				s.methods[m.Path] = m
				s.byName[m.Descriptor.FullName()] = m
				if !m.ClientStreams {
					routed = append(routed, m.Descriptor)
				}
			}
		}
		s.services = append(s.services, entry)
	}
	routes, errs := transcode.NewRoutes(routed)
	s.routes = routes
	for _, err := range errs {
		complaints = append(complaints, err.Error())
	}
	return s, complaints
}

// methodsOf are the methods of a service that may be served: those reserved for
// other services are left out, and so are those that do not say who may call.
func methodsOf(service protoreflect.ServiceDescriptor, b *backend.Backend) (served []*Method, complaints []string) {
	methods := service.Methods()
	for i := range methods.Len() {
		d := methods.Get(i)
		caller := callerOf(d)
		switch caller {
		case accessv1.Caller_CALLER_ANYONE, accessv1.Caller_CALLER_ACCOUNT:
		case accessv1.Caller_CALLER_SERVICE:
			continue
		default:
			complaints = append(complaints, fmt.Sprintf("%s of %s does not say who may call it (marquee.access.v1.access): not served", d.FullName(), b.Service()))
			continue
		}
		served = append(served, &Method{
			Path:          "/" + string(service.FullName()) + "/" + string(d.Name()),
			Descriptor:    d,
			Backend:       b,
			Idempotent:    idempotent(d),
			ClientStreams: d.IsStreamingClient(),
			ServerStreams: d.IsStreamingServer(),
			Access:        caller,
		})
	}
	return served, complaints
}

func callerOf(d protoreflect.MethodDescriptor) accessv1.Caller {
	access, _ := proto.GetExtension(d.Options(), accessv1.E_Access).(*accessv1.Access)
	return access.GetCaller()
}

func idempotent(d protoreflect.MethodDescriptor) bool {
	options, _ := d.Options().(*descriptorpb.MethodOptions)
	switch options.GetIdempotencyLevel() {
	case descriptorpb.MethodOptions_NO_SIDE_EFFECTS, descriptorpb.MethodOptions_IDEMPOTENT:
		return true
	default:
		return false
	}
}
