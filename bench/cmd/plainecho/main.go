// Command plainecho is a yardstick: the echo service's cheapest call on a bare
// grpc-go server, in plaintext and with no interceptors.
package main

import (
	"context"
	"net"

	"google.golang.org/grpc"

	"github.com/marquee-ads/marquee/bench/yardstick"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

type server struct {
	echov1.UnimplementedEchoServiceServer
}

func (server) Echo(_ context.Context, r *echov1.EchoRequest) (*echov1.EchoResponse, error) {
	return &echov1.EchoResponse{Text: r.GetText(), InstanceId: "plain"}, nil
}

func main() {
	yardstick.Main(func(ctx context.Context, listener net.Listener) error {
		s := grpc.NewServer()
		echov1.RegisterEchoServiceServer(s, server{})
		return yardstick.ServeGRPC(ctx, listener, s)
	})
}
