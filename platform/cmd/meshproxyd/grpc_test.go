package main

import (
	"context"
	"net"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/marquee-ads/marquee/platform/discovery"
	"github.com/marquee-ads/marquee/platform/mesh"
)

// TestGRPC has a gRPC server behind, of any language, that knows nothing of the mesh.
func TestGRPC(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer()
	healthv1.RegisterHealthServer(server, health.NewServer())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		require.NoError(t, <-ended)
	})
	p := startProxy(t, listener.Addr().String(), nil)
	p.becomes(t, true)

	found := discovery.New(p.agent.Client, discovery.Options{})
	t.Cleanup(func() { require.NoError(t, found.Close()) })
	caller, err := mesh.Native(context.Background(), mesh.NativeConfig{
		Consul: p.agent.Client, Service: "account", Environment: "test",
		Resolver: discovery.NewBuilder(found, "test"), Watcher: found,
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, caller.Close()) })
	conn, err := caller.NewClient("account-db")
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })

	call := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{}, grpc.WaitForReady(true))
		return err
	}
	require.NoError(t, call())
	intend(t, p.agent.Client, consulapi.IntentionActionDeny)
	require.Eventually(t, func() bool { return call() != nil }, 5*time.Second, 10*time.Millisecond, "a deny does not cut it off")
	intend(t, p.agent.Client, consulapi.IntentionActionAllow)
	require.Eventually(t, func() bool { return call() == nil }, 10*time.Second, 10*time.Millisecond, "an allow does not restore it")
}
