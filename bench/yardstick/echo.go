package yardstick

import (
	"context"
	"errors"
	"flag"
	"fmt"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/marquee-ads/marquee/platform/discovery"
	"github.com/marquee-ads/marquee/platform/mesh"
)

// Environment is what everything that is measured is registered for.
const Environment = "development"

// Echo is the echo service: in plaintext, or in the mesh, which its caller then
// enters exactly as the gateway does, so that both pay for the same encryption.
type Echo struct{ plaintext string }

// EchoFlag adds the flag that says where the echo service is.
func EchoFlag() *Echo {
	e := &Echo{}
	flag.StringVar(&e.plaintext, "plaintext", "", "host:port of a plaintext echo service; empty goes through the mesh")
	return e
}

// Dial connects to the echo service, in the mesh as the service of this name;
// hangUp ends what that began.
func (e *Echo) Dial(ctx context.Context, name string) (conn *grpc.ClientConn, hangUp func(), err error) {
	if e.plaintext != "" {
		conn, err := grpc.NewClient(e.plaintext, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, nil, fmt.Errorf("connect to %s: %w", e.plaintext, err)
		}
		return conn, func() { conn.Close() }, nil
	}
	consul, err := consulapi.NewClient(consulapi.DefaultConfig())
	if err != nil {
		return nil, nil, fmt.Errorf("make a Consul client: %w", err)
	}
	return DialMesh(ctx, consul, name, "echo")
}

// DialMesh connects to a service in the mesh, as the service of this name; hangUp
// ends what that began.
func DialMesh(ctx context.Context, consul *consulapi.Client, name, service string) (conn *grpc.ClientConn, hangUp func(), err error) {
	log := hclog.New(&hclog.LoggerOptions{Name: name, Level: hclog.Warn})
	instances := discovery.New(consul, discovery.Options{Log: log})
	m, err := mesh.Native(ctx, mesh.NativeConfig{
		Consul: consul, Service: name, Environment: Environment, Log: log,
		Resolver: discovery.NewBuilder(instances, Environment), Watcher: instances,
	})
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("enter the mesh as %s: %w", name, err), instances.Close())
	}
	leave := func() error { return errors.Join(m.Close(), instances.Close()) }
	if err := m.Ready(ctx); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("enter the mesh as %s: %w", name, err), leave())
	}
	if conn, err = m.NewClient(service); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("connect to %s: %w", service, err), leave())
	}
	return conn, func() { conn.Close(); _ = leave() }, nil
}
