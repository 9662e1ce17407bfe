package device

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/oklog/ulid/v2"

	"github.com/marquee-ads/marquee/platform/paging"
)

const (
	// PlaysKept is how late a play may be handed in.
	PlaysKept = 30 * 24 * time.Hour
	// RejectedKept is for how long plays that were set aside are.
	RejectedKept = 90 * 24 * time.Hour
	// MaxBatch bounds the plays of one batch.
	MaxBatch = 200

	// clockAhead is how far a player's clock may be ahead.
	clockAhead = 5 * time.Minute
	// tolerance is by how much a play may miss its full length and still count, and
	// go beyond its slot and still be possible.
	tolerance = 500 * time.Millisecond
	// maxRejectedText is how much of a rejected play is kept.
	maxRejectedText = 1000
)

// Play is one proof of play.
type Play struct {
	DeviceID string
	// ID is a ULID; its time is when the play began.
	ID         string
	CreativeID string
	Start      time.Time
	Duration   time.Duration
	// Counted is whether it ran to within half a second of its full length.
	Counted bool
}

// Rejection is why a play is set aside.
type Rejection string

// Why plays are set aside.
const (
	Malformed       Rejection = "MALFORMED"        // not what docs/device-protocol.md says
	UnknownCreative Rejection = "UNKNOWN_CREATIVE" // the device was never given it
	InTheFuture     Rejection = "IN_THE_FUTURE"    // more than 5 minutes
	TooOld          Rejection = "TOO_OLD"          // more than 30 days
	TooLong         Rejection = "TOO_LONG"         // longer than the device's slot
)

// RejectedPlay is a play that cannot have been.
type RejectedPlay struct {
	DeviceID string
	// PlayID is as it was sent, or of a batch that cannot be read its SHA-256.
	PlayID string
	Reason Rejection
	// Text is what was sent, at most 1000 bytes of it.
	Text string
}

// Hour sums the plays of one creative that began in one hour.
type Hour struct {
	DeviceID   string
	Time       time.Time
	CreativeID string
	Plays      int64
	Counted    int64
	Duration   time.Duration
}

// HourPosition is a place in a list of hours.
type HourPosition struct {
	Time       time.Time
	CreativeID string
}

// Span is from a time to before another; zero times are no bounds.
type Span struct {
	From, To time.Time
}

// Disagreement is an hour whose sum is not that of its plays.
type Disagreement struct {
	DeviceID   string
	Hour       time.Time
	CreativeID string
	Summed     int64
	Stored     int64
}

// ListPlays returns a page of a device's hours, the newest first. Errors:
// ErrNotFound, paging.ErrTokenInvalid.
func (s *Service) ListPlays(ctx context.Context, organisationID, id string, span Span, page paging.Page) ([]Hour, string, error) {
	of := "plays of " + id
	position, err := page.Open(of)
	if err != nil {
		return nil, "", err
	}
	var after *HourPosition
	if position != "" {
		at, creative, ok := strings.Cut(position, " ")
		hour, err := time.Parse(time.RFC3339, at)
		if err != nil || !ok {
			return nil, "", paging.ErrTokenInvalid.Because(err)
		}
		after = &HourPosition{Time: hour, CreativeID: creative}
	}
	size := page.Limit()
	found, err := s.store.ListPlays(ctx, organisationID, id, span, after, size+1)
	if err != nil {
		return nil, "", fmt.Errorf("reading a page of the %s: %w", of, err)
	}
	if len(found) <= size {
		return found, "", nil
	}
	last := found[size-1]
	return found[:size], paging.Seal(of, last.Time.Format(time.RFC3339)+" "+last.CreativeID), nil
}

// Batch is what one message of a player says.
type Batch struct {
	// ID is the player's own name of it, which the answer carries; may be empty.
	ID       string
	Plays    []Play
	Rejected []RejectedPlay
}

var (
	creativePattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	errBatchSize    = errors.New("it has no plays, or more than 200")
)

// ParseBatch reads a message. A play that cannot be read is among the rejected,
// and so is all of a message that cannot: nothing that a player sends is an
// error.
func ParseBatch(deviceID string, text []byte) Batch {
	var message struct {
		BatchID string            `json:"batch_id"`
		Plays   []json.RawMessage `json:"plays"`
	}
	err := json.Unmarshal(text, &message)
	if err == nil && (len(message.Plays) == 0 || len(message.Plays) > MaxBatch) {
		err = errBatchSize
	}
	batch := Batch{ID: clip(message.BatchID, 64)}
	if err != nil {
		sum := sha256.Sum256(text)
		batch.Rejected = []RejectedPlay{rejected(deviceID, hex.EncodeToString(sum[:]), Malformed, text)}
		return batch
	}
	for _, raw := range message.Plays {
		play, ok := parsePlay(deviceID, raw)
		if !ok {
			batch.Rejected = append(batch.Rejected, rejected(deviceID, play.ID, Malformed, raw))
			continue
		}
		batch.Plays = append(batch.Plays, play)
	}
	return batch
}

func parsePlay(deviceID string, raw []byte) (Play, bool) {
	var message struct {
		ID         string `json:"id"`
		CreativeID string `json:"creative_id"`
		DurationMS int64  `json:"duration_ms"`
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	err := decoder.Decode(&message)
	play := Play{DeviceID: deviceID, ID: message.ID, CreativeID: message.CreativeID, Duration: time.Duration(message.DurationMS) * time.Millisecond}
	if err != nil || !creativePattern.MatchString(play.CreativeID) || message.DurationMS < 1 || message.DurationMS > 1<<31-1 {
		return play, false
	}
	id, err := ulid.ParseStrict(play.ID)
	// Only one way of writing an id is taken, so that a repeat is the same.
	if err != nil || id.String() != play.ID {
		return play, false
	}
	play.Start = id.Timestamp().UTC()
	return play, true
}

func rejected(deviceID, playID string, reason Rejection, text []byte) RejectedPlay {
	return RejectedPlay{DeviceID: deviceID, PlayID: clip(playID, 64), Reason: reason, Text: clip(string(text), maxRejectedText)}
}

// clip is at most so many bytes of text that Postgres stores.
func clip(text string, most int) string {
	text = strings.ToValidUTF8(strings.ReplaceAll(text, "\x00", "\uFFFD"), "\uFFFD")
	if len(text) <= most {
		return text
	}
	for most > 0 && !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most]
}

// Known is what plays are judged by.
type Known struct {
	// Slots are the slot lengths of devices.
	Slots map[string]time.Duration
	// Creatives are the full lengths of what devices were given to play.
	Creatives map[Assignment]time.Duration
}

// Assignment is a creative on a device.
type Assignment struct {
	DeviceID, CreativeID string
}

// Judge says whether a play can have been, at the time that it is received, and
// whether it counts. The reason is empty for one that can.
func (k Known) Judge(p Play, now time.Time) (counted bool, reason Rejection) {
	full, known := k.Creatives[Assignment{p.DeviceID, p.CreativeID}]
	switch {
	case p.Start.After(now.Add(clockAhead)):
		return false, InTheFuture
	case p.Start.Before(now.Add(-PlaysKept)):
		return false, TooOld
	case !known:
		return false, UnknownCreative
	case p.Duration > k.Slots[p.DeviceID]+tolerance:
		return false, TooLong
	}
	return p.Duration >= full-tolerance, ""
}
