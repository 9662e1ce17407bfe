package account

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/hashicorp/go-hclog"

	"github.com/marquee-ads/marquee/platform/auth"
)

const (
	// publishFor is how old what this instance knows may be when a service asks
	// for it; older, the service had better ask another instance. It is a part of
	// the ten seconds within which a log-out is effective everywhere, which
	// package auth adds up; a refresh has to take less than it leaves.
	publishFor = auth.PublishedAge
	// verifyFor is the same for tokens that are verified here, and so how long a
	// log-out on another instance takes at most to be effective on this one.
	verifyFor = 4 * RefreshInterval
	// refreshTimeout bounds one refresh, so that a stuck one is tried again.
	refreshTimeout = 2 * RefreshInterval
	// refreshAgain is after how long a refresh is tried again that failed: what
	// this instance knows gets too old soon.
	refreshAgain = RefreshInterval / 8
	// refreshWait is how long a service that asks waits for a refresh that is late.
	// It is less than a service waits for an answer.
	refreshWait = time.Second
)

// KeyStore is where the instances share keys and ended sessions. Its errors are
// database.ErrUnavailable when trying again can help.
type KeyStore interface {
	// SigningKeys are the keys that have not expired at now.
	SigningKeys(ctx context.Context, now time.Time) ([]Key, error)
	// Ended are the ended sessions and revoked API keys with tokens that have not
	// expired at now, and the accounts whose roles changed while tokens that say
	// otherwise have not.
	Ended(ctx context.Context, now time.Time) ([]EndedSession, []ChangedAccount, error)
	// RotateSigningKeys calls decide with all stored keys while no other instance
	// can do the same. Keys that decide returns are stored: a new one is added,
	// of a known one the ExpireTime is set.
	RotateSigningKeys(ctx context.Context, decide func([]Key) ([]Key, error)) error
}

// Keyring is one instance's knowledge of the signing keys and ended sessions:
// it signs tokens, answers auth.Verifier from memory, and sees to it that the
// next key is there in time.
type Keyring struct {
	store    KeyStore
	secret   *Secret
	schedule Schedule
	audience string
	now      func() time.Time
	random   io.Reader

	mu          sync.RWMutex
	refreshed   time.Time     // when the reading of what follows began
	loaded      chan struct{} // closed when it was read again
	keys        []Key
	privates    map[string]ed25519.PrivateKey
	ended       map[string]struct{}  // by session id
	endedHere   map[string]time.Time // not yet seen in the store; until when
	versions    map[string]int64     // of the roles, by account id
	sealedWrong error                // why a key could not be opened
	// What ended and versions were made of, in the order of the ids. These slices
	// are replaced and never changed, so that they are read without the lock.
	endedInOrder   []EndedSession
	changedInOrder []ChangedAccount
}

// NewKeyring makes an empty keyring for one audience (the environment's name);
// Refresh fills it.
func NewKeyring(store KeyStore, secret *Secret, schedule Schedule, audience string, now func() time.Time, random io.Reader) (*Keyring, error) {
	if err := schedule.Validate(); err != nil {
		return nil, err
	}
	return &Keyring{
		store: store, secret: secret, schedule: schedule, audience: audience, now: now, random: random, loaded: make(chan struct{}),
		privates: map[string]ed25519.PrivateKey{}, ended: map[string]struct{}{}, endedHere: map[string]time.Time{},
	}, nil
}

// Run refreshes until ctx ends. A failure is logged when it begins and when it
// is over; meanwhile the instance goes on with what it knows.
func (r *Keyring) Run(ctx context.Context, log hclog.Logger) error {
	failing := false
	for ctx.Err() == nil {
		began := time.Now()
		err := r.Refresh(ctx)
		switch {
		case ctx.Err() != nil: // which is no failure
		case err != nil && !failing:
			log.Warn("signing keys and ended sessions cannot be refreshed; trying on", "error", err)
		case err == nil && failing:
			log.Info("signing keys and ended sessions are up to date again")
		}
		failing = err != nil
		pause := RefreshInterval - time.Since(began)
		if failing {
			pause = refreshAgain
		}
		next := time.NewTimer(pause)
		select {
		case <-next.C:
		case <-ctx.Done():
			next.Stop()
		}
	}
	return nil
}

// Refresh reads the keys and ended sessions, and publishes the next key when it
// is due.
func (r *Keyring) Refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, refreshTimeout)
	defer cancel()
	keys, err := r.load(ctx)
	if err != nil {
		return err
	}
	if _, due := r.schedule.next(keys, r.now()); due {
		if err := r.rotate(ctx); err != nil {
			return fmt.Errorf("publishing the next signing key: %w", err)
		}
		if _, err := r.load(ctx); err != nil {
			return err
		}
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.sealedWrong
}

func (r *Keyring) load(ctx context.Context) ([]Key, error) {
	began := r.now()
	keys, err := r.store.SigningKeys(ctx, began)
	if err != nil {
		return nil, fmt.Errorf("reading the signing keys: %w", err)
	}
	ended, changed, err := r.store.Ended(ctx, began)
	if err != nil {
		return nil, fmt.Errorf("reading what has ended: %w", err)
	}

	// Every token that is verified waits for the lock, so as little as can be is
	// done under it: with a hundred thousand log-outs this takes a while.
	ids := make(map[string]struct{}, len(ended))
	for _, e := range ended {
		ids[e.ID] = struct{}{}
	}
	slices.SortFunc(ended, byID[EndedSession])
	versions := make(map[string]int64, len(changed))
	for _, c := range changed {
		versions[c.ID] = c.Version
	}
	slices.SortFunc(changed, byID[ChangedAccount])

	r.mu.Lock()
	defer r.mu.Unlock()
	privates := make(map[string]ed25519.PrivateKey, len(keys))
	r.sealedWrong = nil
	for _, k := range keys {
		private, ok := r.privates[k.ID]
		if !ok {
			if private, err = k.private(r.secret); err != nil {
				// Still published: tokens that others signed with it are good.
				r.sealedWrong = err
				continue
			}
		}
		privates[k.ID] = private
	}
	r.refreshed, r.keys, r.privates = began, keys, privates
	r.ended, r.versions = ids, versions
	r.endedInOrder, r.changedInOrder = ended, changed
	close(r.loaded)
	r.loaded = make(chan struct{})
	// A log-out on this instance may be younger than what was just read.
	for id, until := range r.endedHere {
		if _, stored := r.ended[id]; stored || until.Before(began) {
			delete(r.endedHere, id)
		}
	}
	return keys, nil
}

func (r *Keyring) rotate(ctx context.Context) error {
	return r.store.RotateSigningKeys(ctx, func(keys []Key) ([]Key, error) {
		// Time has passed while waiting for the lock, and another instance may
		// have been faster.
		now := r.now()
		signFrom, due := r.schedule.next(keys, now)
		if !due {
			return nil, nil
		}
		key, err := newKey(now, signFrom, r.secret, r.random)
		if err != nil {
			return nil, err
		}
		changed := []Key{key}
		for _, k := range keys {
			if k.ExpireTime.IsZero() {
				k.ExpireTime = acceptedUntil(signFrom)
				changed = append(changed, k)
			}
		}
		return changed, nil
	})
}

// Token is what an access token says.
type Token struct {
	// Subject is an account, or an API key, and SessionID the log-in or the same
	// API key.
	Subject, SessionID    string
	IssueTime, ExpireTime time.Time
	Granted               Granted
}

// signing is the key that signs now, with its private part.
func (r *Keyring) signing(now time.Time) (Key, ed25519.PrivateKey, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	key, ok := signer(r.keys, now)
	// While what is known here is younger than that, every key that may sign now
	// was published long ago, and this one is accepted for a token's lifetime
	// even if it has a successor that is not known here.
	if !ok || now.Sub(r.refreshed) > r.schedule.PublishAhead/2 {
		return Key{}, nil, ErrSigningKeysUnavailable.Because(errors.New("the signing keys were not refreshed for too long"))
	}
	private, opened := r.privates[key.ID]
	if !opened {
		return Key{}, nil, ErrSigningKeysUnavailable.Because(fmt.Errorf("signing key %s cannot be opened with this key encryption key", key.ID))
	}
	return key, private, nil
}

// CanSign fails as Sign would now.
func (r *Keyring) CanSign() error {
	_, _, err := r.signing(r.now())
	return err
}

// Sign makes an access token. It fails with ErrSigningKeysUnavailable when the
// keys are not known well enough.
func (r *Keyring) Sign(t Token) (string, error) {
	key, private, err := r.signing(r.now())
	if err != nil {
		return "", err
	}
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, auth.Claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer:    auth.Issuer,
			Audience:  jwt.ClaimStrings{r.audience},
			Subject:   t.Subject,
			IssuedAt:  jwt.NewNumericDate(t.IssueTime),
			NotBefore: jwt.NewNumericDate(t.IssueTime),
			ExpiresAt: jwt.NewNumericDate(t.ExpireTime),
		},
		SessionID:    t.SessionID,
		Roles:        t.Granted.Roles,
		RolesVersion: t.Granted.Version,
	})
	token.Header["kid"] = key.ID
	signed, err := token.SignedString(private)
	if err != nil {
		return "", fmt.Errorf("signing an access token: %w", err)
	}
	return signed, nil
}

// End remembers a session that was ended on this instance, so that it is
// effective here at once.
func (r *Keyring) End(e EndedSession) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, stored := r.ended[e.ID]; !stored {
		r.endedHere[e.ID] = e.ExpireTime
	}
}

// PublicKey implements auth.Keys.
func (r *Keyring) PublicKey(keyID string) (ed25519.PublicKey, bool) {
	now := r.now()
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, k := range r.keys {
		if k.ID == keyID {
			return k.Public, r.schedule.expiry(k, now).After(now)
		}
	}
	return nil, false
}

// SessionEnded implements auth.Keys.
func (r *Keyring) SessionEnded(sessionID string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	_, stored := r.ended[sessionID]
	_, here := r.endedHere[sessionID]
	return stored || here
}

// RolesVersion implements auth.Keys.
func (r *Keyring) RolesVersion(accountID string) int64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.versions[accountID]
}

// Available tells auth.Verifier that no token can be judged while ended
// sessions are not known.
func (r *Keyring) Available() error {
	now := r.now()
	r.mu.RLock()
	defer r.mu.RUnlock()
	if age := now.Sub(r.refreshed); age > verifyFor {
		return fmt.Errorf("the signing keys and ended sessions were last read %s ago", age.Round(time.Second))
	}
	return nil
}
