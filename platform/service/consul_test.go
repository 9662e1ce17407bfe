package service_test

import (
	"context"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/consultest"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	"github.com/marquee-ads/marquee/platform/mesh"
	"github.com/marquee-ads/marquee/platform/service"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// Two services on a real Consul: they register themselves, find each other, and
// know who calls.
func TestOnConsul(t *testing.T) {
	agent := consultest.Start(t)
	_, _, err := agent.Client.ConfigEntries().Set(&consul.ServiceIntentionsConfigEntry{
		Kind: consul.ServiceIntentions, Name: "echo",
		Sources: []*consul.SourceIntention{
			{Name: "echo-caller", Action: consul.IntentionActionAllow},
			{Name: "other", Action: consul.IntentionActionAllow},
			{Name: "gateway", Action: consul.IntentionActionAllow},
		},
	}, nil)
	require.NoError(t, err)
	native := func(name string) service.Config {
		cfg := plaintext()
		cfg.Name, cfg.Mesh, cfg.ConsulAddr = name, service.MeshNative, agent.Address
		return cfg
	}
	var from, address string
	server := start(t, native("echo"), service.GRPCOptions{Keys: auth.NoKeys{}}, echo(&stub{
		echo: func(ctx context.Context, r *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			peer, _ := mesh.PeerFromContext(ctx)
			from, address = peer.Service, service.ClientAddress(ctx)
			return &echov1.EchoResponse{}, nil
		},
	}))
	server.ready(200)
	instances := func() []*consul.ServiceEntry {
		found, _, err := agent.Client.Health().Connect("echo", "", true, nil)
		require.NoError(t, err)
		return found
	}
	require.Eventually(t, func() bool { return len(instances()) == 1 }, 5*time.Second, 10*time.Millisecond)
	registered := instances()[0].Service
	require.Equal(t, server.svc.InstanceID(), registered.ID)
	require.ElementsMatch(t, []string{"env-test", "grpc"}, registered.Tags)
	require.Equal(t, service.Version(), registered.Meta["version"])
	require.True(t, registered.Connect.Native)

	client := func(name string) echov1.EchoServiceClient {
		r := start(t, native(name), service.GRPCOptions{}, nothing)
		conn, err := r.svc.NewClient("echo", grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		return echov1.NewEchoServiceClient(conn)
	}
	allowed, other := client("echo-caller"), client("other")
	_, err = allowed.Echo(callCtx(t), &echov1.EchoRequest{})
	require.NoError(t, err)
	require.Equal(t, "echo-caller", from)

	t.Run("MethodsForServicesKnowThem", func(t *testing.T) {
		_, err := allowed.Internal(callCtx(t), &echov1.InternalRequest{})
		require.Equal(t, codes.Unimplemented, status.Code(err), "the stub has none: it was reached")
		_, err = other.Internal(callCtx(t), &echov1.InternalRequest{})
		require.Equal(t, codes.PermissionDenied, status.Code(err))
		require.Equal(t, "SERVICE_NOT_ALLOWED", grpcfault.FromStatus(status.Convert(err)).Reason)
	})
	t.Run("TheGatewayAloneSaysWhereCallsComeFrom", func(t *testing.T) {
		ctx := metadata.AppendToOutgoingContext(callCtx(t), "x-forwarded-for", "192.0.2.1")
		_, err := allowed.Echo(ctx, &echov1.EchoRequest{})
		require.NoError(t, err)
		require.Empty(t, address)
		_, err = client("gateway").Echo(ctx, &echov1.EchoRequest{})
		require.NoError(t, err)
		require.Equal(t, "192.0.2.1", address)
	})
	t.Run("WithoutAnEdge", func(t *testing.T) {
		_, err := client("stranger").Echo(callCtx(t), &echov1.EchoRequest{})
		require.Equal(t, codes.PermissionDenied, status.Code(err))
		f := grpcfault.FromStatus(status.Convert(err))
		require.Equal(t, "MESH_DENIED", f.Reason)
		require.NotEmpty(t, grpcfault.RequestID(status.Convert(err)))
	})
	t.Run("LeavesBeforeItStops", func(t *testing.T) {
		require.NoError(t, server.stop())
		require.Empty(t, instances())
		services, err := agent.Client.Agent().Services()
		require.NoError(t, err)
		require.NotContains(t, services, registered.ID)
	})
}
