// Command meshproxyd is the way through the mesh to a server that does not
// speak it, Postgres first: it accepts mesh connections from whom an intention
// allows, and copies bytes to a server that only this machine can reach.
package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/marquee-ads/marquee/platform/service"
)

type config struct {
	service.Config

	Upstream       string        `required:"" placeholder:"ADDRESS" help:"The server behind: unix:/path/to/socket (of any length) or a loopback host:port. It may appear later: until it accepts connections this instance is not ready."`
	UpstreamWait   time.Duration `default:"5s" help:"How long a new connection waits for an upstream that does not accept, for example while it restarts, before it is closed."`
	MaxConnections int           `default:"500" help:"Connections at once; one more is closed at once. Choose more than the server behind accepts, so that its own message is seen."`
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
	return errors.Join(problems...)
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
	p := newProxy(behind, cfg.UpstreamWait, cfg.MaxConnections, svc.Log(), svc.Metrics())
	svc.Require("upstream", behind.check)
	svc.Add(service.Component{
		Name: "proxy",
		Start: func(ctx context.Context) error {
			address, err := p.start(ctx, cfg.Listen, svc.Mesh(), svc.Fail)
			if err != nil {
				return fmt.Errorf("--listen: %w", err)
			}
			svc.Announce(address)
			return nil
		},
		Stop: p.stop,
	})
	return svc.Serve(ctx)
}
