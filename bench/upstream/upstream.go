// Package upstream is how a yardstick reaches the echo service: in plaintext, or
// through the mesh exactly as the gateway does, so that both pay for the same
// encryption.
package upstream

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/marquee-ads/marquee/platform/discovery"
	"github.com/marquee-ads/marquee/platform/mesh"
)

// Flags say where the echo service is.
type Flags struct {
	Listen    string
	plaintext string
	name      string
}

// Parse reads the flags that every yardstick has.
func Parse(name string) *Flags {
	f := &Flags{}
	flag.StringVar(&f.Listen, "listen", "127.0.0.1:0", "address to listen on")
	flag.StringVar(&f.plaintext, "plaintext", "", "host:port of a plaintext echo service; empty goes through the mesh")
	flag.StringVar(&f.name, "name", name, "this process's service name in the mesh")
	flag.Parse()
	return f
}

// Dial connects to the echo service.
func (f *Flags) Dial(ctx context.Context, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	if f.plaintext != "" {
		return grpc.NewClient(f.plaintext, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	}
	consul, err := consulapi.NewClient(consulapi.DefaultConfig())
	if err != nil {
		return nil, fmt.Errorf("make a Consul client: %w", err)
	}
	log := hclog.New(&hclog.LoggerOptions{Name: f.name, Level: hclog.Warn})
	instances := discovery.New(consul, discovery.Options{Log: log})
	m, err := mesh.Native(ctx, mesh.NativeConfig{
		Consul: consul, Service: f.name, Environment: "development", Log: log,
		Resolver: discovery.NewBuilder(instances, "development"), Watcher: instances,
	})
	if err != nil {
		return nil, err
	}
	if err := m.Ready(ctx); err != nil {
		return nil, err
	}
	return m.NewClient("echo", opts...)
}

// Signalled returns a context that ends with SIGINT or SIGTERM.
func Signalled() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
}
