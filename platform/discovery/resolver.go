package discovery

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/resolver"
)

// Scheme is the scheme of targets that the resolver serves.
const Scheme = "consul"

// example is shown with every target that is refused.
const example = "consul:///account?tag=grpc&dc=dc1&near=_agent&connect=true"

// serviceName is what Consul's DNS can carry too; a name outside it is a typing
// error.
var serviceName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$`)

// NewBuilder makes the resolver of consul:///SERVICE targets; give it to
// grpc.WithResolvers. The parameters of a target are
//
//	tag      a tag the instances must carry, repeated for several
//	dc       Consul's datacenter; the agent's by default
//	near     a node to sort by, _agent for the agent's own
//	connect  true (default) for instances that speak the mesh's TLS, false for all
//
// The environment's tag is always demanded as well, so that one environment never
// dials another's instances. Give grpc.WithNoProxy beside it: otherwise grpc-go
// sends connections through HTTPS_PROXY where that is set.
func NewBuilder(c *Consul, environment string) resolver.Builder {
	return &builder{consul: c, environment: environment}
}

type builder struct {
	consul      *Consul
	environment string
}

func (b *builder) Scheme() string { return Scheme }

// Build starts watching. grpc-go calls it again when a connection leaves idle
// mode; the watch it ended then still has its answer.
func (b *builder) Build(target resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	query, err := parseTarget(target.URL, b.environment)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &consulResolver{consul: b.consul, query: query, cancel: cancel, done: make(chan struct{})}
	// The error says that the balancer can do nothing with an empty list: the watch
	// delivers the next one without being asked.
	list := &lingering{wait: b.consul.opts.Linger, update: func(instances []Instance) { _ = cc.UpdateState(stateOf(instances)) }}
	go func() {
		defer close(r.done)
		defer list.end()
		b.consul.Watch(ctx, query, func(instances []Instance, err error) {
			if err != nil {
				cc.ReportError(err)
				return
			}
			list.set(instances)
		})
	}()
	return r, nil
}

// lingering passes lists of instances on; one that is empty comes late, and not at all
// when another follows it in time.
type lingering struct {
	wait   time.Duration
	update func([]Instance)

	mu   sync.Mutex
	some bool        // the last that was passed on has instances
	last *time.Timer // passes the empty list on
}

func (l *lingering) set(instances []Instance) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(instances) == 0 && l.some && l.wait > 0 {
		if l.last == nil {
			l.last = time.AfterFunc(l.wait, l.over)
		}
		return
	}
	l.forget()
	l.some = len(instances) > 0
	l.update(instances)
}

// over passes the empty list on, unless it was forgotten in the last moment.
func (l *lingering) over() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last != nil {
		l.last, l.some = nil, false
		l.update(nil)
	}
}

// forget forgets an empty list. l.mu is held.
func (l *lingering) forget() {
	if l.last != nil {
		l.last.Stop()
		l.last = nil
	}
}

func (l *lingering) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget()
}

type consulResolver struct {
	consul *Consul
	query  Query
	cancel context.CancelFunc
	done   chan struct{}
}

// ResolveNow shortens the wait after a failed query. A query that is waiting for
// a change needs no reminder.
func (r *consulResolver) ResolveNow(resolver.ResolveNowOptions) { r.consul.resolveNow(r.query) }

func (r *consulResolver) Close() {
	r.cancel()
	<-r.done
}

func parseTarget(target url.URL, environment string) (Query, error) {
	refuse := func(format string, args ...any) (Query, error) {
		return Query{}, fmt.Errorf("target %q: %s (for example %s)", target.String(), fmt.Sprintf(format, args...), example)
	}
	if environment == "" {
		return refuse("the environment is empty: every query demands its tag")
	}
	if target.Host != "" || target.User != nil {
		return refuse("an authority is not supported: the process's own agent is asked, so write three slashes")
	}
	if target.Fragment != "" {
		return refuse("a fragment has no meaning here")
	}
	name := resolver.Target{URL: target}.Endpoint()
	if !serviceName.MatchString(name) {
		return refuse("%q is not a service name", name)
	}
	values, err := url.ParseQuery(target.RawQuery)
	if err != nil {
		return refuse("its parameters are malformed: %v", err)
	}
	query := Query{Service: name, Tags: []string{EnvironmentTag(environment)}, Connect: true}
	for _, parameter := range slices.Sorted(maps.Keys(values)) {
		given := values[parameter]
		if slices.Contains(given, "") {
			return refuse("parameter %q has no value", parameter)
		}
		if parameter != "tag" && len(given) > 1 {
			return refuse("parameter %q is given %d times", parameter, len(given))
		}
		switch parameter {
		case "tag":
			query.Tags = append(query.Tags, given...)
		case "dc":
			query.Datacenter = given[0]
		case "near":
			query.Near = given[0]
		case "connect":
			if query.Connect, err = strconv.ParseBool(given[0]); err != nil {
				return refuse("connect is true or false, not %q", given[0])
			}
		default:
			return refuse("parameter %q is unknown: there are tag, dc, near and connect", parameter)
		}
	}
	return query.canonical(), nil
}

type instanceKey struct{}

// InstanceFromEndpoint is the instance behind an endpoint that this resolver
// produced, for balancers.
func InstanceFromEndpoint(endpoint resolver.Endpoint) (Instance, bool) {
	instance, ok := endpoint.Attributes.Value(instanceKey{}).(Instance)
	return instance, ok
}

// stateOf puts the instance into the endpoint's attributes, which are for the
// balancer, and not into the address's, where another version or tag would look
// like another address and cost a working connection.
func stateOf(instances []Instance) resolver.State {
	state := resolver.State{
		Addresses: make([]resolver.Address, 0, len(instances)),
		Endpoints: make([]resolver.Endpoint, 0, len(instances)),
	}
	for _, instance := range instances {
		about := attributes.New(instanceKey{}, instance)
		state.Addresses = append(state.Addresses, resolver.Address{Addr: instance.Address})
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{
			Addresses:  []resolver.Address{{Addr: instance.Address}},
			Attributes: about,
		})
	}
	return state
}

// Equal lets grpc-go compare attributes that hold an Instance.
func (i Instance) Equal(other any) bool {
	o, ok := other.(Instance)
	return ok && i.equal(o)
}

func (i Instance) equal(o Instance) bool {
	return i.ID == o.ID && i.Address == o.Address && i.Node == o.Node &&
		slices.Equal(i.Tags, o.Tags) && maps.Equal(i.Meta, o.Meta)
}
