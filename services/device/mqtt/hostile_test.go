package mqtt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/services/device"
)

// upgradeRequest opens a WebSocket.
const upgradeRequest = "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"

// undecided is a plane that does not say whether a player may connect until decide
// is closed.
type undecided struct {
	*recorder
	asked, decide chan struct{}
}

func (u undecided) Admit(ctx context.Context, deviceID, secret string) (device.Pass, error) {
	u.asked <- struct{}{}
	<-u.decide
	return u.recorder.Admit(ctx, deviceID, secret)
}

// coming is how many connections are not let in yet.
func (l *Listener) coming() int {
	l.connecting.mu.Lock()
	defer l.connecting.mu.Unlock()
	return l.connecting.count
}

// Of connections that say nothing the first makes room for one more, and who says
// what a player says is let in.
func TestHalfOpen(t *testing.T) {
	limits := DefaultLimits()
	limits.Connecting, limits.ConnectWithin = 3, 2*time.Second
	l, _ := listen(t, &recorder{}, limits)
	var waiting []*raw
	began := time.Now()
	for n := range 3 {
		r := dial(t, l)
		r.send(t, []byte{0x10})
		waiting = append(waiting, r)
		require.Eventually(t, func() bool { return l.coming() == n+1 }, patience, time.Millisecond)
	}
	enter(t, l, 4)
	waiting[0].closed(t)
	require.Less(t, time.Since(began), limits.ConnectWithin, "it was not the first that made room")
	for _, r := range waiting[1:] {
		r.closed(t)
	}
	require.GreaterOrEqual(t, time.Since(began), limits.ConnectWithin, "more than one made room")
	require.Less(t, time.Since(began), patience/2)
	require.Eventually(t, func() bool { return l.coming() == 0 && len(l.places) == 1 }, patience, time.Millisecond, "places are not given back")
}

// Players that wait for an answer make room for nobody.
func TestHalfOpenUndecided(t *testing.T) {
	limits := DefaultLimits()
	limits.Connecting = 2
	plane := undecided{&recorder{}, make(chan struct{}), make(chan struct{})}
	l, _ := listen(t, plane, limits)
	var waiting []*raw
	for range 2 {
		r := dial(t, l)
		r.send(t, connect(4, good, 60))
		<-plane.asked
		waiting = append(waiting, r)
	}
	dial(t, l).closed(t)
	close(plane.decide)
	for _, r := range waiting {
		require.Zero(t, r.expect(t, 0x20)[1])
	}
}

// Ten thousand connections that never say who they are keep nobody out, and are
// ended when their time is up, whatever they began with.
func TestHalfOpenFlood(t *testing.T) {
	const count, callers = 10_000, 16
	var files syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files))
	if files.Cur < count+2000 {
		t.Skipf("this opens %d connections, and the process may have %d files: ulimit -n", count, files.Cur)
	}
	limits := DefaultLimits()
	limits.ConnectWithin = 3 * time.Second
	plane := &recorder{}
	l, _ := listen(t, plane, limits)
	before := enter(t, l, 4)
	hello := connect(5, good, 60)
	begins := []string{"", string(hello[:7]), upgradeRequest[:30], upgradeRequest}

	opened := make([]net.Conn, count)
	wrong := make(chan error, callers)
	var flooding sync.WaitGroup
	for caller := range callers {
		flooding.Go(func() {
			for n := caller; n < count; n += callers {
				conn, err := net.Dial("tcp", l.ports[0].Addr().String())
				if err != nil {
					wrong <- err
					return
				}
				opened[n] = conn
				_, _ = io.WriteString(conn, begins[n/callers%len(begins)]) // it may have made room by now
			}
		})
	}
	flooded := make(chan struct{})
	go func() {
		defer close(flooded)
		flooding.Wait()
	}()
	// come is a player that comes back when it was not heard in time.
	tries := 0
	come := func() {
		for began := time.Now(); ; {
			tries++
			r := dial(t, l)
			if _, err := r.Write(hello); err == nil {
				if header, _, err := r.next(); err == nil && header == 0x20 {
					r.Close()
					return
				}
			}
			r.Close()
			require.Less(t, time.Since(began), limits.ConnectWithin, "a player does not get in")
		}
	}
	players, longest := 0, time.Duration(0)
	for over := false; !over; {
		select {
		case <-flooded:
			over = true // and once more, while all of them are there
		default:
		}
		began := time.Now()
		before.send(t, packet(0xc0))
		before.expect(t, 0xd0)
		longest = max(longest, time.Since(began))
		come()
		players++
		require.LessOrEqual(t, l.coming(), limits.Connecting)
	}
	select {
	case err := <-wrong:
		require.NoError(t, err)
	default:
	}
	t.Logf("%d players came in meanwhile, at %d tries; the longest answer to one that was there took %s", players, tries, longest)
	require.Less(t, longest, limits.ConnectWithin/2)
	require.Eventually(t, func() bool { return l.coming() == 0 && len(l.places) == 1 }, 2*patience, 10*time.Millisecond, "some are not ended")
	for _, conn := range opened {
		conn.Close()
	}
	before.Close()
	plane.balanced(t)
}

// Who sends too much for too long is disconnected; who is within bounds now and then
// is not.
func TestFloodFor(t *testing.T) {
	plane := &recorder{}
	limits := DefaultLimits()
	limits.PacketEvery, limits.PacketBurst, limits.FloodFor = 10*time.Millisecond, 5, 300*time.Millisecond
	l, _ := listen(t, plane, limits)
	t.Run("Ended", func(t *testing.T) {
		r := enter(t, l, 5)
		began := time.Now()
		r.send(t, bytes.Repeat(packet(0xc0), 1000)) // 10 s at the pace at which they are read
		r.closed(t)
		require.Greater(t, time.Since(began), limits.FloodFor)
		require.Less(t, time.Since(began), patience/2)
	})
	t.Run("OK", func(t *testing.T) {
		r := enter(t, l, 4)
		for began := time.Now(); time.Since(began) < 2*limits.FloodFor; {
			r.send(t, bytes.Repeat(packet(0xc0), 15))
			for range 15 {
				r.expect(t, 0xd0)
			}
			time.Sleep(8 * limits.PacketEvery) // in which it may send some again
		}
		r.Close()
	})
	plane.balanced(t)
}

// What goes wrong inside a WebSocket ends it, as it does outside.
func TestWebSocketHostile(t *testing.T) {
	plane := &recorder{}
	limits := DefaultLimits()
	limits.ConnectWithin = time.Second
	l, _ := listen(t, plane, limits)
	open := func(t *testing.T) *websocket.Conn {
		t.Helper()
		dialer := websocket.Dialer{Subprotocols: []string{"mqtt"}}
		socket, response, err := dialer.Dial("ws://"+l.ports[0].Addr().String()+"/", http.Header{})
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		t.Cleanup(func() { socket.Close() })
		require.NoError(t, socket.SetReadDeadline(time.Now().Add(patience)))
		return socket
	}
	ended := func(t *testing.T, socket *websocket.Conn) {
		t.Helper()
		for {
			if _, _, err := socket.ReadMessage(); err != nil {
				var failed net.Error
				require.False(t, errors.As(err, &failed) && failed.Timeout(), "it is not ended")
				return
			}
		}
	}
	t.Run("Silent", func(t *testing.T) {
		began := time.Now()
		ended(t, open(t))
		require.Less(t, time.Since(began), patience/2)
	})
	t.Run("HalfAConnect", func(t *testing.T) {
		socket := open(t)
		require.NoError(t, socket.WriteMessage(websocket.BinaryMessage, connect(4, good, 60)[:9]))
		ended(t, socket)
	})
	t.Run("TooLarge", func(t *testing.T) {
		socket := open(t)
		require.NoError(t, socket.WriteMessage(websocket.BinaryMessage, connect(4, good, 60)))
		_, answer, err := socket.ReadMessage()
		require.NoError(t, err)
		require.Equal(t, []byte{0x20, 2, 0, 0}, answer)
		// The service may have enough before the end of it.
		_ = socket.WriteMessage(websocket.BinaryMessage, publish(4, "d/"+good+"/up/plays", strings.Repeat("x", 65<<10), 1))
		ended(t, socket)
	})
	plane.balanced(t)
}

// frame is one of a WebSocket, as a client sends it (RFC 6455, section 5.2), with a
// mask of zeros.
func frame(first byte, payload []byte) []byte {
	out := []byte{first}
	switch n := len(payload); {
	case n < 126:
		out = append(out, 0x80|byte(n))
	default:
		out = binary.BigEndian.AppendUint16(append(out, 0x80|126), uint16(n))
	}
	return append(append(out, 0, 0, 0, 0), payload...)
}

// FuzzFrames sends bytes as the frames of a WebSocket: the connection ends, and
// nothing else does.
func FuzzFrames(f *testing.F) {
	hello := connect(4, good, 60)
	f.Add(frame(0x82, hello))
	f.Add(bytes.Join([][]byte{frame(0x02, hello[:5]), frame(0x89, []byte("ping")), frame(0x80, hello[5:]), frame(0x82, packet(0xc0))}, nil))
	f.Add(append(frame(0x82, hello), frame(0x82, publish(4, "d/"+good+"/up/plays", strings.Repeat("x", 300), 1))...))
	f.Add(append(frame(0x82, hello), frame(0x88, []byte{3, 0xe8})...))
	f.Add(frame(0x81, hello))
	f.Add(frame(0xf2, hello))
	f.Add([]byte{0x82, 0x05, 1, 2, 3, 4, 5})
	f.Add([]byte{0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0x10})
	f.Add([]byte{0x89, 0xfe, 0xff, 0xff, 0, 0, 0, 0})
	f.Fuzz(throughPipe(f, false, upgradeRequest))
}

// FuzzHeaders sends bytes where the gateway says where a player is.
func FuzzHeaders(f *testing.F) {
	hello := connect(4, good, 60)
	f.Add(append([]byte("PROXY TCP4 203.0.113.7 192.0.2.1 4711 1883\r\n"), hello...))
	f.Add(append([]byte("PROXY UNKNOWN\r\n"), hello...))
	f.Add([]byte("PROXY TCP6 ::1 ::g 70000 -1\r\n"))
	signature := "\r\n\r\n\x00\r\nQUIT\n"
	f.Add(append([]byte(signature+"\x21\x11\x00\x0c\xcb\x00\x71\x07\xc0\x00\x02\x01\x12\x67\x07\x5b"), hello...))
	f.Add([]byte(signature + "\x21\x11\xff\xff"))
	f.Add([]byte(signature + "\x20\x00\x00\x00"))
	f.Add([]byte(signature + "\x21\x31\x00\xd8"))
	f.Add(hello)
	f.Fuzz(throughPipe(f, true, ""))
}

// throughPipe has a listener served with what begins a connection, and what the
// fuzzer says then.
func throughPipe(f *testing.F, proxied bool, begins string) func(*testing.T, []byte) {
	f.Helper()
	limits := DefaultLimits()
	limits.ConnectWithin, limits.WriteWithin, limits.PacketBurst = time.Second, time.Second, 100_000
	l, written := listen(f, &recorder{}, limits)
	return func(t *testing.T, payload []byte) {
		here, there := net.Pipe()
		l.take(there, proxied)
		read := make(chan struct{})
		go func() {
			defer close(read)
			_, _ = io.Copy(io.Discard, here) // until the service ends it
		}()
		for _, part := range [][]byte{[]byte(begins), payload} {
			_, _ = here.Write(part) // the service may have enough before the end
		}
		here.Close()
		<-read
		require.Eventually(t, func() bool { return len(l.places) == 0 }, patience, 50*time.Microsecond, "the connection does not end")
		require.NotContains(t, written.String(), "broke the broker")
	}
}
