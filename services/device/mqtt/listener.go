package mqtt

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/oklog/ulid/v2"
	"github.com/pires/go-proxyproto"
)

// Port is one that players come in by.
type Port struct {
	net.Listener
	// Proxied says that each connection begins with a PROXY protocol header
	// (version 1 or 2), which says where its player is.
	Proxied bool
}

// Listener accepts the connections of players.
type Listener struct {
	ports      []Port
	encryption *tls.Config
	broker     Broker
	limits     Limits
	refused    Refused
	log        hclog.Logger

	places     chan struct{}
	connecting connecting
	all        sync.WaitGroup
	closed     chan struct{}
}

// NewListener makes one for these ports, which Serve accepts on and Close closes.
// With encryption they are for TLS, and without it for nothing else than
// unencrypted connections. On each, players speak MQTT or MQTT over WebSocket.
func NewListener(ports []Port, encryption *tls.Config, broker Broker, limits Limits, refused Refused, log hclog.Logger) *Listener {
	return &Listener{
		ports: ports, encryption: encryption, broker: broker, limits: limits, refused: refused, log: log, closed: make(chan struct{}),
		places: make(chan struct{}, limits.Connections), connecting: connecting{most: limits.Connecting},
	}
}

// Serve accepts on all ports until Close.
func (l *Listener) Serve() {
	var accepting sync.WaitGroup
	for _, port := range l.ports {
		accepting.Go(func() { l.accept(port) })
	}
	accepting.Wait()
}

func (l *Listener) accept(port Port) {
	const longestPause = time.Second
	pause := 5 * time.Millisecond
	for {
		conn, err := port.Accept()
		if err == nil {
			pause = 5 * time.Millisecond
			l.take(conn, port.Proxied)
			continue
		}
		select {
		case <-l.closed:
			return
		default:
		}
		// Out of file descriptors, most often: those in use come back.
		l.log.Warn("accepting a player's connection", "error", err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-l.closed:
			timer.Stop()
			return
		}
		pause = min(2*pause, longestPause)
	}
}

// take serves a connection if there is room for it.
func (l *Listener) take(raw net.Conn, proxied bool) {
	select {
	case l.places <- struct{}{}:
	default:
		l.refused.count(refusedConnections)
		raw.Close()
		return
	}
	place := l.connecting.enter(raw)
	if place == nil {
		l.refused.count(refusedConnecting)
		<-l.places
		raw.Close()
		return
	}
	l.all.Go(func() {
		defer func() {
			place.leave()
			raw.Close()
			<-l.places
		}()
		// What one player sends must not end the others.
		defer func() {
			if wrong := recover(); wrong != nil {
				l.log.Error("a player's connection broke the broker", "remote", raw.RemoteAddr(), "panic", wrong, "stack", string(debug.Stack()))
			}
		}()
		conn, err := l.open(place, proxied)
		if err != nil {
			l.refused.count(place.refused())
			l.log.Debug("a connection is no player's", "remote", raw.RemoteAddr(), "error", err)
			return
		}
		l.broker.Serve(conn)
		conn.Close()
	})
}

// open is the connection on which MQTT is spoken, within what carries it. All of
// it has to come in the time that a player has to connect.
func (l *Listener) open(place *place, proxied bool) (*Conn, error) {
	id, err := ulid.New(ulid.Now(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making an id: %w", err)
	}
	began := time.Now()
	deadline := began.Add(l.limits.ConnectWithin)
	if err := place.until(deadline); err != nil {
		return nil, err
	}
	conn := place.conn
	if proxied {
		conn = proxyproto.NewConn(conn, proxyproto.SetReadHeaderTimeout(0), proxyproto.WithBufferSize(proxyHeader))
	}
	if l.encryption != nil {
		conn = tls.Server(conn, l.encryption)
	}
	wire := &prefixed{Conn: conn}
	if conn, err = unframed(wire); err != nil {
		return nil, err
	}
	// Opening a WebSocket has taken the deadline away.
	if err := place.until(deadline); err != nil {
		return nil, err
	}
	return &Conn{Conn: conn, wire: wire, began: began, id: id.String(), limits: l.limits, place: place}, nil
}

// proxyHeader is enough for any that says an address, in bytes.
const proxyHeader = 256

// Close stops accepting, ends the connections and waits for them until ctx ends.
func (l *Listener) Close(ctx context.Context) error {
	close(l.closed)
	var err error
	for _, port := range l.ports {
		err = errors.Join(err, port.Close())
	}
	err = errors.Join(err, l.broker.Close())
	ended := make(chan struct{})
	go func() {
		l.all.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return err
	case <-ctx.Done():
		return errors.Join(err, fmt.Errorf("waiting for the players' connections: %w", ctx.Err()))
	}
}

// SetDeadline is for reads: writes have a deadline of their own.
func (c *Conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// Write fails, and ends the connection, when the player does not read.
func (c *Conn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.limits.WriteWithin)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(b)
	if err != nil {
		// A part of a packet may have gone out: nothing can follow it.
		c.Close()
	}
	return n, err
}

// hurry makes a write that is under way fail soon.
func (c *Conn) hurry() error { return c.SetWriteDeadline(time.Now().Add(hurryWithin)) }

const hurryWithin = 500 * time.Millisecond

// pace waits until the player may send another packet. It says whether it has sent
// too many for too long.
func (c *Conn) pace(closed <-chan struct{}) (flood bool) {
	now := time.Now()
	if c.next.Before(now.Add(-c.burst())) {
		c.next = now.Add(-c.burst())
	}
	c.next = c.next.Add(c.limits.PacketEvery)
	wait := c.next.Sub(now)
	if wait <= 0 {
		c.slowed = time.Time{}
		return false
	}
	if c.slowed.IsZero() {
		c.slowed = now
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-closed:
	}
	return now.Sub(c.slowed) > c.limits.FloodFor
}

func (c *Conn) burst() time.Duration {
	return time.Duration(c.limits.PacketBurst) * c.limits.PacketEvery
}
