package mesh_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/discovery"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/mesh"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// within is how soon what Consul decides has to be in force.
const within = time.Second

// places is discovery for tests: the instances are what the test says.
type places struct {
	mu      sync.Mutex
	known   map[string][]discovery.Instance
	changed chan struct{}
}

func newPlaces() *places {
	return &places{known: make(map[string][]discovery.Instance), changed: make(chan struct{})}
}

func (p *places) set(service string, addresses ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := []discovery.Instance{}
	for _, a := range addresses {
		list = append(list, discovery.Instance{ID: a, Address: a, Meta: map[string]string{"players": a, mesh.InstanceMeta: a}})
	}
	p.known[service] = list
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *places) Watch(ctx context.Context, q discovery.Query, update func([]discovery.Instance, error)) {
	for {
		p.mu.Lock()
		list, changed := p.known[q.Service], p.changed
		p.mu.Unlock()
		if list == nil {
			list = []discovery.Instance{}
		}
		update(list, nil)
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// resolverTo resolves every consul:/// target to fixed addresses.
func resolverTo(addresses ...string) resolver.Builder {
	r := manual.NewBuilderWithScheme("consul")
	var state resolver.State
	for _, a := range addresses {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: a})
	}
	r.InitialState(state)
	return r
}

func join(t testing.TB, client *consulapi.Client, service string, edit func(*mesh.NativeConfig)) mesh.Mesh {
	t.Helper()
	m := start(t, client, service, edit)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	require.NoError(t, m.Ready(ctx))
	return m
}

func start(t testing.TB, client *consulapi.Client, service string, edit func(*mesh.NativeConfig)) mesh.Mesh {
	t.Helper()
	cfg := mesh.NativeConfig{
		Consul: client, Service: service, Environment: "test",
		Log: hclog.New(&hclog.LoggerOptions{Name: service, Level: hclog.Debug, Output: testLog{t}}),
	}
	if edit != nil {
		edit(&cfg)
	}
	m, err := mesh.Native(context.Background(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

type testLog struct{ testing.TB }

func (l testLog) Write(line []byte) (int, error) {
	l.Logf("%s", line)
	return len(line), nil
}

// intend replaces the intentions towards a service.
func intend(t testing.TB, client *consulapi.Client, destination string, sources ...*consulapi.SourceIntention) {
	t.Helper()
	_, _, err := client.ConfigEntries().Set(&consulapi.ServiceIntentionsConfigEntry{
		Kind: consulapi.ServiceIntentions, Name: destination, Sources: sources,
	}, nil)
	require.NoError(t, err)
}

func source(name string, action consulapi.IntentionAction) *consulapi.SourceIntention {
	return &consulapi.SourceIntention{Name: name, Action: action}
}

const (
	allow = consulapi.IntentionActionAllow
	deny  = consulapi.IntentionActionDeny
)

// echo is the service that tests call; it answers with who called.
type echo struct {
	echov1.UnimplementedEchoServiceServer
	id string
	// chatEnded gets how each Chat handler ended.
	chatEnded chan error
	// called, when set, is told of every Echo.
	called func(context.Context)
}

func (e *echo) Echo(ctx context.Context, req *echov1.EchoRequest) (*echov1.EchoResponse, error) {
	if e.called != nil {
		e.called(ctx)
	}
	return &echov1.EchoResponse{Text: req.GetText(), InstanceId: e.id}, nil
}

func (e *echo) Whoami(ctx context.Context, _ *echov1.WhoamiRequest) (*echov1.WhoamiResponse, error) {
	peer, ok := mesh.PeerFromContext(ctx)
	if !ok {
		return nil, status.Error(codes.Internal, "no peer")
	}
	return &echov1.WhoamiResponse{CallingService: peer.Service}, nil
}

func (e *echo) Chat(s grpc.BidiStreamingServer[echov1.ChatRequest, echov1.ChatResponse]) (err error) {
	defer func() {
		if e.chatEnded != nil {
			e.chatEnded <- err
		}
	}()
	for {
		in, err := s.Recv()
		if err != nil {
			return err
		}
		if err := s.Send(&echov1.ChatResponse{Text: in.GetText()}); err != nil {
			return err
		}
	}
}

// Repeat sends as fast as flow control lets it, or once and then waits for the end.
func (e *echo) Repeat(req *echov1.RepeatRequest, s grpc.ServerStreamingServer[echov1.RepeatResponse]) error {
	for {
		if err := s.Send(&echov1.RepeatResponse{Text: req.GetText()}); err != nil {
			return err
		}
		if req.GetCount() == 1 {
			<-s.Context().Done()
			return context.Cause(s.Context())
		}
	}
}

// translate stands for the interceptor that turns faults into statuses.
func translate(err error) error {
	if f, ok := fault.From(err); ok {
		return status.Error(codes.Code(f.Code), f.Reason)
	}
	return err
}

func serve(t testing.TB, m mesh.Mesh, impl echov1.EchoServiceServer) string {
	t.Helper()
	opts := append(mesh.DefaultDialSettings().ServerOptions(),
		grpc.Creds(m.ServerCredentials()),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			res, err := h(ctx, req)
			return res, translate(err)
		}, m.UnaryServerInterceptor()),
		grpc.ChainStreamInterceptor(func(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			return translate(h(srv, s))
		}, m.StreamServerInterceptor()),
	)
	server := grpc.NewServer(opts...)
	echov1.RegisterEchoServiceServer(server, impl)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		require.NoError(t, <-done)
	})
	return listener.Addr().String()
}

func client(t testing.TB, m mesh.Mesh, service string) echov1.EchoServiceClient {
	t.Helper()
	conn, err := m.NewClient(service)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return echov1.NewEchoServiceClient(conn)
}

func deadline(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func call(t testing.TB, c echov1.EchoServiceClient) codes.Code {
	_, err := c.Echo(deadline(t, 5*time.Second), &echov1.EchoRequest{Text: "x"})
	return status.Code(err)
}

// becomes waits until calls end with a code and returns how long that took.
func becomes(t testing.TB, c echov1.EchoServiceClient, want codes.Code) time.Duration {
	t.Helper()
	began := time.Now()
	require.Eventually(t, func() bool { return call(t, c) == want }, 5*time.Second, 2*time.Millisecond)
	return time.Since(began)
}

func recvWithin(t testing.TB, d time.Duration, recv func() error) error {
	t.Helper()
	got := make(chan error, 1)
	go func() { got <- recv() }()
	select {
	case err := <-got:
		return err
	case <-time.After(d):
		return errors.New("nothing was received in time")
	}
}
