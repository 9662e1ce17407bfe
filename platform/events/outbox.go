package events

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"go.opentelemetry.io/otel/propagation"

	"github.com/marquee-ads/marquee/platform/database"
)

const (
	// channel is what the relay listens on.
	channel = "outbox"
	// notifyEvery is the least time between two notifications of a process. A
	// transaction that notifies takes a lock of the whole server from before its
	// commit to after it: notifying in each would make commits take turns.
	notifyEvery = 20 * time.Millisecond
)

// Outbox is where a service's events go first.
type Outbox struct {
	stream   Stream
	notified atomic.Int64 // when it last notified, in Unix nanoseconds
}

// NewOutbox makes the outbox of a service that publishes to stream. The error
// says what is wrong with the stream.
func NewOutbox(stream Stream) (*Outbox, error) {
	stream, err := stream.check()
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	return &Outbox{stream: stream}, nil
}

// Append makes events part of the transaction: when it is committed they will be
// published, in this order, and otherwise they never happened. It sets their ID
// and Time itself. The error names what an event has wrong, which is the
// caller's mistake, or is the database's.
func (o *Outbox) Append(ctx context.Context, tx database.Executor, list ...Event) error {
	if len(list) == 0 {
		return nil
	}
	trace := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, trace)
	var (
		ids      = make([]string, len(list))
		subjects = make([]string, len(list))
		keys     = make([]string, len(list))
		payloads = make([][]byte, len(list))
	)
	for i, e := range list {
		if err := o.check(e); err != nil {
			return fmt.Errorf("appending event %d, %q: %w", i+1, e.Subject, err)
		}
		id, err := ulid.New(ulid.Now(), rand.Reader)
		if err != nil {
			return fmt.Errorf("making the ID of an event: %w", err)
		}
		ids[i], subjects[i], keys[i], payloads[i] = id.String(), e.Subject, e.Key, e.Payload
		if e.Payload == nil {
			payloads[i] = []byte{}
		}
	}
	_, err := tx.Exec(ctx, `
		INSERT INTO outbox (event_id, subject, key, payload, traceparent, create_time)
		SELECT e.event_id, e.subject, e.key, e.payload, $5, statement_timestamp()
		FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[])
			WITH ORDINALITY AS e (event_id, subject, key, payload, place)
		ORDER BY e.place`, ids, subjects, keys, payloads, trace.Get("traceparent"))
	if err != nil {
		return fmt.Errorf("appending events: %w", err)
	}
	return o.notify(ctx, tx)
}

// notify wakes the relay at the transaction's commit. A relay that is awake
// looks again by itself, so that those who do not notify wait for little longer
// than their own transaction took.
func (o *Outbox) notify(ctx context.Context, tx database.Executor) error {
	now, last := time.Now().UnixNano(), o.notified.Load()
	if now-last < int64(notifyEvery) || !o.notified.CompareAndSwap(last, now) {
		return nil
	}
	if _, err := tx.Exec(ctx, "SELECT pg_notify($1, '')", channel); err != nil {
		return fmt.Errorf("waking the relay: %w", err)
	}
	return nil
}

func (o *Outbox) check(e Event) error {
	switch {
	case e.ID != "" || !e.Time.IsZero():
		return errors.New("its ID and Time are Append's to set; leave them out")
	case !subjectText.MatchString(e.Subject) || len(e.Subject) > maxSubject:
		return fmt.Errorf("its subject must be words of letters, digits, _ and - with dots between, at most %d characters", maxSubject)
	case !o.stream.has(e.Subject):
		return fmt.Errorf("its subject is not in stream %s, which has %q", o.stream.Name, o.stream.Subjects)
	case !keyText.MatchString(e.Key):
		return fmt.Errorf("its key %q must be 1 to 256 printable ASCII characters, no space first or last", e.Key)
	case len(e.Payload) > MaxPayload:
		return fmt.Errorf("its payload has %d bytes; at most %d are carried", len(e.Payload), MaxPayload)
	}
	return nil
}
