package discovery_test

import (
	"context"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/marquee-ads/marquee/platform/consultest"
	"github.com/marquee-ads/marquee/platform/discovery"
)

const roundRobin = `{"loadBalancingConfig": [{"round_robin": {}}]}`

// backend is a gRPC server that answers every call with its name.
type backend struct {
	name    string
	port    int
	server  *grpc.Server
	served  sync.WaitGroup
	accepts atomic.Int32
}

type countingListener struct {
	net.Listener
	accepts *atomic.Int32
}

func (l countingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.accepts.Add(1)
	}
	return conn, err
}

func startBackend(t testing.TB, name string, port int) *backend {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	require.NoError(t, err)
	b := &backend{name: name, port: listener.Addr().(*net.TCPAddr).Port, server: grpc.NewServer()}
	b.server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Names",
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{
			MethodName: "Name",
			Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				return wrapperspb.String(name), decode(&emptypb.Empty{})
			},
		}},
	}, struct{}{})
	b.served.Go(func() {
		// Stop makes it return; a server that fails shows in the calls.
		_ = b.server.Serve(countingListener{listener, &b.accepts})
	})
	t.Cleanup(b.stop)
	return b
}

func (b *backend) stop() {
	b.server.Stop()
	b.served.Wait()
}

func dial(t testing.TB, c *discovery.Consul, target, environment string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(target, append([]grpc.DialOption{
		grpc.WithResolvers(discovery.NewBuilder(c, environment)),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(roundRobin),
		grpc.WithNoProxy(),
	}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

func call(ctx context.Context, conn *grpc.ClientConn, opts ...grpc.CallOption) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var name wrapperspb.StringValue
	err := conn.Invoke(ctx, "/test.Names/Name", &emptypb.Empty{}, &name, opts...)
	return name.GetValue(), err
}

// settle calls until exactly these backends answer, over and over.
func settle(t testing.TB, conn *grpc.ClientConn, names ...string) {
	t.Helper()
	require.Eventually(t, func() bool {
		counts := make(map[string]int)
		for range 10 * len(names) {
			name, err := call(t.Context(), conn, grpc.WaitForReady(true))
			if err != nil {
				return false
			}
			counts[name]++
		}
		for _, name := range names {
			if counts[name] != 10 {
				return false
			}
		}
		return len(counts) == len(names)
	}, patience, 5*time.Millisecond, "the calls do not go to %v", names)
}

// spread makes n calls from 16 goroutines and counts who answered; every call
// must succeed.
func spread(t testing.TB, conn *grpc.ClientConn, n int) map[string]int {
	t.Helper()
	var (
		mu      sync.Mutex
		counts  = make(map[string]int)
		left    atomic.Int64
		callers sync.WaitGroup
	)
	left.Store(int64(n))
	for range 16 {
		callers.Go(func() {
			for left.Add(-1) >= 0 {
				name, err := call(t.Context(), conn)
				if err != nil {
					name = err.Error()
				}
				mu.Lock()
				counts[name]++
				mu.Unlock()
			}
		})
	}
	callers.Wait()
	return counts
}

func TestRoundRobin(t *testing.T) {
	agent := consultest.Start(t)
	c := newConsul(t, agent.Client, quick())
	backends := make(map[string]*backend)
	for _, name := range []string{"a", "b", "c"} {
		backends[name] = startBackend(t, name, 0)
		put(t, agent.Client, "names", backends[name].port, "env-test")
	}
	conn := dial(t, c, "consul:///names?connect=false", "test")

	settle(t, conn, "a", "b", "c")
	require.Equal(t, map[string]int{"a": 1000, "b": 1000, "c": 1000}, spread(t, conn, 3000))

	// One deregisters: no call fails, and it gets none any more.
	remove(t, agent.Client, "names-"+strconv.Itoa(backends["b"].port))
	for name := range spread(t, conn, 1000) {
		require.Contains(t, []string{"a", "b", "c"}, name, "a call failed")
	}
	settle(t, conn, "a", "c")
	require.Equal(t, map[string]int{"a": 500, "c": 500}, spread(t, conn, 1000))
	put(t, agent.Client, "names", backends["b"].port, "env-test")
	settle(t, conn, "a", "b", "c")

	// One dies while Consul still thinks it healthy, and comes back.
	backends["c"].stop()
	settle(t, conn, "a", "b")
	startBackend(t, "c", backends["c"].port)
	settle(t, conn, "a", "b", "c")
	require.Equal(t, map[string]int{"a": 1000, "b": 1000, "c": 1000}, spread(t, conn, 3000))
}

func TestResolver(t *testing.T) {
	agent := consultest.Start(t)
	client := agent.Client

	t.Run("no instance fails calls quickly", func(t *testing.T) {
		conn := dial(t, newConsul(t, client, quick()), "consul:///nobody?connect=false", "test")
		start := time.Now()
		_, err := call(t.Context(), conn)
		require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
		require.Less(t, time.Since(start), 2*time.Second)

		// The first instance serves the same connection, the last one leaving
		// ends it, and the next one serves again.
		b := startBackend(t, "a", 0)
		id := put(t, client, "nobody", b.port, "env-test")
		settle(t, conn, "a")
		remove(t, client, id)
		require.Eventually(t, func() bool {
			_, err := call(t.Context(), conn)
			return status.Code(err) == codes.Unavailable
		}, patience, 5*time.Millisecond)
		put(t, client, "nobody", b.port, "env-test")
		settle(t, conn, "a")
	})

	t.Run("the last instances stay for a while", func(t *testing.T) {
		opts := quick()
		opts.Linger = time.Second
		conn := dial(t, newConsul(t, client, opts), "consul:///last?connect=false", "test")
		one, other := startBackend(t, "one", 0), startBackend(t, "other", 0)
		first, second := put(t, client, "last", one.port, "env-test"), put(t, client, "last", other.port, "env-test")
		settle(t, conn, "one", "other")
		// One of two is left at once.
		remove(t, client, first)
		settle(t, conn, "other")
		// Of none that is healthy the last one serves on, and is there again in time.
		remove(t, client, second)
		for began := time.Now(); time.Since(began) < opts.Linger/2; {
			require.Equal(t, map[string]int{"other": 10}, spread(t, conn, 10))
		}
		second = put(t, client, "last", other.port, "env-test")
		for began := time.Now(); time.Since(began) < opts.Linger; {
			require.Equal(t, map[string]int{"other": 10}, spread(t, conn, 10))
		}
		// Others take its place at once.
		remove(t, client, second)
		put(t, client, "last", one.port, "env-test")
		settle(t, conn, "one")
		// And there is an end to it.
		remove(t, client, first)
		began := time.Now()
		require.Eventually(t, func() bool {
			_, err := call(t.Context(), conn)
			return status.Code(err) == codes.Unavailable
		}, patience, 5*time.Millisecond)
		require.GreaterOrEqual(t, time.Since(began), opts.Linger/2)
	})

	t.Run("an environment sees its own instances only", func(t *testing.T) {
		c := newConsul(t, client, quick())
		production, test := startBackend(t, "production", 0), startBackend(t, "test", 0)
		put(t, client, "apart", production.port, discovery.EnvironmentTag("production"))
		put(t, client, "apart", test.port, discovery.EnvironmentTag("test"))
		settle(t, dial(t, c, "consul:///apart?connect=false", "production"), "production")
		settle(t, dial(t, c, "consul:///apart?connect=false", "test"), "test")
		_, err := call(t.Context(), dial(t, c, "consul:///apart?connect=false&tag=env-production", "test"))
		require.Equal(t, codes.Unavailable, status.Code(err))
		require.Equal(t, int32(1), production.accepts.Load(), "only the first connection is production's")
	})

	t.Run("an agent that cannot be reached", func(t *testing.T) {
		proxy := agent.Proxy()
		proxy.Cut("")
		conn := dial(t, newConsul(t, proxy.Client, quick()), "consul:///unreachable?connect=false", "test")
		_, err := call(t.Context(), conn)
		require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
		require.ErrorContains(t, err, "ask consul for unreachable")

		b := startBackend(t, "a", 0)
		put(t, client, "unreachable", b.port, "env-test")
		proxy.Heal()
		settle(t, conn, "a")
		// From now on what is known stands.
		proxy.Cut("")
		moreRequests(t, proxy, healthPath, 2)
		require.Equal(t, map[string]int{"a": 100}, spread(t, conn, 100))
	})

	t.Run("another version at the same address keeps the connection", func(t *testing.T) {
		proxy := agent.Proxy()
		b := startBackend(t, "a", 0)
		register := func(version string) {
			require.NoError(t, client.Agent().ServiceRegister(&api.AgentServiceRegistration{
				ID: "versioned-a", Name: "versioned", Address: "127.0.0.1", Port: b.port,
				Tags: []string{"env-test", version}, Meta: map[string]string{"version": version},
			}))
		}
		register("1")
		c := newConsul(t, proxy.Client, quick())
		conn := dial(t, c, "consul:///versioned?connect=false", "test")
		settle(t, conn, "a")
		f := follow(t, c, discovery.Query{Service: "versioned", Tags: []string{"env-test"}})
		f.expect(t, strconv.Itoa(b.port))
		register("2")
		f.expect(t, strconv.Itoa(b.port))
		require.Equal(t, map[string]int{"a": 100}, spread(t, conn, 100))
		require.Equal(t, int32(1), b.accepts.Load())
	})

	t.Run("idle and back", func(t *testing.T) {
		proxy := agent.Proxy()
		b := startBackend(t, "a", 0)
		put(t, client, "idle", b.port, "env-test")
		conn := dial(t, newConsul(t, proxy.Client, quick()), "consul:///idle?connect=false", "test",
			grpc.WithIdleTimeout(100*time.Millisecond))
		for range 3 {
			settle(t, conn, "a")
			require.Eventually(t, func() bool { return conn.GetState() == connectivity.Idle }, patience, time.Millisecond)
			require.Eventually(t, func() bool { return running(t, "discovery.watch[") == 0 }, patience, time.Millisecond,
				"the idle connection still watches")
			// Nobody answers: what serves this call was known before.
			proxy.Hang(healthPath)
			name, err := call(t.Context(), conn)
			require.NoError(t, err)
			require.Equal(t, "a", name)
			proxy.Heal()
		}
	})

	t.Run("a bad target", func(t *testing.T) {
		conn, err := grpc.NewClient("consul:///a?conect=false",
			grpc.WithResolvers(discovery.NewBuilder(newConsul(t, client, quick()), "test")),
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err == nil {
			defer conn.Close()
			_, err = call(t.Context(), conn)
		}
		require.ErrorContains(t, err, `parameter "conect" is unknown`)
	})
}

// recordingConn is what a resolver reports to.
type recordingConn struct {
	resolver.ClientConn
	mu     sync.Mutex
	states []resolver.State
	errors int
}

func (r *recordingConn) UpdateState(s resolver.State) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.states = append(r.states, s)
	return nil
}

func (r *recordingConn) ReportError(error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errors++
}

func (r *recordingConn) ParseServiceConfig(string) *serviceconfig.ParseResult { return nil }

func (r *recordingConn) seen() (states, errors int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.states), r.errors
}

func TestResolveNow(t *testing.T) {
	agent := consultest.Start(t)
	put(t, agent.Client, "account", 1, "env-test")
	build := func(t *testing.T, opts discovery.Options) (*consultest.Proxy, *recordingConn, resolver.Resolver) {
		proxy := agent.Proxy()
		c := newConsul(t, proxy.Client, opts)
		target := resolver.Target{}
		target.URL.Scheme, target.URL.Path, target.URL.RawQuery = "consul", "/account", "connect=false"
		conn := &recordingConn{}
		proxy.Cut("")
		r, err := discovery.NewBuilder(c, "test").Build(target, conn, resolver.BuildOptions{})
		require.NoError(t, err)
		t.Cleanup(r.Close)
		require.Eventually(t, func() bool { _, errors := conn.seen(); return errors == 1 }, patience, time.Millisecond)
		return proxy, conn, r
	}
	never := quick()
	never.RetryMin, never.RetryMax = time.Hour, time.Hour

	t.Run("wakes a query in backoff", func(t *testing.T) {
		proxy, conn, r := build(t, never)
		proxy.Heal()
		start := time.Now()
		r.ResolveNow(resolver.ResolveNowOptions{})
		require.Eventually(t, func() bool { states, _ := conn.seen(); return states == 1 }, patience, time.Millisecond)
		require.Less(t, time.Since(start), 2*time.Second)
		require.Len(t, conn.states[0].Endpoints, 1)
		require.Len(t, conn.states[0].Addresses, 1)
	})
	t.Run("a storm costs one query a second", func(t *testing.T) {
		proxy, conn, r := build(t, never)
		start := time.Now()
		for {
			if _, errors := conn.seen(); errors >= 4 {
				break
			}
			require.Less(t, time.Since(start), patience)
			r.ResolveNow(resolver.ResolveNowOptions{})
		}
		// The transport of consul/api tries a cut connection again by itself.
		require.GreaterOrEqual(t, time.Since(start), 2900*time.Millisecond)
		require.LessOrEqual(t, proxy.Count(healthPath), 8)
	})
	t.Run("does not touch a query that waits", func(t *testing.T) {
		opts := quick()
		opts.WaitTime = time.Minute
		proxy, conn, r := build(t, opts)
		proxy.Heal()
		require.Eventually(t, func() bool { states, _ := conn.seen(); return states == 1 }, patience, time.Millisecond)
		require.Eventually(t, func() bool {
			requests := proxy.Requests(healthPath)
			return requests[len(requests)-1].Query.Get("index") != ""
		}, patience, time.Millisecond)
		before := proxy.Count(healthPath)
		for range 100_000 {
			r.ResolveNow(resolver.ResolveNowOptions{})
		}
		put(t, agent.Client, "account", 2, "env-test")
		require.Eventually(t, func() bool { states, _ := conn.seen(); return states == 2 }, patience, time.Millisecond)
		require.LessOrEqual(t, proxy.Count(healthPath)-before, 1)
	})
}
