// Package devices is the gateway's door for displays: it passes their bytes on to
// healthy instances of the device service.
package devices

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/pires/go-proxyproto"

	"github.com/marquee-ads/marquee/services/gateway/connections"
)

const (
	// dialWithin is how long a display waits for an instance. It comes back by
	// itself, and the others do not wait behind it.
	dialWithin = 5 * time.Second
	// writeWithin ends a connection one end of which does not read. The device
	// service is less patient with displays: this is for what has failed.
	writeWithin = 30 * time.Second
	// lastWords is what the other end has to finish when one has.
	lastWords = 5 * time.Second
	// spread is over how long displays are sent away when the gateway stops, so
	// that they do not all come to another one in the same moment.
	spread = 5 * time.Second
	// chunk is what is read at once, for each way of each display.
	chunk = 2 << 10
	// dialsAtOnce is fewer than the handshakes that an instance has room for: of
	// more it lets some go, and all of them take longer.
	dialsAtOnce = 64
)

// Door is where displays come in.
type Door struct {
	limit *connections.Limit
	dial  func(context.Context) (net.Conn, error)
	dials chan struct{} // one taken for each that is under way
	log   hclog.Logger

	listener net.Listener
	life     context.Context // ends when the door is to close
	end      context.CancelFunc
	running  sync.WaitGroup

	mu   sync.Mutex
	open map[*pair]bool
}

// New makes a door. dial connects to a healthy instance, spreading the
// connections evenly.
func New(limit *connections.Limit, dial func(context.Context) (net.Conn, error), log hclog.Logger) *Door {
	d := &Door{limit: limit, dial: dial, dials: make(chan struct{}, dialsAtOnce), log: log, open: make(map[*pair]bool)}
	d.life, d.end = context.WithCancel(context.Background())
	return d
}

// Serve lets displays in until Stop. failed is called when the listener closes by
// itself.
func (d *Door) Serve(listener net.Listener, failed func(error)) {
	d.listener = d.limit.Listener(listener, nil)
	d.running.Go(func() {
		if err := d.accept(); err != nil {
			failed(fmt.Errorf("the door for displays: %w", err))
		}
	})
}

func (d *Door) accept() error {
	const longestPause = time.Second
	pause := 5 * time.Millisecond
	for {
		conn, err := d.listener.Accept()
		if err == nil {
			pause = 5 * time.Millisecond
			d.running.Go(func() { d.pass(conn) })
			continue
		}
		// Out of file descriptors, most often: those in use come back.
		var passing interface{ Temporary() bool }
		if d.life.Err() == nil && errors.As(err, &passing) && passing.Temporary() {
			d.log.Warn("accepting a display's connection", "error", err)
			d.wait(pause)
			pause = min(2*pause, longestPause)
			continue
		}
		if d.life.Err() != nil {
			err = nil // closed by Stop
		}
		return err
	}
}

// wait lets the time pass, unless the door is to stop.
func (d *Door) wait(t time.Duration) {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-d.life.Done():
	}
}

// pass connects a display with an instance for as long as both want.
func (d *Door) pass(display net.Conn) {
	defer display.Close()
	ctx, cancel := context.WithTimeout(d.life, dialWithin)
	defer cancel()
	service, err := d.reach(ctx)
	if err != nil {
		d.log.Debug("no instance for a display", "from", display.RemoteAddr(), "error", err)
		return
	}
	defer service.Close()
	p := &pair{display: display, service: service}
	if !d.enter(p) {
		return
	}
	defer d.leave(p)
	header := proxyproto.HeaderProxyFromAddrs(2, display.RemoteAddr(), display.LocalAddr())
	if err := service.SetWriteDeadline(time.Now().Add(writeWithin)); err != nil {
		return
	}
	if _, err := header.WriteTo(service); err != nil {
		d.log.Debug("an instance was gone before it knew of a display", "error", err)
		return
	}
	var up sync.WaitGroup
	up.Go(func() { flow(service, display) })
	flow(display, service)
	up.Wait()
}

// reach connects to an instance, when not too many are at it.
func (d *Door) reach(ctx context.Context) (net.Conn, error) {
	select {
	case d.dials <- struct{}{}:
		defer func() { <-d.dials }()
		return d.dial(ctx)
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting until fewer connect to an instance: %w", context.Cause(ctx))
	}
}

// enter notes a pair, unless the door is closing.
func (d *Door) enter(p *pair) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.life.Err() != nil {
		return false
	}
	d.open[p] = true
	return true
}

func (d *Door) leave(p *pair) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.open, p)
}

// pair is a display and the instance that it talks to.
type pair struct {
	display, service net.Conn
}

// end cuts both ways.
func (p *pair) end() {
	p.display.Close()
	p.service.Close()
}

// flow copies one way until it ends, says so to where it went, and gives the
// other way a moment.
func flow(to, from net.Conn) {
	buffer := make([]byte, chunk)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if to.SetWriteDeadline(time.Now().Add(writeWithin)) != nil {
				break
			}
			if _, failed := to.Write(buffer[:n]); failed != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	half, ok := to.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		to.Close()
	}
	_ = to.SetReadDeadline(time.Now().Add(lastWords)) // fails when it is closed
	_ = from.SetWriteDeadline(time.Now().Add(lastWords))
}

// Stop lets no more displays in, and sends away those that are there, evenly over
// a few seconds, or less when ctx ends before.
func (d *Door) Stop(ctx context.Context) error {
	d.mu.Lock()
	d.end()
	leaving := make([]*pair, 0, len(d.open))
	for p := range d.open {
		leaving = append(leaving, p)
	}
	d.mu.Unlock()
	var err error
	if d.listener != nil {
		err = d.listener.Close()
	}
	over := spread
	if deadline, ok := ctx.Deadline(); ok {
		over = min(over, time.Until(deadline)/2)
	}
	began := time.Now()
	for i, p := range leaving {
		due := time.NewTimer(time.Until(began.Add(over * time.Duration(i) / time.Duration(len(leaving)))))
		select {
		case <-due.C:
		case <-ctx.Done():
			due.Stop()
		}
		p.end()
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.running.Wait()
	}()
	select {
	case <-ended:
		return err
	case <-ctx.Done():
		return errors.Join(err, fmt.Errorf("sending the displays away: %w", context.Cause(ctx)))
	}
}
