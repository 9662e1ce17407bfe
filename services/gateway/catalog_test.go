package gateway_test

import (
	"bytes"
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/reflection"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
	"github.com/marquee-ads/marquee/services/gateway/catalog"
)

const echoPath = "/marquee.echo.v1.EchoService/Echo"

// startCatalog is a catalog by itself, with short times.
func startCatalog(t testing.TB, r *registry) (*catalog.Catalog, *syncBuffer) {
	t.Helper()
	log := &syncBuffer{}
	c := catalog.New(catalog.Options{
		Registry: r, Dial: r.dial(t), EnvironmentTag: "env-test", MaxMessage: 4 << 20,
		Refresh: time.Hour, Settle: 50 * time.Millisecond, ReadTimeout: time.Second,
		Forget: 300 * time.Millisecond, FirstWait: time.Second,
		Log: hclog.New(&hclog.LoggerOptions{Output: log}),
	})
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := receive(t, ran); err != nil {
			t.Errorf("the catalog: %v", err)
		}
	})
	receive(t, c.Synced())
	return c, log
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) contains(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.b.String(), text)
}

func has(c *catalog.Catalog, path string) bool {
	_, ok := c.Snapshot().Method(path)
	return ok
}

func TestServicesAppearAndDisappear(t *testing.T) {
	r := newRegistry()
	c, _ := startCatalog(t, r)
	require.False(t, has(c, echoPath))

	one := startEcho(t)
	r.set("echo", one.address)
	soon(t, "echo is served", func() bool { return has(c, echoPath) })
	method, _ := c.Snapshot().Method(echoPath)
	require.True(t, method.Idempotent)
	require.True(t, method.Unary())
	_, _, _, routed := c.Snapshot().Routes().Match("GET", "/v1/echo/x")
	require.True(t, routed)

	r.set("echo")
	require.True(t, has(c, echoPath), "forgotten at once: callers would be told that there is no such method")
	soon(t, "echo is forgotten", func() bool { return !has(c, echoPath) })

	r.set("echo", startEcho(t).address)
	soon(t, "echo is served again", func() bool { return has(c, echoPath) })
	r.set("echo")
	r.set("echo", one.address)
	time.Sleep(400 * time.Millisecond)
	require.True(t, has(c, echoPath), "it came back, and was forgotten nevertheless")
}

func TestMethodsForServicesAreLeftOut(t *testing.T) {
	r := newRegistry()
	r.set("echo", startEcho(t).address)
	c, _ := startCatalog(t, r)
	require.True(t, has(c, echoPath))
	require.False(t, has(c, "/marquee.echo.v1.EchoService/Internal"))
	require.False(t, has(c, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"))
}

func TestTheFirstByNameHasWhatTwoClaim(t *testing.T) {
	r := newRegistry()
	r.set("zebra", startEcho(t).address)
	r.set("aardvark", startEcho(t).address)
	c, log := startCatalog(t, r)
	method, ok := c.Snapshot().Method(echoPath)
	require.True(t, ok)
	require.Equal(t, "aardvark", method.Backend.Service())
	require.True(t, log.contains("zebra offers marquee.echo.v1.EchoService, which belongs to aardvark"))
	r.set("aardvark")
	soon(t, "the other takes over", func() bool {
		method, ok := c.Snapshot().Method(echoPath)
		return ok && method.Backend.Service() == "zebra"
	})
}

func TestOneServiceDoesNotHoldUpOthers(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never says a word
	require.NoError(t, err)
	defer silent.Close()
	r := newRegistry()
	r.set("silent", silent.Addr().String())
	r.set("without-reflection", startServer(t, "127.0.0.1:0", func(*grpc.Server) {}))
	r.set("echo", startEcho(t).address)
	began := time.Now()
	c, _ := startCatalog(t, r)
	require.True(t, has(c, echoPath))
	require.Less(t, time.Since(began), 5*time.Second)
}

func TestReflectionOfTheOlderVersion(t *testing.T) {
	r := newRegistry()
	r.set("echo", startServer(t, "127.0.0.1:0", func(s *grpc.Server) {
		echov1.RegisterEchoServiceServer(s, &echo{})
		reflectionv1alpha.RegisterServerReflectionServer(s, reflection.NewServer(reflection.ServerOptions{Services: s}))
	}))
	c, _ := startCatalog(t, r)
	require.True(t, has(c, echoPath))
}

func TestUnknownMethodsCauseAReading(t *testing.T) {
	r := newRegistry()
	empty := grpc.NewServer()
	reflection.Register(empty)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan struct{})
	go func() { defer close(served); _ = empty.Serve(listener) }()
	address := listener.Addr().String()
	r.set("echo", address)
	gw := startGateway(t, r)
	empty.Stop()
	<-served
	// The same address, so that the registry has nothing to tell.
	startServer(t, address, func(s *grpc.Server) {
		echov1.RegisterEchoServiceServer(s, &echo{})
		reflection.Register(s)
	})
	_, err = gw.client.Echo(t.Context(), &echov1.EchoRequest{})
	require.Equal(t, codes.Unimplemented, status.Code(err))
	soon(t, "the new method is served", func() bool {
		_, err := gw.client.Echo(t.Context(), &echov1.EchoRequest{})
		return err == nil
	})
}

func TestLastGoodIsKept(t *testing.T) {
	r := newRegistry()
	e := startEcho(t)
	r.set("echo", e.address)
	c, log := startCatalog(t, r)
	e.server.Stop()
	r.set("echo", e.address, "127.0.0.1:1") // a change, and nobody answers
	soon(t, "the failure is logged", func() bool { return log.contains("what was known of it stays") })
	require.True(t, has(c, echoPath))
}

func TestGatewayDescribesWhatItServes(t *testing.T) {
	gw := startOne(t, startEcho(t))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := reflectionv1.NewServerReflectionClient(gw.conn).ServerReflectionInfo(ctx)
	require.NoError(t, err)
	require.NoError(t, stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}))
	listed, err := stream.Recv()
	require.NoError(t, err)
	require.Len(t, listed.GetListServicesResponse().GetService(), 1)
	name := listed.GetListServicesResponse().GetService()[0].GetName()
	require.Equal(t, protoreflect.FullName("marquee.echo.v1.EchoService"), protoreflect.FullName(name))
	require.NoError(t, stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: name}}))
	described, err := stream.Recv()
	require.NoError(t, err)
	require.NotEmpty(t, described.GetFileDescriptorResponse().GetFileDescriptorProto())
	require.NoError(t, stream.CloseSend())
}

// startServer is a server with what register puts into it.
func startServer(t testing.TB, address string, register func(*grpc.Server)) string {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	require.NoError(t, err)
	s := grpc.NewServer()
	register(s)
	served := make(chan struct{})
	go func() { defer close(served); _ = s.Serve(listener) }()
	t.Cleanup(func() { s.Stop(); <-served })
	return listener.Addr().String()
}

func TestIncompleteUntilEveryServiceWasRead(t *testing.T) {
	r := newRegistry()
	r.set("echo", startEcho(t).address)
	gw := startGateway(t, r)
	require.True(t, has(gw.Catalog, echoPath))
	soon(t, "the catalog is complete", func() bool { return gw.Catalog.Snapshot().Complete() })
	r.set("away", "127.0.0.1:1") // registered, and nobody answers
	soon(t, "the catalog is incomplete", func() bool { return !gw.Catalog.Snapshot().Complete() })

	// What is not known may be the other's: callers are told to try again.
	err := gw.conn.Invoke(t.Context(), "/marquee.away.v1.AwayService/Get", &echov1.EchoRequest{}, &echov1.EchoResponse{})
	requireStatus(t, err, codes.Unavailable, "CATALOG_INCOMPLETE")
	response, body := gw.do(t, "GET", "/v1/away", "")
	require.Equal(t, 503, response.StatusCode, "%s", body)
	require.Equal(t, "1", response.Header.Get("Retry-After"))

	r.set("away", startServer(t, "127.0.0.1:0", func(*grpc.Server) {})) // answers that it has no reflection
	soon(t, "the catalog is complete", func() bool { return gw.Catalog.Snapshot().Complete() })
	err = gw.conn.Invoke(t.Context(), "/marquee.away.v1.AwayService/Get", &echov1.EchoRequest{}, &echov1.EchoResponse{})
	requireStatus(t, err, codes.Unimplemented, "METHOD_UNKNOWN")
	response, _ = gw.do(t, "GET", "/v1/away", "")
	require.Equal(t, 404, response.StatusCode)
}
