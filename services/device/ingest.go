package device

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/marquee-ads/marquee/platform/database"
)

const (
	// committers is how many transactions of plays are under way at once: while one
	// commits the next is filled.
	committers = 2
	// groupPlays is about how many plays go into one transaction.
	groupPlays = 2000
	// storeWithin is how long a player waits for its acknowledgement while the
	// database is away, before it is asked to come back later.
	storeWithin = 20 * time.Second
	firstPause  = 50 * time.Millisecond
	lastPause   = time.Second
)

// Receipt is what became of a batch, as its player gets it.
type Receipt struct {
	BatchID    string          `json:"batch_id"`
	Accepted   int             `json:"accepted"`
	Duplicate  int             `json:"duplicate"`
	Rejected   int             `json:"rejected"`
	Rejections []ReceiptReason `json:"rejections,omitempty"`
}

// ReceiptReason is why one play was set aside.
type ReceiptReason struct {
	PlayID string    `json:"id"`
	Reason Rejection `json:"reason"`
}

// ingester stores the batches of many players in few transactions.
type ingester struct {
	plays   PlaneStore
	now     func() time.Time
	log     hclog.Logger
	queue   chan *handedIn
	metrics *planeMetrics
	// stopped is closed when nothing takes from the queue any more.
	stopped chan struct{}
}

// handedIn is a batch whose player waits.
type handedIn struct {
	batch Batch
	since time.Time
	done  chan outcome // has room for the one outcome
}

type outcome struct {
	receipt Receipt
	err     error
}

var errStopping = errors.New("the instance stops")

func newIngester(store PlaneStore, now func() time.Time, log hclog.Logger, metrics *planeMetrics) *ingester {
	return &ingester{plays: store, now: now, log: log, metrics: metrics, queue: make(chan *handedIn, 64), stopped: make(chan struct{})}
}

// store returns when the batch is stored.
func (g *ingester) store(ctx context.Context, b Batch) (Receipt, error) {
	g.metrics.waiting.Inc()
	defer g.metrics.waiting.Dec()
	h := &handedIn{batch: b, since: time.Now(), done: make(chan outcome, 1)}
	select {
	case g.queue <- h:
	case <-ctx.Done():
		return Receipt{}, context.Cause(ctx)
	case <-g.stopped:
		return Receipt{}, errStopping
	}
	select {
	case o := <-h.done:
		return o.receipt, o.err
	case <-ctx.Done():
		return Receipt{}, context.Cause(ctx)
	case <-g.stopped:
		return Receipt{}, errStopping
	}
}

func (g *ingester) run(ctx context.Context) {
	defer close(g.stopped)
	var all sync.WaitGroup
	for range committers {
		all.Go(func() {
			for {
				select {
				case first := <-g.queue:
					g.commit(ctx, g.group(first))
				case <-ctx.Done():
					return
				}
			}
		})
	}
	all.Wait()
}

// group is a batch with those that wait behind it.
func (g *ingester) group(first *handedIn) []*handedIn {
	group, plays := []*handedIn{first}, len(first.batch.Plays)
	for plays < groupPlays {
		select {
		case next := <-g.queue:
			group, plays = append(group, next), plays+len(next.batch.Plays)
		default:
			return group
		}
	}
	return group
}

// commit stores a group and answers each of it. While the database is away it
// tries again, for as long as the first may wait.
func (g *ingester) commit(ctx context.Context, group []*handedIn) {
	var plays []Play
	var rejected []RejectedPlay
	for _, h := range group {
		plays, rejected = append(plays, h.batch.Plays...), append(rejected, h.batch.Rejected...)
	}
	stored, err := g.tryUntil(ctx, group[0].since.Add(storeWithin), plays, rejected)
	if err != nil && len(group) > 1 && !errors.Is(err, database.ErrUnavailable) && ctx.Err() == nil {
		// One batch that the database refuses is not to stand in the way of others.
		g.log.Error("plays of several devices could not be stored together; storing them one by one", "error", err)
		for _, h := range group {
			g.commit(ctx, []*handedIn{h})
		}
		return
	}
	for _, h := range group {
		if err != nil {
			h.done <- outcome{err: err}
			continue
		}
		r := receipt(h.batch, stored)
		g.metrics.received(r)
		h.done <- outcome{receipt: r}
	}
}

func (g *ingester) tryUntil(ctx context.Context, until time.Time, plays []Play, rejected []RejectedPlay) (Stored, error) {
	var stored Stored
	err := patiently(ctx, until, func() (err error) {
		stored, err = g.plays.StorePlays(ctx, plays, rejected, g.now().UTC().Truncate(time.Microsecond))
		return err
	})
	return stored, err
}

// patiently uses the database, again and again while it is away, until a time or
// until ctx ends.
func patiently(ctx context.Context, until time.Time, use func() error) error {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := use()
		if err == nil || !errors.Is(err, database.ErrUnavailable) || time.Now().Add(pause).After(until) {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

// receipt takes what it counts as added out of stored: the same play in another
// batch of the group is a duplicate.
func receipt(b Batch, stored Stored) Receipt {
	r := Receipt{BatchID: b.ID}
	for _, play := range b.Plays {
		key := PlayKey{play.DeviceID, play.ID}
		reason, rejected := stored.Rejected[key]
		switch {
		case rejected:
			r.Rejected++
			r.Rejections = append(r.Rejections, ReceiptReason{play.ID, reason})
		case stored.Added[key]:
			r.Accepted++
			delete(stored.Added, key)
		default:
			r.Duplicate++
		}
	}
	for _, play := range b.Rejected {
		r.Rejected++
		r.Rejections = append(r.Rejections, ReceiptReason{play.PlayID, play.Reason})
	}
	return r
}

// Split judges plays: those that can have been, and the others.
func (k Known) Split(plays []Play, now time.Time) (possible []Play, impossible []RejectedPlay, err error) {
	for _, play := range plays {
		counted, reason := k.Judge(play, now)
		if reason == "" {
			play.Counted = counted
			possible = append(possible, play)
			continue
		}
		text, err := json.Marshal(map[string]any{"id": play.ID, "creative_id": play.CreativeID, "duration_ms": play.Duration.Milliseconds()})
		if err != nil {
			return nil, nil, fmt.Errorf("writing a play: %w", err)
		}
		impossible = append(impossible, rejected(play.DeviceID, play.ID, reason, text))
	}
	return possible, impossible, nil
}
