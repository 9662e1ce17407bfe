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
)

// Listener accepts the connections of players.
type Listener struct {
	listener net.Listener
	broker   Broker
	limits   Limits
	refused  Refused
	log      hclog.Logger

	places, connecting chan struct{}
	all                sync.WaitGroup
	closed             chan struct{}
}

// Listen opens the port: one for TLS, or without it when encryption is nil. Serve
// accepts on it.
func Listen(ctx context.Context, address string, encryption *tls.Config, broker Broker, limits Limits, refused Refused, log hclog.Logger) (*Listener, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listening for players: %w", err)
	}
	if encryption != nil {
		// The handshake is part of the first read, and so of the time to connect.
		listener = tls.NewListener(listener, encryption)
	}
	return &Listener{
		listener: listener, broker: broker, limits: limits, refused: refused, log: log, closed: make(chan struct{}),
		places: make(chan struct{}, limits.Connections), connecting: make(chan struct{}, limits.Connecting),
	}, nil
}

// Address is where it listens, host:port.
func (l *Listener) Address() string { return l.listener.Addr().String() }

// Serve accepts until Close.
func (l *Listener) Serve() {
	const longestPause = time.Second
	pause := 5 * time.Millisecond
	for {
		conn, err := l.listener.Accept()
		if err == nil {
			pause = 5 * time.Millisecond
			l.take(conn)
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
func (l *Listener) take(conn net.Conn) {
	select {
	case l.places <- struct{}{}:
	default:
		l.refused.count(refusedConnections)
		conn.Close()
		return
	}
	select {
	case l.connecting <- struct{}{}:
	default:
		l.refused.count(refusedConnecting)
		<-l.places
		conn.Close()
		return
	}
	id, err := ulid.New(ulid.Now(), rand.Reader)
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(l.limits.ConnectWithin))
	}
	if err != nil {
		<-l.connecting
		<-l.places
		conn.Close()
		l.log.Warn("preparing a player's connection", "error", err)
		return
	}
	c := &Conn{Conn: conn, id: id.String(), limits: l.limits, admit: sync.OnceFunc(func() { <-l.connecting })}
	l.all.Go(func() {
		defer func() {
			c.admit()
			conn.Close()
			<-l.places
		}()
		// What one player sends must not end the others.
		defer func() {
			if wrong := recover(); wrong != nil {
				l.log.Error("a player's connection broke the broker", "remote", conn.RemoteAddr(), "panic", wrong, "stack", string(debug.Stack()))
			}
		}()
		l.broker.Serve(c)
	})
}

// Close stops accepting, ends the connections and waits for them until ctx ends.
func (l *Listener) Close(ctx context.Context) error {
	close(l.closed)
	err := l.listener.Close()
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

// pace waits until the player may send another packet.
func (c *Conn) pace(closed <-chan struct{}) {
	now := time.Now()
	if c.next.Before(now.Add(-c.burst())) {
		c.next = now.Add(-c.burst())
	}
	c.next = c.next.Add(c.limits.PacketEvery)
	wait := c.next.Sub(now)
	if wait <= 0 {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-closed:
	}
}

func (c *Conn) burst() time.Duration {
	return time.Duration(c.limits.PacketBurst) * c.limits.PacketEvery
}
