package database

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
	"testing/fstest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/pgtest"
	"github.com/marquee-ads/marquee/platform/service"
)

// files is a schema of two migrations.
func files() fstest.MapFS {
	return fstest.MapFS{
		"00001_words.sql": {Data: []byte("-- +goose Up\nCREATE TABLE words (word text NOT NULL, CONSTRAINT words_pkey PRIMARY KEY (word), CONSTRAINT words_not_empty CHECK (word <> ''));\n")},
		"00002_index.sql": {Data: []byte("-- +goose Up\nCREATE INDEX words_length_idx ON words (char_length(word));\n")},
	}
}

func config(t *testing.T, pg *pgtest.Server) Config {
	t.Helper()
	name, _, _ := strings.Cut(strings.TrimPrefix(pg.Database(t), "postgres:///"), "?")
	return Config{Application: "test", Host: pg.SocketDir(t), Name: name, User: "test", MaxConns: 4}
}

func open(t *testing.T, cfg Config) *Database {
	t.Helper()
	db, err := Open(t.Context(), cfg, hclog.NewNullLogger())
	require.NoError(t, err)
	t.Cleanup(db.Close)
	return db
}

func (d *Database) insert(ctx context.Context, word string) error {
	return d.Call(ctx, func(ctx context.Context) error {
		_, err := d.pool.Exec(ctx, "INSERT INTO words (word) VALUES ($1)", word)
		return err
	})
}

func (d *Database) count(ctx context.Context) (n int, err error) {
	err = d.Read(ctx, func(ctx context.Context) error {
		return d.pool.QueryRow(ctx, "SELECT count(*) FROM words").Scan(&n)
	})
	return n, err
}

func TestDatabase(t *testing.T) {
	pg := pgtest.Start(t)

	t.Run("MigrateTogether", func(t *testing.T) {
		cfg := config(t, pg)
		errs := make([]error, 3)
		var all sync.WaitGroup
		for n := range errs {
			db := open(t, cfg)
			all.Go(func() { errs[n] = db.Prepare(t.Context(), files()) })
		}
		all.Wait()
		require.NoError(t, errors.Join(errs...))
		require.NoError(t, open(t, cfg).Prepare(t.Context(), files()), "again")
		var applied int
		require.NoError(t, open(t, cfg).pool.QueryRow(t.Context(), "SELECT count(*) FROM goose_db_version WHERE version_id > 0").Scan(&applied))
		require.Equal(t, 2, applied)
	})

	t.Run("MigrateEndsWithItsContext", func(t *testing.T) {
		db := open(t, config(t, pg))
		holder, err := db.pool.Acquire(t.Context())
		require.NoError(t, err)
		defer holder.Release()
		_, err = holder.Exec(t.Context(), "SELECT pg_advisory_lock($1)", migrationLock)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, db.migrate(ctx, files()), context.DeadlineExceeded, "it does not wait for its turn")
	})

	t.Run("Settings", func(t *testing.T) {
		db := open(t, config(t, pg))
		for setting, want := range map[string]string{
			"statement_timeout": "4s", "lock_timeout": "3s", "idle_in_transaction_session_timeout": "2s", "TimeZone": "UTC", "application_name": "test",
		} {
			var got string
			require.NoError(t, db.pool.QueryRow(t.Context(), "SELECT current_setting($1)", setting).Scan(&got))
			require.Equal(t, want, got, setting)
		}
	})

	t.Run("AProcessThatHasLeft", func(t *testing.T) {
		db := open(t, config(t, pg))
		require.NoError(t, db.Prepare(t.Context(), files()))
		write := func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO words (word) VALUES ('repeated') ON CONFLICT DO NOTHING")
			return err
		}
		left, err := db.pool.Begin(t.Context())
		require.NoError(t, err)
		defer left.Rollback(t.Context())
		require.NoError(t, write(t.Context(), left))
		require.NoError(t, db.Transact(t.Context(), write), "a repeated call does not wait for long enough")
		require.Error(t, left.Commit(t.Context()))
	})

	t.Run("Transact", func(t *testing.T) {
		db := open(t, config(t, pg))
		require.NoError(t, db.Prepare(t.Context(), files()))
		err := db.Transact(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO words (word) VALUES ('undone')")
			return errors.Join(err, io.ErrNoProgress)
		})
		require.ErrorIs(t, err, io.ErrNoProgress)
		require.NoError(t, db.Transact(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO words (word) VALUES ('done')")
			return err
		}))
		n, err := db.count(t.Context())
		require.NoError(t, err)
		require.Equal(t, 1, n)
	})

	t.Run("Violated", func(t *testing.T) {
		db := open(t, config(t, pg))
		require.NoError(t, db.Prepare(t.Context(), files()))
		require.NoError(t, db.insert(t.Context(), "one"))
		for word, constraint := range map[string]string{"one": "words_pkey", "": "words_not_empty"} {
			err := db.insert(t.Context(), word)
			require.Error(t, err)
			require.Equal(t, constraint, Violated(err))
			require.NotErrorIs(t, err, ErrUnavailable)
		}
		require.Empty(t, Violated(io.EOF))
	})

	t.Run("ALostConnection", func(t *testing.T) {
		cfg := config(t, pg)
		db, other := open(t, cfg), open(t, cfg)
		require.NoError(t, db.Prepare(t.Context(), files()))
		for range 3 {
			_, err := db.count(t.Context())
			require.NoError(t, err)
			_, err = other.pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE datname = current_database() AND pid <> pg_backend_pid()`)
			require.NoError(t, err)
			_, err = db.count(t.Context())
			require.NoError(t, err, "a read is tried once more")
		}
	})

	t.Run("AnswersWhileOthersUseAllConnections", func(t *testing.T) {
		cfg := config(t, pg)
		cfg.MaxConns = 2
		db := open(t, cfg)
		require.NoError(t, db.Prepare(t.Context(), files()))
		first, err := db.pool.Acquire(t.Context())
		require.NoError(t, err)
		defer first.Release()
		require.NoError(t, db.insert(t.Context(), "heard"))
		second, err := db.pool.Acquire(t.Context())
		require.NoError(t, err)
		defer second.Release()
		answers := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			return db.Answers(ctx)
		}
		require.NoError(t, answers(), "the database has just answered")
		require.Eventually(t, func() bool { return answers() != nil }, 2*heardWithin, 10*time.Millisecond, "nobody has had an answer for long")
	})

	t.Run("Prepare", func(t *testing.T) { testPrepare(t, pg) })
	t.Run("Unavailable", func(t *testing.T) { testUnavailable(t, pg) })
}

func testPrepare(t *testing.T, pg *pgtest.Server) {
	t.Run("OKMore", func(t *testing.T) {
		// What comes after the migrations is done again from the beginning when the
		// database goes away meanwhile, and when its own time was too short.
		db := open(t, config(t, pg))
		var done []string
		step := func(name string, fails ...error) func(context.Context) error {
			return func(ctx context.Context) error {
				_, err := db.count(ctx)
				require.NoError(t, err, "it does not come after the migrations")
				done = append(done, name)
				if len(fails) == 0 {
					return nil
				}
				err, fails = fails[0], fails[1:]
				return err
			}
		}
		require.NoError(t, db.Prepare(t.Context(), files(),
			step("one"), step("two", ErrUnavailable, context.DeadlineExceeded), step("three")))
		require.Equal(t, []string{"one", "two", "one", "two", "one", "two", "three"}, done)
		require.ErrorIs(t, db.Prepare(t.Context(), files(), step("four", io.ErrNoProgress), step("five")), io.ErrNoProgress)
		require.Equal(t, "four", done[len(done)-1])
	})
	t.Run("ErrContext", func(t *testing.T) {
		cfg := config(t, pg)
		cfg.Host = t.TempDir()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		err := open(t, cfg).Prepare(ctx, files())
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, os.ErrNotExist, "it does not say why")
	})
	t.Run("ErrRole", func(t *testing.T) {
		cfg := config(t, pg)
		cfg.User = "nobody_known"
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		require.ErrorContains(t, open(t, cfg).Prepare(ctx, files()), "logging in to the database")
		require.NoError(t, ctx.Err(), "it waited for what does not change")
	})
}

func testUnavailable(t *testing.T, pg *pgtest.Server) {
	cfg := config(t, pg)
	cfg.settings = map[string]string{"statement_timeout": "100", "lock_timeout": "50"}
	db := open(t, cfg)
	require.NoError(t, db.Prepare(t.Context(), files()))
	exec := func(ctx context.Context, sql string) error {
		return db.Call(ctx, func(ctx context.Context) error { _, err := db.pool.Exec(ctx, sql); return err })
	}
	t.Run("ErrStatementTimeout", func(t *testing.T) {
		require.ErrorIs(t, exec(t.Context(), "SELECT pg_sleep(5)"), ErrUnavailable)
	})
	t.Run("ErrLockTimeout", func(t *testing.T) {
		tx, err := db.pool.Begin(t.Context())
		require.NoError(t, err)
		defer tx.Rollback(context.WithoutCancel(t.Context()))
		_, err = tx.Exec(t.Context(), "LOCK TABLE words")
		require.NoError(t, err)
		_, err = db.count(t.Context())
		require.ErrorIs(t, err, ErrUnavailable)
	})
	t.Run("ErrTerminated", func(t *testing.T) {
		require.ErrorIs(t, exec(t.Context(), "SELECT pg_terminate_backend(pg_backend_pid())"), ErrUnavailable)
		require.NoError(t, exec(t.Context(), "SELECT 1"), "the pool does not recover")
	})
	t.Run("ErrContext", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		err := exec(ctx, "SELECT pg_sleep(5)")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, ErrUnavailable)
	})
	t.Run("ErrRefused", func(t *testing.T) {
		cfg := cfg
		cfg.Host = t.TempDir()
		require.ErrorIs(t, open(t, cfg).Ping(t.Context()), ErrUnavailable)
	})
	t.Run("ErrPoolBusy", func(t *testing.T) {
		for range cfg.MaxConns {
			conn, err := db.pool.Acquire(t.Context())
			require.NoError(t, err)
			defer conn.Release()
		}
		require.ErrorIs(t, db.Ping(t.Context()), ErrUnavailable)
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
		cfg.settings = nil
		db := open(t, cfg)
		require.NoError(t, db.Ping(t.Context()))
		answer := make(chan error, 1)
		go func() {
			answer <- db.Call(t.Context(), func(ctx context.Context) error { _, err := db.pool.Exec(ctx, "SELECT pg_sleep(3)"); return err })
		}()
		require.Eventually(t, func() bool {
			var busy bool
			err := db.pool.QueryRow(t.Context(), "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(3)' AND state = 'active')").Scan(&busy)
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
		require.ErrorIs(t, <-answer, ErrUnavailable, "a use that may have had an effect is tried again")
		require.NoError(t, db.Ping(t.Context()), "the pool does not recover")

		// Reading is tried again by itself.
		mu.Lock()
		for _, c := range conns {
			_ = c.Close() // the first ones are closed already
		}
		mu.Unlock()
		_, err := db.count(t.Context())
		require.NoError(t, err)
	})
}

// TestOutage stops the server: its own one.
func TestOutage(t *testing.T) {
	pg := pgtest.Start(t)
	db := open(t, config(t, pg))
	require.NoError(t, db.Prepare(t.Context(), files()))
	pg.Stop(t)
	err := db.insert(t.Context(), "lost")
	require.ErrorIs(t, err, ErrUnavailable)
	require.ErrorIs(t, db.Ping(t.Context()), ErrUnavailable)

	waiting, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, db.Prepare(waiting, files()), context.DeadlineExceeded)

	prepared := make(chan error, 1)
	go func() { prepared <- db.Prepare(t.Context(), files()) }()
	pg.Restart(t)
	require.NoError(t, <-prepared)
	require.NoError(t, db.insert(t.Context(), "kept"))
	n, err := db.count(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)

	over, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, db.Ping(over), context.Canceled, "the caller's end is not the database's")
}

// settings is how a service embeds the flags.
type settings struct {
	service.Config
	Database Flags `embed:"" prefix:"database-"`
}

func (s *settings) Validate() error { return s.Database.Check(&s.Config) }

func TestFlags(t *testing.T) {
	parse := func(args ...string) (settings, error) {
		return service.Parse[settings]("billing", args, io.Discard)
	}
	cfg, err := parse("--database-password-file=secret")
	require.NoError(t, err)
	require.Equal(t, "billing-db", cfg.Database.Service)
	require.Equal(t, "billing", cfg.Database.Name)
	require.Equal(t, "billing", cfg.Database.User)

	production := []string{"--mode=production", "--environment=eu", "--database-password-file=secret"}
	_, err = parse(append(production, "--database-host=/run/postgres")...)
	require.NoError(t, err)
	for name, c := range map[string]struct{ args, text string }{
		"NoPassword":  {"", "--database-password-file: is needed"},
		"NoHost":      {"--database-host=", "--database-host: is empty"},
		"Unencrypted": {"--mode=production --environment=eu --database-host=db.example", "--database-host: db.example would be spoken to without encryption"},
		"Several":     {"--mode=production --environment=eu --database-host=127.0.0.1,db.example", "without encryption"},
		"Conns":       {"--database-host=localhost --database-max-conns=1", "--database-max-conns: 1 is out of range"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse(strings.Fields(c.args)...)
			require.ErrorContains(t, err, c.text)
		})
	}

	for _, host := range []string{"mesh", "/run/postgres", "127.0.0.1", "::1", "localhost", "/run/a,127.0.0.1"} {
		require.True(t, secured(host), host)
	}
	for _, host := range []string{"10.0.0.1", "db.example.com", "run/postgres", "mesh,db.example.com"} {
		require.False(t, secured(host), host)
	}
}

func TestTranslate(t *testing.T) {
	for _, code := range []string{"25P03", "25006", "40001", "40P01", "53300", "55P03", "57014", "57P01", "57P02", "57P03", "08000", "08006"} {
		t.Run("ErrUnavailable/"+code, func(t *testing.T) {
			err := translate(t.Context(), fmt.Errorf("querying: %w", &pgconn.PgError{Code: code}))
			require.ErrorIs(t, err, ErrUnavailable)
		})
	}
	known := fault.New(fault.NotFound, "NOT_FOUND", "x")
	for name, tc := range map[string]struct{ err, want error }{
		"OK":              {nil, nil},
		"ErrNoRows":       {pgx.ErrNoRows, pgx.ErrNoRows},
		"ErrFault":        {fmt.Errorf("x: %w", known), known},
		"ErrEOF":          {io.ErrUnexpectedEOF, ErrUnavailable},
		"ErrNetwork":      {&net.OpError{Op: "read", Err: errors.New("reset")}, ErrUnavailable},
		"ErrTimeForACall": {context.DeadlineExceeded, ErrUnavailable},
		"ErrOther":        {io.ErrNoProgress, io.ErrNoProgress},
	} {
		t.Run(name, func(t *testing.T) {
			got := translate(t.Context(), tc.err)
			require.ErrorIs(t, got, tc.want)
			require.Equal(t, errors.Is(tc.want, ErrUnavailable), errors.Is(got, ErrUnavailable))
		})
	}
}
