package gateway_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"

	"github.com/marquee-ads/marquee/platform/mesh"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// BenchmarkUnary compares a unary call direct, through a plain grpc-go proxy
// that copies bytes, and through the gateway, all within this process: the
// figure to look at is cpu-us/op, processor time of client, proxy and service
// together.
func BenchmarkUnary(b *testing.B) {
	service := startEcho(b)
	gw := startOne(b, service)
	for _, way := range []struct{ name, address string }{
		{"Direct", service.address},
		{"CopyProxy", startCopyProxy(b, service.address)},
		{"Gateway", gw.GRPCAddr().String()},
	} {
		b.Run(way.name, func(b *testing.B) {
			conn, err := grpc.NewClient(way.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
			require.NoError(b, err)
			defer conn.Close()
			client := echov1.NewEchoServiceClient(conn)
			request := &echov1.EchoRequest{Text: strings.Repeat("x", 100)}
			measure(b, func() error {
				// As every client should: with a deadline.
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				_, err := client.Echo(ctx, request)
				return err
			})
		})
	}
	b.Run("GatewayREST", func(b *testing.B) {
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
		defer client.CloseIdleConnections()
		url := gw.url + "/v1/echo/" + strings.Repeat("x", 100)
		measure(b, func() error {
			response, err := client.Get(url)
			if err != nil {
				return err
			}
			defer response.Body.Close()
			_, err = io.Copy(io.Discard, response.Body)
			return err
		})
	})
}

func measure(b *testing.B, call func() error) {
	require.NoError(b, call())
	b.SetParallelism(8)
	b.ReportAllocs()
	before := processorTime(b)
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if err := call(); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(processorTime(b)-before)/1e3/float64(b.N), "cpu-us/op")
}

// processorTime is what this process has used, in nanoseconds.
func processorTime(b *testing.B) int64 {
	var usage syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return usage.Utime.Nano() + usage.Stime.Nano()
}

// startCopyProxy is the yardstick: the usual transparent proxy over grpc-go, one
// goroutine for each direction.
func startCopyProxy(b *testing.B, target string) string {
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(copyCodec{})), grpc.WithDefaultServiceConfig("{"+mesh.RoundRobinConfig+"}"))
	require.NoError(b, err)
	handle := func(_ any, from grpc.ServerStream) error {
		md, _ := metadata.FromIncomingContext(from.Context())
		ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(from.Context(), md))
		defer cancel()
		path, _ := grpc.MethodFromServerStream(from)
		to, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, path)
		if err != nil {
			return err
		}
		go func() {
			for {
				var m []byte
				if from.RecvMsg(&m) != nil {
					_ = to.CloseSend()
					return
				}
				if to.SendMsg(&m) != nil {
					return
				}
			}
		}()
		for first := true; ; first = false {
			var m []byte
			if err := to.RecvMsg(&m); err != nil {
				from.SetTrailer(to.Trailer())
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
			if first {
				header, _ := to.Header()
				if err := from.SetHeader(header); err != nil {
					return err
				}
			}
			if err := from.SendMsg(&m); err != nil {
				return err
			}
		}
	}
	server := grpc.NewServer(grpc.ForceServerCodecV2(copyCodec{}), grpc.UnknownServiceHandler(handle))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(listener) }()
	b.Cleanup(func() { server.Stop(); conn.Close(); <-served })
	return listener.Addr().String()
}

type copyCodec struct{}

func (copyCodec) Name() string { return "proto" }

func (copyCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (copyCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

var _ encoding.CodecV2 = copyCodec{}
