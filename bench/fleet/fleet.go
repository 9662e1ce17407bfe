// Package fleet is many MQTT 3.1.1 clients in one process, which does what it is
// told on its standard input: the load on a broker, apart from the broker and from
// who measures it.
package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// What a fleet can be told to do.
const (
	// Connect connects the first Clients, AtOnce of them at a time.
	Connect = "connect"
	// Subscribe has those that are connected subscribe at QoS, AtOnce at a time.
	Subscribe = "subscribe"
	// Expect begins to look for a message to each of them that contains Text.
	Expect = "expect"
	// Await waits until each has got it.
	Await = "await"
	// Publish has the first of them publish Text to Topic at QoS.
	Publish = "publish"
	// HandIn has each of them hand in so many Batches of plays, one after the other,
	// as players do.
	HandIn = "hand in"
	// Disconnect disconnects all, AtOnce at a time, and waits until the broker has
	// closed their connections.
	Disconnect = "disconnect"
)

// Order is a line that a fleet reads.
type Order struct {
	Do      string `json:"do"`
	Address string `json:"address,omitempty"`
	Clients int    `json:"clients,omitempty"`
	AtOnce  int    `json:"at_once,omitempty"`
	// Every is from one client to the next, at least.
	Every   time.Duration `json:"every,omitempty"`
	QoS     byte          `json:"qos,omitempty"`
	Topic   string        `json:"topic,omitempty"`
	Text    string        `json:"text,omitempty"`
	Batches int           `json:"batches,omitempty"`
	// Within bounds all of it.
	Within time.Duration `json:"within"`
}

// Report is the line with which a fleet answers an order when it is done.
type Report struct {
	Error string `json:"error,omitempty"`
	// Began and Ended are about what was ordered, without its preparation; of Await
	// Ended is when the last message came.
	Began time.Time `json:"began"`
	Ended time.Time `json:"ended"`
	// P50 and P99 are how long one of them took.
	P50 time.Duration `json:"p50"`
	P99 time.Duration `json:"p99"`
}

// Took is how long it was.
func (r Report) Took() time.Duration { return r.Ended.Sub(r.Began) }

// fleet is its clients, the first of which are connected.
type fleet struct {
	clients   []*client
	connected []*client
	// expected is nil before the first Expect.
	expected atomic.Pointer[expectation]
	// lost has room for the first connection that ended by itself.
	lost chan error
}

// expectation is a message that each connected client waits for.
type expectation struct {
	text  []byte
	began time.Time
	got   []atomic.Bool
	left  atomic.Int64
	last  time.Time     // written before done is closed
	done  chan struct{} // closed when none is left
}

// Serve does what it reads, until there is no more to read.
func Serve(ctx context.Context, logins []Login, orders io.Reader, reports io.Writer) error {
	f := &fleet{lost: make(chan error, 1)}
	for i, l := range logins {
		f.clients = append(f.clients, &client{index: i, login: l, heard: f.heard, lost: f.ended})
	}
	defer f.drop()
	in, out := json.NewDecoder(orders), json.NewEncoder(reports)
	for {
		var o Order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read an order: %w", err)
		}
		within, cancel := context.WithTimeout(ctx, o.Within)
		report, err := f.do(within, o)
		cancel()
		if err != nil {
			report.Error = fmt.Sprintf("%s: %v", o.Do, err)
		}
		if err := out.Encode(report); err != nil {
			return fmt.Errorf("write a report: %w", err)
		}
	}
}

func (f *fleet) do(ctx context.Context, o Order) (Report, error) {
	select {
	case err := <-f.lost:
		return Report{}, err
	default:
	}
	switch o.Do {
	case Connect:
		if o.Clients < 1 || o.Clients > len(f.clients) || len(f.connected) > 0 {
			return Report{}, fmt.Errorf("%d clients: %d can be connected, and %d are", o.Clients, len(f.clients), len(f.connected))
		}
		f.connected = f.clients[:o.Clients]
		return f.each(ctx, o, func(c *client) error { return c.connect(ctx, o.Address) })
	case Subscribe:
		return f.each(ctx, o, func(c *client) error { return c.subscribe(ctx, o.QoS) })
	case Disconnect:
		report, err := f.each(ctx, o, func(c *client) error { return c.leave(ctx) })
		f.connected = nil
		return report, err
	case Expect:
		e := &expectation{text: []byte(o.Text), began: time.Now(), got: make([]atomic.Bool, len(f.connected)), done: make(chan struct{})}
		e.left.Store(int64(len(f.connected)))
		f.expected.Store(e)
		return Report{Began: e.began, Ended: time.Now()}, nil
	case Await:
		return f.await(ctx)
	case Publish:
		if len(f.connected) == 0 {
			return Report{}, errors.New("none is connected")
		}
		began := time.Now()
		err := f.connected[0].publish(ctx, o.Topic, o.QoS, []byte(o.Text))
		return Report{Began: began, Ended: time.Now()}, err
	case HandIn:
		return f.handIn(ctx, o.Batches)
	default:
		return Report{}, errors.New("nothing that a fleet does")
	}
}

// each does something for all that are connected, several at once.
func (f *fleet) each(ctx context.Context, o Order, do func(*client) error) (Report, error) {
	if o.AtOnce < 1 {
		return Report{}, fmt.Errorf("%d at once", o.AtOnce)
	}
	var (
		all   sync.WaitGroup
		next  atomic.Int64
		took  = make([]time.Duration, len(f.connected))
		errs  = make([]error, len(f.connected))
		began = time.Now()
	)
	for range min(o.AtOnce, len(f.connected)) {
		all.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(f.connected) || ctx.Err() != nil {
					return
				}
				wait(ctx, time.Until(began.Add(time.Duration(i)*o.Every)))
				start := time.Now()
				errs[i] = do(f.connected[i])
				took[i] = time.Since(start)
			}
		})
	}
	all.Wait()
	return reportOf(began, took), errors.Join(ctx.Err(), first(errs))
}

func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func first(errs []error) error {
	failed := slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(failed) == 0 {
		return nil
	}
	return fmt.Errorf("%d failed, the first: %w", len(failed), failed[0])
}

// reportOf is about what began then and has just ended.
func reportOf(began time.Time, took []time.Duration) Report {
	r := Report{Began: began, Ended: time.Now()}
	if len(took) > 0 {
		slices.Sort(took)
		r.P50, r.P99 = took[len(took)/2], took[len(took)*99/100]
	}
	return r
}

// heard follows each message.
func (f *fleet) heard(client int, payload []byte) {
	e := f.expected.Load()
	if e == nil || client >= len(e.got) || !bytes.Contains(payload, e.text) || !e.got[client].CompareAndSwap(false, true) {
		return
	}
	now := time.Now()
	if e.left.Add(-1) == 0 {
		e.last = now
		close(e.done)
	}
}

func (f *fleet) await(ctx context.Context) (Report, error) {
	e := f.expected.Load()
	if e == nil {
		return Report{}, errors.New("nothing is expected")
	}
	select {
	case <-e.done:
		return Report{Began: e.began, Ended: e.last}, nil
	case err := <-f.lost:
		return Report{}, err
	case <-ctx.Done():
		return Report{}, fmt.Errorf("%d of %d clients have not got the message: %w", e.left.Load(), len(e.got), ctx.Err())
	}
}

// ended follows a connection that ended by itself.
func (f *fleet) ended(err error) {
	select {
	case f.lost <- err:
	default: // the first says enough
	}
}

// drop closes what is still open.
func (f *fleet) drop() {
	for _, c := range f.connected {
		if c.conn != nil {
			c.leaving.Store(true)
			c.conn.Close()
			<-c.ended
		}
	}
}
