// Command restgateway is a yardstick: the generated grpc-gateway for the echo
// service, as its documentation shows it, with no discovery, retries, limits,
// logs or metrics.
package main

import (
	"context"
	"fmt"
	"net"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"

	echogw "github.com/marquee-ads/marquee/bench/cmd/restgateway/gen/marquee/echo/v1"
	"github.com/marquee-ads/marquee/bench/yardstick"
)

func main() {
	echo := yardstick.EchoFlag()
	yardstick.Main(func(ctx context.Context, listener net.Listener) error {
		conn, hangUp, err := echo.Dial(ctx, "restgateway")
		if err != nil {
			return err
		}
		defer hangUp()
		mux := runtime.NewServeMux()
		if err := echogw.RegisterEchoServiceHandler(ctx, mux, conn); err != nil {
			return fmt.Errorf("register the handler: %w", err)
		}
		return yardstick.ServeHTTP(ctx, listener, mux)
	})
}
