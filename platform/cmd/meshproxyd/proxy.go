package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/marquee-ads/marquee/platform/mesh"
)

// halfCloser is a connection that can be closed in one direction: TCP, Unix
// sockets and the mesh's TLS.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// halfClosing is a connection that was made, or why not, with what copies need.
func halfClosing(conn net.Conn, err error) (halfCloser, error) {
	if err != nil {
		return nil, err
	}
	both, ok := conn.(halfCloser)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("a connection of type %T cannot be closed one way", conn)
	}
	return both, nil
}

// proxy copies bytes between those who come in and what dial reaches.
type proxy struct {
	dial    func(context.Context) (halfCloser, error)
	admits  func(mesh.Identity) bool // nil is everybody whom the listener lets in
	log     hclog.Logger
	slots   chan struct{} // one taken for each connection
	metrics metrics

	listener net.Listener
	running  sync.WaitGroup
	ctx      context.Context // ends when connections are cut
	cut      context.CancelFunc
}

// metrics are those of all proxies of the process.
type metrics struct {
	open    prometheus.Gauge
	total   *prometheus.CounterVec // by result: served, full, refused, no_upstream
	carried *prometheus.CounterVec // bytes, by direction: in, out
}

func newMetrics(register prometheus.Registerer) metrics {
	m := metrics{
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "meshproxy_open_connections", Help: "Connections that are open now.",
		}),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshproxy_connections_total", Help: "Connections by how they fared: served, full, refused, no_upstream.",
		}, []string{"result"}),
		carried: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meshproxy_bytes_total", Help: "Bytes carried on ended connections, in (to the upstream) and out.",
		}, []string{"direction"}),
	}
	register.MustRegister(m.open, m.total, m.carried)
	return m
}

func newProxy(dial func(context.Context) (halfCloser, error), maxConnections int, log hclog.Logger, measured metrics) *proxy {
	p := &proxy{dial: dial, log: log, slots: make(chan struct{}, maxConnections), metrics: measured}
	p.ctx, p.cut = context.WithCancel(context.Background())
	return p
}

// start listens and serves beside the caller; fail is told when it cannot go on.
// secure is the mesh's, nil for a port of the machine itself.
func (p *proxy) start(ctx context.Context, address string, secure func(net.Listener) net.Listener, fail func(error)) (net.Addr, error) {
	var config net.ListenConfig
	var err error
	if p.listener, err = config.Listen(ctx, "tcp", address); err != nil {
		return nil, err
	}
	if secure != nil {
		p.listener = secure(p.listener)
	}
	p.running.Go(func() {
		if err := p.accept(); err != nil {
			fail(fmt.Errorf("accept connections: %w", err))
		}
	})
	return p.listener.Addr(), nil
}

// stop accepts no more, gives connections until ctx ends, and cuts the rest.
func (p *proxy) stop(ctx context.Context) error {
	err := p.listener.Close()
	ended := make(chan struct{})
	go func() {
		p.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		p.log.Info("cutting the connections that are left", "count", len(p.slots))
	}
	p.cut()
	<-ended
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (p *proxy) accept() error {
	for {
		conn, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		client, err := halfClosing(conn, nil)
		if err != nil {
			return err
		}
		select {
		case p.slots <- struct{}{}:
		default:
			p.metrics.total.WithLabelValues("full").Inc()
			p.log.Warn("closed a connection: there are --max-connections already", "max", cap(p.slots))
			client.Close()
			continue
		}
		p.running.Go(func() {
			defer func() { <-p.slots }()
			p.serve(client)
		})
	}
}

func (p *proxy) serve(client halfCloser) {
	defer client.Close()
	log := p.log
	peer, known := mesh.PeerFromConn(client)
	if known {
		log = log.With("peer", peer.Service)
	}
	if p.admits != nil && (!known || !p.admits(peer)) {
		p.metrics.total.WithLabelValues("refused").Inc()
		log.Warn("closed a connection: this port is for other instances of the service alone")
		return
	}
	server, err := p.dial(p.ctx)
	if err != nil {
		p.metrics.total.WithLabelValues("no_upstream").Inc()
		log.Warn("closed a connection: the upstream does not accept", "error", err)
		return
	}
	defer server.Close()
	p.metrics.total.WithLabelValues("served").Inc()
	p.metrics.open.Inc()
	defer p.metrics.open.Dec()
	began := time.Now()

	// Closing both frees the copies, whatever they wait for.
	unwatch := context.AfterFunc(p.ctx, func() { closeBoth(client, server) })
	defer unwatch()
	var in int64
	var inErr error
	inward := make(chan struct{})
	go func() {
		defer close(inward)
		in, inErr = copyOneWay(server, client)
	}()
	out, outErr := copyOneWay(client, server)
	<-inward
	p.metrics.carried.WithLabelValues("in").Add(float64(in))
	p.metrics.carried.WithLabelValues("out").Add(float64(out))
	log.Debug("connection ended", "bytes_in", in, "bytes_out", out, "after", time.Since(began).Round(time.Millisecond),
		"error", errors.Join(inErr, outErr))
}

// copyOneWay copies until the source ends and hands the end on. A failure ends
// both directions: half a conversation helps nobody.
func copyOneWay(to, from halfCloser) (int64, error) {
	n, err := io.Copy(to, from)
	if err == nil {
		err = to.CloseWrite()
	}
	if err != nil {
		closeBoth(to, from)
	}
	return n, err
}

func closeBoth(a, b net.Conn) {
	a.Close()
	b.Close()
}
