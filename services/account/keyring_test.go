package account

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/platform/paging"
)

// clock is a clock that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// keyStore is a KeyStore in memory; fail makes it unavailable. The Postgres one
// is tested beside it.
type keyStore struct {
	mu      sync.Mutex
	keys    []Key
	ended   []EndedSession
	changed []ChangedAccount
	fail    func() bool
}

func (s *keyStore) available() error {
	if s.fail != nil && s.fail() {
		return database.ErrUnavailable
	}
	return nil
}

func (s *keyStore) SigningKeys(_ context.Context, now time.Time) ([]Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.available(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(s.keys), func(k Key) bool { return !k.ExpireTime.IsZero() && !k.ExpireTime.After(now) }), nil
}

func (s *keyStore) Ended(context.Context, time.Time) ([]EndedSession, []ChangedAccount, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ended), slices.Clone(s.changed), s.available()
}

func (s *keyStore) RotateSigningKeys(_ context.Context, decide func([]Key) ([]Key, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.available(); err != nil {
		return err
	}
	changed, err := decide(slices.Clone(s.keys))
	for _, k := range changed {
		if i := slices.IndexFunc(s.keys, func(old Key) bool { return old.ID == k.ID }); i >= 0 {
			s.keys[i].ExpireTime = k.ExpireTime
		} else {
			s.keys = append(s.keys, k)
		}
	}
	return err
}

func newKeyring(t *testing.T, store KeyStore, schedule Schedule, c *clock) *Keyring {
	t.Helper()
	r, err := NewKeyring(store, newSecret(t, 1), schedule, "test", c.now, crand.Reader)
	require.NoError(t, err)
	return r
}

func day() Schedule { return Schedule{SignFor: 24 * time.Hour, PublishAhead: 10 * time.Minute} }

func session(now time.Time) Token {
	return Token{Subject: "acc_1", SessionID: "ses_1", IssueTime: now, ExpireTime: now.Add(TokenLifetime)}
}

// keyOf is the id of the key that a token is signed with.
func keyOf(t *testing.T, token string) string {
	t.Helper()
	parsed, _, err := jwt.NewParser().ParseUnverified(token, jwt.MapClaims{})
	require.NoError(t, err)
	id, _ := parsed.Header["kid"].(string)
	return id
}

func TestKeyring(t *testing.T) {
	t.Run("OKFirstKeySignsAtOnce", func(t *testing.T) {
		c := newClock()
		r := newKeyring(t, &keyStore{}, day(), c)
		require.NoError(t, r.Refresh(t.Context()))
		token, err := r.Sign(session(c.now()))
		require.NoError(t, err)
		caller, err := auth.NewVerifier(auth.Issuer, "test", r, c.now).Verify(t.Context(), token)
		require.NoError(t, err)
		require.Equal(t, auth.Caller{AccountID: "acc_1", SessionID: "ses_1"}, caller)
		_, err = auth.NewVerifier(auth.Issuer, "production", r, c.now).Verify(t.Context(), token)
		require.ErrorIs(t, err, auth.ErrTokenInvalid)
	})

	t.Run("OKRotation", func(t *testing.T) {
		c := newClock()
		store := &keyStore{}
		a, b := newKeyring(t, store, day(), c), newKeyring(t, store, day(), c)
		refresh := func() {
			require.NoError(t, a.Refresh(t.Context()))
			require.NoError(t, b.Refresh(t.Context()))
		}
		refresh()
		old, err := a.Sign(session(c.now()))
		require.NoError(t, err)

		c.move(24*time.Hour - 10*time.Minute - time.Second)
		refresh()
		keys, err := a.PublishedKeys()
		require.NoError(t, err)
		require.Len(t, keys, 1)

		c.move(time.Second)
		refresh()
		keys, err = b.PublishedKeys()
		require.NoError(t, err)
		require.Len(t, keys, 2, "both made a key, or none")
		require.Equal(t, keys[0].SignFrom.Add(24*time.Hour), keys[1].SignFrom)
		require.Equal(t, keys[1].SignFrom.Add(TokenLifetime+ClockLeeway), keys[0].ExpireTime)

		c.move(10*time.Minute - time.Second)
		refresh()
		last, err := b.Sign(session(c.now()))
		require.NoError(t, err)
		require.Equal(t, keyOf(t, old), keyOf(t, last))
		c.move(time.Second)
		refresh()
		next, err := b.Sign(session(c.now()))
		require.NoError(t, err)
		require.Equal(t, keys[1].ID, keyOf(t, next))

		// The last token of the old key is good to its end.
		c.move(TokenLifetime - 2*time.Second)
		refresh()
		_, err = auth.NewVerifier(auth.Issuer, "test", a, c.now).Verify(t.Context(), last)
		require.NoError(t, err)
		c.move(ClockLeeway + 2*time.Second)
		refresh()
		keys, err = a.PublishedKeys()
		require.NoError(t, err)
		require.Len(t, keys, 1, "the old key is still published")
	})

	t.Run("OKNobodyRanForDays", func(t *testing.T) {
		c := newClock()
		store := &keyStore{}
		r := newKeyring(t, store, day(), c)
		require.NoError(t, r.Refresh(t.Context()))
		c.move(72 * time.Hour)
		r = newKeyring(t, store, day(), c)
		require.NoError(t, r.Refresh(t.Context()))
		keys, err := r.PublishedKeys()
		require.NoError(t, err)
		require.Len(t, keys, 2)
		require.Equal(t, c.now().Add(10*time.Minute), keys[1].SignFrom)
		token, err := r.Sign(session(c.now()))
		require.NoError(t, err)
		require.Equal(t, keys[0].ID, keyOf(t, token))
	})

	t.Run("OKEndedHereBeforeTheStoreIsRead", func(t *testing.T) {
		c := newClock()
		store := &keyStore{}
		r := newKeyring(t, store, day(), c)
		require.NoError(t, r.Refresh(t.Context()))
		until := c.now().Add(TokenLifetime)
		r.End(EndedSession{ID: "ses_1", ExpireTime: until})
		require.True(t, r.SessionEnded("ses_1"))
		// What is read now was written before.
		require.NoError(t, r.Refresh(t.Context()))
		require.True(t, r.SessionEnded("ses_1"))
		require.False(t, r.SessionEnded("ses_2"))
		published, _, err := r.Published(paging.Page{})
		require.NoError(t, err)
		require.Equal(t, []EndedSession{{"ses_1", until}}, published.Ended)
		c.move(TokenLifetime + time.Second)
		require.NoError(t, r.Refresh(t.Context()))
		require.False(t, r.SessionEnded("ses_1"), "it is remembered for ever")
	})

	t.Run("OKChangedAccounts", func(t *testing.T) {
		c := newClock()
		store := &keyStore{}
		r := newKeyring(t, store, day(), c)
		require.NoError(t, r.Refresh(t.Context()))
		require.Zero(t, r.RolesVersion("acc_1"))
		token, err := r.Sign(Token{
			Subject: "acc_1", SessionID: "ses_1", IssueTime: c.now(), ExpireTime: c.now().Add(TokenLifetime),
			Granted: Granted{Version: 6, Roles: auth.Roles{"org_1": auth.Owner}},
		})
		require.NoError(t, err)
		verifier := auth.NewVerifier(auth.Issuer, "test", r, c.now)
		caller, err := verifier.Verify(t.Context(), token)
		require.NoError(t, err)
		require.NoError(t, verifier.Authorize(caller, "org_1", []auth.Role{auth.Owner}))

		store.changed = []ChangedAccount{{"acc_2", 1, c.now().Add(time.Hour)}, {"acc_1", 7, c.now().Add(time.Second)}}
		require.NoError(t, r.Refresh(t.Context()))
		require.ErrorIs(t, verifier.Authorize(caller, "org_1", []auth.Role{auth.Owner}), auth.ErrRolesChanged)
		published, _, err := r.Published(paging.Page{})
		require.NoError(t, err)
		require.Equal(t, []ChangedAccount{store.changed[1], store.changed[0]}, published.Changed)
		c.move(time.Second)
		published, _, err = r.Published(paging.Page{})
		require.NoError(t, err)
		require.Equal(t, store.changed[:1], published.Changed)
	})

	t.Run("OKPages", func(t *testing.T) {
		c := newClock()
		until := c.now().Add(time.Minute)
		store := &keyStore{}
		var want Published
		for n := range 10 {
			// Not in the order of their ids, and some that expire before they are asked for.
			id := fmt.Sprint((n * 7) % 10)
			expires := until
			if n%5 == 4 {
				expires = c.now().Add(time.Millisecond)
			}
			store.ended = append(store.ended, EndedSession{"ses_" + id, expires}, EndedSession{"apk_" + id, expires})
			store.changed = append(store.changed, ChangedAccount{"acc_" + id, int64(n), expires})
		}
		a, b := newKeyring(t, store, day(), c), newKeyring(t, store, day(), c)
		require.NoError(t, a.Refresh(t.Context()))
		require.NoError(t, b.Refresh(t.Context()))
		a.End(EndedSession{"ses_40", until})
		b.End(EndedSession{"ses_40", until})
		a.End(EndedSession{"aaa_first", until})
		b.End(EndedSession{"aaa_first", until})
		c.move(time.Millisecond)

		whole, next, err := a.Published(paging.Page{})
		require.NoError(t, err)
		require.Empty(t, next)
		require.Len(t, whole.Ended, 18)
		require.True(t, slices.IsSortedFunc(whole.Ended, func(x, y EndedSession) int { return strings.Compare(x.ID, y.ID) }))
		require.Len(t, whole.Changed, 8)
		require.True(t, slices.IsSortedFunc(whole.Changed, func(x, y ChangedAccount) int { return strings.Compare(x.ID, y.ID) }))
		want = whole

		for _, size := range []int{1, 2, 3, 7, 31, 32, 33} {
			// By turns, as a balancer does it.
			rings := []*Keyring{a, b}
			got, page, pages := Published{Keys: want.Keys}, paging.Page{Size: size}, 0
			for {
				part, next, err := rings[pages%2].Published(page)
				require.NoError(t, err)
				require.Equal(t, want.Keys, part.Keys)
				require.LessOrEqual(t, len(part.Ended)+len(part.Changed), size)
				got.Ended, got.Changed = append(got.Ended, part.Ended...), append(got.Changed, part.Changed...)
				if pages++; next == "" {
					break
				}
				page.Token = next
			}
			require.Equal(t, want, got, "in pages of %d", size)
			require.Equal(t, (32+size-1)/size, pages, "in pages of %d", size)
		}
		for _, token := range []string{"x", a.secret.sealPage("sessions of acc_1", "ses_1")} {
			_, _, err = a.Published(paging.Page{Size: 1, Token: token})
			require.ErrorIs(t, err, ErrPageTokenInvalid)
		}
	})

	t.Run("ErrPagesNeeded", func(t *testing.T) {
		c := newClock()
		store := &keyStore{changed: []ChangedAccount{{"acc_1", 1, c.now().Add(time.Minute)}}}
		for n := range publishedAtOnce - 1 {
			store.ended = append(store.ended, EndedSession{fmt.Sprintf("ses_%026d", n), c.now().Add(time.Minute)})
		}
		r := newKeyring(t, store, day(), c)
		require.NoError(t, r.Refresh(t.Context()))
		published, _, err := r.Published(paging.Page{})
		require.NoError(t, err)
		require.Len(t, published.Ended, publishedAtOnce-1)
		r.End(EndedSession{"ses_1", c.now().Add(time.Minute)})
		_, _, err = r.Published(paging.Page{})
		require.ErrorIs(t, err, ErrPagesNeeded)
		published, next, err := r.Published(paging.Page{Size: 10})
		require.NoError(t, err)
		require.NotEmpty(t, next)
		require.Len(t, published.Ended, 9)
		require.True(t, r.SessionEnded("ses_1"))
	})

	t.Run("ErrNotRefreshed", func(t *testing.T) {
		c := newClock()
		down := false
		store := &keyStore{fail: func() bool { return down }}
		r := newKeyring(t, store, day(), c)
		_, err := r.Sign(session(c.now()))
		require.ErrorIs(t, err, ErrSigningKeysUnavailable)
		require.Error(t, r.Available())
		require.NoError(t, r.Refresh(t.Context()))
		require.NoError(t, r.Available())

		down = true
		c.move(publishFor + time.Millisecond)
		require.ErrorIs(t, r.Refresh(t.Context()), database.ErrUnavailable)
		_, _, err = r.Published(paging.Page{})
		require.ErrorIs(t, err, ErrSigningKeysUnavailable)
		require.NoError(t, r.Available())
		c.move(verifyFor - publishFor)
		require.Error(t, r.Available())
		_, err = r.Sign(session(c.now()))
		require.NoError(t, err)
		c.move(5 * time.Minute)
		_, err = r.Sign(session(c.now()))
		require.ErrorIs(t, err, ErrSigningKeysUnavailable)
		down = false
		require.NoError(t, r.Refresh(t.Context()))
		_, err = r.Sign(session(c.now()))
		require.NoError(t, err)
	})

	t.Run("OKRefreshedLate", func(t *testing.T) {
		c := newClock()
		r := newKeyring(t, &keyStore{}, day(), c)
		require.NoError(t, r.Refresh(t.Context()))
		r.Await(t.Context())
		c.move(publishFor + time.Millisecond)
		waited := make(chan struct{})
		go func() {
			defer close(waited)
			r.Await(t.Context())
		}()
		select {
		case <-waited:
			t.Error("it did not wait")
		case <-time.After(20 * time.Millisecond):
		}
		require.NoError(t, r.Refresh(t.Context()))
		<-waited
		_, _, err := r.Published(paging.Page{})
		require.NoError(t, err)
	})

	t.Run("ErrNotRefreshedAfterAWhile", func(t *testing.T) {
		c := newClock()
		r := newKeyring(t, &keyStore{}, day(), c)
		began := time.Now()
		r.Await(t.Context())
		require.GreaterOrEqual(t, time.Since(began), refreshWait)
		left, leave := context.WithCancel(t.Context())
		leave()
		r.Await(left)
		_, _, err := r.Published(paging.Page{})
		require.ErrorIs(t, err, ErrSigningKeysUnavailable)
	})

	t.Run("ErrOtherSecret", func(t *testing.T) {
		c := newClock()
		store := &keyStore{}
		require.NoError(t, newKeyring(t, store, day(), c).Refresh(t.Context()))
		r, err := NewKeyring(store, newSecret(t, 2), day(), "test", c.now, crand.Reader)
		require.NoError(t, err)
		require.ErrorContains(t, r.Refresh(t.Context()), "the key encryption key does not open key_")
		_, err = r.Sign(session(c.now()))
		require.ErrorIs(t, err, ErrSigningKeysUnavailable)
	})

	for _, s := range []Schedule{{}, {24 * time.Hour, time.Second}, {time.Minute, 40 * time.Second}} {
		t.Run(fmt.Sprintf("ErrSchedule/%s", s.SignFor), func(t *testing.T) {
			_, err := NewKeyring(&keyStore{}, newSecret(t, 1), s, "test", time.Now, bytes.NewReader(nil))
			require.Error(t, err)
		})
	}
}

// TestLogOutBound: what this service adds to the ten seconds of package auth.
func TestLogOutBound(t *testing.T) {
	require.LessOrEqual(t, publishFor, auth.PublishedAge)
	require.Less(t, RefreshInterval, publishFor, "no time is left for a refresh")
	require.LessOrEqual(t, verifyFor, auth.LogOutWithin)
}

// TestNoTokenBeforeItsKey plays six hours of three instances and six services
// that poll one of them every PollInterval, under the tightest schedule that is
// allowed, while the database and the polls fail now and then. No token is ever
// signed with a key that a service does not know by then, and every token is
// accepted until its end.
func TestNoTokenBeforeItsKey(t *testing.T) {
	const step = 500 * time.Millisecond
	var (
		c        = newClock()
		chance   = rand.New(rand.NewPCG(1, 2))
		schedule = Schedule{SignFor: 2 * time.Minute, PublishAhead: MinPublishAhead}
		began    = c.now()
		away     time.Time // the database, until when
	)
	store := &keyStore{fail: func() bool { return c.now().Before(away) || chance.IntN(20) == 0 }}
	type polled struct {
		due, last time.Time
		keys      map[string]time.Time // until when
	}
	var (
		rings    [3]*Keyring
		due      [3]time.Time
		services [6]polled
		lastSign = map[string]time.Time{}
		tokens   int
	)
	for i := range rings {
		rings[i] = newKeyring(t, store, schedule, c)
		due[i] = began.Add(time.Duration(i) * step)
	}
	for i := range services {
		services[i].due = began.Add(PollInterval + time.Duration(i)*step)
	}
	for elapsed := time.Duration(0); elapsed < 6*time.Hour; elapsed += step {
		now := c.now()
		if chance.IntN(2000) == 0 {
			away = now.Add(time.Duration(chance.IntN(180)) * time.Second)
		}
		for i, r := range rings {
			if now.Before(due[i]) {
				continue
			}
			due[i] = now.Add(RefreshInterval)
			if err := r.Refresh(t.Context()); err != nil {
				require.ErrorIs(t, err, database.ErrUnavailable)
			}
			if chance.IntN(3000) == 0 { // restarted
				rings[i] = newKeyring(t, store, schedule, c)
			}
		}
		for i := range services {
			s := &services[i]
			if now.Before(s.due) {
				continue
			}
			s.due = now.Add(PollInterval)
			keys, err := rings[chance.IntN(3)].PublishedKeys()
			if err != nil {
				require.ErrorIs(t, err, ErrSigningKeysUnavailable)
				continue
			}
			s.last, s.keys = now, map[string]time.Time{}
			for _, k := range keys {
				s.keys[k.ID] = k.ExpireTime
			}
		}
		for _, r := range rings {
			// What Sign asks first; the signature itself is left out for speed.
			key, _, err := r.signing(now)
			if errors.Is(err, ErrSigningKeysUnavailable) {
				continue
			}
			require.NoError(t, err)
			tokens++
			lastSign[key.ID] = now
		}
		if elapsed < 2*PollInterval {
			continue // the very first key signs at once
		}
		for id, signed := range lastSign {
			expires := signed.Add(TokenLifetime)
			if !now.Before(expires) {
				delete(lastSign, id)
				continue
			}
			for i, s := range services {
				// One whose polls failed for longer than a key is published ahead
				// cannot know better, and says so (auth.ErrKeysUnavailable).
				if now.Sub(s.last) > schedule.PublishAhead-PollInterval {
					continue
				}
				until, known := s.keys[id]
				require.True(t, known, "%s after the start service %d meets a token of key %s, which it does not know; its last poll was %s ago", elapsed, i, id, now.Sub(s.last))
				require.True(t, until.After(now), "%s after the start service %d has dropped key %s, whose last token is good for another %s", elapsed, i, id, expires.Sub(now))
			}
		}
		c.move(step)
	}
	t.Logf("%d tokens, %d keys", tokens, len(store.keys))
	require.Greater(t, tokens, 50_000)
	require.Greater(t, len(store.keys), 100)
}
