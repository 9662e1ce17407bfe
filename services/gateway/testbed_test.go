package gateway_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/marquee-ads/marquee/platform/discovery"
	"github.com/marquee-ads/marquee/platform/mesh"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
	"github.com/marquee-ads/marquee/services/gateway"
)

// patience is how long a test waits for a condition before it fails.
const patience = 10 * time.Second

// registry is a registry in memory, which tests change.
type registry struct {
	mu        sync.Mutex
	instances map[string][]string // addresses by service
	changed   chan struct{}
}

func newRegistry() *registry {
	return &registry{instances: make(map[string][]string), changed: make(chan struct{})}
}

// set says where a service is; no address at all removes the service.
func (r *registry) set(service string, addresses ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(addresses) == 0 {
		delete(r.instances, service)
	} else {
		r.instances[service] = addresses
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *registry) remove(service, address string) {
	r.mu.Lock()
	rest := slices.DeleteFunc(slices.Clone(r.instances[service]), func(a string) bool { return a == address })
	r.mu.Unlock()
	r.set(service, rest...)
}

func (r *registry) now() (map[string][]string, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.instances), r.changed
}

func (r *registry) follow(ctx context.Context, update func(map[string][]string)) {
	for {
		instances, changed := r.now()
		update(instances)
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (r *registry) WatchServices(ctx context.Context, _ []string, update func([]string, error)) {
	r.follow(ctx, func(instances map[string][]string) { update(slices.Sorted(maps.Keys(instances)), nil) })
}

func (r *registry) Watch(ctx context.Context, q discovery.Query, update func([]discovery.Instance, error)) {
	var last []string
	first := true
	r.follow(ctx, func(instances map[string][]string) {
		addresses := instances[q.Service]
		if !first && slices.Equal(addresses, last) {
			return
		}
		first, last = false, addresses
		var list []discovery.Instance
		for _, address := range addresses {
			list = append(list, discovery.Instance{ID: address, Address: address})
		}
		update(list, nil)
	})
}

// dial is the mesh of the tests: plaintext, to where the registry says.
func (r *registry) dial(t testing.TB) func(string, ...grpc.DialOption) (*grpc.ClientConn, error) {
	ctx, cancel := context.WithCancel(t.Context())
	var following sync.WaitGroup
	t.Cleanup(func() { cancel(); following.Wait() })
	return func(service string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
		b := manual.NewBuilderWithScheme("registry")
		b.InitialState(resolver.State{})
		var start sync.Once
		b.BuildCallback = func(resolver.Target, resolver.ClientConn, resolver.BuildOptions) {
			start.Do(func() {
				following.Go(func() {
					r.follow(ctx, func(instances map[string][]string) {
						state := resolver.State{}
						for _, address := range instances[service] {
							state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: address}}})
						}
						b.UpdateState(state)
					})
				})
			})
		}
		base := append(mesh.DefaultDialSettings().DialOptions(),
			grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithResolvers(b))
		return grpc.NewClient("registry:///"+service, append(base, opts...)...)
	}
}

// echo is a backend whose behaviour a test can replace.
type echo struct {
	echov1.UnimplementedEchoServiceServer
	address string
	server  *grpc.Server
	calls   atomic.Int64

	onEcho   func(context.Context, *echov1.EchoRequest) (*echov1.EchoResponse, error)
	onRepeat func(*echov1.RepeatRequest, grpc.ServerStreamingServer[echov1.RepeatResponse]) error
	onChat   func(grpc.BidiStreamingServer[echov1.ChatRequest, echov1.ChatResponse]) error
	onWhoami func(context.Context) (*echov1.WhoamiResponse, error)
}

func startEcho(t testing.TB, configure ...func(*echo)) *echo {
	t.Helper()
	e := &echo{}
	for _, c := range configure {
		c(e)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	e.address = listener.Addr().String()
	e.server = grpc.NewServer(append(mesh.DefaultDialSettings().ServerOptions(), grpc.MaxRecvMsgSize(64<<20))...)
	echov1.RegisterEchoServiceServer(e.server, e)
	reflection.Register(e.server)
	served := make(chan struct{})
	go func() { defer close(served); _ = e.server.Serve(listener) }()
	t.Cleanup(func() { e.server.Stop(); <-served })
	return e
}

func (e *echo) Echo(ctx context.Context, r *echov1.EchoRequest) (*echov1.EchoResponse, error) {
	e.calls.Add(1)
	_ = grpc.SetHeader(ctx, metadata.Pairs("x-served-by", e.address))
	if e.onEcho != nil {
		return e.onEcho(ctx, r)
	}
	return &echov1.EchoResponse{Text: r.GetText(), InstanceId: e.address}, nil
}

func (e *echo) Whoami(ctx context.Context, _ *echov1.WhoamiRequest) (*echov1.WhoamiResponse, error) {
	return e.onWhoami(ctx)
}

func (e *echo) Repeat(r *echov1.RepeatRequest, s grpc.ServerStreamingServer[echov1.RepeatResponse]) error {
	e.calls.Add(1)
	if e.onRepeat != nil {
		return e.onRepeat(r, s)
	}
	_ = s.SetHeader(metadata.Pairs("x-served-by", e.address))
	for range r.GetCount() {
		if err := s.Send(&echov1.RepeatResponse{Text: r.GetText()}); err != nil {
			return err
		}
	}
	return nil
}

func (e *echo) Join(s grpc.ClientStreamingServer[echov1.JoinRequest, echov1.JoinResponse]) error {
	var all strings.Builder
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return s.SendAndClose(&echov1.JoinResponse{Text: all.String()})
		}
		if err != nil {
			return err
		}
		all.WriteString(r.GetText())
	}
}

func (e *echo) Chat(s grpc.BidiStreamingServer[echov1.ChatRequest, echov1.ChatResponse]) error {
	if e.onChat != nil {
		return e.onChat(s)
	}
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(&echov1.ChatResponse{Text: r.GetText()}); err != nil {
			return err
		}
	}
}

func (e *echo) Internal(context.Context, *echov1.InternalRequest) (*echov1.InternalResponse, error) {
	e.calls.Add(1)
	return &echov1.InternalResponse{}, nil
}

// bed is a running gateway.
type bed struct {
	*gateway.Gateway
	registry *registry
	url      string
	conn     *grpc.ClientConn
	client   echov1.EchoServiceClient
	metrics  *prometheus.Registry
	close    func() // as a process does on SIGTERM
}

func defaults() gateway.Config {
	return gateway.Config{
		HTTPListen: "127.0.0.1:0", GRPCListen: "127.0.0.1:0", ServedBy: true, AccessLog: "failures",
		MaxConnections: 10000, MaxConnectionsPerAddress: 1000,
		MaxBodyBytes: 1 << 20, MaxMessageBytes: 4 << 20,
		BodyTimeout: 10 * time.Second, DefaultTimeout: 15 * time.Second, MaxTimeout: time.Minute, StreamTimeout: time.Hour,
	}
}

func startGateway(t testing.TB, r *registry, configure ...func(*gateway.Config)) *bed {
	t.Helper()
	cfg := defaults()
	for _, c := range configure {
		c(&cfg)
	}
	return startIn(t, r, cfg, surroundings(t, r))
}

// startWith is a gateway in front of one echo, in surroundings that a test changes.
func startWith(t testing.TB, e *echo, change func(*gateway.Surroundings)) *bed {
	t.Helper()
	r := newRegistry()
	r.set("echo", e.address)
	around := surroundings(t, r)
	change(&around)
	return startIn(t, r, defaults(), around)
}

func startIn(t testing.TB, r *registry, cfg gateway.Config, around gateway.Surroundings) *bed {
	t.Helper()
	b := &bed{registry: r, metrics: prometheus.NewRegistry()}
	around.Metrics = b.metrics
	gw, err := gateway.New(cfg, around)
	require.NoError(t, err)
	b.Gateway = gw

	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- gw.Catalog.Run(ctx) }()
	require.NoError(t, gw.Open(ctx))
	b.close = sync.OnceFunc(func() {
		gw.Drain()
		closing, done := context.WithTimeout(context.Background(), 5*time.Second)
		defer done()
		if err := gw.Close(closing); err != nil {
			t.Errorf("closing: %v", err)
		}
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("the catalog: %v", err)
		}
	})
	t.Cleanup(b.close)

	ready, readyDone := context.WithTimeout(ctx, patience)
	defer readyDone()
	require.NoError(t, gw.Ready(ready))
	b.url = "http://" + gw.HTTPAddr().String()
	b.conn, err = grpc.NewClient(gw.GRPCAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	require.NoError(t, err)
	t.Cleanup(func() { b.conn.Close() })
	b.client = echov1.NewEchoServiceClient(b.conn)
	return b
}

// startOne is a gateway in front of one echo.
func startOne(t testing.TB, e *echo, configure ...func(*gateway.Config)) *bed {
	t.Helper()
	r := newRegistry()
	r.set("echo", e.address)
	return startGateway(t, r, configure...)
}

func surroundings(t testing.TB, r *registry) gateway.Surroundings {
	return gateway.Surroundings{
		Registry:       r,
		Dial:           r.dial(t),
		EnvironmentTag: discovery.EnvironmentTag("test"),
		Log:            hclog.New(&hclog.LoggerOptions{Level: hclog.Info, Output: testLog{t}}),
		Metrics:        prometheus.NewRegistry(),
		Admission:      unbounded{},
		Failed:         func(err error) { t.Errorf("a door closed by itself: %v", err) },
	}
}

// unbounded admits every call.
type unbounded struct{}

func (unbounded) Enter() error { return nil }
func (unbounded) Leave()       {}

type testLog struct{ t testing.TB }

func (l testLog) Write(line []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(line)))
	return len(line), nil
}

// soon waits until a condition holds.
func soon(t testing.TB, what string, holds func() bool) {
	t.Helper()
	require.Eventually(t, holds, patience, 5*time.Millisecond, what)
}

// get makes a GET request and returns status and body.
func (b *bed) do(t testing.TB, method, path, body string, header ...string) (*http.Response, string) {
	t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	request, err := http.NewRequestWithContext(t.Context(), method, b.url+path, reader)
	require.NoError(t, err)
	for i := 0; i+1 < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response, string(content)
}
