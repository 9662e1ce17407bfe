package service_test

import (
	"context"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/service"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// BenchmarkCall compares a unary call on a bare grpc-go server with one through
// everything that the harness does, both in plaintext on loopback.
func BenchmarkCall(b *testing.B) {
	b.Run("Bare", func(b *testing.B) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(b, err)
		server := grpc.NewServer()
		echov1.RegisterEchoServiceServer(server, &stub{})
		go server.Serve(listener)
		defer server.Stop()
		benchmarkCalls(b, listener.Addr().String())
	})
	b.Run("Harness", func(b *testing.B) {
		listening := make(chan service.Addresses, 1)
		cfg := plaintext()
		cfg.LogLevel = "warn"
		cfg.OnListening = func(a service.Addresses) { listening <- a }
		svc, err := service.New(context.Background(), cfg)
		require.NoError(b, err)
		echov1.RegisterEchoServiceServer(svc.NewGRPCServer(service.GRPCOptions{Keys: auth.NoKeys{}}), &stub{})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- svc.Serve(ctx) }()
		benchmarkCalls(b, (<-listening).Mesh)
		cancel()
		require.NoError(b, <-done)
	})
}

func benchmarkCalls(b *testing.B, address string) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(b, err)
	defer conn.Close()
	client := echov1.NewEchoServiceClient(conn)
	request := &echov1.EchoRequest{Text: "a text of some forty bytes to be echoed"}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err = client.Echo(ctx, request)
	require.NoError(b, err)
	b.SetParallelism(16)
	b.ReportAllocs()
	b.ResetTimer()
	before := cpuTime(b)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := client.Echo(ctx, request); err != nil {
				b.Error(err)
				return
			}
		}
	}) // Wall time on a shared machine says little; CPU time is what a call costs.
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
