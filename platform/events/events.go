// Package events tells other services what happened: an outbox in the
// publisher's Postgres, NATS JetStream in between, and consumers that handle
// each event once.
//
// A publisher has one Stream, appends to its Outbox inside the transaction that
// makes the thing true, and runs a Relay. A consumer of it runs a Consumer,
// whose handler works in a transaction of the consuming service. Both need the
// tables of Schema.
//
//	// publisher
//	stream := events.Stream{Name: "ORDER", Subjects: []string{"booking.>"}, Replicas: cfg.NATS.Replicas}
//	outbox, err := events.NewOutbox(stream)                  // the store gets it
//	bus, err := cfg.NATS.Open(&cfg.Config, svc)              // defer bus.Close()
//	svc.AddBackground("relaying events", events.NewRelay(db, bus, stream).Run)
//
//	// consumer
//	bookings, err := events.NewConsumer(db, bus, events.ConsumerConfig{
//		Stream: "ORDER", Name: "device", Subjects: []string{"booking.>"}, Handle: store.HandleBooking,
//	})
//	svc.AddBackground("handling bookings", bookings.Run)
package events

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Event is one thing that happened.
type Event struct {
	// ID is a ULID, which Append makes: by it NATS and consumers know a
	// repetition.
	ID string
	// Subject says what happened, in words with dots: "booking.created". It has
	// to be one of its stream's, and has no wildcards.
	Subject string
	// Key is what it happened to, for example a device's id: events with the same
	// key arrive in order. Which order that is, the transactions have to agree on:
	// lock or change the row of the thing before Append. At most 256 printable
	// ASCII characters, not empty.
	Key string
	// Payload is a protobuf message, at most MaxPayload bytes. It may be empty.
	Payload []byte
	// Time is when it was appended, in UTC. Append sets it.
	Time time.Time
}

// MaxPayload is the most bytes that an event carries; what is larger belongs
// into a blob or is asked for.
const MaxPayload = 64 << 10

// Stream is where a publisher's events are kept for consumers. A Relay makes it,
// or brings it up to date, when it starts.
type Stream struct {
	// Name is the publisher's, in capitals: "DEVICE".
	Name string
	// Subjects are patterns of the subjects in it, which no other stream has:
	// "booking.>" is everything below booking.
	Subjects []string
	// Replicas is on how many servers of NATS each event is before it counts as
	// published: 1 or 3. 0 is 1.
	Replicas int
	// MaxAge is how long events are kept, handled or not; 0 is three days. A
	// consumer that is away for longer misses some.
	MaxAge time.Duration
	// MaxBytes bounds the stream's size; 0 is what the server has. At the bound
	// nothing is dropped: events wait in the outbox.
	MaxBytes int64
}

// Handler does what an event demands, within tx, which is committed when it
// returns nil. It may be called again for an event whose transaction failed, so
// that effects outside tx must bear repetition. ctx ends after five seconds.
//
// Events of one key come one after another, in order; those of different keys
// at the same time. After an event was set aside, later ones of its key go on: a
// handler must bear that an event is missing, or comes late, by Replay.
//
// An error is tried again, a few times; Permanent tells that this is no use.
type Handler func(ctx context.Context, tx pgx.Tx, e Event) error

// Permanent marks an error that trying again does not change, such as a payload
// that cannot be read: the event is set aside at once. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

type permanentError struct{ cause error }

func (e *permanentError) Error() string { return e.cause.Error() }
func (e *permanentError) Unwrap() error { return e.cause }

// DeadLetter is an event that a consumer has set aside.
type DeadLetter struct {
	ID       string // of the event
	Consumer string // the name of the consumer
	Subject  string
	Key      string
	Payload  []byte
	// EventTime is when it was appended, Time when it was set aside.
	EventTime, Time time.Time
	// Attempts counts how often it was handled in vain, replays included.
	Attempts int
	// Error is what the last attempt failed with, for people.
	Error string
}

// ErrNoDeadLetter says that no event with this ID is set aside.
var ErrNoDeadLetter = errors.New("no event with this ID is set aside")

// Schema is the SQL of the tables that publishers and consumers need: outbox,
// inbox and dead_letters. A service's migration contains it as it is; a test of
// the service compares them.
func Schema() string { return schema }

//go:embed schema.sql
var schema string

var (
	streamName     = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,62}$`)
	consumerName   = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)
	subjectText    = regexp.MustCompile(`^[a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)*$`)
	subjectPattern = regexp.MustCompile(`^([a-zA-Z0-9_-]+|\*)(\.([a-zA-Z0-9_-]+|\*))*(\.>)?$`)
	keyText        = regexp.MustCompile(`^[!-~]([ -~]{0,254}[!-~])?$`)
)

const (
	maxSubject    = 200
	defaultMaxAge = 72 * time.Hour
)

// check completes the stream, or says what is wrong with it.
func (s Stream) check() (Stream, error) {
	if !streamName.MatchString(s.Name) {
		return s, fmt.Errorf("the stream's name %q must be 1 to 63 capitals, digits and underscores, such as DEVICE", s.Name)
	}
	if err := checkPatterns(s.Subjects); err != nil {
		return s, fmt.Errorf("stream %s: %w", s.Name, err)
	}
	if s.Replicas == 0 {
		s.Replicas = 1
	}
	if s.Replicas != 1 && s.Replicas != 3 {
		return s, fmt.Errorf("stream %s: %d replicas are not offered; use 1, or 3 on three servers", s.Name, s.Replicas)
	}
	if s.MaxAge == 0 {
		s.MaxAge = defaultMaxAge
	}
	if s.MaxAge < duplicates {
		return s, fmt.Errorf("stream %s: events cannot be kept for %s; use at least %s", s.Name, s.MaxAge, duplicates)
	}
	if s.MaxBytes < 0 {
		return s, fmt.Errorf("stream %s: a size of %d bytes is negative; use 0 for no bound", s.Name, s.MaxBytes)
	}
	return s, nil
}

func checkPatterns(patterns []string) error {
	if len(patterns) == 0 {
		return errors.New("it has no subjects; name at least one, such as \"booking.>\"")
	}
	for _, p := range patterns {
		if !subjectPattern.MatchString(p) {
			return fmt.Errorf("the subject %q must be words of letters, digits, _ and - with dots between; * stands for one word, > at the end for one or more", p)
		}
	}
	return nil
}

// has says whether the stream takes a subject.
func (s Stream) has(subject string) bool {
	return slices.ContainsFunc(s.Subjects, func(pattern string) bool { return matches(pattern, subject) })
}

// matches says whether a subject fits a pattern, as NATS means it.
func matches(pattern, subject string) bool {
	want, got := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, w := range want {
		switch {
		case w == ">":
			return len(got) > i
		case i >= len(got), w != "*" && w != got[i]:
			return false
		}
	}
	return len(got) == len(want)
}
