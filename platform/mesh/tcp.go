package mesh

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// peerConn is a mesh connection of bytes: TLS with CloseWrite for half-close.
type peerConn struct {
	*tls.Conn
	peer *peerInfo
	// closed runs once, before the connection closes.
	closed func()
	once   sync.Once
}

// Close closes the connection. It sends what TLS needs for a clean end.
func (c *peerConn) Close() error {
	c.once.Do(c.closed)
	return c.Conn.Close()
}

// cut closes without a word to the peer, which might not be reading.
func (c *peerConn) cut() {
	c.once.Do(c.closed)
	c.NetConn().Close()
}

func newPeerConn(conn *tls.Conn) (*peerConn, error) {
	who, err := newPeerInfo(credentials.TLSInfo{State: conn.ConnectionState()})
	if err != nil {
		return nil, err
	}
	return &peerConn{Conn: conn, peer: who, closed: func() {}}, nil
}

// connect opens a plain connection to one instance and proves that it is one.
func (n *native) connect(ctx context.Context, service, address string) (net.Conn, error) {
	dialer := net.Dialer{KeepAliveConfig: DefaultDialSettings().keepAlive()}
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	DefaultDialSettings().endUnacknowledged(raw)
	conn := tls.Client(raw, n.certs.clientConfig(service))
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	peer, err := newPeerConn(conn)
	if err != nil {
		raw.Close()
		return nil, err
	}
	return peer, nil
}

// Listener wraps inner. Handshakes run beside Accept, within handshakeTimeout
// and at most maxHandshakes at once. Close also closes what has not been
// accepted yet; accepted connections are their owner's.
func (n *native) Listener(inner net.Listener) net.Listener {
	l := &listener{
		Listener: inner,
		mesh:     n,
		config:   n.certs.streamConfig(),
		accepted: make(chan net.Conn),
		done:     make(chan struct{}),
	}
	l.running.Go(l.run)
	return l
}

type listener struct {
	net.Listener
	mesh     *native
	config   *tls.Config
	accepted chan net.Conn

	done    chan struct{} // closed by Close or when inner fails
	end     sync.Once
	failure error // why inner failed; set before done is closed
	running sync.WaitGroup

	handshakes handshakes
}

// Accept returns the next connection whose peer is authenticated and allowed.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.accepted:
		return conn, nil
	case <-l.done:
		return nil, l.failure
	}
}

// Close stops listening and waits for the handshakes under way, which it cuts.
func (l *listener) Close() error {
	err := l.Listener.Close()
	l.stop(net.ErrClosed)
	l.running.Wait()
	return err
}

func (l *listener) stop(why error) {
	l.end.Do(func() {
		l.failure = why
		close(l.done)
		l.handshakes.close()
	})
}

func (l *listener) run() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	failures := 0
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			// Out of file descriptors, or a peer that was gone already: others
			// wait. A closed listener says so for good.
			var passing interface{ Temporary() bool }
			if errors.As(err, &passing) && passing.Temporary() {
				failures++
				l.mesh.log.Warn("accept failed", "error", err)
				l.pause(retryDelay(failures))
				continue
			}
			l.stop(err)
			return
		}
		failures = 0
		leave := l.handshakes.enter(raw)
		l.running.Go(func() {
			defer leave()
			l.admit(ctx, raw)
		})
	}
}

func (l *listener) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-l.done:
	case <-timer.C:
	}
}

// admit proves and checks the peer and hands the connection to Accept.
func (l *listener) admit(ctx context.Context, raw net.Conn) {
	if tcp, ok := raw.(*net.TCPConn); ok {
		// Only makes dead peers known sooner: go on without.
		_ = tcp.SetKeepAliveConfig(DefaultDialSettings().keepAlive())
	}
	DefaultDialSettings().endUnacknowledged(raw)
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	secure := tls.Server(raw, l.config)
	if err := secure.HandshakeContext(ctx); err != nil {
		l.mesh.log.Debug("refused a connection", "from", raw.RemoteAddr(), "error", err)
		raw.Close()
		return
	}
	conn, err := newPeerConn(secure)
	if err != nil {
		raw.Close()
		return
	}
	if !l.register(conn) {
		conn.cut()
		return
	}
	select {
	case l.accepted <- conn:
	case <-l.done:
		conn.cut()
	}
}

// register checks the peer against the intentions, now and from now on.
func (l *listener) register(conn *peerConn) bool {
	n := l.mesh
	one := &session{
		allowed: func(p *policy) bool { return p.allowsConnection(conn.peer.rule(p)) },
		end: func() {
			n.log.Info("closed a connection that is no longer allowed", "peer", conn.peer.identity.Service)
			conn.cut()
		},
	}
	conn.closed = func() { n.sessions.remove(one) }
	n.sessions.add(one)
	p := n.policy.Load()
	if p == nil || !one.allowed(p) {
		n.log.Info("refused a connection", "peer", conn.peer.identity.Service, "intentions", p != nil)
		return false
	}
	return true
}
