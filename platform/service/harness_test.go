package service_test

import (
	"context"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/marquee-ads/marquee/platform/service"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// stub is an echo service with a function for what a test is about.
type stub struct {
	echov1.UnimplementedEchoServiceServer
	echo   func(context.Context, *echov1.EchoRequest) (*echov1.EchoResponse, error)
	whoami func(context.Context, *echov1.WhoamiRequest) (*echov1.WhoamiResponse, error)
	visit  func(context.Context, *echov1.VisitRequest) (*echov1.VisitResponse, error)
	tour   func(grpc.BidiStreamingServer[echov1.TourRequest, echov1.TourResponse]) error
	repeat func(*echov1.RepeatRequest, grpc.ServerStreamingServer[echov1.RepeatResponse]) error
	chat   func(grpc.BidiStreamingServer[echov1.ChatRequest, echov1.ChatResponse]) error
}

func (s *stub) Echo(ctx context.Context, r *echov1.EchoRequest) (*echov1.EchoResponse, error) {
	if s.echo == nil {
		return &echov1.EchoResponse{Text: r.GetText()}, nil
	}
	return s.echo(ctx, r)
}

func (s *stub) Whoami(ctx context.Context, r *echov1.WhoamiRequest) (*echov1.WhoamiResponse, error) {
	return s.whoami(ctx, r)
}

func (s *stub) Visit(ctx context.Context, r *echov1.VisitRequest) (*echov1.VisitResponse, error) {
	return s.visit(ctx, r)
}

func (s *stub) Tour(stream grpc.BidiStreamingServer[echov1.TourRequest, echov1.TourResponse]) error {
	return s.tour(stream)
}

func (s *stub) Repeat(r *echov1.RepeatRequest, stream grpc.ServerStreamingServer[echov1.RepeatResponse]) error {
	return s.repeat(r, stream)
}

func (s *stub) Chat(stream grpc.BidiStreamingServer[echov1.ChatRequest, echov1.ChatResponse]) error {
	return s.chat(stream)
}

// plaintext is a configuration that needs no Consul.
func plaintext() service.Config {
	return service.Config{
		Name: "echo", Environment: "test", Mode: service.Test, Mesh: service.MeshPlaintext, Register: "auto",
		Listen: "127.0.0.1:0", AdminListen: "127.0.0.1:0", DrainTimeout: 5 * time.Second,
	}
}

// running is a service that serves until the test ends or stop is called.
type running struct {
	t         *testing.T
	svc       *service.Service
	addresses service.Addresses
	logs      *logFile
	cancel    context.CancelFunc
	done      chan error
	once      sync.Once
}

// start serves what register registers and waits until it is ready.
func start(t *testing.T, cfg service.Config, opts service.GRPCOptions, register func(*service.Service, *grpc.Server)) *running {
	t.Helper()
	r := &running{t: t, logs: newLogFile(t), done: make(chan error, 1)}
	cfg.LogOutput = r.logs.File
	listening := make(chan service.Addresses, 1)
	cfg.OnListening = func(a service.Addresses) { listening <- a }
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	var err error
	r.svc, err = service.New(ctx, cfg)
	require.NoError(t, err)
	server := r.svc.NewGRPCServer(opts)
	register(r.svc, server)
	go func() { r.done <- r.svc.Serve(ctx) }()
	t.Cleanup(func() { require.NoError(t, r.stop()) })
	select {
	case r.addresses = <-listening:
	case err := <-r.done:
		r.done <- err
		t.Fatalf("the service did not start: %v", err)
	}
	return r
}

// stop ends the service and returns what Serve returned. Only the first call
// does.
func (r *running) stop() error {
	var err error
	r.once.Do(func() {
		r.cancel()
		err = <-r.done
	})
	return err
}

// client is an echo client over a connection of its own.
func (r *running) client() echov1.EchoServiceClient {
	return echov1.NewEchoServiceClient(r.conn())
}

func (r *running) conn() *grpc.ClientConn {
	r.t.Helper()
	conn, err := grpc.NewClient(r.addresses.Mesh, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(r.t, err)
	r.t.Cleanup(func() { conn.Close() })
	return conn
}

// get asks the admin port.
func (r *running) get(path string) (int, string) {
	r.t.Helper()
	return r.do(http.MethodGet, path, "")
}

func (r *running) do(method, path, body string) (int, string) {
	r.t.Helper()
	request, err := http.NewRequest(method, "http://"+r.addresses.Admin+path, strings.NewReader(body))
	require.NoError(r.t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(r.t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	require.NoError(r.t, err)
	return response.StatusCode, string(content)
}

// ready waits until /readyz says want.
func (r *running) ready(want int) {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		code, _ := r.get("/readyz")
		return code == want
	}, 5*time.Second, 5*time.Millisecond, "/readyz does not become %d", want)
}

// echo registers a stub.
func echo(s *stub) func(*service.Service, *grpc.Server) {
	return func(_ *service.Service, server *grpc.Server) { echov1.RegisterEchoServiceServer(server, s) }
}

// callCtx bounds a test's calls.
func callCtx(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// logFile is what a service logged.
type logFile struct{ *os.File }

func newLogFile(t *testing.T) *logFile {
	f, err := os.Create(t.TempDir() + "/log")
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return &logFile{f}
}

func (l *logFile) text(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(l.Name())
	require.NoError(t, err)
	return string(content)
}

// lines are the log's lines that contain all parts.
func (l *logFile) lines(t *testing.T, parts ...string) []string {
	t.Helper()
	var found []string
next:
	for _, line := range strings.Split(l.text(t), "\n") {
		for _, part := range parts {
			if !strings.Contains(line, part) {
				continue next
			}
		}
		found = append(found, line)
	}
	return found
}

// nothing registers nothing.
func nothing(*service.Service, *grpc.Server) {}
