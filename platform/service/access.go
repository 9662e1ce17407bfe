package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"buf.build/go/protovalidate"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	"github.com/marquee-ads/marquee/platform/mesh"
	accessv1 "github.com/marquee-ads/marquee/proto/gen/marquee/access/v1"
)

// method is what the harness knows about one method before it is called.
type method struct {
	name string // "/package.Service/Method"
	// exempt methods (health, reflection) have no access rule and no
	// validation; the mesh alone decides about them.
	exempt   bool
	caller   accessv1.Caller
	services []string
	roles    []auth.Role
	// organisation is where a request holds the organisation's id; with roles.
	organisation []protoreflect.FieldDescriptor
	observers    [codes.Unauthenticated + 1]atomic.Pointer[prometheus.Observer]
}

// exemptServices are gRPC's own.
var exemptServices = []string{
	"grpc.health.v1.Health",
	"grpc.reflection.v1.ServerReflection",
	"grpc.reflection.v1alpha.ServerReflection",
}

// describe reads the options of all registered methods once. It fails, naming
// the method, when one says not who may call it.
func (g *grpcServer) describe() error {
	var (
		problems []error
		messages []protoreflect.MessageDescriptor
	)
	g.methods = map[string]*method{}
	for name, info := range g.server.GetServiceInfo() {
		if slices.Contains(exemptServices, name) {
			for _, m := range info.Methods {
				full := "/" + name + "/" + m.Name
				g.methods[full] = &method{name: full, exempt: true}
			}
			continue
		}
		found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
		if err != nil {
			problems = append(problems, fmt.Errorf("service %s is registered and its descriptor is not linked in: %w", name, err))
			continue
		}
		service, ok := found.(protoreflect.ServiceDescriptor)
		if !ok {
			problems = append(problems, fmt.Errorf("%s is registered as a service and is none", name))
			continue
		}
		for i := range service.Methods().Len() {
			d := service.Methods().Get(i)
			m, err := newMethod(d)
			if err == nil && m.caller == accessv1.Caller_CALLER_ACCOUNT && g.verifier == nil {
				err = fmt.Errorf("%s is for accounts, and GRPCOptions.Keys is nil: tokens cannot be verified", m.name)
			}
			if err != nil {
				problems = append(problems, err)
				continue
			}
			g.methods[m.name] = m
			messages = append(messages, d.Input())
		}
		g.service.serves(name)
	}
	if len(problems) > 0 {
		return errors.Join(problems...)
	}
	var err error
	// All rules are compiled here and none while a caller waits.
	g.validator, err = protovalidate.New(protovalidate.WithMessageDescriptors(messages...), protovalidate.WithDisableLazy())
	if err != nil {
		return fmt.Errorf("compiling the validation rules: %w", err)
	}
	return nil
}

func newMethod(d protoreflect.MethodDescriptor) (*method, error) {
	m := &method{name: fmt.Sprintf("/%s/%s", d.Parent().FullName(), d.Name())}
	rule, _ := proto.GetExtension(d.Options(), accessv1.E_Access).(*accessv1.Access)
	m.caller, m.services = rule.GetCaller(), rule.GetServices()
	switch m.caller {
	case accessv1.Caller_CALLER_ANYONE, accessv1.Caller_CALLER_ACCOUNT:
		if len(m.services) > 0 {
			return nil, fmt.Errorf("%s names services and is for %s; use CALLER_SERVICE, or name none", m.name, m.caller)
		}
	case accessv1.Caller_CALLER_SERVICE:
		if len(m.services) == 0 {
			return nil, fmt.Errorf("%s is for services and names none", m.name)
		}
	default:
		return nil, fmt.Errorf("%s does not say who may call it; add option (marquee.access.v1.access) = {caller: …} to the method", m.name)
	}
	return m, m.needRoles(rule, d.Input())
}

// needRoles reads the roles of a rule, and finds the field that holds the
// organisation.
func (m *method) needRoles(rule *accessv1.Access, request protoreflect.MessageDescriptor) error {
	path := rule.GetOrganisationField()
	switch {
	case len(rule.GetRoles()) == 0 && path == "":
		return nil
	case m.caller != accessv1.Caller_CALLER_ACCOUNT:
		return fmt.Errorf("%s names roles and is for %s; use CALLER_ACCOUNT, or name none", m.name, m.caller)
	case len(rule.GetRoles()) == 0:
		return fmt.Errorf("%s names organisation_field %q and no roles", m.name, path)
	case path == "":
		return fmt.Errorf("%s names roles and not the field of the organisation they are in; add organisation_field", m.name)
	}
	for _, r := range rule.GetRoles() {
		role, ok := auth.RoleOf(r)
		if !ok || slices.Contains(m.roles, role) {
			return fmt.Errorf("%s names the role %s, which is none, or twice", m.name, r)
		}
		m.roles = append(m.roles, role)
	}
	for in, names := request, strings.Split(path, "."); len(names) > 0; names = names[1:] {
		var field protoreflect.FieldDescriptor
		if in != nil {
			field = in.Fields().ByName(protoreflect.Name(names[0]))
		}
		if field == nil || field.Cardinality() == protoreflect.Repeated || (len(names) == 1) != (field.Kind() == protoreflect.StringKind) {
			return fmt.Errorf("%s names organisation_field %q, and %s has no such string field", m.name, path, request.FullName())
		}
		m.organisation = append(m.organisation, field)
		in = field.Message()
	}
	return nil
}

// organisationOf is the id in a request, or empty.
func (m *method) organisationOf(message any) string {
	p, ok := message.(proto.Message)
	if !ok {
		return ""
	}
	in, last := p.ProtoReflect(), len(m.organisation)-1
	for _, field := range m.organisation[:last] {
		in = in.Get(field).Message()
	}
	return in.Get(m.organisation[last]).String()
}

// admit decides whether the call's caller may call its method at all, and returns
// the context that knows the caller; check decides about each message.
func (g *grpcServer) admit(ctx context.Context, c *call) (context.Context, error) {
	c.inner = ctx
	switch {
	case c.method.exempt, c.method.caller == accessv1.Caller_CALLER_ANYONE:
		// A token is not looked at: an expired one must not stand in the way of
		// logging in again.
		return ctx, nil
	case c.method.caller == accessv1.Caller_CALLER_ACCOUNT:
		caller, err := g.verifier.Verify(ctx, bearerToken(ctx))
		if err != nil {
			return nil, err
		}
		if len(c.method.roles) == 0 && caller.APIKeyID != "" {
			return nil, auth.ErrAccountNeeded
		}
		c.inner = auth.ContextWithCaller(ctx, caller)
		return c.inner, nil
	default:
		peer, ok := mesh.PeerFromContext(ctx)
		if !ok || !slices.Contains(c.method.services, peer.Service) {
			return nil, errServiceNotAllowed
		}
		return ctx, nil
	}
}

// follow ends an admitted stream when its caller would not be let in any more: the
// session ended, the API key was revoked, the roles changed, the token expired.
func (g *grpcServer) follow(open *grpcfault.Stream, c *call) (leave func(), err error) {
	if c.method.caller != accessv1.Caller_CALLER_ACCOUNT {
		return func() {}, nil
	}
	return g.verifier.Follow(bearerToken(c), len(c.method.roles) > 0, func(why error) { open.End(why, c.requestID) })
}

// check refuses a message that breaks its rules, and one about an organisation in
// which the caller has none of the method's roles. A message that names no
// organisation breaks a rule, if there is one, rather than being somebody else's.
func (g *grpcServer) check(ctx context.Context, m *method, message any) error {
	if len(m.roles) == 0 {
		return g.validate(m, message)
	}
	caller, ok := auth.CallerFromContext(ctx)
	if !ok {
		return auth.ErrTokenMissing
	}
	organisation := m.organisationOf(message)
	if organisation == "" {
		if err := g.validate(m, message); err != nil {
			return err
		}
	}
	if err := g.verifier.Authorize(caller, organisation, m.roles); err != nil {
		return err
	}
	return g.validate(m, message)
}

// errServiceNotAllowed is for methods that are reserved for some services.
// Where the mesh does not say who the peer is (plaintext), nobody is one.
var errServiceNotAllowed = fault.New(fault.PermissionDenied, "SERVICE_NOT_ALLOWED", "this method is reserved for other services of the platform")

// bearerToken is the token of "authorization: Bearer <token>", or empty.
func bearerToken(ctx context.Context) string {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) != 1 {
		return ""
	}
	const scheme = "bearer "
	v := values[0]
	if len(v) < len(scheme) || !strings.EqualFold(v[:len(scheme)], scheme) {
		return ""
	}
	return strings.TrimSpace(v[len(scheme):])
}
