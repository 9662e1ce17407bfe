package account_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/platform/paging"
	"github.com/marquee-ads/marquee/platform/pgtest"
	"github.com/marquee-ads/marquee/services/account"
	"github.com/marquee-ads/marquee/services/account/postgres"
)

const password = "violet tugboat 94"

// from is where calls come from unless a test is about it.
var from = account.Origin{Address: "192.0.2.1"}

func callerOf(in account.LoggedInto) auth.Caller {
	return auth.Caller{AccountID: in.Account.ID, SessionID: in.Tokens.Session.ID}
}

// clock is a clock that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

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

// world is a database and a clock that services share.
type world struct {
	clock *clock
	store *postgres.Store
}

func newWorld(t *testing.T, pg *pgtest.Server) world {
	t.Helper()
	name, _, _ := strings.Cut(strings.TrimPrefix(pg.Database(t), "postgres:///"), "?")
	db, err := database.Open(t.Context(), database.Config{Host: pg.SocketDir(t), Name: name, User: "test", MaxConns: 10}, hclog.NewNullLogger())
	require.NoError(t, err)
	t.Cleanup(db.Close)
	store := postgres.New(db)
	require.NoError(t, store.Prepare(t.Context()))
	return world{&clock{t: time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)}, store}
}

// counting counts the hashes that are made.
type counting struct {
	mu sync.Mutex
	n  int
}

func (c *counting) Read(p []byte) (int, error) {
	if len(p) == 16 { // a salt
		c.mu.Lock()
		c.n++
		c.mu.Unlock()
	}
	return rand.Reader.Read(p)
}

func (c *counting) hashes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func (w world) service(t *testing.T, params account.HashParams, concurrency, queue int) (*account.Service, *account.Keyring, *counting) {
	t.Helper()
	secret, err := account.ParseSecret(hex.EncodeToString(make([]byte, 32)))
	require.NoError(t, err)
	salts := &counting{}
	hasher, err := account.NewHasher(params, concurrency, queue, salts)
	require.NoError(t, err)
	keys, err := account.NewKeyring(w.store, secret, account.Schedule{SignFor: 24 * time.Hour, PublishAhead: 10 * time.Minute}, "test", w.clock.now, rand.Reader)
	require.NoError(t, err)
	require.NoError(t, keys.Refresh(t.Context()))
	salts.n = 0
	return account.New(w.store, hasher, keys, secret, account.DefaultThrottle(), w.clock.now, rand.Reader, hclog.NewNullLogger()), keys, salts
}

func cheap() account.HashParams { return account.HashParams{MemoryKiB: 64, Time: 1, Threads: 1} }

func TestService(t *testing.T) {
	pg := pgtest.Start(t)

	t.Run("OKReplay", func(t *testing.T) {
		w := newWorld(t, pg)
		s, _, hashes := w.service(t, cheap(), 1, 0)
		first, err := s.SignUp(t.Context(), "request-1", "Ada", password, from)
		require.NoError(t, err)
		require.Equal(t, 1, hashes.hashes())
		w.clock.move(24*time.Hour - time.Second)
		again, err := s.SignUp(t.Context(), "request-1", "Ada", password, from)
		require.NoError(t, err)
		require.Equal(t, first, again)
		require.Equal(t, 1, hashes.hashes(), "a replay is hashed")

		for _, body := range [][2]string{{"ada", password}, {"Ada", password + "!"}} {
			_, err = s.SignUp(t.Context(), "request-1", body[0], body[1], from)
			require.ErrorIs(t, err, account.ErrRequestIDReused)
		}
		// After a day the id is free again.
		w.clock.move(time.Second)
		_, err = s.SignUp(t.Context(), "request-1", "Ada", password, from)
		require.ErrorIs(t, err, account.ErrNameTaken)
		_, err = s.SignUp(t.Context(), "request-1", "Grace", password, from)
		require.NoError(t, err)
	})

	t.Run("OKFiftyAtOnce", func(t *testing.T) {
		// With one turn and no queue: the repeats do not even ask for a turn.
		w := newWorld(t, pg)
		s, _, hashes := w.service(t, cheap(), 1, 0)
		answers, errs := make([]account.Account, 50), make([]error, 50)
		var all sync.WaitGroup
		for n := range answers {
			all.Go(func() { answers[n], errs[n] = s.SignUp(t.Context(), "request-1", "Ada", password, from) })
		}
		all.Wait()
		for n := range answers {
			require.NoError(t, errs[n])
			require.Equal(t, answers[0], answers[n])
		}
		require.Equal(t, 1, hashes.hashes())
	})

	t.Run("OKTwoInstancesAtOnce", func(t *testing.T) {
		// The instances do not know of each other's: the database decides.
		for round := range 10 {
			w := newWorld(t, pg)
			one, _, _ := w.service(t, cheap(), 1, 0)
			two, _, _ := w.service(t, cheap(), 1, 0)
			answers, errs := make([]account.Account, 2), make([]error, 2)
			var all sync.WaitGroup
			for n, s := range []*account.Service{one, two} {
				all.Go(func() {
					answers[n], errs[n] = s.SignUp(t.Context(), fmt.Sprint("request-", round), "Ada", password, from)
				})
			}
			all.Wait()
			require.NoError(t, errs[0])
			require.NoError(t, errs[1])
			require.Equal(t, answers[0], answers[1])
		}
	})

	t.Run("OKRehash", func(t *testing.T) {
		w := newWorld(t, pg)
		before, _, _ := w.service(t, cheap(), 1, 0)
		_, err := before.SignUp(t.Context(), "request-1", "Ada", password, from)
		require.NoError(t, err)
		stronger := account.HashParams{MemoryKiB: 128, Time: 2, Threads: 1}
		after, _, hashes := w.service(t, stronger, 1, 0)

		_, err = after.LogIn(t.Context(), account.Credentials{Name: "Ada", Password: "wrong"}, from)
		require.ErrorIs(t, err, account.ErrWrongCredentials)
		require.Zero(t, hashes.hashes(), "a wrong password is stored")
		for range 2 {
			_, err = after.LogIn(t.Context(), account.Credentials{Name: "Ada", Password: password}, from)
			require.NoError(t, err)
			require.Equal(t, 1, hashes.hashes())
			found, err := w.store.FindPassword(t.Context(), account.PasswordOf{NameKey: "ada"})
			require.NoError(t, err)
			require.Contains(t, found.Hash, "$m=128,t=2,p=1$")
		}
	})

	t.Run("OKLogOut", func(t *testing.T) {
		w := newWorld(t, pg)
		here, hereKeys, _ := w.service(t, cheap(), 1, 0)
		_, thereKeys, _ := w.service(t, cheap(), 1, 0)
		_, err := here.SignUp(t.Context(), "request-1", "Ada", password, from)
		require.NoError(t, err)
		in, err := here.LogIn(t.Context(), account.Credentials{Name: "ADA", Password: password}, from)
		require.NoError(t, err)
		caller, token := callerOf(in), in.Tokens.Access
		verify := func(keys *account.Keyring) error {
			got, err := auth.NewVerifier(auth.Issuer, "test", keys, w.clock.now).Verify(t.Context(), token)
			if err == nil {
				require.Equal(t, caller, got)
			}
			return err
		}
		require.NoError(t, verify(hereKeys))
		for range 2 {
			require.NoError(t, here.LogOut(t.Context(), caller, from))
		}
		require.ErrorIs(t, verify(hereKeys), auth.ErrSessionEnded)
		require.NoError(t, verify(thereKeys))
		require.NoError(t, thereKeys.Refresh(t.Context()))
		require.ErrorIs(t, verify(thereKeys), auth.ErrSessionEnded)

		w.clock.move(account.TokenLifetime + account.ClockLeeway + time.Second)
		require.NoError(t, hereKeys.Refresh(t.Context()))
		published, _, err := here.Published(t.Context(), paging.Page{})
		require.NoError(t, err)
		require.Empty(t, published.Ended)
		require.NoError(t, here.LogOut(t.Context(), auth.Caller{SessionID: "ses_swept"}, from))
	})

	t.Run("ErrNotYourAccount", func(t *testing.T) {
		w := newWorld(t, pg)
		s, _, _ := w.service(t, cheap(), 1, 0)
		ada, err := s.SignUp(t.Context(), "request-1", "Ada", password, from)
		require.NoError(t, err)
		grace, err := s.SignUp(t.Context(), "request-2", "Grace", password, from)
		require.NoError(t, err)
		_, err = s.GetAccount(t.Context(), auth.Caller{AccountID: ada.ID}, grace.ID)
		require.ErrorIs(t, err, account.ErrNotYourAccount)
		got, err := s.GetAccount(t.Context(), auth.Caller{AccountID: ada.ID}, "me")
		require.NoError(t, err)
		require.Equal(t, ada, got)
		_, err = s.GetAccount(t.Context(), auth.Caller{AccountID: "acc_gone"}, "me")
		require.ErrorIs(t, err, account.ErrNotFound)
	})

	t.Run("ErrContext", func(t *testing.T) {
		w := newWorld(t, pg)
		s, _, _ := w.service(t, cheap(), 1, 0)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := s.SignUp(ctx, "request-1", "Ada", password, from)
		require.ErrorIs(t, err, context.Canceled)
		_, err = s.LogIn(ctx, account.Credentials{Name: "Ada", Password: password}, from)
		require.ErrorIs(t, err, context.Canceled)
	})
}
