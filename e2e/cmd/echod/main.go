// Command echod serves marquee.echo.v1.EchoService on the service harness: all
// that a small service consists of.
package main

import (
	"context"

	"github.com/marquee-ads/marquee/e2e/echo"
	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/service"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

type config struct {
	service.Config
	KeysFrom string `help:"Service that publishes the keys of access tokens: account. Without it methods for accounts answer UNAVAILABLE."`
}

func main() { service.Main("echo", run) }

func run(ctx context.Context, cfg config) error {
	svc, err := service.New(ctx, cfg.Config)
	if err != nil {
		return err
	}
	defer svc.Close()

	var keys auth.Keys = auth.NoKeys{}
	if cfg.KeysFrom != "" {
		conn, err := svc.NewClient(cfg.KeysFrom)
		if err != nil {
			return err
		}
		defer conn.Close()
		remote := auth.NewRemoteKeys(conn, svc.Log())
		svc.AddBackground("reading the signing keys", remote.Run)
		keys = remote
	}

	server := svc.NewGRPCServer(service.GRPCOptions{Keys: keys})
	echov1.RegisterEchoServiceServer(server, echo.New(svc.InstanceID()))
	return svc.Serve(ctx)
}
