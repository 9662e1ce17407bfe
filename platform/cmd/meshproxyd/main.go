// Command meshproxyd is the way through the mesh to a server that does not
// speak it, Postgres first: it accepts mesh connections from whom an intention
// allows, and copies bytes to a server that only this machine can reach. Servers
// that talk to each other, as those of NATS do, find each other through it, too.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/platform/mesh"
	"github.com/marquee-ads/marquee/platform/service"
)

type config struct {
	service.Config

	Upstream       string        `required:"" placeholder:"ADDRESS" help:"The server behind: unix:/path/to/socket (of any length) or a loopback host:port. It may appear later: until it accepts connections this instance is not ready."`
	UpstreamWait   time.Duration `default:"5s" help:"How long a new connection waits for an upstream that does not accept, for example while it restarts, before it is closed."`
	MaxConnections int           `default:"500" help:"Connections at once; one more is closed at once. Choose more than the server behind accepts, so that its own message is seen."`

	PeersListen   string   `placeholder:"ADDRESS" help:"Mesh address at which the other instances of this service come in, and nobody else, on their way to --peers-upstream. The service needs an edge to itself."`
	PeersUpstream string   `placeholder:"ADDRESS" help:"The server behind --peers-listen, as --upstream says it."`
	PeersName     string   `placeholder:"NAME" help:"This instance's name for the others, another for each."`
	Peer          []string `placeholder:"ADDRESS=NAME" help:"A loopback host:port at which whoever connects is led to the instance of this service that has this --peers-name. May be given several times."`
}

// Validate reports what is wrong with the settings that are meshproxyd's own.
func (c *config) Validate() error {
	var problems []error
	if _, err := parseUpstream(c.Upstream); err != nil {
		problems = append(problems, fmt.Errorf("--upstream: %w", err))
	}
	if c.UpstreamWait < 0 {
		problems = append(problems, fmt.Errorf("--upstream-wait: %s is negative; use 0s or more", c.UpstreamWait))
	}
	if c.MaxConnections < 1 {
		problems = append(problems, fmt.Errorf("--max-connections: %d admits nobody; use 1 or more", c.MaxConnections))
	}
	if c.PeersListen != "" {
		if _, err := parseUpstream(c.PeersUpstream); err != nil {
			problems = append(problems, fmt.Errorf("--peers-upstream: %w", err))
		}
		if c.PeersName == "" {
			problems = append(problems, errors.New("--peers-name: --peers-listen needs it, for the others to find this instance by"))
		}
	}
	for _, text := range c.Peer {
		if _, _, err := parsePeer(text); err != nil {
			problems = append(problems, fmt.Errorf("--peer: %w", err))
		}
	}
	return errors.Join(problems...)
}

// parsePeer reads ADDRESS=NAME.
func parsePeer(text string) (address, name string, err error) {
	address, name, _ = strings.Cut(text, "=")
	host, _, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() || name == "" {
		return "", "", fmt.Errorf("%q is not a loopback address, = and a name; use for example 127.0.0.1:6222=1", text)
	}
	return address, name, nil
}

func main() { service.Main("meshproxyd", run) }

func run(ctx context.Context, cfg config) error {
	behind, err := parseUpstream(cfg.Upstream)
	if err != nil {
		return fmt.Errorf("--upstream: %w", err)
	}
	svc, err := service.New(ctx, cfg.Config)
	if err != nil {
		return err
	}
	defer svc.Close()
	measured := newMetrics(svc.Metrics())
	p := newProxy(func(ctx context.Context) (halfCloser, error) {
		return behind.dialWithin(ctx, cfg.UpstreamWait)
	}, cfg.MaxConnections, svc.Log(), measured)
	svc.Require("upstream", behind.check)
	svc.Add(service.Component{
		Name: "proxy",
		Start: func(ctx context.Context) error {
			address, err := p.start(ctx, cfg.Listen, svc.Mesh().Listener, svc.Fail)
			if err != nil {
				return fmt.Errorf("--listen: %w", err)
			}
			svc.Announce(address)
			return nil
		},
		Stop: p.stop,
	})
	if err := addPeers(cfg, svc, measured); err != nil {
		return err
	}
	return svc.Serve(ctx)
}

// peersPort is what instances register the mesh port of their peers as.
const peersPort = "peers"

// addPeers adds the ways between the servers behind this instance and the others.
func addPeers(cfg config, svc *service.Service, measured metrics) error {
	if cfg.PeersListen != "" {
		behind, err := parseUpstream(cfg.PeersUpstream)
		if err != nil {
			return fmt.Errorf("--peers-upstream: %w", err)
		}
		p := newProxy(func(ctx context.Context) (halfCloser, error) {
			return behind.dialWithin(ctx, cfg.UpstreamWait)
		}, cfg.MaxConnections, svc.Log().Named("peers"), measured)
		p.admits = func(peer mesh.Identity) bool { return peer.Service == cfg.Name }
		svc.Add(service.Component{
			Name: "the way in for peers",
			Start: func(ctx context.Context) error {
				listening, err := p.start(ctx, cfg.PeersListen, svc.Mesh().Listener, svc.Fail)
				if err != nil {
					return fmt.Errorf("--peers-listen: %w", err)
				}
				address, err := svc.Advertised(listening)
				if err != nil {
					return fmt.Errorf("--peers-listen: %w", err)
				}
				svc.Annotate(mesh.InstanceMeta, cfg.PeersName)
				svc.Annotate(peersPort, address)
				return nil
			},
			Stop: p.stop,
		})
	}
	for _, text := range cfg.Peer {
		address, name, err := parsePeer(text)
		if err != nil {
			return fmt.Errorf("--peer: %w", err)
		}
		p := newProxy(func(ctx context.Context) (halfCloser, error) {
			ctx, cancel := context.WithTimeout(ctx, cfg.UpstreamWait)
			defer cancel()
			return halfClosing(svc.Mesh().DialInstance(ctx, cfg.Name, peersPort, name))
		}, cfg.MaxConnections, svc.Log().Named("peers").With("to", name), measured)
		svc.Add(service.Component{
			Name: "the way to " + name,
			Start: func(ctx context.Context) error {
				if _, err := p.start(ctx, address, nil, svc.Fail); err != nil {
					return fmt.Errorf("--peer: %w", err)
				}
				return nil
			},
			Stop: p.stop,
		})
	}
	return nil
}
