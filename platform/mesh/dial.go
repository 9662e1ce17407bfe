package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/marquee-ads/marquee/platform/discovery"
)

// RoundRobinConfig is the part of a gRPC service config that balances over all
// instances. A service config given to NewClient (grpc.WithDefaultServiceConfig,
// for example for retries) replaces NewClient's own as a whole, so it has to
// contain this: "{" + RoundRobinConfig + `, "methodConfig": [...]}`.
const RoundRobinConfig = `"loadBalancingConfig": [{"round_robin": {}}]`

// DialSettings say how connections inside the mesh are made and how a dead one
// is noticed. Both ends have to agree: NewClient uses DefaultDialSettings, and so
// does a server with their ServerOptions.
type DialSettings struct {
	// ConnectTimeout is the time one attempt has, TCP and TLS together. A
	// machine that vanished costs this much before the next one is tried.
	ConnectTimeout time.Duration
	// FirstRetry and LastRetry bound the growing pause between attempts to reach
	// the same instance. LastRetry is how long a restarted instance may stay
	// unused; gRPC's own default of two minutes is for the internet.
	FirstRetry, LastRetry time.Duration
	// ClientPing is how long a client lets a connection be silent before it
	// pings. gRPC does not go below 10 s. A shorter silence than MinPing on the
	// server's side would get the client disconnected (ENHANCE_YOUR_CALM).
	ClientPing time.Duration
	// ServerPing is the same for the server, at least 1 s.
	ServerPing time.Duration
	// PingTimeout is how long the answer to a ping, or the acknowledgement of
	// what gRPC sent (TCP_USER_TIMEOUT), may take before the connection is dead.
	PingTimeout time.Duration
	// MinPing is the shortest interval between a client's pings that a server
	// bears; less than ClientPing, so that timers may be inexact.
	MinPing time.Duration
}

// DefaultDialSettings notice a peer behind a partition within 3 s when calls are
// under way, and within 13 s (client) or 8 s (server) when the connection is idle.
func DefaultDialSettings() DialSettings {
	return DialSettings{
		ConnectTimeout: 2 * time.Second,
		FirstRetry:     100 * time.Millisecond,
		LastRetry:      time.Second,
		ClientPing:     10 * time.Second,
		ServerPing:     5 * time.Second,
		PingTimeout:    3 * time.Second,
		MinPing:        5 * time.Second,
	}
}

// DialOptions are the settings for a gRPC client.
func (s DialSettings) DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultServiceConfig("{" + RoundRobinConfig + "}"),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: s.FirstRetry, Multiplier: 1.6, Jitter: 0.2, MaxDelay: s.LastRetry},
			MinConnectTimeout: s.ConnectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: s.ClientPing, Timeout: s.PingTimeout, PermitWithoutStream: true,
		}),
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connectionWindow),
	}
}

// ServerOptions are the settings for a gRPC server that these clients call.
func (s DialSettings) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: s.ServerPing, Timeout: s.PingTimeout}),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: s.MinPing, PermitWithoutStream: true}),
	}
}

// Flow-control windows of a fixed size, in bytes. grpc-go's estimator, which
// would size them, adds a ping to most messages: a tenth of the cost of a small
// call. Between machines of one network these suffice for a gigabit a stream at
// a round trip of 2 ms.
const (
	streamWindow     = 256 << 10
	connectionWindow = 4 << 20
)

// keepAlive makes the kernel notice a dead peer of a plain connection in the
// same time in which gRPC's pings would.
func (s DialSettings) keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: s.ClientPing, Interval: time.Second, Count: max(1, int(s.PingTimeout/time.Second))}
}

// unacknowledged is how long a plain connection bears that what was sent is not
// taken, which is as long as it bears silence. Without a bound the kernel sends
// again for a quarter of an hour, and asks nobody whether the peer is alive: the
// database would hold the locks of a machine that is gone for as long. The bound
// holds for a peer, too, that is there and reads nothing.
func (s DialSettings) unacknowledged() time.Duration {
	k := s.keepAlive()
	return k.Idle + time.Duration(k.Count)*k.Interval
}

// newClient makes a gRPC client; the caller's options come last and so win.
func newClient(target string, creds credentials.TransportCredentials, own, callers []grpc.DialOption) (*grpc.ClientConn, error) {
	// Instances are peers on our own networks: HTTPS_PROXY is not for them.
	opts := append(DefaultDialSettings().DialOptions(), grpc.WithTransportCredentials(creds), grpc.WithNoProxy())
	opts = append(opts, own...)
	opts = append(opts, callers...)
	conn, err := grpc.NewClient(target, opts...)
	if err != nil {
		return nil, fmt.Errorf("mesh: make a client for %s: %w", target, err)
	}
	return conn, nil
}

// consulTarget is the resolver's name of a service.
func consulTarget(service, parameters string) string {
	return (&url.URL{Scheme: "consul", Path: "/" + service, RawQuery: parameters}).String()
}

// instances knows where the services are that plain connections go to. A
// service is watched from its first dial on, until close.
type instances struct {
	watcher discovery.Watcher
	query   discovery.Query // with everything but the service's name

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu       sync.Mutex
	services map[string]*placement
}

// placement is where one service is now.
type placement struct {
	mu      sync.Mutex
	next    int
	list    []discovery.Instance
	open    map[string]int // connections of ours, by the instance's id
	err     error
	changed chan struct{} // closed at the next update
}

func newInstances(ctx context.Context, watcher discovery.Watcher, query discovery.Query) *instances {
	ctx, cancel := context.WithCancel(ctx)
	return &instances{
		watcher: watcher, query: query,
		ctx: ctx, cancel: cancel,
		services: make(map[string]*placement),
	}
}

func (in *instances) close() {
	// Under the lock, so that no watch begins after the wait below.
	in.mu.Lock()
	in.cancel()
	in.mu.Unlock()
	in.running.Wait()
}

func (in *instances) of(service string) (*placement, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if p, ok := in.services[service]; ok {
		return p, nil
	}
	if in.watcher == nil {
		return nil, errors.New("no discovery.Watcher was configured")
	}
	if err := in.ctx.Err(); err != nil {
		return nil, errors.New("the mesh is closed")
	}
	p := &placement{open: make(map[string]int), changed: make(chan struct{})}
	in.services[service] = p
	query := in.query
	query.Service = service
	in.running.Go(func() { in.watcher.Watch(in.ctx, query, p.update) })
	return p, nil
}

func (p *placement) update(list []discovery.Instance, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
	if err == nil {
		p.list = list
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// order is the instances in the order in which to try them: those with the fewest
// of our connections first, each call beginning with another among equals.
// Connections may last for weeks: an instance that was away gets its share back.
func (p *placement) order() ([]discovery.Instance, <-chan struct{}, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.list) == 0 {
		return p.list, p.changed, p.err
	}
	p.next = (p.next + 1) % len(p.list)
	list := slices.Concat(p.list[p.next:], p.list[:p.next])
	slices.SortStableFunc(list, func(a, b discovery.Instance) int { return p.open[a.ID] - p.open[b.ID] })
	return list, p.changed, p.err
}

// count counts a connection to an instance, until it is closed.
func (p *placement) count(id string, conn net.Conn) net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[id]++
	return &countedConn{Conn: conn, leave: sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.open[id]--; p.open[id] == 0 {
			delete(p.open, id)
		}
	})}
}

type countedConn struct {
	net.Conn
	leave func()
}

// Close closes the connection and counts it out.
func (c *countedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// CloseWrite says that nothing more will be sent.
func (c *countedConn) CloseWrite() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

// dial connects to the instance with the fewest of our connections, and goes on
// to the others until one answers or ctx ends: a service that is just
// restarting, or not there yet, costs its callers time and no error. Without a
// deadline in ctx it gives up after dialLimit. An empty port is the announced one,
// and with a name only the instance that has it will do.
func (in *instances) dial(ctx context.Context, service, port, name string, connect func(ctx context.Context, address string) (net.Conn, error)) (net.Conn, error) {
	p, err := in.of(service)
	if err != nil {
		return nil, unreachable(service, err)
	}
	ctx, cancel := withLimit(ctx)
	defer cancel()
	last := errors.New("discovery has not answered yet")
	for round := 1; ; round++ {
		list, changed, listErr := p.order()
		if name != "" {
			list = slices.DeleteFunc(list, func(i discovery.Instance) bool { return i.Meta[InstanceMeta] != name })
		}
		switch {
		case listErr != nil:
			last = listErr
		case list != nil && len(list) == 0 && name != "":
			last = fmt.Errorf("there is no healthy instance %q", name)
		case list != nil && len(list) == 0:
			last = errors.New("there is no healthy instance")
		}
		for _, instance := range list {
			address := instance.Address
			if port != "" {
				address = instance.Meta[port]
			}
			if address == "" {
				last = fmt.Errorf("instance %s has registered no port %q", instance.ID, port)
				continue
			}
			conn, err := attempt(ctx, address, connect)
			if err == nil {
				return p.count(instance.ID, conn), nil
			}
			last = fmt.Errorf("connect to %s: %w", address, err)
		}
		if !waitOr(ctx, changed, pauseAfter(round)) {
			return nil, unreachable(service, fmt.Errorf("%w; the last failure was: %w", context.Cause(ctx), last))
		}
	}
}

// dialLimit bounds a dial whose caller set no deadline.
const dialLimit = 10 * time.Second

func withLimit(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, dialLimit)
}

func attempt(ctx context.Context, address string, connect func(context.Context, string) (net.Conn, error)) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, DefaultDialSettings().ConnectTimeout)
	defer cancel()
	return connect(ctx, address)
}

// pauseAfter is shorter than between the attempts of a gRPC connection, which goes
// on to other instances: here somebody waits.
func pauseAfter(round int) time.Duration {
	const longest = 250 * time.Millisecond
	return min(DefaultDialSettings().FirstRetry<<min(round-1, 8), longest)
}

// waitOr waits for a change or for d and reports whether ctx is still alive.
func waitOr(ctx context.Context, changed <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-changed:
	case <-timer.C:
	}
	return ctx.Err() == nil
}
