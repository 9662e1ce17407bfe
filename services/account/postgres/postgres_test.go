package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/pgtest"
	"github.com/marquee-ads/marquee/services/account"
	"github.com/marquee-ads/marquee/services/account/postgres/query"
)

// tests is what the tests of this package share.
type tests struct{ pg *pgtest.Server }

func TestPostgres(t *testing.T) {
	s := tests{pgtest.Start(t)}
	t.Run("Migrate", s.migrate)
	t.Run("Schema", s.schema)
	t.Run("CreateAccount", s.createAccount)
	t.Run("FindSignUp", s.findSignUp)
	t.Run("Passwords", s.passwords)
	t.Run("Sessions", s.sessions)
	t.Run("RotateSigningKeys", s.rotate)
	t.Run("Sweep", s.sweep)
	t.Run("Unavailable", s.unavailable)
	t.Run("WaitUntilThere", s.waitUntilThere)
}

func (s tests) config(t *testing.T) Config {
	t.Helper()
	name, _, _ := strings.Cut(strings.TrimPrefix(s.pg.Database(t), "postgres:///"), "?")
	return Config{Host: s.pg.SocketDir(t), Database: name, User: "test", MaxConns: 4}
}

func open(t *testing.T, cfg Config) *Store {
	t.Helper()
	store, err := Open(t.Context(), cfg, hclog.NewNullLogger())
	require.NoError(t, err)
	t.Cleanup(store.Close)
	return store
}

func (s tests) store(t *testing.T) *Store {
	t.Helper()
	store := open(t, s.config(t))
	require.NoError(t, store.Migrate(t.Context()))
	return store
}

const hash = "$argon2id$v=19$m=64,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// noon is the moment at which the tests play.
func noon() time.Time { return time.Date(2026, 3, 4, 12, 0, 0, 123456000, time.UTC) }

func signUp(request, name string) account.SignUp {
	return account.SignUp{
		RequestID: request, Fingerprint: []byte(strings.Repeat("f", 32)), ExpireTime: noon().Add(24 * time.Hour),
		Account: account.Account{ID: "acc_" + request, Name: name, CreateTime: noon()},
	}
}

func (s tests) migrate(t *testing.T) {
	cfg := s.config(t)
	var all sync.WaitGroup
	errs := make([]error, 3)
	stores := make([]*Store, 3)
	for n := range stores {
		stores[n] = open(t, cfg)
	}
	for n := range stores {
		all.Go(func() { errs[n] = stores[n].Migrate(t.Context()) })
	}
	all.Wait()
	require.NoError(t, errors.Join(errs...))
	require.NoError(t, stores[0].Migrate(t.Context()), "again")
	var applied int
	require.NoError(t, stores[0].pool.QueryRow(t.Context(), "SELECT count(*) FROM goose_db_version WHERE version_id > 0").Scan(&applied))
	files, err := migrations.ReadDir("migrations")
	require.NoError(t, err)
	require.Equal(t, len(files), applied)

	t.Run("ErrContext", func(t *testing.T) {
		store := open(t, s.config(t))
		holder, err := store.pool.Acquire(t.Context())
		require.NoError(t, err)
		defer holder.Release()
		_, err = holder.Exec(t.Context(), "SELECT pg_advisory_lock($1)", migrationLock)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, store.Migrate(ctx), context.DeadlineExceeded, "it does not wait for the turn")
	})
}

// schema holds the house's rules: every table says what it is for, and no
// constraint has a name that Postgres made up.
func (s tests) schema(t *testing.T) {
	store := s.store(t)
	rows, err := store.pool.Query(t.Context(), `SELECT c.relname, coalesce(obj_description(c.oid), '') FROM pg_class c
		WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND c.relname <> 'goose_db_version'`)
	require.NoError(t, err)
	tables, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		var name, comment string
		err := row.Scan(&name, &comment)
		require.NotEmpty(t, comment, "table %s has no comment", name)
		return name, err
	})
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"accounts", "sign_ups", "sessions", "signing_keys"}, tables)

	text, err := migrations.ReadFile("migrations/00001_accounts.sql")
	require.NoError(t, err)
	rows, err = store.pool.Query(t.Context(), `SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace
		AND contype <> 'n' AND conrelid <> 'goose_db_version'::regclass`)
	require.NoError(t, err)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.NotEmpty(t, names)
	for _, name := range names {
		require.Contains(t, string(text), "CONSTRAINT "+name+" ", "a constraint was named by Postgres")
	}
}

func (s tests) createAccount(t *testing.T) {
	store := s.store(t)
	first := signUp("one", "Ada")
	t.Run("OK", func(t *testing.T) {
		winner, err := store.CreateAccount(t.Context(), first, hash)
		require.NoError(t, err)
		require.Equal(t, first, winner)
		found, err := store.FindAccount(t.Context(), "acc_one")
		require.NoError(t, err)
		require.Equal(t, first.Account, found)
	})
	t.Run("OKSameRequest", func(t *testing.T) {
		again := signUp("one", "Ada")
		again.Account.ID = "acc_other"
		winner, err := store.CreateAccount(t.Context(), again, hash)
		require.NoError(t, err)
		require.Equal(t, first, winner)
		_, err = store.FindAccount(t.Context(), "acc_other")
		require.ErrorIs(t, err, account.ErrNotFound)
	})
	t.Run("OKRequestExpired", func(t *testing.T) {
		again := signUp("one", "Grace")
		again.Account.ID, again.Account.CreateTime = "acc_next_day", noon().Add(24*time.Hour)
		winner, err := store.CreateAccount(t.Context(), again, hash)
		require.NoError(t, err)
		require.Equal(t, again, winner)
	})
	t.Run("OKWaitsForTheSameRequest", func(t *testing.T) {
		// One that claimed the id and is not done yet makes the other wait.
		tx, err := store.pool.Begin(t.Context())
		require.NoError(t, err)
		slow := signUp("slow", "Slow")
		_, err = store.q.WithTx(tx).ClaimRequestID(t.Context(), claim(slow))
		require.NoError(t, err)
		answer := make(chan error, 1)
		var winner account.SignUp
		go func() {
			late := signUp("slow", "Slow")
			late.Account.ID = "acc_late"
			var err error
			winner, err = store.CreateAccount(t.Context(), late, hash)
			answer <- err
		}()
		s.waitForLock(t, store)
		require.NoError(t, store.q.WithTx(tx).InsertAccount(t.Context(), insert(slow)))
		require.NoError(t, tx.Commit(t.Context()))
		require.NoError(t, <-answer)
		require.Equal(t, slow, winner)
	})
	t.Run("ErrNameTaken", func(t *testing.T) {
		_, err := store.CreateAccount(t.Context(), signUp("two", "ADA"), hash)
		require.ErrorIs(t, err, account.ErrNameTaken)
		// Nothing of it stays: the id can be used for another name.
		_, err = store.CreateAccount(t.Context(), signUp("two", "Barbara"), hash)
		require.NoError(t, err)
	})
	t.Run("ErrUnexpected", func(t *testing.T) {
		_, err := store.CreateAccount(t.Context(), signUp("three", "Mary"), "plain text")
		var pg *pgconn.PgError
		require.ErrorAs(t, err, &pg)
		require.Equal(t, "accounts_password_hash_is_phc", pg.ConstraintName)
		require.NotErrorIs(t, err, account.ErrDatabaseUnavailable)
	})
}

// waitForLock waits until somebody waits for a lock in the store's database.
func (s tests) waitForLock(t *testing.T, store *Store) {
	t.Helper()
	require.Eventually(t, func() bool {
		var waiting bool
		err := store.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT 1 FROM pg_stat_activity
			WHERE wait_event_type = 'Lock' AND datname = current_database())`).Scan(&waiting)
		return err == nil && waiting
	}, 5*time.Second, 5*time.Millisecond, "nobody waits")
}

func (s tests) findSignUp(t *testing.T) {
	store := s.store(t)
	_, err := store.CreateAccount(t.Context(), signUp("one", "Ada"), hash)
	require.NoError(t, err)
	for name, tc := range map[string]struct {
		request, key string
		now          time.Time
		found, taken bool
	}{
		"OKBoth":    {"one", "ada", noon(), true, true},
		"OKRequest": {"one", "grace", noon(), true, false},
		"OKName":    {"two", "ada", noon(), false, true},
		"OKNeither": {"two", "grace", noon(), false, false},
		"OKExpired": {"one", "ada", noon().Add(24 * time.Hour), false, true},
	} {
		t.Run(name, func(t *testing.T) {
			first, taken, err := store.FindSignUp(t.Context(), tc.request, tc.key, tc.now)
			require.NoError(t, err)
			require.Equal(t, tc.taken, taken)
			require.Equal(t, tc.found, first != nil)
			if tc.found {
				require.Equal(t, signUp("one", "Ada").Account, first.Account)
				require.Equal(t, signUp("one", "Ada").Fingerprint, first.Fingerprint)
			}
		})
	}
}

func (s tests) passwords(t *testing.T) {
	store := s.store(t)
	_, err := store.CreateAccount(t.Context(), signUp("one", "Ada"), hash)
	require.NoError(t, err)
	found, stored, err := store.FindPassword(t.Context(), "ada")
	require.NoError(t, err)
	require.Equal(t, signUp("one", "Ada").Account, found)
	require.Equal(t, hash, stored)

	require.NoError(t, store.ReplacePasswordHash(t.Context(), "acc_one", "not the old one", hash+"2"))
	require.NoError(t, store.ReplacePasswordHash(t.Context(), "acc_one", hash, hash+"3"))
	_, stored, err = store.FindPassword(t.Context(), "ada")
	require.NoError(t, err)
	require.Equal(t, hash+"3", stored)

	_, _, err = store.FindPassword(t.Context(), "grace")
	require.ErrorIs(t, err, account.ErrNotFound)
}

func (s tests) sessions(t *testing.T) {
	store := s.store(t)
	_, err := store.CreateAccount(t.Context(), signUp("one", "Ada"), hash)
	require.NoError(t, err)
	expires := noon().Add(account.TokenLifetime)
	for _, id := range []string{"ses_1", "ses_2"} {
		require.NoError(t, store.CreateSession(t.Context(), account.Session{ID: id, AccountID: "acc_one", CreateTime: noon(), TokenExpireTime: expires}))
	}
	for range 2 {
		until, err := store.EndSession(t.Context(), "ses_1", noon())
		require.NoError(t, err)
		require.Equal(t, expires, until)
	}
	until, err := store.EndSession(t.Context(), "ses_3", noon())
	require.NoError(t, err)
	require.True(t, until.IsZero())

	want := []account.EndedSession{{ID: "ses_1", ExpireTime: expires.Add(account.ClockLeeway)}}
	for _, now := range []time.Time{noon(), expires.Add(account.ClockLeeway - time.Second)} {
		ended, err := store.EndedSessions(t.Context(), now)
		require.NoError(t, err)
		require.Equal(t, want, ended)
	}
	ended, err := store.EndedSessions(t.Context(), expires.Add(account.ClockLeeway))
	require.NoError(t, err)
	require.Empty(t, ended)
}

func key(id string, from time.Time) account.Key {
	return account.Key{ID: id, Public: []byte(strings.Repeat("p", 32)), Sealed: []byte("sealed"), CreateTime: noon(), SignFrom: from}
}

func (s tests) rotate(t *testing.T) {
	store := s.store(t)
	// All find that a key is due; the lock lets one decide at a time, and the
	// others see what it decided.
	var all sync.WaitGroup
	errs := make([]error, 8)
	for n := range errs {
		all.Go(func() {
			errs[n] = store.RotateSigningKeys(t.Context(), func(keys []account.Key) ([]account.Key, error) {
				if len(keys) > 0 {
					return nil, nil
				}
				return []account.Key{key(fmt.Sprint("key_", n), noon())}, nil
			})
		})
	}
	all.Wait()
	require.NoError(t, errors.Join(errs...))
	stored, err := store.SigningKeys(t.Context(), noon())
	require.NoError(t, err)
	require.Len(t, stored, 1)
	require.Equal(t, key(stored[0].ID, noon()), stored[0])

	old := stored[0]
	old.ExpireTime = noon().Add(time.Hour)
	require.NoError(t, store.RotateSigningKeys(t.Context(), func([]account.Key) ([]account.Key, error) {
		return []account.Key{key("key_next", noon().Add(time.Minute)), old}, nil
	}))
	stored, err = store.SigningKeys(t.Context(), noon())
	require.NoError(t, err)
	require.ElementsMatch(t, []account.Key{old, key("key_next", noon().Add(time.Minute))}, stored)
	stored, err = store.SigningKeys(t.Context(), old.ExpireTime)
	require.NoError(t, err)
	require.Len(t, stored, 1)

	require.ErrorIs(t, store.RotateSigningKeys(t.Context(), func([]account.Key) ([]account.Key, error) { return nil, io.ErrNoProgress }), io.ErrNoProgress)
	// Whoever forgets the lock, or the old key's end, is stopped by the database.
	err = store.RotateSigningKeys(t.Context(), func([]account.Key) ([]account.Key, error) {
		return []account.Key{key("key_third", noon())}, nil
	})
	var pg *pgconn.PgError
	require.ErrorAs(t, err, &pg)
	require.Equal(t, "signing_keys_one_without_successor", pg.ConstraintName)
}

func (s tests) sweep(t *testing.T) {
	store := s.store(t)
	const many = sweepBatch + 234
	_, err := store.pool.Exec(t.Context(), `INSERT INTO accounts (account_id, name, name_key, password_hash, create_time)
		SELECT 'acc_' || n, 'name' || n, 'name' || n, $1, $2 FROM generate_series(1, $3) AS n`, hash, noon(), many)
	require.NoError(t, err)
	_, err = store.pool.Exec(t.Context(), `INSERT INTO sessions (session_id, account_id, create_time, token_expire_time)
		SELECT 'ses_' || n, 'acc_' || n, $1, $2 FROM generate_series(1, $3) AS n`, noon(), noon().Add(account.TokenLifetime), many)
	require.NoError(t, err)
	_, err = store.pool.Exec(t.Context(), `INSERT INTO sign_ups (request_id, fingerprint, account_id, expire_time)
		SELECT 'request_' || n, decode(repeat('00', 32), 'hex'), 'acc_' || n, $1 FROM generate_series(1, $2) AS n`, noon().Add(24*time.Hour), many)
	require.NoError(t, err)
	old := key("key_1", noon())
	old.ExpireTime = noon().Add(time.Hour)
	require.NoError(t, store.RotateSigningKeys(t.Context(), func([]account.Key) ([]account.Key, error) { return []account.Key{key("key_1", noon())}, nil }))
	require.NoError(t, store.RotateSigningKeys(t.Context(), func([]account.Key) ([]account.Key, error) {
		return []account.Key{old, key("key_2", noon())}, nil
	}))

	for _, step := range []struct {
		now  time.Time
		want int64
	}{
		{noon(), 0},
		{noon().Add(account.TokenLifetime), 0}, // the end of a session counts a little longer
		{noon().Add(account.TokenLifetime + account.ClockLeeway), many},
		{noon().Add(time.Hour), 1},
		{noon().Add(24*time.Hour - time.Second), 0},
		{noon().Add(24 * time.Hour), many},
		{noon().Add(1000 * time.Hour), 0}, // accounts, and the key without a successor, stay
	} {
		removed, err := store.Sweep(t.Context(), step.now)
		require.NoError(t, err)
		require.Equal(t, step.want, removed, "at noon + %s", step.now.Sub(noon()))
	}
	left, err := store.SigningKeys(t.Context(), noon().Add(1000*time.Hour))
	require.NoError(t, err)
	require.Len(t, left, 1)
}

func (s tests) unavailable(t *testing.T) {
	cfg := s.config(t)
	cfg.Settings = map[string]string{"statement_timeout": "100", "lock_timeout": "50"}
	store := open(t, cfg)
	require.NoError(t, store.Migrate(t.Context()))
	exec := func(ctx context.Context, sql string) error {
		return store.call(ctx, func(ctx context.Context) error { _, err := store.pool.Exec(ctx, sql); return err })
	}
	t.Run("OKSettings", func(t *testing.T) {
		plain := open(t, s.config(t))
		for setting, want := range map[string]string{
			"statement_timeout": "4s", "lock_timeout": "3s", "idle_in_transaction_session_timeout": "10s", "TimeZone": "UTC", "application_name": "account",
		} {
			var got string
			require.NoError(t, plain.pool.QueryRow(t.Context(), "SELECT current_setting($1)", setting).Scan(&got))
			require.Equal(t, want, got, setting)
		}
	})
	t.Run("ErrStatementTimeout", func(t *testing.T) {
		require.ErrorIs(t, exec(t.Context(), "SELECT pg_sleep(5)"), account.ErrDatabaseUnavailable)
	})
	t.Run("ErrLockTimeout", func(t *testing.T) {
		tx, err := store.pool.Begin(t.Context())
		require.NoError(t, err)
		defer tx.Rollback(context.WithoutCancel(t.Context()))
		_, err = tx.Exec(t.Context(), "LOCK TABLE accounts")
		require.NoError(t, err)
		_, err = store.FindAccount(t.Context(), "acc_1")
		require.ErrorIs(t, err, account.ErrDatabaseUnavailable)
	})
	t.Run("ErrTerminated", func(t *testing.T) {
		require.ErrorIs(t, exec(t.Context(), "SELECT pg_terminate_backend(pg_backend_pid())"), account.ErrDatabaseUnavailable)
		require.NoError(t, exec(t.Context(), "SELECT 1"), "the pool does not recover")
	})
	t.Run("ErrContext", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		err := exec(ctx, "SELECT pg_sleep(5)")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, account.ErrDatabaseUnavailable)
	})
	t.Run("ErrRefused", func(t *testing.T) {
		cfg := cfg
		cfg.Host = t.TempDir()
		require.ErrorIs(t, open(t, cfg).Ping(t.Context()), account.ErrDatabaseUnavailable)
	})
	t.Run("ErrPoolBusy", func(t *testing.T) {
		for range cfg.MaxConns {
			conn, err := store.pool.Acquire(t.Context())
			require.NoError(t, err)
			defer conn.Release()
		}
		require.ErrorIs(t, store.Ping(t.Context()), account.ErrDatabaseUnavailable)
	})
	t.Run("ErrCutOff", func(t *testing.T) {
		// A connection through the mesh that breaks in the middle of an answer.
		cfg := cfg
		var (
			mu    sync.Mutex
			conns []net.Conn
		)
		cfg.Dial = func(ctx context.Context) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(cfg.Host, ".s.PGSQL.5432"))
			mu.Lock()
			defer mu.Unlock()
			conns = append(conns, conn)
			return conn, err
		}
		cfg.Settings = nil
		store := open(t, cfg)
		require.NoError(t, store.Ping(t.Context()))
		answer := make(chan error, 1)
		go func() {
			answer <- store.call(t.Context(), func(ctx context.Context) error { _, err := store.pool.Exec(ctx, "SELECT pg_sleep(3)"); return err })
		}()
		require.Eventually(t, func() bool {
			var busy bool
			err := store.pool.QueryRow(t.Context(), "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(3)' AND state = 'active')").Scan(&busy)
			return err == nil && busy
		}, 5*time.Second, 5*time.Millisecond)
		mu.Lock()
		for _, c := range conns {
			// The pool may have closed idle ones before.
			if err := c.Close(); !errors.Is(err, net.ErrClosed) {
				require.NoError(t, err)
			}
		}
		mu.Unlock()
		require.ErrorIs(t, <-answer, account.ErrDatabaseUnavailable, "a use that may have had an effect is tried again")
		require.NoError(t, store.Ping(t.Context()), "the pool does not recover")

		// Reading is tried again by itself.
		mu.Lock()
		for _, c := range conns {
			_ = c.Close() // the first ones are closed already
		}
		mu.Unlock()
		_, err := store.FindAccount(t.Context(), "acc_1")
		require.ErrorIs(t, err, account.ErrNotFound)
	})
}

func (s tests) waitUntilThere(t *testing.T) {
	t.Run("OK", func(t *testing.T) {
		require.NoError(t, open(t, s.config(t)).WaitUntilThere(t.Context()))
	})
	t.Run("ErrContext", func(t *testing.T) {
		cfg := s.config(t)
		cfg.Host = t.TempDir()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		err := open(t, cfg).WaitUntilThere(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, os.ErrNotExist, "it does not say why")
	})
	t.Run("ErrRole", func(t *testing.T) {
		cfg := s.config(t)
		cfg.User = "nobody-we-know"
		require.ErrorContains(t, open(t, cfg).WaitUntilThere(t.Context()), "logging in to the database")
	})
}

func TestTranslate(t *testing.T) {
	for _, code := range []string{"25P03", "25006", "40001", "40P01", "53300", "55P03", "57014", "57P01", "57P02", "57P03", "08000", "08006"} {
		t.Run("ErrDatabaseUnavailable/"+code, func(t *testing.T) {
			err := translate(t.Context(), fmt.Errorf("querying: %w", &pgconn.PgError{Code: code}))
			require.ErrorIs(t, err, account.ErrDatabaseUnavailable)
		})
	}
	for name, tc := range map[string]struct{ err, want error }{
		"OK":               {nil, nil},
		"ErrNotFound":      {pgx.ErrNoRows, account.ErrNotFound},
		"ErrNameTaken":     {&pgconn.PgError{Code: "23505", ConstraintName: "accounts_name_key_unique"}, account.ErrNameTaken},
		"ErrFault":         {fmt.Errorf("x: %w", account.ErrOverloaded), account.ErrOverloaded},
		"ErrEOF":           {io.ErrUnexpectedEOF, account.ErrDatabaseUnavailable},
		"ErrNetwork":       {&net.OpError{Op: "read", Err: errors.New("reset")}, account.ErrDatabaseUnavailable},
		"ErrTimeForACall":  {context.DeadlineExceeded, account.ErrDatabaseUnavailable},
		"ErrOther":         {io.ErrNoProgress, io.ErrNoProgress},
		"ErrOtherConflict": {&pgconn.PgError{Code: "23505", ConstraintName: "accounts_pkey"}, &pgconn.PgError{}},
	} {
		t.Run(name, func(t *testing.T) {
			got := translate(t.Context(), tc.err)
			var pg *pgconn.PgError
			if errors.As(tc.want, &pg) {
				require.ErrorAs(t, got, &pg)
				return
			}
			require.ErrorIs(t, got, tc.want)
		})
	}
}

func claim(s account.SignUp) query.ClaimRequestIDParams {
	return query.ClaimRequestIDParams{RequestID: s.RequestID, Fingerprint: s.Fingerprint, AccountID: s.Account.ID, ExpireTime: s.ExpireTime, Now: s.Account.CreateTime}
}

func insert(s account.SignUp) query.InsertAccountParams {
	return query.InsertAccountParams{AccountID: s.Account.ID, Name: s.Account.Name, NameKey: account.NameKey(s.Account.Name), PasswordHash: hash, CreateTime: s.Account.CreateTime}
}
