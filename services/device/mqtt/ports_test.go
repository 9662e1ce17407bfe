package mqtt

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/hashicorp/go-hclog"
	"github.com/pires/go-proxyproto"
	"github.com/stretchr/testify/require"
)

// came is what a broker is given: where the player is, and what it says first.
type came struct{ from, said string }

// porter is a broker that only looks.
type porter chan came

func (p porter) Serve(conn *Conn) {
	said := make([]byte, 5)
	_, err := io.ReadFull(conn, said)
	if err == nil {
		_, err = conn.Write(said)
	}
	if err == nil {
		p <- came{conn.RemoteAddr().String(), string(said)}
	}
}

func (porter) Close() error { return nil }

// serve serves these ports until the test ends.
func serve(t *testing.T, ports []Port, encryption *tls.Config, broker Broker) {
	t.Helper()
	limits := DefaultLimits()
	limits.ConnectWithin = 500 * time.Millisecond
	l := NewListener(ports, encryption, broker, limits, NewRefused(), hclog.NewNullLogger())
	served := make(chan struct{})
	go func() {
		defer close(served)
		l.Serve()
	}()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		require.NoError(t, l.Close(ctx))
		<-served
	})
}

func connectTo(t *testing.T, at net.Listener) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", at.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	return conn
}

// ended waits for the end of a connection, which may say something before.
func ended(t *testing.T, conn net.Conn) string {
	t.Helper()
	said, err := io.ReadAll(conn)
	var failed net.Error
	require.False(t, errors.As(err, &failed) && failed.Timeout(), "it is not ended")
	return string(said)
}

const elsewhere = "203.0.113.7:4711"

func header(t *testing.T, version byte) []byte {
	t.Helper()
	source, err := net.ResolveTCPAddr("tcp", elsewhere)
	require.NoError(t, err)
	text, err := proxyproto.HeaderProxyFromAddrs(version, source, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1883}).Format()
	require.NoError(t, err)
	return text
}

// TestPorts speaks in every way that players may on ports of both kinds.
func TestPorts(t *testing.T) {
	certificate := httptest.NewUnstartedServer(nil)
	certificate.StartTLS()
	defer certificate.Close()
	trust := certificate.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	trust.ServerName = "example.com"
	for name, encryption := range map[string]*tls.Config{"Unencrypted": nil, "TLS": certificate.TLS} {
		t.Run(name, func(t *testing.T) {
			seen := make(porter, 1)
			direct, passed := port(t), port(t)
			serve(t, []Port{{Listener: direct}, {Listener: passed, Proxied: true}}, encryption, seen)
			secure := func(conn net.Conn) net.Conn {
				if encryption == nil {
					return conn
				}
				return tls.Client(conn, trust)
			}
			says := func(t *testing.T, conn net.Conn, from string) {
				t.Helper()
				_, err := io.WriteString(conn, "hello")
				require.NoError(t, err)
				back := make([]byte, 5)
				_, err = io.ReadFull(conn, back)
				require.NoError(t, err)
				require.Equal(t, came{from, "hello"}, <-seen)
			}
			t.Run("MQTT", func(t *testing.T) {
				conn := connectTo(t, direct)
				says(t, secure(conn), conn.LocalAddr().String())
			})
			for _, version := range []byte{1, 2} {
				t.Run("Proxied", func(t *testing.T) {
					conn := connectTo(t, passed)
					_, err := conn.Write(header(t, version))
					require.NoError(t, err)
					says(t, secure(conn), elsewhere)
				})
			}
			t.Run("ProxiedWebSocket", func(t *testing.T) {
				conn := connectTo(t, passed)
				_, err := conn.Write(header(t, 2))
				require.NoError(t, err)
				dialer := websocket.Dialer{
					Subprotocols: []string{"other", "mqtt"},
					NetDial:      func(string, string) (net.Conn, error) { return secure(conn), nil },
				}
				socket, response, err := dialer.Dial("ws://displays.example.com/mqtt", nil)
				require.NoError(t, err)
				require.NoError(t, response.Body.Close())
				require.Equal(t, "mqtt", socket.Subprotocol())
				// In how many messages does not matter.
				for _, part := range []string{"he", "", "llo"} {
					require.NoError(t, socket.WriteMessage(websocket.BinaryMessage, []byte(part)))
				}
				kind, back, err := socket.ReadMessage()
				require.NoError(t, err)
				require.Equal(t, websocket.BinaryMessage, kind)
				require.Equal(t, "hello", string(back))
				require.Equal(t, came{elsewhere, "hello"}, <-seen)
			})
			t.Run("NoHeader", func(t *testing.T) {
				conn := connectTo(t, passed)
				_, err := io.WriteString(conn, "hello, hello, hello")
				require.NoError(t, err)
				ended(t, conn)
			})
			t.Run("HalfAHeader", func(t *testing.T) {
				conn := connectTo(t, passed)
				_, err := conn.Write(header(t, 2)[:20])
				require.NoError(t, err)
				began := time.Now()
				ended(t, conn)
				require.Less(t, time.Since(began), patience/2)
			})
			t.Run("Silence", func(t *testing.T) { ended(t, connectTo(t, direct)) })
			require.Empty(t, seen)
		})
	}
}

// TestWebSocket speaks MQTT in one, and asks for one in wrong ways.
func TestWebSocket(t *testing.T) {
	plane := &recorder{}
	limits := DefaultLimits()
	limits.ConnectWithin = time.Second
	l, _ := listen(t, plane, limits)
	address := "ws://" + l.ports[0].Addr().String() + "/"
	open := func(t *testing.T, subprotocols ...string) *websocket.Conn {
		t.Helper()
		dialer := websocket.Dialer{Subprotocols: subprotocols}
		socket, response, err := dialer.Dial(address, http.Header{"Origin": {"https://elsewhere.example.com"}})
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		t.Cleanup(func() { socket.Close() })
		require.NoError(t, socket.SetReadDeadline(time.Now().Add(patience)))
		return socket
	}
	t.Run("OK", func(t *testing.T) {
		socket := open(t, "mqtt")
		require.NoError(t, socket.WriteMessage(websocket.BinaryMessage, connect(5, good, 60)))
		in := &raw{in: bufio.NewReader(&webSocket{Conn: socket})}
		require.Zero(t, in.expect(t, 0x20)[1])
		// Two packets in one message, and both are answered.
		two := [][]byte{publish(5, "d/"+good+"/up/plays", "x", 7), packet(0xc0)}
		require.NoError(t, socket.WriteMessage(websocket.BinaryMessage, bytes.Join(two, nil)))
		require.Equal(t, byte(7), in.expect(t, 0x40)[1])
		in.expect(t, 0xd0)
		require.NoError(t, socket.Close())
		plane.balanced(t)
	})
	t.Run("ErrText", func(t *testing.T) {
		socket := open(t, "mqtt")
		require.NoError(t, socket.WriteMessage(websocket.TextMessage, connect(5, good, 60)))
		_, _, err := socket.ReadMessage()
		require.Error(t, err)
	})
	t.Run("ErrNoSubprotocol", func(t *testing.T) {
		_, _, err := open(t).ReadMessage()
		var goodbye *websocket.CloseError
		require.ErrorAs(t, err, &goodbye)
		require.Equal(t, websocket.CloseProtocolError, goodbye.Code)
		require.Equal(t, "the subprotocol has to be mqtt", goodbye.Text)
	})
	for name, c := range map[string]struct{ request, answer string }{
		"ErrNoUpgrade": {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n"},
		"ErrVersion":   {"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n"},
		"ErrLong":      {"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", maxUpgrade) + "\r\n\r\n", ""},
		"ErrSlow":      {"GET / HTT", ""},
		"ErrNoHTTP":    {"G\x00\x01\x02\r\n\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			conn := connectTo(t, l.ports[0])
			_, err := io.WriteString(conn, c.request)
			require.NoError(t, err)
			answer := ended(t, conn)
			require.True(t, strings.HasPrefix(answer, c.answer), "%q", answer)
			require.Equal(t, c.answer == "", answer == "", "%q", answer)
		})
	}
	plane.balanced(t)
}
