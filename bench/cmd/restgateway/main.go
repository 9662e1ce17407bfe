// Command restgateway is a yardstick: the generated grpc-gateway for the echo
// service, as its documentation shows it, with no discovery, retries, limits,
// logs or metrics.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"

	echogw "github.com/marquee-ads/marquee/bench/cmd/restgateway/gen/marquee/echo/v1"
	"github.com/marquee-ads/marquee/bench/upstream"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "restgateway:", err)
		os.Exit(1)
	}
}

func run() error {
	flags := upstream.Parse("restgateway")
	ctx, stop := upstream.Signalled()
	defer stop()
	conn, err := flags.Dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	mux := runtime.NewServeMux()
	if err := echogw.RegisterEchoServiceHandler(ctx, mux, conn); err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", flags.Listen)
	if err != nil {
		return err
	}
	fmt.Println("listening on", listener.Addr())
	server := &http.Server{Handler: mux} //nolint:gosec // a yardstick on loopback, as its documentation shows it
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
