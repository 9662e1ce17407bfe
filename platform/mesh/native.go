package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/resolver"

	"github.com/marquee-ads/marquee/platform/discovery"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
)

// NativeConfig is what Native needs.
type NativeConfig struct {
	// Consul is the agent of this machine. Its token has to be the service's
	// own, which may read the service's leaf and the intentions towards it.
	Consul *consulapi.Client
	// Service is our Consul service name: who we are to others, and the
	// destination of the intentions that are enforced here.
	Service string
	// Environment keeps DialContext to instances of our own environment.
	Environment string
	// Log is optional.
	Log hclog.Logger
	// Resolver resolves consul:///SERVICE; without it NewClient is an error.
	Resolver resolver.Builder
	// Watcher finds instances for plain connections; without it DialContext is
	// an error.
	Watcher discovery.Watcher
	// Now is the clock that certificates are judged by; time.Now by default.
	Now func() time.Time
}

// native is the mesh without a proxy: the process itself holds the certificate
// and enforces the intentions.
type native struct {
	cfg      NativeConfig
	log      hclog.Logger
	certs    certificates
	policy   atomic.Pointer[policy]
	sessions sessions
	targets  *instances

	cancel  context.CancelFunc
	running sync.WaitGroup

	mu       sync.Mutex
	changed  chan struct{}    // closed at the next arrival or failure
	failures map[string]error // what each watch last failed with
}

// The names of the three watches.
const (
	watchLeaf       = "the leaf certificate"
	watchRoots      = "the roots"
	watchIntentions = "the intentions"
)

// Native joins the mesh as a Connect-native service. It starts watching the
// agent and returns at once; Ready waits for the answers. The watches end with
// Close or with ctx.
//
// When the agent goes away, certificates, roots and intentions stay as they
// were, so that calls go on: until the certificate expires, which is logged
// clearly before and after, and from when on no new connection is made.
// Connections do not end when a certificate does.
//
// An intention as a whole may also demand a JWT, which the agent's API does not
// tell: do not use that on services behind this mesh.
func Native(ctx context.Context, cfg NativeConfig) (Mesh, error) {
	switch {
	case cfg.Consul == nil:
		return nil, errors.New("mesh: NativeConfig.Consul is missing")
	case cfg.Service == "":
		return nil, errors.New("mesh: NativeConfig.Service is empty: it is the Consul service name of this process")
	case cfg.Environment == "":
		return nil, errors.New("mesh: NativeConfig.Environment is empty")
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	ctx, cancel := context.WithCancel(ctx)
	n := &native{
		cfg:      cfg,
		log:      cfg.Log.Named("mesh"),
		certs:    certificates{now: cfg.Now},
		cancel:   cancel,
		changed:  make(chan struct{}),
		failures: make(map[string]error),
	}
	n.targets = newInstances(ctx, cfg.Watcher, discovery.Query{
		Tags:    []string{discovery.EnvironmentTag(cfg.Environment)},
		Connect: true,
	})

	n.running.Go(func() { follow(ctx, n.log, watchLeaf, n.askLeaf, n.applyLeaf, n.reporter(watchLeaf)) })
	n.running.Go(func() {
		follow(ctx, n.log, watchRoots, cfg.Consul.Agent().ConnectCARoots, n.applyRoots, n.reporter(watchRoots))
	})
	n.running.Go(func() {
		follow(ctx, n.log, watchIntentions, n.askIntentions, n.applyIntentions, n.reporter(watchIntentions))
	})
	n.running.Go(func() { n.watchExpiry(ctx) })
	return n, nil
}

func (n *native) askLeaf(opts *consulapi.QueryOptions) (*consulapi.LeafCert, *consulapi.QueryMeta, error) {
	return n.cfg.Consul.Agent().ConnectCALeaf(n.cfg.Service, opts)
}

func (n *native) applyLeaf(from *consulapi.LeafCert) error {
	l, err := newLeaf(from, n.cfg.Service)
	if err != nil {
		return err
	}
	if old := n.certs.leaf.Swap(l); old == nil || old.serial != l.serial {
		n.log.Info("have a certificate", "serial", l.serial, "until", l.notAfter.Format(time.RFC3339))
	}
	return nil
}

func (n *native) applyRoots(from *consulapi.CARootList) error {
	t, err := newTrust(from)
	if err != nil {
		return err
	}
	n.certs.trust.Store(t)
	n.log.Debug("have roots", "count", len(from.Roots), "trust_domain", t.domain)
	return nil
}

func (n *native) askIntentions(opts *consulapi.QueryOptions) ([]*consulapi.Intention, *consulapi.QueryMeta, error) {
	matches, meta, err := n.cfg.Consul.Connect().IntentionMatch(&consulapi.IntentionMatch{
		By: consulapi.IntentionMatchDestination, Names: []string{n.cfg.Service},
	}, opts)
	return matches[n.cfg.Service], meta, err
}

func (n *native) applyIntentions(list []*consulapi.Intention) error {
	p, err := newPolicy(list)
	if err != nil {
		n.log.Error("intentions refuse more than they say", "error", err)
	}
	n.policy.Store(p)
	ended := n.sessions.enforce(p)
	n.log.Info("have intentions", "count", len(list), "ended", ended)
	return nil
}

// reporter notes how a watch fares, for Ready.
func (n *native) reporter(watch string) func(error) {
	return func(err error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.failures[watch] = err
		close(n.changed)
		n.changed = make(chan struct{})
	}
}

// expiryInterval fits several times into the last tenth of the shortest leaf's
// life that Consul issues (one hour).
const expiryInterval = 2 * time.Minute

// watchExpiry says when the certificate should have been renewed and was not.
func (n *native) watchExpiry(ctx context.Context) {
	ticker := time.NewTicker(expiryInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			n.checkExpiry()
		}
	}
}

// checkExpiry logs a certificate that is near its end or past it. Consul renews
// leaves long before the last tenth of their life.
func (n *native) checkExpiry() {
	l := n.certs.leaf.Load()
	if l == nil {
		return
	}
	left, life := l.notAfter.Sub(n.cfg.Now()), l.notAfter.Sub(l.notBefore)
	switch {
	case left <= 0:
		n.log.Error("our certificate has expired: no new connection can be made until the Consul agent sends a new one",
			"since", l.notAfter.Format(time.RFC3339))
	case left < life/10:
		n.log.Warn("our certificate expires soon and the Consul agent has sent no new one", "in", left.Round(time.Second))
	}
}

// missing names what there is to wait for, empty when ready.
func (n *native) missing() string {
	var waiting []string
	add := func(watch, state string) {
		if err := n.failures[watch]; err != nil {
			state += " (" + err.Error() + ")"
		}
		waiting = append(waiting, state)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if l := n.certs.leaf.Load(); l == nil {
		add(watchLeaf, "no certificate yet")
	} else if n.cfg.Now().After(l.notAfter) {
		add(watchLeaf, "the certificate has expired")
	}
	if n.certs.trust.Load() == nil {
		add(watchRoots, "no roots yet")
	}
	if n.policy.Load() == nil {
		add(watchIntentions, "no intentions yet")
	}
	return strings.Join(waiting, ", ")
}

// Ready waits until a valid certificate, roots and intentions are there. Its
// error says what is missing and why.
func (n *native) Ready(ctx context.Context) error {
	for {
		n.mu.Lock()
		changed := n.changed
		n.mu.Unlock()
		waiting := n.missing()
		if waiting == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return notReady(waiting).Because(context.Cause(ctx))
		case <-changed:
		}
	}
}

// Close ends the watches and waits for them.
func (n *native) Close() error {
	n.cancel()
	n.targets.close()
	n.running.Wait()
	return nil
}

func (n *native) ServerCredentials() credentials.TransportCredentials {
	return &meshCredentials{credentials.NewTLS(n.certs.serverConfig()), &handshakes{}}
}

func (n *native) NewClient(service string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	if n.cfg.Resolver == nil {
		return nil, fmt.Errorf("mesh: make a client for %s: NativeConfig.Resolver is missing", service)
	}
	creds := &meshCredentials{credentials.NewTLS(n.certs.clientConfig(service)), nil}
	own := []grpc.DialOption{grpc.WithResolvers(n.cfg.Resolver)}
	return newClient(consulTarget(service, ""), creds, own, opts)
}

func (n *native) DialContext(ctx context.Context, service string) (net.Conn, error) {
	return n.DialInstance(ctx, service, "", "")
}

func (n *native) DialPort(ctx context.Context, service, port string) (net.Conn, error) {
	return n.DialInstance(ctx, service, port, "")
}

func (n *native) DialInstance(ctx context.Context, service, port, name string) (net.Conn, error) {
	return n.targets.dial(ctx, service, port, name, func(ctx context.Context, address string) (net.Conn, error) {
		return n.connect(ctx, service, address)
	})
}

// authorize decides about one call. It is the hot path: three loads and, for
// intentions without permissions, no evaluation.
func (n *native) authorize(ctx context.Context, fullMethod string) (*peerInfo, *policy, *fault.Error) {
	from, ok := peer.FromContext(ctx)
	if !ok {
		return nil, nil, noIdentity()
	}
	who, ok := from.AuthInfo.(*peerInfo)
	if !ok {
		return nil, nil, noIdentity()
	}
	p := n.policy.Load()
	if p == nil {
		return nil, nil, notReady("no intentions yet")
	}
	if !p.allowsCall(ctx, who.rule(p), fullMethod) {
		return nil, nil, denied(who.identity.Service, n.cfg.Service)
	}
	return who, p, nil
}

func (n *native) UnaryServerInterceptor() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		who, _, refused := n.authorize(ctx, info.FullMethod)
		if refused != nil {
			return nil, refused
		}
		return handler(who.context(ctx), req)
	}
}

func (n *native) StreamServerInterceptor() grpc.StreamServerInterceptor {
	return func(srv any, inner grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		who, admittedBy, refused := n.authorize(inner.Context(), info.FullMethod)
		if refused != nil {
			return refused
		}
		s := grpcfault.NewStream(who.context(inner.Context()), inner)
		defer s.Close()
		one := &session{
			allowed: func(p *policy) bool { return p.allowsCall(inner.Context(), who.rule(p), info.FullMethod) },
			end:     func() { s.End(denied(who.identity.Service, n.cfg.Service), "") },
		}
		n.sessions.add(one)
		defer n.sessions.remove(one)
		// A policy that came between the decision and add has not seen this one.
		if p := n.policy.Load(); p != admittedBy && !one.allowed(p) {
			return denied(who.identity.Service, n.cfg.Service)
		}
		return s.Result(handler(srv, s))
	}
}
