package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/platform/pgtest"
	"github.com/marquee-ads/marquee/platform/throttle"
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
	t.Run("Failures", s.failures)
	t.Run("Organisations", s.organisations)
	t.Run("RotateSigningKeys", s.rotate)
	t.Run("Sweep", s.sweep)
}

func (s tests) config(t *testing.T) database.Config {
	t.Helper()
	name, _, _ := strings.Cut(strings.TrimPrefix(s.pg.Database(t), "postgres:///"), "?")
	return database.Config{Application: "account", Host: s.pg.SocketDir(t), Name: name, User: "test", MaxConns: 4}
}

func open(t *testing.T, cfg database.Config) *Store {
	t.Helper()
	db, err := database.Open(t.Context(), cfg, hclog.NewNullLogger())
	require.NoError(t, err)
	t.Cleanup(db.Close)
	return New(db)
}

func (s tests) store(t *testing.T) *Store {
	t.Helper()
	store := open(t, s.config(t))
	require.NoError(t, store.Prepare(t.Context()))
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

func signUpEvent(up account.SignUp) account.Event {
	return account.Event{ID: "evt_" + up.Account.ID, Time: noon(), Kind: account.SignedUp, AccountID: up.Account.ID, ActorID: up.Account.ID}
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
		all.Go(func() { errs[n] = stores[n].Prepare(t.Context()) })
	}
	all.Wait()
	require.NoError(t, errors.Join(errs...))
	require.NoError(t, stores[0].Prepare(t.Context()), "again")
	var applied int
	require.NoError(t, stores[0].db.Pool().QueryRow(t.Context(), "SELECT count(*) FROM goose_db_version WHERE version_id > 0").Scan(&applied))
	files, err := migrations.ReadDir("migrations")
	require.NoError(t, err)
	require.Equal(t, len(files), applied)

	t.Run("OKDownAndUpAgain", func(t *testing.T) {
		db := stdlib.OpenDB(*stores[0].db.Pool().Config().ConnConfig.Copy())
		defer db.Close()
		p := provider(t, db)
		_, err := p.DownTo(t.Context(), 0)
		require.NoError(t, err)
		var left int
		require.NoError(t, stores[0].db.Pool().QueryRow(t.Context(), `SELECT count(*) FROM pg_class
			WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'goose_db_version'`).Scan(&left))
		require.Zero(t, left)
		require.NoError(t, stores[0].Prepare(t.Context()))
	})
	t.Run("OKSessionsOfTheVersionBefore", func(t *testing.T) {
		// What is stored already is carried over.
		store := open(t, s.config(t))
		db := stdlib.OpenDB(*store.db.Pool().Config().ConnConfig.Copy())
		defer db.Close()
		p := provider(t, db)
		_, err := p.UpTo(t.Context(), 1)
		require.NoError(t, err)
		_, err = store.db.Pool().Exec(t.Context(), `INSERT INTO accounts (account_id, name, name_key, password_hash, create_time) VALUES ('acc_one', 'Ada', 'ada', $1, $2)`, hash, noon())
		require.NoError(t, err)
		_, err = store.db.Pool().Exec(t.Context(), `INSERT INTO sessions (session_id, account_id, create_time, token_expire_time, end_time) VALUES ('ses_1', 'acc_one', $1, $2, $1)`, noon(), noon().Add(account.TokenLifetime))
		require.NoError(t, err)
		require.NoError(t, store.Prepare(t.Context()))
		sessions, err := store.ListSessions(t.Context(), "acc_one", "", 9)
		require.NoError(t, err)
		require.Len(t, sessions, 1)
		require.Equal(t, noon(), sessions[0].EndTime)
		ended, _, err := store.Ended(t.Context(), noon())
		require.NoError(t, err)
		require.Len(t, ended, 1)
		granted, err := store.Granted(t.Context(), "acc_one")
		require.NoError(t, err)
		require.Equal(t, account.Granted{}, granted)
	})
}

// provider migrates step by step.
func provider(t *testing.T, db *sql.DB) *goose.Provider {
	t.Helper()
	files, err := fs.Sub(migrations, "migrations")
	require.NoError(t, err)
	p, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithDisableGlobalRegistry(true))
	require.NoError(t, err)
	return p
}

// schema holds the house's rules: every table says what it is for, and no
// constraint has a name that Postgres made up.
func (s tests) schema(t *testing.T) {
	store := s.store(t)
	rows, err := store.db.Pool().Query(t.Context(), `SELECT c.relname, coalesce(obj_description(c.oid), '') FROM pg_class c
		WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND c.relname <> 'goose_db_version'`)
	require.NoError(t, err)
	tables, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		var name, comment string
		err := row.Scan(&name, &comment)
		require.NotEmpty(t, comment, "table %s has no comment", name)
		return name, err
	})
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"accounts", "sign_ups", "sessions", "signing_keys", "log_in_failures", "audit_events",
		"organisations", "members", "invitations", "api_keys", "requests"}, tables)

	files, err := migrations.ReadDir("migrations")
	require.NoError(t, err)
	var text string
	for _, file := range files {
		content, err := migrations.ReadFile("migrations/" + file.Name())
		require.NoError(t, err)
		text += string(content)
	}
	rows, err = store.db.Pool().Query(t.Context(), `SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace
		AND contype <> 'n' AND conrelid <> 'goose_db_version'::regclass`)
	require.NoError(t, err)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.NotEmpty(t, names)
	for _, name := range names {
		require.Contains(t, text, "CONSTRAINT "+name+" ", "a constraint was named by Postgres")
	}
}

func (s tests) createAccount(t *testing.T) {
	store := s.store(t)
	first := signUp("one", "Ada")
	t.Run("OK", func(t *testing.T) {
		winner, err := store.CreateAccount(t.Context(), first, hash, signUpEvent(first))
		require.NoError(t, err)
		require.Equal(t, first, winner)
		found, err := store.FindAccount(t.Context(), "acc_one")
		require.NoError(t, err)
		require.Equal(t, first.Account, found)
	})
	t.Run("OKSameRequest", func(t *testing.T) {
		again := signUp("one", "Ada")
		again.Account.ID = "acc_other"
		winner, err := store.CreateAccount(t.Context(), again, hash, signUpEvent(again))
		require.NoError(t, err)
		require.Equal(t, first, winner)
		_, err = store.FindAccount(t.Context(), "acc_other")
		require.ErrorIs(t, err, account.ErrNotFound)
	})
	t.Run("OKRequestExpired", func(t *testing.T) {
		again := signUp("one", "Grace")
		again.Account.ID, again.Account.CreateTime = "acc_next_day", noon().Add(24*time.Hour)
		winner, err := store.CreateAccount(t.Context(), again, hash, signUpEvent(again))
		require.NoError(t, err)
		require.Equal(t, again, winner)
	})
	t.Run("OKWaitsForTheSameRequest", func(t *testing.T) {
		// One that claimed the id and is not done yet makes the other wait.
		tx, err := store.db.Pool().Begin(t.Context())
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
			winner, err = store.CreateAccount(t.Context(), late, hash, signUpEvent(late))
			answer <- err
		}()
		s.waitForLock(t, store)
		require.NoError(t, store.q.WithTx(tx).InsertAccount(t.Context(), insert(slow)))
		require.NoError(t, tx.Commit(t.Context()))
		require.NoError(t, <-answer)
		require.Equal(t, slow, winner)
	})
	t.Run("ErrNameTaken", func(t *testing.T) {
		_, err := store.CreateAccount(t.Context(), signUp("two", "ADA"), hash, signUpEvent(signUp("two", "ADA")))
		require.ErrorIs(t, err, account.ErrNameTaken)
		// Nothing of it stays: the id can be used for another name.
		_, err = store.CreateAccount(t.Context(), signUp("two", "Barbara"), hash, signUpEvent(signUp("two", "Barbara")))
		require.NoError(t, err)
	})
	t.Run("ErrUnexpected", func(t *testing.T) {
		_, err := store.CreateAccount(t.Context(), signUp("three", "Mary"), "plain text", signUpEvent(signUp("three", "Mary")))
		var pg *pgconn.PgError
		require.ErrorAs(t, err, &pg)
		require.Equal(t, "accounts_password_hash_is_phc", pg.ConstraintName)
		require.NotErrorIs(t, err, database.ErrUnavailable)
	})
}

// waitForLock waits until somebody waits for a lock in the store's database.
func (s tests) waitForLock(t *testing.T, store *Store) {
	t.Helper()
	require.Eventually(t, func() bool {
		var waiting bool
		err := store.db.Pool().QueryRow(t.Context(), `SELECT EXISTS (SELECT 1 FROM pg_stat_activity
			WHERE wait_event_type = 'Lock' AND datname = current_database())`).Scan(&waiting)
		return err == nil && waiting
	}, 5*time.Second, 5*time.Millisecond, "nobody waits")
}

func (s tests) findSignUp(t *testing.T) {
	store := s.store(t)
	_, err := store.CreateAccount(t.Context(), signUp("one", "Ada"), hash, signUpEvent(signUp("one", "Ada")))
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
	_, err := store.CreateAccount(t.Context(), signUp("one", "Ada"), hash, signUpEvent(signUp("one", "Ada")))
	require.NoError(t, err)
	for _, by := range []account.PasswordOf{{NameKey: "ada"}, {AccountID: "acc_one"}} {
		found, err := store.FindPassword(t.Context(), by)
		require.NoError(t, err)
		require.Equal(t, account.Password{Account: signUp("one", "Ada").Account, Hash: hash}, found)
	}

	require.NoError(t, store.ReplacePasswordHash(t.Context(), "acc_one", "not the old one", hash+"2"))
	require.NoError(t, store.ReplacePasswordHash(t.Context(), "acc_one", hash, hash+"3"))
	found, err := store.FindPassword(t.Context(), account.PasswordOf{NameKey: "ada"})
	require.NoError(t, err)
	require.Equal(t, hash+"3", found.Hash)
	require.Zero(t, found.Generation, "the same password with another hash is no change")

	for _, by := range []account.PasswordOf{{NameKey: "grace"}, {AccountID: "acc_two"}, {}} {
		_, err = store.FindPassword(t.Context(), by)
		require.ErrorIs(t, err, account.ErrNotFound)
	}
}

// opened is a session as it is after a log-in at noon.
func opened(id string) account.Session {
	return account.Session{
		ID: id, AccountID: "acc_one", CreateTime: noon(), RefreshTime: noon(), TokenExpireTime: noon().Add(account.TokenLifetime),
		RefreshHash: []byte(strings.Repeat("r", 32)), ExpireTime: noon().Add(account.SessionIdle), Address: "192.0.2.1",
	}
}

// sessionEvent is an event of one of acc_one's sessions.
func sessionEvent(id, session string, kind account.EventKind) account.Event {
	return account.Event{ID: id, Time: noon(), Kind: kind, AccountID: "acc_one", ActorID: "acc_one", SessionID: session, Address: "192.0.2.1"}
}

func (s tests) sessions(t *testing.T) {
	store := s.store(t)
	_, err := store.CreateAccount(t.Context(), signUp("one", "Ada"), hash, signUpEvent(signUp("one", "Ada")))
	require.NoError(t, err)
	for _, id := range []string{"ses_1", "ses_2", "ses_3"} {
		ended, err := store.CreateSession(t.Context(), opened(id), 0, sessionEvent("evt_"+id, id, account.LoggedIn))
		require.NoError(t, err)
		require.Empty(t, ended)
	}
	list := func(before string, limit int) []string {
		sessions, err := store.ListSessions(t.Context(), "acc_one", before, limit)
		require.NoError(t, err)
		var ids []string
		for _, session := range sessions {
			ids = append(ids, session.ID)
		}
		return ids
	}
	t.Run("OKList", func(t *testing.T) {
		sessions, err := store.ListSessions(t.Context(), "acc_one", "", 1)
		require.NoError(t, err)
		require.Equal(t, []account.Session{opened("ses_3")}, sessions)
		require.Equal(t, []string{"ses_3", "ses_2", "ses_1"}, list("", 9))
		require.Equal(t, []string{"ses_2"}, list("ses_3", 1))
		require.Empty(t, list("ses_1", 9))
		none, err := store.ListSessions(t.Context(), "acc_other", "", 9)
		require.NoError(t, err)
		require.Empty(t, none)
	})
	t.Run("OKKnownPlace", func(t *testing.T) {
		for address, want := range map[string]bool{"192.0.2.1": true, "192.0.2.2": false, "": false} {
			found, err := store.FindPassword(t.Context(), account.PasswordOf{NameKey: "ada", Address: address})
			require.NoError(t, err)
			require.Equal(t, want, found.Known, address)
		}
	})
	t.Run("OKChange", func(t *testing.T) {
		ended := opened("ses_1")
		ended.EndTime, ended.EndReason = noon(), account.EndLoggedOut
		e := sessionEvent("evt_z_end", "ses_1", account.LoggedOut)
		require.NoError(t, store.ChangeSession(t.Context(), "ses_1", func(stored account.Session) (*account.Session, *account.Event) {
			require.Equal(t, opened("ses_1"), stored)
			return &ended, &e
		}))
		require.NoError(t, store.ChangeSession(t.Context(), "ses_1", func(stored account.Session) (*account.Session, *account.Event) {
			require.Equal(t, ended, stored)
			return nil, nil
		}))
		events, err := store.ListEvents(t.Context(), "acc_one", "", 1)
		require.NoError(t, err)
		require.Equal(t, []account.Event{e}, events)
		require.NoError(t, store.ChangeSession(t.Context(), "ses_none", func(account.Session) (*account.Session, *account.Event) {
			t.Error("called for a session that does not exist")
			return nil, nil
		}))
	})
	t.Run("OKEnded", func(t *testing.T) {
		expires := noon().Add(account.TokenLifetime)
		want := []account.EndedSession{{ID: "ses_1", ExpireTime: expires.Add(account.ClockLeeway)}}
		for _, now := range []time.Time{noon(), expires.Add(account.ClockLeeway - time.Second)} {
			ended, _, err := store.Ended(t.Context(), now)
			require.NoError(t, err)
			require.Equal(t, want, ended)
		}
		ended, _, err := store.Ended(t.Context(), expires.Add(account.ClockLeeway))
		require.NoError(t, err)
		require.Empty(t, ended)
	})
	t.Run("OKOfTheVersionBefore", func(t *testing.T) {
		// Its log-ins fill no columns that it does not know.
		_, err := store.db.Pool().Exec(t.Context(), `INSERT INTO sessions (session_id, account_id, create_time, token_expire_time)
			VALUES ('ses_0', 'acc_one', $1, $2)`, noon(), noon().Add(account.TokenLifetime))
		require.NoError(t, err)
		sessions, err := store.ListSessions(t.Context(), "acc_one", "ses_1", 9)
		require.NoError(t, err)
		require.Equal(t, []account.Session{{
			ID: "ses_0", AccountID: "acc_one", CreateTime: noon(), RefreshTime: noon(),
			TokenExpireTime: noon().Add(account.TokenLifetime), ExpireTime: noon().Add(account.TokenLifetime),
		}}, sessions)
	})
	t.Run("OKChangePassword", func(t *testing.T) {
		e := sessionEvent("evt_password", "ses_2", account.PasswordChanged)
		ended, err := store.ChangePassword(t.Context(), 0, hash+"new", e)
		require.NoError(t, err)
		require.Len(t, ended, 2, "ses_3 and ses_0; ses_1 had ended")
		for _, session := range ended {
			require.Contains(t, []string{"ses_3", "ses_0"}, session.ID)
			require.Equal(t, account.EndPasswordChanged, session.EndReason)
			require.Equal(t, noon().Add(account.TokenLifetime), session.TokenExpireTime)
		}
		found, err := store.FindPassword(t.Context(), account.PasswordOf{NameKey: "ada"})
		require.NoError(t, err)
		require.Equal(t, hash+"new", found.Hash)
		require.Equal(t, 1, found.Generation)
	})
	t.Run("OKChangePasswordOfVeryMany", func(t *testing.T) {
		up := signUp("many", "Many")
		_, err := store.CreateAccount(t.Context(), up, hash, signUpEvent(up))
		require.NoError(t, err)
		const sessions = 2*endedAtOnce + 500
		_, err = store.db.Pool().Exec(t.Context(), `INSERT INTO sessions (session_id, account_id, create_time, token_expire_time, expire_time)
			SELECT 'ses_many_' || n, 'acc_many', $1, $2, $3 FROM generate_series(1, $4) AS n`, noon(), noon().Add(account.TokenLifetime), noon().Add(account.SessionIdle), sessions)
		require.NoError(t, err)
		e := account.Event{ID: "evt_many_password", Time: noon(), Kind: account.PasswordChanged, AccountID: "acc_many", ActorID: "acc_many", SessionID: "ses_many_7"}
		ended, err := store.ChangePassword(t.Context(), 0, hash+"new", e)
		require.NoError(t, err)
		ids := map[string]bool{}
		for _, session := range ended {
			ids[session.ID] = true
		}
		require.Len(t, ids, sessions-1)
		require.False(t, ids["ses_many_7"])
		var open, most int
		require.NoError(t, store.db.Pool().QueryRow(t.Context(), `SELECT count(*) FROM sessions WHERE account_id = 'acc_many' AND end_time IS NULL`).Scan(&open))
		require.Equal(t, 1, open)
		require.NoError(t, store.db.Pool().QueryRow(t.Context(), `SELECT max(ended) FROM (
			SELECT count(*) AS ended FROM sessions WHERE account_id = 'acc_many' AND end_reason = 'PASSWORD_CHANGED' GROUP BY xmin::text) AS by_transaction`).Scan(&most))
		require.LessOrEqual(t, most, endedAtOnce, "one transaction ends more than it has time for")
	})
	t.Run("OKCreateBeyondMost", func(t *testing.T) {
		up := signUp("crowd", "Crowd")
		_, err := store.CreateAccount(t.Context(), up, hash, signUpEvent(up))
		require.NoError(t, err)
		// Twice what one log-in ends, besides those that stay; and two that count no more.
		const sessions = account.MaxSessions + 2*endedAtOnce
		_, err = store.db.Pool().Exec(t.Context(), `INSERT INTO sessions (session_id, account_id, create_time, token_expire_time, expire_time, end_time)
			SELECT 'ses_crowd_' || to_char(n, 'FM00000'), 'acc_crowd', $1::timestamptz, $2::timestamptz, $3::timestamptz, NULL::timestamptz FROM generate_series(1, $4) AS n
			UNION ALL SELECT 'ses_crowd_expired', 'acc_crowd', $1 - interval '1 hour', $1, $1, NULL
			UNION ALL SELECT 'ses_crowd_ended', 'acc_crowd', $1, $2, $3, $1`, noon(), noon().Add(account.TokenLifetime), noon().Add(account.SessionIdle), sessions)
		require.NoError(t, err)
		create := func(n int) ([]account.Session, error) {
			id := fmt.Sprint("ses_new_", n)
			session := opened(id)
			session.AccountID = "acc_crowd"
			return store.CreateSession(t.Context(), session, 0, account.Event{ID: "evt_" + id, Time: noon(), Kind: account.LoggedIn, AccountID: "acc_crowd", ActorID: "acc_crowd", SessionID: id})
		}
		ids := map[string]bool{}
		count := func(ended []account.Session) {
			require.LessOrEqual(t, len(ended), endedAtOnce, "one log-in ends more than it has time for")
			for _, session := range ended {
				require.False(t, ids[session.ID], "%s ends twice", session.ID)
				ids[session.ID] = true
				require.Equal(t, account.EndTooMany, session.EndReason)
				require.Equal(t, noon().Add(account.TokenLifetime), session.TokenExpireTime)
			}
		}
		// Several at once do not wait for each other in vain.
		var (
			all   sync.WaitGroup
			ended [4][]account.Session
			errs  [4]error
		)
		for n := range ended {
			all.Go(func() { ended[n], errs[n] = create(n) })
		}
		all.Wait()
		require.NoError(t, errors.Join(errs[:]...))
		for _, by := range ended {
			count(by)
		}
		made := len(ended)
		for more := true; more; made++ {
			require.Less(t, made, 10, "log-ins go on ending sessions")
			by, err := create(made)
			require.NoError(t, err)
			count(by)
			more = len(by) > 1 // the one that it is beyond
		}
		open := func() (oldest string, n int) {
			require.NoError(t, store.db.Pool().QueryRow(t.Context(), `SELECT min(session_id), count(*) FROM sessions
				WHERE account_id = 'acc_crowd' AND end_time IS NULL AND expire_time > $1`, noon()).Scan(&oldest, &n))
			return oldest, n
		}
		oldest, n := open()
		require.Equal(t, account.MaxSessions, n)
		require.Len(t, ids, sessions+made-account.MaxSessions)
		require.Equal(t, fmt.Sprintf("ses_crowd_%05d", sessions-account.MaxSessions+made+1), oldest, "the oldest end")
	})
	t.Run("ErrPasswordChanged", func(t *testing.T) {
		_, err := store.ChangePassword(t.Context(), 0, hash, sessionEvent("evt_late", "ses_2", account.PasswordChanged))
		require.ErrorIs(t, err, account.ErrPasswordChanged)
		_, err = store.CreateSession(t.Context(), opened("ses_4"), 0, sessionEvent("evt_late", "ses_4", account.LoggedIn))
		require.ErrorIs(t, err, account.ErrPasswordChanged)
		require.Equal(t, []string{"ses_3"}, list("", 1))
	})
	t.Run("ErrPasswordChangedMeanwhile", func(t *testing.T) {
		// A log-in that began before a new password is stored waits for it, and is
		// refused: the new password ends all sessions of the old one.
		tx, err := store.db.Pool().Begin(t.Context())
		require.NoError(t, err)
		_, err = store.q.WithTx(tx).ChangePassword(t.Context(), query.ChangePasswordParams{AccountID: "acc_one", PasswordGeneration: 1, NewHash: hash})
		require.NoError(t, err)
		answer := make(chan error, 1)
		go func() {
			_, err := store.CreateSession(t.Context(), opened("ses_5"), 1, sessionEvent("evt_race", "ses_5", account.LoggedIn))
			answer <- err
		}()
		s.waitForLock(t, store)
		require.NoError(t, tx.Commit(t.Context()))
		require.ErrorIs(t, <-answer, account.ErrPasswordChanged)
	})
}

func (s tests) failures(t *testing.T) {
	store := s.store(t)
	_, err := store.CreateAccount(t.Context(), signUp("one", "Ada"), hash, signUpEvent(signUp("one", "Ada")))
	require.NoError(t, err)
	debits := []throttle.Debit{{Key: "b", Budget: throttle.Budget{Every: time.Minute}}, {Key: "a", Budget: throttle.Budget{Every: 1500 * time.Millisecond}}}
	e := sessionEvent("evt_failed", "", account.LogInFailed)
	require.NoError(t, store.AddFailure(t.Context(), noon(), debits, &e))
	require.NoError(t, store.AddFailure(t.Context(), noon().Add(time.Second), debits, nil))
	used, err := store.Failures(t.Context(), []string{"a", "b", "c"})
	require.NoError(t, err)
	require.Equal(t, map[string]time.Time{"a": noon().Add(3 * time.Second), "b": noon().Add(2 * time.Minute)}, used)
	// A budget that is whole again counts from now on.
	require.NoError(t, store.AddFailure(t.Context(), noon().Add(time.Hour), debits[:1], nil))
	used, err = store.Failures(t.Context(), []string{"b"})
	require.NoError(t, err)
	require.Equal(t, map[string]time.Time{"b": noon().Add(time.Hour + time.Minute)}, used)

	events, err := store.ListEvents(t.Context(), "acc_one", "", 9)
	require.NoError(t, err)
	require.Equal(t, []account.Event{e, signUpEvent(signUp("one", "Ada"))}, events)

	// Many at once are all counted, and none waits for another in vain.
	var all sync.WaitGroup
	errs := make([]error, 20)
	for n := range errs {
		all.Go(func() {
			turned := []throttle.Debit{debits[n%2], debits[1-n%2]}
			errs[n] = store.AddFailure(t.Context(), noon().Add(2*time.Hour), turned, nil)
		})
	}
	all.Wait()
	require.NoError(t, errors.Join(errs...))
	used, err = store.Failures(t.Context(), []string{"b"})
	require.NoError(t, err)
	require.Equal(t, noon().Add(2*time.Hour+20*time.Minute), used["b"])
}

func (s tests) organisations(t *testing.T) {
	store := s.store(t)
	for _, who := range [][2]string{{"one", "Ada"}, {"two", "Grace"}} {
		up := signUp(who[0], who[1])
		_, err := store.CreateAccount(t.Context(), up, hash, signUpEvent(up))
		require.NoError(t, err)
	}
	change := func(t *testing.T, do func(ctx context.Context, tx account.Tx) error) {
		t.Helper()
		require.NoError(t, store.Change(t.Context(), do))
	}
	acme := account.Organisation{ID: "org_1", Name: "Acme", Kind: account.KindAdvertiser, CreateTime: noon()}
	owner := account.Member{OrganisationID: "org_1", AccountID: "acc_one", Role: auth.Owner, CreateTime: noon()}
	viewer := account.Member{OrganisationID: "org_1", AccountID: "acc_two", Role: auth.Viewer, CreateTime: noon()}
	change(t, func(ctx context.Context, tx account.Tx) error {
		if err := tx.AddOrganisation(ctx, acme); err != nil {
			return err
		}
		if err := tx.PutMember(ctx, owner, noon()); err != nil {
			return err
		}
		return tx.PutMember(ctx, viewer, noon())
	})

	t.Run("OKMembers", func(t *testing.T) {
		found, err := store.FindOrganisation(t.Context(), "org_1")
		require.NoError(t, err)
		require.Equal(t, acme, found)
		granted, err := store.Granted(t.Context(), "acc_two")
		require.NoError(t, err)
		require.Equal(t, account.Granted{Version: 1, Roles: auth.Roles{"org_1": auth.Viewer}}, granted)
		change(t, func(ctx context.Context, tx account.Tx) error {
			viewer.Role = auth.Operator
			if err := tx.PutMember(ctx, viewer, noon().Add(time.Second)); err != nil {
				return err
			}
			stored, err := tx.Member(ctx, "org_1", "acc_two")
			require.Equal(t, &viewer, stored)
			owners, _ := tx.CountOwners(ctx, "org_1")
			require.Equal(t, 1, owners)
			memberships, _ := tx.CountMemberships(ctx, "acc_two")
			require.Equal(t, 1, memberships)
			nobody, _ := tx.Member(ctx, "org_1", "acc_none")
			require.Nil(t, nobody)
			none, _ := tx.Organisation(ctx, "org_none")
			require.Nil(t, none)
			return err
		})
		members, err := store.ListMembers(t.Context(), "org_1", "", 9)
		require.NoError(t, err)
		ada, grace := owner, viewer
		ada.Name, grace.Name = "Ada", "Grace"
		require.Equal(t, []account.Member{grace, ada}, members)
		members, err = store.ListMembers(t.Context(), "org_1", "acc_two", 9)
		require.NoError(t, err)
		require.Equal(t, []account.Member{ada}, members)
		memberships, err := store.ListMemberships(t.Context(), "acc_two", "", 9)
		require.NoError(t, err)
		require.Equal(t, []account.Membership{{Organisation: acme, Role: auth.Operator}}, memberships)
	})

	t.Run("OKChangedAccounts", func(t *testing.T) {
		counts := account.TokenLifetime + account.ClockLeeway
		change(t, func(ctx context.Context, tx account.Tx) error {
			return tx.RemoveMember(ctx, "org_1", "acc_two", noon().Add(2*time.Second))
		})
		granted, err := store.Granted(t.Context(), "acc_two")
		require.NoError(t, err)
		require.Equal(t, account.Granted{Version: 3}, granted)
		_, changed, err := store.Ended(t.Context(), noon())
		require.NoError(t, err)
		require.ElementsMatch(t, []account.ChangedAccount{
			{ID: "acc_one", Version: 1, ExpireTime: noon().Add(counts)},
			{ID: "acc_two", Version: 3, ExpireTime: noon().Add(2*time.Second + counts)},
		}, changed)
		_, changed, err = store.Ended(t.Context(), noon().Add(counts))
		require.NoError(t, err)
		require.Len(t, changed, 1)
		_, err = store.Granted(t.Context(), "acc_none")
		require.ErrorIs(t, err, account.ErrNotFound)
	})

	t.Run("OKInvitations", func(t *testing.T) {
		invitation := account.Invitation{
			ID: "inv_1", OrganisationID: "org_1", Role: auth.Viewer, InviterID: "acc_one", CreateTime: noon(), ExpireTime: noon().Add(time.Hour),
		}
		change(t, func(ctx context.Context, tx account.Tx) error {
			if err := tx.PutInvitation(ctx, invitation); err != nil {
				return err
			}
			stored, err := tx.Invitation(ctx, "inv_1")
			require.Equal(t, &invitation, stored)
			if err != nil {
				return err
			}
			invitation.AcceptTime, invitation.AccepterID = noon().Add(time.Minute), "acc_two"
			none, _ := tx.Invitation(ctx, "inv_none")
			require.Nil(t, none)
			return tx.PutInvitation(ctx, invitation)
		})
		list, err := store.ListInvitations(t.Context(), "org_1", "", 9)
		require.NoError(t, err)
		require.Equal(t, []account.Invitation{invitation}, list)
	})

	t.Run("OKAPIKeys", func(t *testing.T) {
		k := account.APIKey{
			ID: "apk_1", OrganisationID: "org_1", Name: "Import", Role: auth.Operator, SecretHash: []byte(strings.Repeat("s", 32)),
			CreatorID: "acc_one", CreateTime: noon(), ExpireTime: noon().Add(time.Hour),
		}
		change(t, func(ctx context.Context, tx account.Tx) error {
			if err := tx.PutAPIKey(ctx, k); err != nil {
				return err
			}
			for moment, want := range map[time.Time]int{noon(): 1, noon().Add(time.Hour): 0} {
				n, _ := tx.CountAPIKeys(ctx, "org_1", moment)
				require.Equal(t, want, n)
			}
			stored, err := tx.APIKey(ctx, "apk_1")
			require.Equal(t, &k, stored)
			if err != nil {
				return err
			}
			k.UseTime, k.TokenExpireTime = noon().Add(time.Minute), noon().Add(6*time.Minute)
			if err := tx.PutAPIKey(ctx, k); err != nil {
				return err
			}
			k.RevokeTime = noon().Add(2 * time.Minute)
			none, _ := tx.APIKey(ctx, "apk_none")
			require.Nil(t, none)
			return tx.PutAPIKey(ctx, k)
		})
		list, err := store.ListAPIKeys(t.Context(), "org_1", "", 9)
		require.NoError(t, err)
		require.Equal(t, []account.APIKey{k}, list)
		ended, _, err := store.Ended(t.Context(), noon())
		require.NoError(t, err)
		require.Equal(t, []account.EndedSession{{ID: "apk_1", ExpireTime: k.TokenExpireTime.Add(account.ClockLeeway)}}, ended)
	})

	t.Run("OKEvents", func(t *testing.T) {
		e := account.Event{
			ID: "evt_z", Time: noon(), Kind: account.MemberRemoved, AccountID: "acc_two", OrganisationID: "org_1",
			ActorID: "acc_one", SessionID: "ses_1", SubjectID: "inv_1", Role: auth.Viewer, Address: "192.0.2.1",
		}
		change(t, func(ctx context.Context, tx account.Tx) error { return tx.Record(ctx, e) })
		of, err := store.ListOrganisationEvents(t.Context(), "org_1", "", 9)
		require.NoError(t, err)
		require.Equal(t, []account.Event{e}, of)
		mine, err := store.ListEvents(t.Context(), "acc_two", "", 1)
		require.NoError(t, err)
		require.Equal(t, []account.Event{e}, mine)
	})

	t.Run("OKClaim", func(t *testing.T) {
		request := account.Request{CallerID: "acc_one", RequestID: "request-1", Fingerprint: []byte(strings.Repeat("f", 32)), ResultID: "org_1", ExpireTime: noon().Add(time.Hour)}
		claim := func(r account.Request, now time.Time) (holder account.Request) {
			change(t, func(ctx context.Context, tx account.Tx) (err error) {
				holder, err = tx.Claim(ctx, r, now)
				return err
			})
			return holder
		}
		require.Equal(t, request, claim(request, noon()))
		other := request
		other.ResultID = "org_2"
		require.Equal(t, request, claim(other, noon()))
		other.CallerID = "acc_two"
		require.Equal(t, other, claim(other, noon()), "the ids of others are not in the way")
		late := request
		late.ResultID, late.ExpireTime = "org_3", noon().Add(2*time.Hour)
		require.Equal(t, late, claim(late, noon().Add(time.Hour)), "after it has expired")
	})

	t.Run("ErrRolledBack", func(t *testing.T) {
		err := store.Change(t.Context(), func(ctx context.Context, tx account.Tx) error {
			if err := tx.PutMember(ctx, viewer, noon()); err != nil {
				return err
			}
			return account.ErrLastOwner
		})
		require.ErrorIs(t, err, account.ErrLastOwner)
		members, err := store.ListMembers(t.Context(), "org_1", "", 9)
		require.NoError(t, err)
		require.Len(t, members, 1)
	})
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
	_, err := store.db.Pool().Exec(t.Context(), `INSERT INTO accounts (account_id, name, name_key, password_hash, create_time)
		SELECT 'acc_' || n, 'name' || n, 'name' || n, $1, $2 FROM generate_series(1, $3) AS n`, hash, noon(), many)
	require.NoError(t, err)
	_, err = store.db.Pool().Exec(t.Context(), `INSERT INTO sessions (session_id, account_id, create_time, token_expire_time)
		SELECT 'ses_' || n, 'acc_' || n, $1, $2 FROM generate_series(1, $3) AS n`, noon(), noon().Add(account.TokenLifetime), many)
	require.NoError(t, err)
	_, err = store.db.Pool().Exec(t.Context(), `INSERT INTO sign_ups (request_id, fingerprint, account_id, expire_time)
		SELECT 'request_' || n, decode(repeat('00', 32), 'hex'), 'acc_' || n, $1 FROM generate_series(1, $2) AS n`, noon().Add(24*time.Hour), many)
	require.NoError(t, err)
	_, err = store.db.Pool().Exec(t.Context(), `INSERT INTO log_in_failures (failure_key, free_time)
		SELECT 'failure_' || n, $1 FROM generate_series(1, $2) AS n`, noon().Add(2*time.Hour), many)
	require.NoError(t, err)
	_, err = store.db.Pool().Exec(t.Context(), `INSERT INTO audit_events (event_id, event_time, kind, account_id, actor_id, session_id, address)
		SELECT 'evt_' || n, $1, 'LOGGED_IN', 'acc_' || n, '', '', '' FROM generate_series(1, $2) AS n`, noon(), many)
	require.NoError(t, err)
	_, err = store.db.Pool().Exec(t.Context(), `INSERT INTO organisations VALUES ('org_1', 'Acme', 'ADVERTISER', $1)`, noon())
	require.NoError(t, err)
	_, err = store.db.Pool().Exec(t.Context(), `INSERT INTO invitations (invitation_id, organisation_id, role, inviter_id, create_time, expire_time)
		SELECT 'inv_' || n, 'org_1', 'viewer', '', $1, $2 FROM generate_series(1, $3) AS n`, noon(), noon().Add(48*time.Hour), many)
	require.NoError(t, err)
	_, err = store.db.Pool().Exec(t.Context(), `INSERT INTO api_keys (api_key_id, organisation_id, name, role, secret_hash, creator_id, create_time, expire_time)
		SELECT 'apk_' || n, 'org_1', 'x', 'viewer', decode(repeat('00', 32), 'hex'), '', $1, $2 FROM generate_series(1, $3) AS n`, noon(), noon().Add(72*time.Hour), many)
	require.NoError(t, err)
	_, err = store.db.Pool().Exec(t.Context(), `INSERT INTO requests (caller_id, request_id, fingerprint, result_id, expire_time)
		SELECT 'acc_' || n, 'request', decode(repeat('00', 32), 'hex'), '', $1 FROM generate_series(1, $2) AS n`, noon().Add(25*time.Hour), many)
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
		{noon().Add(time.Hour), 1},
		{noon().Add(2*time.Hour - time.Second), 0},
		{noon().Add(2 * time.Hour), many},
		{noon().Add(24*time.Hour - time.Second), 0},
		{noon().Add(24 * time.Hour), many},
		{noon().Add(25*time.Hour - time.Second), 0},
		{noon().Add(25 * time.Hour), many},
		{noon().Add(account.TokenLifetime + account.SessionsKept - time.Second), 0},
		{noon().Add(account.TokenLifetime + account.SessionsKept), many},
		{noon().Add(48*time.Hour + account.OffersKept - time.Second), 0},
		{noon().Add(48*time.Hour + account.OffersKept), many},
		{noon().Add(72*time.Hour + account.OffersKept - time.Second), 0},
		{noon().Add(72*time.Hour + account.OffersKept), many},
		{noon().Add(account.EventsKept - time.Second), 0},
		{noon().Add(account.EventsKept), many},
		{noon().Add(10000 * time.Hour), 0}, // accounts, and the key without a successor, stay
	} {
		removed, err := store.Sweep(t.Context(), step.now)
		require.NoError(t, err)
		require.Equal(t, step.want, removed, "at noon + %s", step.now.Sub(noon()))
	}
	left, err := store.SigningKeys(t.Context(), noon().Add(1000*time.Hour))
	require.NoError(t, err)
	require.Len(t, left, 1)
}

func TestTranslate(t *testing.T) {
	for name, tc := range map[string]struct{ err, want error }{
		"OK":               {nil, nil},
		"ErrNotFound":      {fmt.Errorf("x: %w", pgx.ErrNoRows), account.ErrNotFound},
		"ErrNameTaken":     {&pgconn.PgError{Code: "23505", ConstraintName: "accounts_name_key_unique"}, account.ErrNameTaken},
		"ErrFault":         {fmt.Errorf("x: %w", account.ErrOverloaded), account.ErrOverloaded},
		"ErrUnavailable":   {database.ErrUnavailable.Because(io.EOF), database.ErrUnavailable},
		"ErrOther":         {io.ErrNoProgress, io.ErrNoProgress},
		"ErrOtherConflict": {&pgconn.PgError{Code: "23505", ConstraintName: "accounts_pkey"}, &pgconn.PgError{}},
	} {
		t.Run(name, func(t *testing.T) {
			got := translate(tc.err)
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
