package mesh_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/consultest"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/mesh"
)

// mirror accepts connections of a mesh listener and sends back what comes.
type mirror struct {
	address string
	mu      sync.Mutex
	callers []string
}

func (m *mirror) seen() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.callers)
}

func mirrored(t testing.TB, member mesh.Mesh) *mirror {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	listener := member.Listener(inner)
	m := &mirror{address: inner.Addr().String()}
	var running sync.WaitGroup
	var open sync.Map
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if id, ok := mesh.PeerFromConn(conn); ok {
				m.mu.Lock()
				m.callers = append(m.callers, id.Service)
				m.mu.Unlock()
			}
			open.Store(conn, nil)
			running.Go(func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
				_ = conn.(interface{ CloseWrite() error }).CloseWrite()
			})
		}
	})
	t.Cleanup(func() {
		require.NoError(t, listener.Close())
		open.Range(func(conn, _ any) bool { conn.(net.Conn).Close(); return true })
		running.Wait()
	})
	return m
}

// exchange proves that a connection is served.
func exchange(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("ping")); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 4))
	return err
}

func TestTCP(t *testing.T) {
	agent := consultest.Start(t)
	consul := agent.Client
	where := newPlaces()
	database := join(t, consul, "account-db", nil)
	m := mirrored(t, database)
	where.set("account-db", m.address)
	account := join(t, consul, "account", func(c *mesh.NativeConfig) { c.Watcher = where })
	dial := func(t *testing.T) net.Conn {
		conn, err := account.DialContext(deadline(t, 5*time.Second), "account-db")
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	comes := func(t *testing.T) net.Conn {
		var conn net.Conn
		require.Eventually(t, func() bool { conn = dial(t); return exchange(conn) == nil }, 5*time.Second, 5*time.Millisecond)
		return conn
	}

	t.Run("DenyAndAllow", func(t *testing.T) {
		require.Error(t, exchange(dial(t)), "no intention allows it yet")
		intend(t, consul, "account-db", source("account", allow))
		conn := comes(t)
		peer, ok := mesh.PeerFromConn(conn)
		require.True(t, ok)
		require.Equal(t, "account-db", peer.Service)
		require.Contains(t, m.seen(), "account")

		began := time.Now()
		intend(t, consul, "account-db", source("account", deny))
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(within)))
		_, err := conn.Read(make([]byte, 1))
		require.Error(t, err)
		var timeout net.Error
		require.False(t, errors.As(err, &timeout) && timeout.Timeout(), "it was not closed")
		t.Logf("closed %s after the deny was sent", time.Since(began))
		require.Error(t, exchange(dial(t)))
		intend(t, consul, "account-db", source("account", allow))
		comes(t)
	})

	t.Run("HalfClose", func(t *testing.T) {
		intend(t, consul, "account-db", source("account", allow))
		conn := comes(t)
		_, err := conn.Write([]byte("last words"))
		require.NoError(t, err)
		require.NoError(t, conn.(interface{ CloseWrite() error }).CloseWrite())
		rest, err := io.ReadAll(conn)
		require.NoError(t, err)
		require.Equal(t, "last words", string(rest))
	})

	t.Run("SlowPeersDoNotBlockAccept", func(t *testing.T) {
		intend(t, consul, "account-db", source("account", allow))
		comes(t)
		// More than there may be handshakes at once, none of which says a word.
		var oldest net.Conn
		for range 300 {
			silent, err := net.Dial("tcp", m.address)
			require.NoError(t, err)
			defer silent.Close()
			if oldest == nil {
				oldest = silent
			}
		}
		began := time.Now()
		require.NoError(t, exchange(dial(t)))
		t.Logf("served after %s with 300 half-open peers", time.Since(began))
		require.Less(t, time.Since(began), 3*time.Second)
		require.NoError(t, oldest.SetReadDeadline(time.Now().Add(time.Second)))
		_, err := oldest.Read(make([]byte, 1))
		require.Error(t, err)
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the oldest had to make room")
	})

	t.Run("PlaintextIsRefused", func(t *testing.T) {
		intend(t, consul, "account-db", source("*", allow))
		raw, err := net.Dial("tcp", m.address)
		require.NoError(t, err)
		defer raw.Close()
		require.NoError(t, raw.SetDeadline(time.Now().Add(5*time.Second)))
		_, err = raw.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
		require.NoError(t, err)
		answer, _ := io.ReadAll(raw)
		require.NotContains(t, string(answer), "GET")
	})

	t.Run("AnotherServiceAnswers", func(t *testing.T) {
		where.set("order-db", m.address)
		_, err := account.DialContext(deadline(t, time.Second), "order-db")
		f, ok := fault.From(err)
		require.True(t, ok)
		require.Equal(t, fault.Unavailable, f.Code)
		require.Equal(t, mesh.ReasonUnreachable, f.Reason)
		require.ErrorContains(t, err, `"account-db" answered`)
	})

	t.Run("NextInstanceOnError", func(t *testing.T) {
		intend(t, consul, "account-db", source("account", allow))
		where.set("account-db", closedAddress(t), m.address)
		for range 4 {
			require.NoError(t, exchange(comes(t)))
		}
		where.set("account-db", m.address)
	})

	t.Run("RoundRobin", func(t *testing.T) {
		intend(t, consul, "account-db", source("account", allow))
		second := mirrored(t, database)
		where.set("account-db", m.address, second.address)
		comes(t)
		before := len(m.seen())
		for range 10 {
			require.NoError(t, exchange(dial(t)))
		}
		require.Equal(t, 5, len(m.seen())-before)
		where.set("account-db", m.address)
	})

	t.Run("Port", func(t *testing.T) {
		where.set("account-db", m.address)
		intend(t, consul, "account-db", source("account", allow))
		comes(t)
		conn, err := account.DialPort(deadline(t, 5*time.Second), "account-db", "players")
		require.NoError(t, err)
		defer conn.Close()
		require.NoError(t, exchange(conn))
		_, err = account.DialPort(deadline(t, 100*time.Millisecond), "account-db", "doors")
		require.ErrorContains(t, err, `has registered no port "doors"`)

		conn, err = account.DialInstance(deadline(t, 5*time.Second), "account-db", "players", m.address)
		require.NoError(t, err)
		defer conn.Close()
		require.NoError(t, exchange(conn))
		_, err = account.DialInstance(deadline(t, 100*time.Millisecond), "account-db", "players", "another")
		require.ErrorContains(t, err, `there is no healthy instance "another"`)
	})

	t.Run("WaitsForTheFirstInstance", func(t *testing.T) {
		where.set("account-db")
		intend(t, consul, "account-db", source("account", allow))
		got := make(chan error, 1)
		go func() {
			conn, err := account.DialContext(deadline(t, 5*time.Second), "account-db")
			if err == nil {
				err = exchange(conn)
				conn.Close()
			}
			got <- err
		}()
		select {
		case err := <-got:
			t.Fatalf("it did not wait: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
		where.set("account-db", m.address)
		require.NoError(t, <-got)
	})

	t.Run("NoInstance", func(t *testing.T) {
		_, err := account.DialContext(deadline(t, 100*time.Millisecond), "missing")
		require.ErrorContains(t, err, "there is no healthy instance")
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// TestListenerClose ends what is pending and leaves no goroutine, and Accept
// says that it is closed.
func TestListenerClose(t *testing.T) {
	agent := consultest.Start(t)
	m := join(t, agent.Client, "account-db", nil)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	listener := m.Listener(inner)
	silent, err := net.Dial("tcp", inner.Addr().String())
	require.NoError(t, err)
	defer silent.Close()
	var accepted atomic.Value
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := listener.Accept()
		accepted.Store(err)
	}()
	began := time.Now()
	require.NoError(t, listener.Close())
	<-done
	require.ErrorIs(t, accepted.Load().(error), net.ErrClosed)
	require.Less(t, time.Since(began), 2*time.Second)
	require.NoError(t, silent.SetReadDeadline(time.Now().Add(5*time.Second)))
	_, err = silent.Read(make([]byte, 1))
	var timeout net.Error
	require.False(t, errors.As(err, &timeout) && timeout.Timeout(), "the pending connection is still open")
}

// TestPeerTakesNothing is about bytes that nobody acknowledges. The kernel asks
// peers whether they are alive on silent connections alone, and sends the same
// bytes again for a quarter of an hour.
func TestPeerTakesNothing(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("other systems have no bound for a single connection")
	}
	agent := consultest.Start(t)
	intend(t, agent.Client, "account-db", source("account", allow))
	database := join(t, agent.Client, "account-db", nil)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	listener := database.Listener(inner)
	t.Cleanup(func() { require.NoError(t, listener.Close()) })
	where := newPlaces()
	where.set("account-db", inner.Addr().String())
	account := join(t, agent.Client, "account", func(c *mesh.NativeConfig) { c.Watcher = where })
	dialled, err := account.DialContext(deadline(t, 5*time.Second), "account-db")
	require.NoError(t, err)
	defer dialled.Close()
	accepted, err := listener.Accept()
	require.NoError(t, err)
	defer accepted.Close()

	var writing sync.WaitGroup
	for name, conn := range map[string]net.Conn{"who dialled": dialled, "who accepted": accepted} {
		writing.Go(func() {
			began := time.Now()
			assert.NoError(t, conn.SetWriteDeadline(began.Add(40*time.Second)))
			var err error
			for err == nil {
				_, err = conn.Write(make([]byte, 1<<20))
			}
			assert.ErrorIs(t, err, syscall.ETIMEDOUT, name)
			assert.Less(t, time.Since(began), 20*time.Second, name)
		})
	}
	writing.Wait()
}

func closedAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}
