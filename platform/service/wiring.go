package service

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/marquee-ads/marquee/platform/discovery"
	"github.com/marquee-ads/marquee/platform/mesh"
)

// wire makes the clients of the agent and the place in the mesh.
func (s *Service) wire(ctx context.Context) error {
	var err error
	if s.consul, err = newConsul(s.cfg); err != nil {
		return err
	}
	s.discovery = discovery.New(s.consul, discovery.Options{Log: s.log.Named("discovery")})
	s.mesh, err = s.newMesh(ctx)
	if err != nil {
		return fmt.Errorf("joining the mesh (%s): %w", s.cfg.Mesh, err)
	}
	return nil
}

func newConsul(cfg Config) (*consul.Client, error) {
	c := consul.DefaultConfig()
	if cfg.ConsulTokenFile != "" {
		token, err := cfg.Secret("consul-token-file", cfg.ConsulTokenFile)
		if err != nil {
			return nil, err
		}
		c.Token = token
	}
	client, err := discovery.NewClient(*c, cfg.consulAddresses()...)
	if err != nil {
		return nil, fmt.Errorf("--consul-addr: %w", err)
	}
	return client, nil
}

func (s *Service) newMesh(ctx context.Context) (mesh.Mesh, error) {
	switch s.cfg.Mesh {
	case MeshNative:
		// Calls in flight need the mesh after the service was told to stop.
		return mesh.Native(context.WithoutCancel(ctx), mesh.NativeConfig{
			Consul:      s.consul,
			Service:     s.cfg.Name,
			Environment: s.cfg.Environment,
			Log:         s.log,
			Resolver:    discovery.NewBuilder(s.discovery, s.cfg.Environment),
			Watcher:     s.discovery,
		})
	case MeshSidecar:
		return mesh.Sidecar(mesh.SidecarConfig{})
	default:
		return mesh.Plaintext(mesh.PlaintextConfig{
			Addresses:   s.cfg.Upstreams,
			Resolver:    discovery.NewBuilder(s.discovery, s.cfg.Environment),
			Watcher:     s.discovery,
			Environment: s.cfg.Environment,
		})
	}
}

// Advertised is the host:port under which others reach a listener of this
// process that is not the one it announces: the host that --advertise says, or
// where the listener is, or the source address of the route to Consul.
func (s *Service) Advertised(listening net.Addr) (string, error) {
	host := s.cfg.Advertise
	if named, _, err := net.SplitHostPort(host); err == nil {
		host = named // the port is that of the announced listener
	}
	address, err := discovery.AdvertiseAddress(listening, host, s.cfg.consulAddresses()[0])
	if err != nil {
		return "", fmt.Errorf("--advertise: %w", err)
	}
	return address, nil
}

// register puts the instance into Consul where nothing else does. It returns
// nil when there is nothing to register.
func (s *Service) register(ctx context.Context) (*discovery.Registered, error) {
	listening, tags := s.announced()
	if !s.cfg.registers() || listening == nil {
		return nil, nil
	}
	address, err := discovery.AdvertiseAddress(listening, s.cfg.Advertise, s.cfg.consulAddresses()[0])
	if err != nil {
		return nil, fmt.Errorf("--advertise: %w", err)
	}
	registered, err := discovery.Register(ctx, s.consul, discovery.Registration{
		Service:       s.cfg.Name,
		ID:            s.instanceID,
		Address:       address,
		Environment:   s.cfg.Environment,
		Tags:          tags,
		Meta:          s.metadata(),
		ConnectNative: s.cfg.Mesh == MeshNative,
		Log:           s.log,
	})
	if err != nil {
		return nil, fmt.Errorf("registering %s in Consul: %w", s.cfg.Name, err)
	}
	s.log.Info("registered", "address", address)
	return registered, nil
}

// leave takes the instance out of Consul.
func (s *Service) leave(registered *discovery.Registered) {
	if registered == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := registered.Deregister(ctx); err != nil {
		s.log.Warn("leaving Consul; its TTL ends the registration", "error", err)
	}
}

// instanceID is the allocation's id under Nomad, so that an answer can be
// traced to its logs, and otherwise unique by chance.
func instanceID(name string) string {
	if id := os.Getenv("NOMAD_ALLOC_ID"); id != "" {
		return name + "-" + id
	}
	return name + "-" + strings.ToLower(rand.Text()[:12])
}
