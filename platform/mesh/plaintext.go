package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/marquee-ads/marquee/platform/discovery"
)

// PlaintextConfig is what Plaintext needs.
type PlaintextConfig struct {
	// Addresses are the instances of services, host:port with a loopback
	// address. A service that is not here is looked up with Resolver and
	// Watcher, if they are given.
	Addresses map[string][]string
	// Resolver resolves consul:///SERVICE?connect=false for NewClient.
	Resolver resolver.Builder
	// Watcher finds instances for DialContext, in Environment.
	Watcher     discovery.Watcher
	Environment string
}

// Plaintext is no mesh at all, for tests and benches: nobody is proved, anybody
// is let in, and nothing but loopback is dialled or served.
func Plaintext(cfg PlaintextConfig) (Mesh, error) {
	static := make(map[string][]discovery.Instance)
	for service, addresses := range cfg.Addresses {
		for _, address := range addresses {
			if err := checkLoopbackAddress(address); err != nil {
				return nil, fmt.Errorf("mesh: instance of %s: %w", service, err)
			}
			static[service] = append(static[service], discovery.Instance{ID: address, Address: address})
		}
	}
	l := &local{}
	watcher := staticWatcher{static: static, other: cfg.Watcher}
	targets := newInstances(context.Background(), watcher, discovery.Query{
		Tags: []string{discovery.EnvironmentTag(cfg.Environment)},
	})
	l.close = targets.close
	l.target = func(service string) (string, []grpc.DialOption, error) {
		if list, ok := static[service]; ok {
			return "static:///" + service, []grpc.DialOption{grpc.WithResolvers(staticResolver(list))}, nil
		}
		if cfg.Resolver == nil {
			return "", nil, errors.New("it has no address in PlaintextConfig, which has no Resolver either")
		}
		return consulTarget(service, "connect=false"), []grpc.DialOption{grpc.WithResolvers(cfg.Resolver)}, nil
	}
	l.dial = func(ctx context.Context, service, port, name string) (net.Conn, error) {
		return targets.dial(ctx, service, port, name, l.connect)
	}
	return l, nil
}

func staticResolver(list []discovery.Instance) resolver.Builder {
	r := manual.NewBuilderWithScheme("static")
	var state resolver.State
	for _, instance := range list {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: instance.Address}}})
	}
	r.InitialState(state)
	return r
}

// staticWatcher knows some services by heart and asks another about the rest.
type staticWatcher struct {
	static map[string][]discovery.Instance
	other  discovery.Watcher
}

func (w staticWatcher) Watch(ctx context.Context, q discovery.Query, update func([]discovery.Instance, error)) {
	list, known := w.static[q.Service]
	switch {
	case known:
		update(list, nil)
	case w.other == nil:
		update(nil, errors.New("it has no address in PlaintextConfig, which has no Watcher either"))
	default:
		w.other.Watch(ctx, q, update)
		return
	}
	<-ctx.Done()
}
