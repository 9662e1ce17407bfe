package fleet

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// answerWithin bounds each answer of a broker but that to a batch of plays.
	answerWithin = 15 * time.Second
	// ackWithin is more than the device service takes at most.
	ackWithin = 30 * time.Second
	// readBuffer is enough for what is sent here, in bytes.
	readBuffer = 512
)

// Login is whom a client connects as, and what it listens to.
type Login struct {
	User, Password, Filter string
}

// client is one connection after the other of one player.
type client struct {
	index int
	login Login
	// heard is called with each message, by the connection's reader.
	heard func(client int, payload []byte)
	// lost is called when a connection ends that should not.
	lost func(error)

	conn    net.Conn
	writing sync.Mutex
	packets uint16
	answers chan answer   // has room for one: nothing is asked before the answer
	ended   chan struct{} // closed with the reader's end
	leaving atomic.Bool
}

// answer is a PUBACK or SUBACK.
type answer struct {
	kind byte
	id   uint16
	code byte
}

// connect returns when the broker has let the client in.
func (c *client) connect(ctx context.Context, address string) error {
	dialer := net.Dialer{Timeout: answerWithin}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	reader := bufio.NewReaderSize(conn, readBuffer)
	if err := c.introduce(conn, reader); err != nil {
		conn.Close()
		return fmt.Errorf("connect as %s: %w", c.login.User, err)
	}
	c.conn, c.packets = conn, 0
	c.answers, c.ended = make(chan answer, 1), make(chan struct{})
	c.leaving.Store(false)
	go c.read(conn, reader)
	return nil
}

func (c *client) introduce(conn net.Conn, reader *bufio.Reader) error {
	if err := conn.SetDeadline(time.Now().Add(answerWithin)); err != nil {
		return err
	}
	if _, err := conn.Write(connect("fleet-"+strconv.Itoa(c.index), c.login)); err != nil {
		return err
	}
	kind, _, body, err := readPacket(reader, nil)
	if err != nil {
		return err
	}
	if kind != connackPacket || len(body) != 2 || body[1] != 0 {
		return fmt.Errorf("the broker answers with packet %d, % x", kind, body)
	}
	return conn.SetDeadline(time.Time{})
}

// read takes what the broker sends until the connection ends.
func (c *client) read(conn net.Conn, reader *bufio.Reader) {
	defer close(c.ended)
	defer conn.Close()
	room := make([]byte, 256)
	for {
		kind, flags, body, err := readPacket(reader, room)
		if err == nil {
			err = c.take(kind, flags, body)
		}
		if err != nil {
			if !c.leaving.Load() {
				c.lost(fmt.Errorf("the connection of %s ended: %w", c.login.User, err))
			}
			return
		}
	}
}

func (c *client) take(kind, flags byte, body []byte) error {
	switch kind {
	case publishPacket:
		m, err := parsePublish(flags, body)
		if err != nil {
			return err
		}
		c.heard(c.index, m.payload)
		if m.id == 0 {
			return nil
		}
		return c.write(puback(m.id))
	case pubackPacket, subackPacket:
		if len(body) < 2 {
			return errPacket
		}
		a := answer{kind: kind, id: binary.BigEndian.Uint16(body)}
		if kind == subackPacket && len(body) == 3 {
			a.code = body[2]
		}
		select {
		case c.answers <- a:
			return nil
		default:
			return errors.New("the broker answers what it was not asked")
		}
	default:
		return fmt.Errorf("the broker sends a packet of type %d", kind)
	}
}

func (c *client) write(p []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(answerWithin)); err != nil {
		return err
	}
	_, err := c.conn.Write(p)
	return err
}

// ask sends a packet with this id and waits for its answer.
func (c *client) ask(ctx context.Context, p []byte, kind byte, id uint16, within time.Duration) (answer, error) {
	if err := c.write(p); err != nil {
		return answer{}, err
	}
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case a := <-c.answers:
		if a.kind != kind || a.id != id {
			return a, fmt.Errorf("the broker answers packet %d with %d of type %d", id, a.id, a.kind)
		}
		return a, nil
	case <-c.ended:
		return answer{}, errors.New("the connection ended without an answer")
	case <-timer.C:
		return answer{}, fmt.Errorf("no answer within %s", within)
	case <-ctx.Done():
		return answer{}, ctx.Err()
	}
}

func (c *client) next() uint16 {
	c.packets++
	return c.packets
}

func (c *client) subscribe(ctx context.Context, qos byte) error {
	id := c.next()
	a, err := c.ask(ctx, subscribe(id, c.login.Filter, qos), subackPacket, id, answerWithin)
	if err == nil && a.code != qos {
		err = fmt.Errorf("the broker grants %#x", a.code)
	}
	if err != nil {
		return fmt.Errorf("subscribe to %s: %w", c.login.Filter, err)
	}
	return nil
}

// publish returns when the broker has acknowledged, at QoS 0 at once.
func (c *client) publish(ctx context.Context, topic string, qos byte, payload []byte) error {
	id := c.next()
	p := publish(id, topic, qos, payload)
	var err error
	if qos == 0 {
		err = c.write(p)
	} else {
		_, err = c.ask(ctx, p, pubackPacket, id, ackWithin)
	}
	if err != nil {
		return fmt.Errorf("publish to %s: %w", topic, err)
	}
	return nil
}

// leave disconnects, and returns when the broker has closed the connection.
func (c *client) leave(ctx context.Context) error {
	if c.conn == nil {
		return nil
	}
	c.leaving.Store(true)
	defer func() { c.conn = nil }()
	err := c.write(packet(disconnectPacket, 0, nil))
	timer := time.NewTimer(answerWithin)
	defer timer.Stop()
	select {
	case <-c.ended:
		return err
	case <-timer.C:
		err = fmt.Errorf("the broker does not close the connection of %s within %s", c.login.User, answerWithin)
	case <-ctx.Done():
		err = ctx.Err()
	}
	c.conn.Close()
	<-c.ended
	return err
}
