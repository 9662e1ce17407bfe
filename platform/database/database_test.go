package database

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

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
		require.ErrorIs(t, db.Migrate(ctx, files()), context.DeadlineExceeded, "it does not wait for its turn")
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

	t.Run("RefusedRole", func(t *testing.T) {
		cfg := config(t, pg)
		cfg.User = "nobody_known"
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		require.ErrorContains(t, open(t, cfg).Prepare(ctx, files()), "logging in")
		require.NoError(t, ctx.Err(), "it waited for what does not change")
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
}
