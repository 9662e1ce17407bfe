// Gatewayd is the gateway: the only door of the platform for people and
// programs. See --help.
package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/marquee-ads/marquee/platform/discovery"
	"github.com/marquee-ads/marquee/platform/service"
	"github.com/marquee-ads/marquee/services/gateway"
)

// config is everything that can be configured.
type config struct {
	service.Config
	Gateway gateway.Config `embed:""`
}

// Validate reports what is wrong with the gateway's own part.
func (c config) Validate() error {
	err := c.Gateway.Validate()
	if c.Listen != noMeshPort {
		err = errors.Join(err, fmt.Errorf("--listen: the gateway has no mesh port for %s; use --http-listen and --grpc-listen", c.Listen))
	}
	if c.Mode == service.Production {
		err = errors.Join(err, c.Gateway.ValidateProduction())
	}
	return err
}

// noMeshPort is the default of --listen, which every service has: nobody in the
// mesh calls the gateway.
const noMeshPort = "127.0.0.1:0"

func main() {
	service.Main[config]("gateway", run)
}

// run serves until ctx ends, and then until the calls in flight are done.
func run(ctx context.Context, cfg config) error {
	svc, err := service.New(ctx, cfg.Config)
	if err != nil {
		return err
	}
	defer svc.Close()

	gw, err := gateway.New(cfg.Gateway, gateway.Surroundings{
		Registry:       svc.Discovery(),
		Dial:           svc.NewClient,
		DialPort:       svc.Mesh().DialPort,
		Plaintext:      cfg.Mesh == service.MeshPlaintext,
		EnvironmentTag: discovery.EnvironmentTag(cfg.Environment),
		Log:            svc.Log(),
		Metrics:        svc.Metrics(),
		Admission:      svc.Admission(),
		Tracing:        svc.Tracing(),
		Failed:         svc.Fail,
	})
	if err != nil {
		return err
	}

	// The doors close before the connections to the services do.
	svc.AddBackground("catalog", gw.Catalog.Run)
	svc.Require("catalog", gw.Ready)
	svc.Add(service.Component{Name: "doors", Start: func(ctx context.Context) error {
		if err := gw.Open(ctx); err != nil {
			return fmt.Errorf("open the doors: %w", err)
		}
		address, err := svc.Advertised(gw.GRPCAddr())
		if err != nil {
			return err
		}
		svc.Announce(gw.HTTPAddr())
		svc.Annotate("grpc", address)
		if displays := gw.DeviceAddr(); displays != nil {
			if address, err = svc.Advertised(displays); err != nil {
				return err
			}
			svc.Annotate("devices", address)
		}
		svc.Log().Info("open", "http", gw.HTTPAddr(), "grpc", gw.GRPCAddr(), "devices", gw.DeviceAddr())
		return nil
	}, Stop: gw.Close})

	// From the first sign of leaving on, clients are told to go elsewhere.
	stop := context.AfterFunc(ctx, gw.Drain)
	defer stop()
	return svc.Serve(ctx)
}
