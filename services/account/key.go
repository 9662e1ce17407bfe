package account

import (
	"crypto/ed25519"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/marquee-ads/marquee/platform/auth"
)

const (
	// TokenLifetime is how long an access token is valid.
	TokenLifetime = 5 * time.Minute
	// PollInterval is how often services read the signing keys and the ended
	// sessions.
	PollInterval = auth.PollInterval
	// RefreshInterval is how often an instance of this service reads them from
	// the database.
	RefreshInterval = 2 * time.Second
	// ClockLeeway is how far the clocks of two machines may differ without a
	// key or the end of a session being dropped while a token still counts.
	ClockLeeway = 30 * time.Second

	// MinPublishAhead is how long before it signs a key must be published at
	// least: two polls of a service, one of which may fail, with two refreshes
	// of the instance that answers, and 20 s for storing it.
	MinPublishAhead = 2*(PollInterval+RefreshInterval) + 20*time.Second
)

// Key is a signing key as it is stored: the private part sealed.
type Key struct {
	// ID is "key_" and a ULID; the "kid" of its tokens.
	ID     string
	Public ed25519.PublicKey
	Sealed []byte
	// It signs from SignFrom on, until its successor does.
	CreateTime time.Time
	SignFrom   time.Time
	// ExpireTime is until when its tokens are accepted: known, and not zero,
	// from the moment its successor is published.
	ExpireTime time.Time
}

// SettingError says which setting is wrong, by the name of its field in
// Schedule, HashParams or Throttle.
type SettingError struct {
	Field   string
	problem string
}

// Error says what is wrong and what would be right.
func (e *SettingError) Error() string { return e.problem }

func wrongSetting(field, format string, args ...any) error {
	return &SettingError{field, fmt.Sprintf(format, args...)}
}

// Schedule says how signing keys follow each other.
type Schedule struct {
	// SignFor is how long a key signs.
	SignFor time.Duration
	// PublishAhead is how long a key is published before it signs.
	PublishAhead time.Duration
}

// Validate refuses schedules under which a service could meet a token whose key
// it cannot know, with a *SettingError.
func (s Schedule) Validate() error {
	if s.PublishAhead < MinPublishAhead {
		return wrongSetting("PublishAhead", "publishing a signing key %s ahead: want at least %s, so that every service knows a key before it signs", s.PublishAhead, MinPublishAhead)
	}
	if s.SignFor < 2*s.PublishAhead {
		return wrongSetting("SignFor", "signing for %s with keys published %s ahead: want at least twice as long, so that only one key waits", s.SignFor, s.PublishAhead)
	}
	return nil
}

// next says whether another key is due, and from when on it is to sign. The
// very first signs at once: no service can have a token yet.
func (s Schedule) next(keys []Key, now time.Time) (signFrom time.Time, due bool) {
	if len(keys) == 0 {
		return now, true
	}
	newest := slices.MaxFunc(keys, bySignFrom)
	end := newest.SignFrom.Add(s.SignFor)
	if now.Before(end.Add(-s.PublishAhead)) {
		return time.Time{}, false
	}
	// Late when no instance ran: the old key goes on signing meanwhile.
	if earliest := now.Add(s.PublishAhead); end.Before(earliest) {
		end = earliest
	}
	return end, true
}

// expiry is until when a key's tokens are accepted. One without a successor has
// at least the time that a successor would be published ahead.
func (s Schedule) expiry(k Key, now time.Time) time.Time {
	if !k.ExpireTime.IsZero() {
		return k.ExpireTime
	}
	end := k.SignFrom.Add(s.SignFor)
	if end.Before(now) {
		end = now
	}
	return acceptedUntil(end.Add(s.PublishAhead))
}

// acceptedUntil is when the last token of a key expires that signs until end.
func acceptedUntil(end time.Time) time.Time { return end.Add(TokenLifetime + ClockLeeway) }

func bySignFrom(a, b Key) int {
	if c := a.SignFrom.Compare(b.SignFrom); c != 0 {
		return c
	}
	if a.ID < b.ID {
		return -1
	}
	return 1
}

// signer is the key that signs now.
func signer(keys []Key, now time.Time) (Key, bool) {
	var found Key
	for _, k := range keys {
		if !k.SignFrom.After(now) && (found.ID == "" || bySignFrom(k, found) > 0) {
			found = k
		}
	}
	return found, found.ID != ""
}

// newKey makes a key and seals its private part.
func newKey(now, signFrom time.Time, secret *Secret, random io.Reader) (Key, error) {
	id, err := newID("key", now, random)
	if err != nil {
		return Key{}, err
	}
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(random, seed); err != nil {
		return Key{}, fmt.Errorf("making a signing key: %w", err)
	}
	sealed, err := secret.seal(seed, id, random)
	if err != nil {
		return Key{}, fmt.Errorf("sealing a signing key: %w", err)
	}
	public, ok := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	if !ok {
		return Key{}, fmt.Errorf("making a signing key: no Ed25519 key came of the seed")
	}
	return Key{ID: id, Public: public, Sealed: sealed, CreateTime: now, SignFrom: signFrom}, nil
}

// private opens the private part.
func (k Key) private(secret *Secret) (ed25519.PrivateKey, error) {
	seed, err := secret.open(k.Sealed, k.ID)
	if err != nil {
		return nil, err
	}
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("signing key %s has %d bytes", k.ID, len(seed))
	}
	private := ed25519.NewKeyFromSeed(seed)
	if !k.Public.Equal(private.Public()) {
		return nil, fmt.Errorf("signing key %s does not fit its public part", k.ID)
	}
	return private, nil
}
