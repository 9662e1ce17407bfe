// Command plainecho is a yardstick: the echo service's cheapest call on a bare
// grpc-go server, in plaintext and with no interceptors.
package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"google.golang.org/grpc"

	"github.com/marquee-ads/marquee/bench/upstream"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

type server struct {
	echov1.UnimplementedEchoServiceServer
}

func (server) Echo(_ context.Context, r *echov1.EchoRequest) (*echov1.EchoResponse, error) {
	return &echov1.EchoResponse{Text: r.GetText(), InstanceId: "plain"}, nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "plainecho:", err)
		os.Exit(1)
	}
}

func run() error {
	flags := upstream.Parse("plainecho")
	ctx, stop := upstream.Signalled()
	defer stop()
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", flags.Listen)
	if err != nil {
		return err
	}
	fmt.Println("listening on", listener.Addr())
	s := grpc.NewServer()
	echov1.RegisterEchoServiceServer(s, server{})
	context.AfterFunc(ctx, s.Stop)
	return s.Serve(listener)
}
