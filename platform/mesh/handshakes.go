package mesh

import (
	"container/list"
	"net"
	"sync"
	"time"
)

const (
	// handshakeTimeout is what a peer has to prove itself in.
	handshakeTimeout = 5 * time.Second
	// maxHandshakes bounds the handshakes under way on one listener. One more
	// pushes out the oldest, which is the likeliest to be stuck.
	maxHandshakes = 256
)

// handshakes are those under way on one listener: anybody on the network can begin
// one.
type handshakes struct {
	mu     sync.Mutex
	open   list.List // of net.Conn, oldest first
	closed bool
}

// enter notes a connection whose handshake begins, and closes the oldest for it if
// there are too many. leave has to be called when the handshake has ended.
func (h *handshakes) enter(raw net.Conn) (leave func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		raw.Close() // so that its handshake fails
		return func() {}
	}
	if h.open.Len() >= maxHandshakes {
		oldest := h.open.Front()
		h.open.Remove(oldest)
		oldest.Value.(net.Conn).Close()
	}
	entry := h.open.PushBack(raw)
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.open.Remove(entry) // does nothing when it was pushed out
	}
}

// close ends those under way and those to come.
func (h *handshakes) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for e := h.open.Front(); e != nil; e = e.Next() {
		e.Value.(net.Conn).Close()
	}
}
