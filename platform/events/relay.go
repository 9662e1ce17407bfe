package events

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/marquee-ads/marquee/platform/database"
)

const (
	// batchSize is how many events are on the way to NATS at once.
	batchSize = 256
	// settleLast is how many events at the end of a stream a new relay compares:
	// two relays, one of them cut off, may have published a batch each.
	settleLast = 2 * batchSize
	// firstPoll and lastPoll bound the growing pause after which a relay without
	// work looks again: what notified it, or did not, may have been committed late.
	firstPoll = 10 * time.Millisecond
	lastPoll  = 500 * time.Millisecond
	// measureEvery is how often an instance looks how old the outbox is.
	measureEvery = 2 * time.Second
	// duplicates is for how long NATS knows an event's ID. It has to exceed the
	// time in which a relay that was cut off from Postgres still publishes.
	duplicates = 5 * time.Minute
)

// The headers of an event; its ID is Nats-Msg-Id.
const (
	headerKey   = "Marquee-Key"
	headerTime  = "Marquee-Time"
	headerTrace = "traceparent"
)

// Relay brings events from the outbox to NATS. Every instance of a service runs
// one, and one of them works.
type Relay struct {
	db     *database.Database
	bus    *Bus
	stream Stream
	// published is called after NATS has a batch and before it is deleted; tests
	// fail there.
	published func() error
}

// NewRelay makes the relay of a service that publishes to stream, the one that
// its Outbox got.
func NewRelay(db *database.Database, bus *Bus, stream Stream) *Relay {
	return &Relay{db: db, bus: bus, stream: stream, published: func() error { return nil }}
}

// Run relays until ctx ends. While Postgres or NATS is away it waits. The error
// is one that waiting does not change.
func (r *Relay) Run(ctx context.Context) error {
	var err error
	if r.stream, err = r.stream.check(); err != nil {
		return fmt.Errorf("events: %w", err)
	}
	measured := make(chan struct{})
	go func() {
		defer close(measured)
		r.measure(ctx)
	}()
	whileAlone(ctx, r.db, "relay of "+r.stream.Name, r.bus.log, r.relay)
	<-measured
	return nil
}

// measure says how old the outbox is, whoever relays, and while nobody can.
func (r *Relay) measure(ctx context.Context) {
	for {
		var age float64
		err := r.db.Read(ctx, func(ctx context.Context) error {
			return r.db.Pool().QueryRow(ctx, `
				SELECT coalesce((
					SELECT extract(epoch FROM statement_timestamp() - create_time) FROM outbox
					ORDER BY outbox_id LIMIT 1
				), 0)::float8`).Scan(&age)
		})
		if err == nil { // else it is as old as before, and the database says so itself
			r.bus.metrics.waiting.Set(age)
		}
		if !wait(ctx, measureEvery) {
			return
		}
	}
}

// relay works while it holds the lock.
func (r *Relay) relay(ctx context.Context, conn *pgx.Conn) error {
	stream, err := r.bus.ensure(ctx, r.stream)
	if err != nil {
		return err
	}
	if err := r.exec(ctx, conn, "LISTEN "+channel); err != nil {
		return fmt.Errorf("listening to the outbox: %w", err)
	}
	if err := r.settle(ctx, conn, stream); err != nil {
		return err
	}
	r.bus.log.Info("relaying events", "stream", r.stream.Name)
	for poll := firstPoll; ; poll = min(2*poll, lastPoll) {
		n, err := r.batch(ctx, conn)
		if err != nil {
			return err
		}
		if n == batchSize {
			poll = firstPoll / 2
			continue
		}
		if n > 0 {
			poll = firstPoll
		}
		if err := sleep(ctx, conn, poll); err != nil {
			return err
		}
	}
}

// settle deletes what an earlier relay, or this one before an error, published
// without learning of it: no more than one batch, which is the end of the
// stream. Without this a repetition would only be noticed as long as NATS
// remembers IDs, and Postgres may be away for longer.
func (r *Relay) settle(ctx context.Context, conn *pgx.Conn, stream jetstream.Stream) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	state := stream.CachedInfo().State
	if state.Msgs == 0 {
		return nil
	}
	// Somebody may have deleted messages by hand, even the last ones.
	if _, err := stream.GetMsg(ctx, state.LastSeq); errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	}
	first := state.FirstSeq
	if state.LastSeq-first >= settleLast {
		first = state.LastSeq - settleLast + 1
	}
	reader, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: first, HeadersOnly: true,
		InactiveThreshold: apiTimeout,
	})
	if err != nil {
		return fmt.Errorf("reading the end of stream %s: %w", r.stream.Name, err)
	}
	messages, err := reader.Messages()
	if err != nil {
		return fmt.Errorf("reading the end of stream %s: %w", r.stream.Name, err)
	}
	defer messages.Stop()
	var ids []string
	for pending := uint64(1); pending > 0; {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("reading the end of stream %s: %w", r.stream.Name, err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("reading the end of stream %s: %w", r.stream.Name, err)
		}
		ids, pending = append(ids, msg.Headers().Get(jetstream.MsgIDHeader)), meta.NumPending
	}
	if err := r.exec(ctx, conn, "DELETE FROM outbox WHERE event_id = ANY ($1)", ids); err != nil {
		return fmt.Errorf("deleting what was published before: %w", err)
	}
	return nil
}

func (r *Relay) exec(ctx context.Context, conn *pgx.Conn, sql string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, sessionTimeout)
	defer cancel()
	_, err := conn.Exec(ctx, sql, args...)
	return err
}

// batch publishes the first events of the outbox, and says how many.
func (r *Relay) batch(ctx context.Context, conn *pgx.Conn) (int, error) {
	list, err := r.read(ctx, conn)
	if err != nil {
		return 0, fmt.Errorf("reading the outbox: %w", err)
	}
	if len(list) == 0 {
		return 0, nil
	}
	done, failure := r.publish(ctx, list)
	if done > 0 {
		r.bus.metrics.published.Add(float64(done))
		if err := r.published(); err != nil {
			return 0, err
		}
		numbers := make([]int64, done)
		for i := range numbers {
			numbers[i] = list[i].number
		}
		if err := r.exec(ctx, conn, "DELETE FROM outbox WHERE outbox_id = ANY ($1)", numbers); err != nil {
			return 0, fmt.Errorf("deleting what is published: %w", err)
		}
	}
	return len(list), failure
}

type outboxRow struct {
	Event
	number int64
	trace  string
}

// read reads the first events that are committed. A lower number may appear
// later: because rows are deleted, and not passed over, it is found then. Two
// events of one key, whose transactions excluded each other, have their numbers
// in the order of their commits, so that none is found before its predecessor.
func (r *Relay) read(ctx context.Context, conn *pgx.Conn) ([]outboxRow, error) {
	ctx, cancel := context.WithTimeout(ctx, sessionTimeout)
	defer cancel()
	rows, err := conn.Query(ctx, `
		SELECT outbox_id, event_id, subject, key, payload, traceparent, create_time FROM outbox
		ORDER BY outbox_id LIMIT $1`, batchSize)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (e outboxRow, err error) {
		err = row.Scan(&e.number, &e.ID, &e.Subject, &e.Key, &e.Payload, &e.trace, &e.Time)
		return e, err
	})
}

// publish sends all of the list and says how many of the first NATS has stored.
// Each names the one before as the stream's last: when one is lost on the way,
// NATS refuses those behind it, so that none overtakes.
func (r *Relay) publish(ctx context.Context, list []outboxRow) (done int, err error) {
	futures := make([]jetstream.PubAckFuture, 0, len(list))
	var failure error
	for i, e := range list {
		options := []jetstream.PublishOpt{
			jetstream.WithMsgID(e.ID), jetstream.WithExpectStream(r.stream.Name), jetstream.WithRetryAttempts(0),
		}
		if i > 0 {
			options = append(options, jetstream.WithExpectLastMsgID(list[i-1].ID))
		}
		future, err := r.bus.js.PublishMsgAsync(e.message(), options...)
		if err != nil {
			failure = err
			break
		}
		futures = append(futures, future)
	}
	// All are waited for, so that nothing of this batch is under way when the next
	// begins: ackTimeout ends it.
	for _, future := range futures {
		select {
		case <-future.Ok():
			if failure == nil {
				done++
			}
		case err := <-future.Err():
			if failure == nil {
				failure = err
			}
		case <-ctx.Done():
			return done, ctx.Err()
		}
	}
	if failure != nil {
		return done, fmt.Errorf("publishing to stream %s: %w", r.stream.Name, failure)
	}
	return done, nil
}

func (e *outboxRow) message() *nats.Msg {
	msg := nats.NewMsg(e.Subject)
	msg.Data = e.Payload
	msg.Header.Set(headerKey, e.Key)
	msg.Header.Set(headerTime, e.Time.UTC().Format(time.RFC3339Nano))
	if e.trace != "" {
		msg.Header.Set(headerTrace, e.trace)
	}
	return msg
}

// sleep waits for a notification, at most for d.
func sleep(ctx context.Context, conn *pgx.Conn, d time.Duration) error {
	within, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	_, err := conn.WaitForNotification(within)
	over := within.Err() != nil && ctx.Err() == nil && !conn.IsClosed()
	if err == nil || over {
		return nil
	}
	return fmt.Errorf("waiting for events: %w", err)
}
