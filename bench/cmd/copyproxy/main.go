// Command copyproxy is a yardstick: the least a gRPC proxy on grpc-go can do. It
// copies the bytes of any call to the echo service and back, with no discovery
// of methods, retries, limits, logs, metrics or health.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"

	"github.com/marquee-ads/marquee/bench/upstream"
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
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "copyproxy:", err)
		os.Exit(1)
	}
}

func run() error {
	flags := upstream.Parse("copyproxy")
	ctx, stop := upstream.Signalled()
	defer stop()
	conn, err := flags.Dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	server := grpc.NewServer(grpc.ForceServerCodecV2(raw{}), grpc.UnknownServiceHandler(func(_ any, in grpc.ServerStream) error {
		return forward(conn, in)
	}))
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", flags.Listen)
	if err != nil {
		return err
	}
	fmt.Println("listening on", listener.Addr())
	context.AfterFunc(ctx, server.Stop)
	return server.Serve(listener)
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
