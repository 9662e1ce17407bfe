package devices

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/pires/go-proxyproto"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/services/gateway/connections"
)

const patience = 10 * time.Second

// instance is one of the device service, which says where each display is and
// then gives back what it gets.
func instance(t *testing.T) net.Listener {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	listener := &proxyproto.Listener{Listener: tcp}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				_, _ = io.WriteString(conn, conn.RemoteAddr().String()+"\n")
				_, _ = io.Copy(conn, conn)
			})
		}
	})
	t.Cleanup(func() { listener.Close(); running.Wait() })
	return listener
}

// open opens a door to what dial finds, and returns where it is.
func open(t *testing.T, total int, dial func(context.Context) (net.Conn, error)) (*Door, string) {
	t.Helper()
	limit, err := connections.New("devices", "max-devices", total, 0, prometheus.NewRegistry())
	require.NoError(t, err)
	door := New(limit, dial, hclog.NewNullLogger())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	door.Serve(listener, func(err error) { t.Errorf("it closed by itself: %v", err) })
	return door, listener.Addr().String()
}

func stop(t *testing.T, door *Door, within time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return door.Stop(ctx)
}

func to(listener net.Listener) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", listener.Addr().String())
	}
}

// come is a display, and what the instance says of where it is.
func come(t *testing.T, address string) (*net.TCPConn, string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	var line strings.Builder
	for b := make([]byte, 1); ; {
		_, err := io.ReadFull(conn, b)
		require.NoError(t, err)
		if b[0] == '\n' {
			return conn.(*net.TCPConn), line.String()
		}
		line.WriteByte(b[0])
	}
}

// Bytes go both ways, more than fit anywhere on the way, and so does the end.
func TestPass(t *testing.T) {
	door, address := open(t, 0, to(instance(t)))
	conn, seen := come(t, address)
	require.Equal(t, conn.LocalAddr().String(), seen, "the instance does not know where the display is")
	text := strings.Repeat("0123456789abcdef", 1<<16)
	var sent sync.WaitGroup
	sent.Go(func() {
		_, err := io.WriteString(conn, text)
		if err == nil {
			err = conn.CloseWrite()
		}
		if err != nil {
			t.Errorf("sending: %v", err)
		}
	})
	back, err := io.ReadAll(conn)
	require.NoError(t, err)
	sent.Wait()
	require.True(t, string(back) == text, "%d bytes came back of %d", len(back), len(text))
	require.Eventually(t, func() bool {
		door.mu.Lock()
		defer door.mu.Unlock()
		return len(door.open) == 0
	}, patience, time.Millisecond)
	require.NoError(t, stop(t, door, patience))
}

// An instance that ends takes its displays' connections with it, at once.
func TestInstanceEnds(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer tcp.Close()
	door, address := open(t, 0, to(tcp))
	display, err := net.Dial("tcp", address)
	require.NoError(t, err)
	defer display.Close()
	service, err := tcp.Accept()
	require.NoError(t, err)
	_, err = io.WriteString(service, "goodbye")
	require.NoError(t, err)
	require.NoError(t, service.Close())
	require.NoError(t, display.SetReadDeadline(time.Now().Add(lastWords/2)))
	// The header was never read, so that closing resets the connection.
	last, err := io.ReadAll(display)
	var timeout net.Error
	require.False(t, errors.As(err, &timeout) && timeout.Timeout(), "the display is not told")
	require.Contains(t, "goodbye", string(last))
	require.NoError(t, stop(t, door, patience))
}

func TestNoInstance(t *testing.T) {
	door, address := open(t, 0, func(context.Context) (net.Conn, error) { return nil, errors.New("none is healthy") })
	display, err := net.Dial("tcp", address)
	require.NoError(t, err)
	defer display.Close()
	require.NoError(t, display.SetReadDeadline(time.Now().Add(patience)))
	_, err = display.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, stop(t, door, patience))
}

func TestTooMany(t *testing.T) {
	door, address := open(t, 1, to(instance(t)))
	first, _ := come(t, address)
	second, err := net.Dial("tcp", address)
	require.NoError(t, err)
	defer second.Close()
	require.NoError(t, second.SetReadDeadline(time.Now().Add(patience)))
	_, err = second.Read(make([]byte, 1))
	require.Error(t, err)
	var timeout net.Error
	require.False(t, errors.As(err, &timeout) && timeout.Timeout(), "it is not refused")
	require.NoError(t, first.Close())
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return false
		}
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		_, err = conn.Read(make([]byte, 1))
		return err == nil
	}, patience, 10*time.Millisecond, "a place is not given back")
	require.NoError(t, stop(t, door, patience))
}

// Displays are sent away one after the other, and none is let in meanwhile; a
// dial that hangs does not hold it up.
func TestStop(t *testing.T) {
	service := to(instance(t))
	var hang sync.Once
	hanging := make(chan struct{})
	door, address := open(t, 0, func(ctx context.Context) (net.Conn, error) {
		first := false
		hang.Do(func() { first = true })
		if first {
			close(hanging)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return service(ctx)
	})
	stuck, err := net.Dial("tcp", address)
	require.NoError(t, err)
	defer stuck.Close()
	<-hanging
	const count = 20
	ends := make(chan time.Time, count)
	for range count {
		conn, _ := come(t, address)
		go func() {
			_, _ = io.Copy(io.Discard, conn)
			ends <- time.Now()
		}()
	}
	began := time.Now()
	require.NoError(t, stop(t, door, 2*time.Second))
	var first, last time.Time
	for range count {
		end := <-ends
		if first.IsZero() || end.Before(first) {
			first = end
		}
		if end.After(last) {
			last = end
		}
	}
	require.Greater(t, last.Sub(first), 500*time.Millisecond, "all were sent away in one moment")
	require.Less(t, last.Sub(began), 2*time.Second)
	_, err = net.Dial("tcp", address)
	require.Error(t, err)
}
