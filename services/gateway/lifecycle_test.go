package gateway_test

import (
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/marquee-ads/marquee/platform/mesh"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
	"github.com/marquee-ads/marquee/services/gateway"
)

func TestDrainLosesNoCall(t *testing.T) {
	backend := startEcho(t, func(e *echo) {
		e.onEcho = func(_ context.Context, r *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			time.Sleep(3 * time.Millisecond)
			return &echov1.EchoResponse{Text: r.GetText()}, nil
		}
	})
	r := newRegistry()
	r.set("echo", backend.address)
	leaving, staying := startGateway(t, r), startGateway(t, r)

	b := manual.NewBuilderWithScheme("gateways")
	b.InitialState(resolver.State{Endpoints: []resolver.Endpoint{
		{Addresses: []resolver.Address{{Addr: leaving.GRPCAddr().String()}}},
		{Addresses: []resolver.Address{{Addr: staying.GRPCAddr().String()}}},
	}})
	conn, err := grpc.NewClient("gateways:///", append(mesh.DefaultDialSettings().DialOptions(), grpc.WithResolvers(b),
		grpc.WithDisableRetry(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	require.NoError(t, err)
	defer conn.Close()

	ctx, cancel := context.WithCancel(t.Context())
	var workers sync.WaitGroup
	var throughGRPC, throughHTTP atomic.Int64
	for range 8 {
		workers.Go(func() {
			for ctx.Err() == nil {
				if _, err := echov1.NewEchoServiceClient(conn).Echo(t.Context(), &echov1.EchoRequest{Text: "x"}); err != nil {
					t.Errorf("gRPC: %v", err)
					return
				}
				throughGRPC.Add(1)
			}
		})
		workers.Go(func() {
			// As a client with both addresses does: it stays with a connection
			// until it is asked to leave it.
			url, client := leaving.url, &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for ctx.Err() == nil {
				response, err := client.Get(url + "/v1/echo/x")
				if err != nil {
					t.Errorf("HTTP: %v", err)
					return
				}
				_, err = io.Copy(io.Discard, response.Body)
				response.Body.Close()
				if err != nil || response.StatusCode != http.StatusOK {
					t.Errorf("HTTP: %s %v", response.Status, err)
					return
				}
				if response.Close {
					url = staying.url
				}
				throughHTTP.Add(1)
			}
		})
	}
	soon(t, "calls before", func() bool { return min(throughGRPC.Load(), throughHTTP.Load()) > 200 })
	leaving.Drain()
	at := throughHTTP.Load()
	soon(t, "calls while leaving", func() bool { return throughHTTP.Load() > at+100 })
	leaving.close()
	at = min(throughGRPC.Load(), throughHTTP.Load())
	soon(t, "calls after", func() bool { return min(throughGRPC.Load(), throughHTTP.Load()) > at+200 })
	cancel()
	workers.Wait()
}

// lateRegistry answers nobody until it begins.
type lateRegistry struct {
	*registry
	begin chan struct{}
}

func (r *lateRegistry) WatchServices(ctx context.Context, tags []string, update func([]string, error)) {
	select {
	case <-r.begin:
		r.registry.WatchServices(ctx, tags, update)
	case <-ctx.Done():
	}
}

// early is a gateway that runs and does not know the services yet.
func early(t *testing.T) (gw *gateway.Gateway, begin func()) {
	t.Helper()
	r := newRegistry()
	r.set("echo", startEcho(t).address)
	late := &lateRegistry{registry: r, begin: make(chan struct{})}
	around := surroundings(t, r)
	around.Registry = late
	gw, err := gateway.New(defaults(), around)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- gw.Catalog.Run(ctx) }()
	require.NoError(t, gw.Open(ctx))
	t.Cleanup(func() {
		closing, done := context.WithTimeout(context.Background(), 3*time.Second)
		defer done()
		require.NoError(t, gw.Close(closing))
		cancel()
		require.NoError(t, receive(t, ran))
	})
	return gw, sync.OnceFunc(func() { close(late.begin) })
}

func TestNobodyIsLetInBeforeTheServicesAreKnown(t *testing.T) {
	one, begin := early(t)
	other := startOne(t, startEcho(t))
	b := manual.NewBuilderWithScheme("gateways")
	b.InitialState(resolver.State{Endpoints: []resolver.Endpoint{
		{Addresses: []resolver.Address{{Addr: one.GRPCAddr().String()}}},
		{Addresses: []resolver.Address{{Addr: other.GRPCAddr().String()}}},
	}})
	conn, err := grpc.NewClient("gateways:///", append(mesh.DefaultDialSettings().DialOptions(), grpc.WithResolvers(b),
		grpc.WithDisableRetry(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	require.NoError(t, err)
	defer conn.Close()
	call := func() {
		t.Helper()
		_, err := echov1.NewEchoServiceClient(conn).Echo(t.Context(), &echov1.EchoRequest{Text: "x"})
		require.NoError(t, err)
	}
	for range 100 {
		call()
	}
	begin()
	other.close() // what remains is the one that has come to know them
	for range 100 {
		call()
	}

	t.Run("ForTooLong", func(t *testing.T) {
		unknowing, _ := early(t)
		conn, err := grpc.NewClient(unknowing.GRPCAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(t, err)
		defer conn.Close()
		began := time.Now()
		_, err = echov1.NewEchoServiceClient(conn).Echo(t.Context(), &echov1.EchoRequest{Text: "x"})
		requireStatus(t, err, codes.Unavailable, "CATALOG_INCOMPLETE")
		require.GreaterOrEqual(t, time.Since(began), 4*time.Second)
	})
	t.Run("AndLeaves", func(t *testing.T) {
		began := time.Now()
		leaving, _ := early(t)
		closing, done := context.WithTimeout(t.Context(), 3*time.Second)
		defer done()
		require.NoError(t, leaving.Close(closing))
		require.Less(t, time.Since(began), 2*time.Second)
	})
}

func TestStreamsAreEndedWhenTheDrainRunsOut(t *testing.T) {
	gw := startOne(t, startEcho(t))
	chat, err := gw.client.Chat(t.Context())
	require.NoError(t, err)
	require.NoError(t, chat.Send(&echov1.ChatRequest{Text: "x"}))
	_, err = chat.Recv()
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	closed := make(chan error, 1)
	go func() { closed <- gw.Close(ctx) }()
	require.NoError(t, chat.Send(&echov1.ChatRequest{Text: "still served"}))
	r, err := chat.Recv()
	require.NoError(t, err)
	require.Equal(t, "still served", r.GetText())
	_, err = chat.Recv()
	requireStatus(t, err, codes.Unavailable, "GATEWAY_LEAVING")
	require.NoError(t, receive(t, closed), "the drain took longer than it may")
}

func TestHealthTellsOfTheDrain(t *testing.T) {
	gw := startOne(t, startEcho(t))
	client := healthv1.NewHealthClient(gw.conn)
	gw.Drain()
	r, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{})
	require.NoError(t, err)
	require.Equal(t, healthv1.HealthCheckResponse_NOT_SERVING, r.GetStatus())
	_, err = gw.client.Echo(t.Context(), &echov1.EchoRequest{})
	require.NoError(t, err, "it still serves")
}
