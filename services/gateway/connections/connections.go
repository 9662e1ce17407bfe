// Package connections bounds the connections that clients hold open at the
// gateway's doors, so that nobody's idle ones take the place of others' calls.
package connections

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Limit bounds the connections of several listeners together.
type Limit struct {
	total, perAddress int

	mu   sync.Mutex
	open int
	of   map[netip.Prefix]int // by client

	refused *prometheus.CounterVec
	// told has a place for each of the refused that are being told so, for whom
	// leaving waits.
	told    chan struct{}
	leaving sync.WaitGroup
}

// New makes a limit of so many connections at all and from one address; 0 is no
// limit. IPv6 clients count by their /64, which is what a customer gets. metric is
// the name of the gauge that it registers, beside metric_refused_total{limit}, and
// flag what sets the total.
func New(metric, flag string, total, perAddress int, registry prometheus.Registerer) (*Limit, error) {
	l := &Limit{
		total: total, perAddress: perAddress, of: make(map[netip.Prefix]int), told: make(chan struct{}, farewells),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: metric + "_refused_total",
			Help: "Connections refused, by the limit that was reached: total or address.",
		}, []string{"limit"}),
	}
	open := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: metric,
		Help: "Connections that are open, of --" + flag + ".",
	}, func() float64 { return float64(l.count()) })
	for _, c := range []prometheus.Collector{l.refused, open} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics of connections: %w", err)
		}
	}
	return l, nil
}

func (l *Limit) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

// enter counts a connection in, unless that would be one too many.
func (l *Limit) enter(client netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.perAddress > 0 && l.of[client] >= l.perAddress:
		l.refused.WithLabelValues("address").Inc()
		return false
	case l.total > 0 && l.open >= l.total:
		l.refused.WithLabelValues("total").Inc()
		return false
	}
	l.open++
	l.of[client]++
	return true
}

func (l *Limit) leave(client netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.of[client]--; l.of[client] == 0 {
		delete(l.of, client)
	}
}

// clientOf is who a connection comes from.
func clientOf(address net.Addr) netip.Prefix {
	tcp, ok := address.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	prefix, _ := ip.Prefix(bits) // fails for more bits than there are
	return prefix
}

const (
	// farewell is how long a refused client has to read why.
	farewell = time.Second
	// farewells bounds those who are being told at a time; more are closed
	// without a word.
	farewells = 256
)

// Wait waits until nobody is being refused any more, after the listeners were
// closed: a second at most.
func (l *Limit) Wait() { l.leaving.Wait() }

// Listener counts what it accepts, until it is closed. One connection too many is
// answered with goodbye, in the protocol of the listener, and closed; when that is
// empty, without a word.
func (l *Limit) Listener(inner net.Listener, goodbye []byte) net.Listener {
	return &listener{Listener: inner, limit: l, goodbye: goodbye}
}

type listener struct {
	net.Listener
	limit   *Limit
	goodbye []byte
}

// Accept returns the next connection that is within the limit.
func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		client := clientOf(conn.RemoteAddr())
		if !l.limit.enter(client) {
			l.limit.refuse(conn, l.goodbye)
			continue
		}
		leave := sync.OnceFunc(func() { l.limit.leave(client) })
		if tcp, ok := conn.(*net.TCPConn); ok {
			return &tcpConn{TCPConn: tcp, leave: leave}, nil
		}
		return &plainConn{Conn: conn, leave: leave}, nil
	}
}

// refuse does not hold up those who come next.
func (l *Limit) refuse(conn net.Conn, goodbye []byte) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok || len(goodbye) == 0 {
		conn.Close()
		return
	}
	select {
	case l.told <- struct{}{}:
	default:
		conn.Close()
		return
	}
	l.leaving.Go(func() {
		defer func() { <-l.told }()
		defer conn.Close()
		_ = tcp.SetDeadline(time.Now().Add(farewell))
		// An answer before the question some clients take for a broken connection,
		// and closing before all of it was read would take the words back.
		var question [512]byte
		if _, err := tcp.Read(question[:]); err != nil {
			return
		}
		if _, err := tcp.Write(goodbye); err == nil && tcp.CloseWrite() == nil {
			_, _ = io.Copy(io.Discard, tcp) // ends at the deadline at the latest
		}
	})
}

// tcpConn keeps what a TCP connection can beside what net.Conn says.
type tcpConn struct {
	*net.TCPConn
	leave func()
}

// Close closes the connection and counts it out.
func (c *tcpConn) Close() error {
	c.leave()
	return c.TCPConn.Close()
}

type plainConn struct {
	net.Conn
	leave func()
}

// Close closes the connection and counts it out.
func (c *plainConn) Close() error {
	c.leave()
	return c.Conn.Close()
}
