// Command copyproxy is a yardstick: the least a gRPC proxy on grpc-go can do. It
// copies the bytes of any call to the echo service and back, with no discovery
// of methods, retries, limits, logs, metrics or health.
package main

import (
	"context"
	"errors"
	"io"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"

	"github.com/marquee-ads/marquee/bench/yardstick"
)

// raw passes messages as the bytes they are.
type raw struct{}

func (raw) Name() string { return "proto" }
func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return *v.(*mem.BufferSlice), nil
}
func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	data.Ref()
	*v.(*mem.BufferSlice) = data
	return nil
}

var _ encoding.CodecV2 = raw{}

func main() {
	echo := yardstick.EchoFlag()
	yardstick.Main(func(ctx context.Context, listener net.Listener) error {
		conn, hangUp, err := echo.Dial(ctx, "copyproxy")
		if err != nil {
			return err
		}
		defer hangUp()
		server := grpc.NewServer(grpc.ForceServerCodecV2(raw{}), grpc.UnknownServiceHandler(func(_ any, in grpc.ServerStream) error {
			return forward(conn, in)
		}))
		return yardstick.ServeGRPC(ctx, listener, server)
	})
}

func forward(conn *grpc.ClientConn, in grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(in)
	ctx, cancel := context.WithCancel(in.Context())
	defer cancel()
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		ctx = metadata.NewOutgoingContext(ctx, md)
	}
	out, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method, grpc.ForceCodecV2(raw{}))
	if err != nil {
		return err
	}
	up := make(chan error, 1)
	go func() { up <- pump(out.SendMsg, in.RecvMsg, out.CloseSend) }()
	header, err := out.Header()
	if err != nil {
		return err
	}
	if err := in.SetHeader(header); err != nil {
		return err
	}
	err = pump(in.SendMsg, out.RecvMsg, func() error { return nil })
	in.SetTrailer(out.Trailer())
	return err
}

func pump(send, receive func(any) error, end func() error) error {
	for {
		var message mem.BufferSlice
		if err := receive(&message); err != nil {
			if errors.Is(err, io.EOF) {
				return end()
			}
			return err
		}
		err := send(&message)
		message.Free()
		if err != nil {
			return err
		}
	}
}
