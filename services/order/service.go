package order

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/oklog/ulid/v2"
)

// Store is what the service keeps. Its errors are the faults named here, one with
// which the database says that trying again can help, the context's error, or
// something unexpected.
type Store interface {
	DisplayStore
	Orders
	LedgerStore
	CreativeStore
	DeliveryStore
}

// Request is a write as it is remembered for repeats.
type Request struct {
	CallerID    string
	RequestID   string
	Fingerprint []byte // SHA-256 of the method and the body
	Time        time.Time
	ExpireTime  time.Time
}

// Service is what the order service does for people and programs.
type Service struct {
	store    Store
	payments Payments
	media    Media
	plays    Plays
	now      func() time.Time
	random   io.Reader
}

// Outside is what the service reaches beyond its database.
type Outside struct {
	Payments Payments
	Media    Media
	Plays    Plays
}

// New wires the service. now is the clock, random the source of ids.
func New(store Store, outside Outside, now func() time.Time, random io.Reader) *Service {
	return &Service{store: store, payments: outside.Payments, media: outside.Media, plays: outside.Plays, now: now, random: random}
}

// moment is now as the database keeps it.
func (s *Service) moment() time.Time { return s.now().UTC().Truncate(time.Microsecond) }

// newRequest is a write as it is remembered; body is all that it says, with the name
// of the method.
func newRequest(callerID, requestID string, body any, now time.Time) (Request, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return Request{}, fmt.Errorf("making a fingerprint: %w", err)
	}
	sum := sha256.Sum256(text)
	return Request{CallerID: callerID, RequestID: requestID, Fingerprint: sum[:], Time: now, ExpireTime: now.Add(RequestLifetime)}, nil
}

// newID makes an id of a time.
func (s *Service) newID(prefix string, now time.Time) (string, error) {
	id, err := ulid.New(ulid.Timestamp(now), s.random)
	if err != nil {
		return "", fmt.Errorf("making an id: %w", err)
	}
	return prefix + id.String(), nil
}
