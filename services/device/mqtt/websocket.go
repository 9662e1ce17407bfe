package mqtt

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// unframed is the connection of bytes that a player speaks MQTT on: the
// connection itself, or what is in the messages of a WebSocket on it. The first
// byte tells: MQTT begins with CONNECT, HTTP with GET.
func unframed(conn *prefixed) (net.Conn, error) {
	first := make([]byte, 1)
	if _, err := io.ReadFull(conn, first); err != nil {
		return nil, fmt.Errorf("reading what it begins with: %w", err)
	}
	conn.first = first
	if first[0] != 'G' {
		return conn, nil
	}
	return upgrade(conn)
}

// prefixed gives back what was read of a connection.
type prefixed struct {
	net.Conn
	first []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.first) == 0 || len(b) == 0 {
		return p.Conn.Read(b)
	}
	n := copy(b, p.first)
	p.first = p.first[n:]
	return n, nil
}

// leftWithin is enough to read what has come already.
const leftWithin = 20 * time.Millisecond

// left says whether the player has closed the connection. It may be called while
// nobody reads, and leaves another deadline behind.
func (p *prefixed) left() bool {
	if len(p.first) > 0 {
		return false
	}
	if p.SetReadDeadline(time.Now().Add(leftWithin)) != nil {
		return true
	}
	next := make([]byte, 1)
	n, err := p.Conn.Read(next)
	p.first = next[:n]
	var silent net.Error
	waits := errors.As(err, &silent) && silent.Timeout()
	return n == 0 && err != nil && !waits
}

const (
	// maxUpgrade bounds the request that opens a WebSocket, in bytes.
	maxUpgrade = 8 << 10
	// frameBuffer is for reading and for writing one, each.
	frameBuffer = 1 << 10
)

// upgrade answers the request for a WebSocket: of MQTT 3.1.1 (section 6) and 5
// alike the subprotocol is mqtt, and each message binary. On which path does not
// matter, and neither from which page: a player has a password, not a cookie.
func upgrade(conn net.Conn) (net.Conn, error) {
	reader := bufio.NewReaderSize(io.LimitReader(conn, maxUpgrade), frameBuffer)
	request, err := http.ReadRequest(reader)
	if err != nil {
		return nil, fmt.Errorf("reading the request for a WebSocket: %w", err)
	}
	defer request.Body.Close()
	answer := &handshake{conn: conn, buffered: bufio.NewReadWriter(reader, bufio.NewWriterSize(conn, frameBuffer)), header: make(http.Header)}
	upgrader := websocket.Upgrader{
		ReadBufferSize: frameBuffer, WriteBufferSize: frameBuffer, Subprotocols: []string{"mqtt"},
		CheckOrigin: func(*http.Request) bool { return true },
	}
	socket, err := upgrader.Upgrade(answer, request, nil)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening a WebSocket: %w", err), answer.refuse(request))
	}
	if socket.Subprotocol() != "mqtt" {
		goodbye := websocket.FormatCloseMessage(websocket.CloseProtocolError, "the subprotocol has to be mqtt")
		return nil, errors.Join(errors.New("a WebSocket without the subprotocol mqtt"), socket.WriteMessage(websocket.CloseMessage, goodbye))
	}
	return &webSocket{Conn: socket}, nil
}

// handshake is the answer to the request for a WebSocket.
type handshake struct {
	conn     net.Conn
	buffered *bufio.ReadWriter
	header   http.Header
	status   int
	body     bytes.Buffer
}

// Header implements http.ResponseWriter.
func (h *handshake) Header() http.Header { return h.header }

// WriteHeader implements http.ResponseWriter.
func (h *handshake) WriteHeader(status int) { h.status = status }

// Write implements http.ResponseWriter.
func (h *handshake) Write(b []byte) (int, error) { return h.body.Write(b) }

// Hijack implements http.Hijacker.
func (h *handshake) Hijack() (net.Conn, *bufio.ReadWriter, error) { return h.conn, h.buffered, nil }

// refuse sends why there is no WebSocket.
func (h *handshake) refuse(request *http.Request) error {
	if h.status == 0 {
		return nil
	}
	response := http.Response{
		StatusCode: h.status, ProtoMajor: 1, ProtoMinor: 1, Header: h.header, Request: request, Close: true,
		Body: io.NopCloser(&h.body), ContentLength: int64(h.body.Len()),
	}
	if err := response.Write(h.conn); err != nil {
		return fmt.Errorf("saying why: %w", err)
	}
	return nil
}

// webSocket is the bytes in a WebSocket's messages.
type webSocket struct {
	*websocket.Conn
	message io.Reader // what is left of the one that is being read
	writing sync.Mutex
}

// Read implements net.Conn.
func (w *webSocket) Read(b []byte) (int, error) {
	for {
		if w.message == nil {
			kind, message, err := w.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, errors.New("a WebSocket message that is not binary")
			}
			w.message = message
		}
		n, err := w.message.Read(b)
		if errors.Is(err, io.EOF) {
			w.message, err = nil, nil
			if n == 0 {
				continue
			}
		}
		return n, err
	}
}

// Write implements net.Conn: what is written at once is a message.
func (w *webSocket) Write(b []byte) (int, error) {
	w.writing.Lock()
	defer w.writing.Unlock()
	if err := w.WriteMessage(websocket.BinaryMessage, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// SetDeadline implements net.Conn.
func (w *webSocket) SetDeadline(t time.Time) error {
	return errors.Join(w.SetReadDeadline(t), w.SetWriteDeadline(t))
}
