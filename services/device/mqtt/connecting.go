package mqtt

import (
	"container/list"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// connecting are the connections whose players are not let in yet. There are no
// more than most: for another one that which has said nothing for the longest makes
// room. A player says within milliseconds who it is, so that connections which never
// do keep out nobody who does.
type connecting struct {
	most int

	mu     sync.Mutex
	count  int
	silent list.List // of *place, the longest silent in front
}

// place is that of one connection.
type place struct {
	in   *connecting
	conn net.Conn

	// Of in.mu.
	silent  *list.Element // nil when it has said who it is, or left
	left    bool
	gaveWay bool
}

// errGaveWay ends a connection that made room for another.
var errGaveWay = errors.New("it has said nothing yet, and too many others came")

// enter takes a place. It returns nil when all are taken by players that wait for
// an answer.
func (c *connecting) enter(conn net.Conn) *place {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count >= c.most {
		front := c.silent.Front()
		if front == nil {
			return nil
		}
		if oldest, ok := front.Value.(*place); ok {
			oldest.gaveWay = true
			oldest.leaveLocked()
			// Whoever reads from it finds that its time is up, and ends it.
			_ = oldest.conn.SetReadDeadline(time.Unix(1, 0)) // fails when it has ended
		}
	}
	p := &place{in: c, conn: conn}
	p.silent = c.silent.PushBack(p)
	c.count++
	return p
}

// until is when the connection has to have said who it is.
func (p *place) until(deadline time.Time) error {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	if p.gaveWay {
		return errGaveWay
	}
	if err := p.conn.SetDeadline(deadline); err != nil {
		return fmt.Errorf("setting the time to connect: %w", err)
	}
	return nil
}

// said is for one that has said who it is: it waits for an answer now.
func (p *place) said() {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	p.settle()
}

// leave gives the place up, once.
func (p *place) leave() {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	p.leaveLocked()
}

func (p *place) leaveLocked() {
	if p.left {
		return
	}
	p.left = true
	p.in.count--
	p.settle()
}

// settle takes it out of those that may have to make room.
func (p *place) settle() {
	if p.silent != nil {
		p.in.silent.Remove(p.silent)
		p.silent = nil
	}
}

// refused is why its player was not let in, when nobody has refused it.
func (p *place) refused() string {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	if p.gaveWay {
		return refusedConnecting
	}
	return refusedNoConnect
}
