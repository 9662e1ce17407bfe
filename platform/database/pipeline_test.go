package database

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/pgtest"
)

func TestPipeline(t *testing.T) {
	pg := pgtest.Start(t)
	cfg := config(t, pg)
	var sent atomic.Int64
	cfg.Dial = func(ctx context.Context) (net.Conn, error) {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "unix", filepath.Join(pg.SocketDir(t), ".s.PGSQL.5432"))
		return &counted{conn, &sent}, err
	}
	cfg.MaxConns = 1
	db := open(t, cfg)
	require.NoError(t, db.Prepare(t.Context(), files()))
	const insert = "INSERT INTO words (word) VALUES ($1)"
	later := func(t *testing.T, ctx context.Context, p *Pipeline, words ...string) {
		t.Helper()
		for _, word := range words {
			tag, err := p.Later().Exec(ctx, insert, word)
			require.NoError(t, err)
			require.Zero(t, tag.RowsAffected())
		}
	}
	empty := func(t *testing.T) {
		t.Helper()
		_, err := db.pool.Exec(t.Context(), "TRUNCATE words")
		require.NoError(t, err)
	}

	// What a transaction may ask for behind two statements that wait.
	asks := map[string]func(ctx context.Context, p *Pipeline) (int, error){
		"Exec": func(ctx context.Context, p *Pipeline) (int, error) {
			tag, err := p.Exec(ctx, "UPDATE words SET word = word || '!'")
			return int(tag.RowsAffected()), err
		},
		"Query": func(ctx context.Context, p *Pipeline) (int, error) {
			rows, err := p.Query(ctx, "SELECT word FROM words ORDER BY word")
			if err != nil {
				return 0, err
			}
			words, err := pgx.CollectRows(rows, pgx.RowTo[string])
			return len(words), err
		},
		"QueryRow": func(ctx context.Context, p *Pipeline) (n int, err error) {
			return n, p.QueryRow(ctx, "SELECT count(*) FROM words").Scan(&n)
		},
		"SendBatch": func(ctx context.Context, p *Pipeline) (n int, err error) {
			batch := &pgx.Batch{}
			batch.Queue("SELECT count(*) FROM words")
			batch.Queue("SELECT 1")
			results := p.SendBatch(ctx, batch)
			return n, errors.Join(results.QueryRow().Scan(&n), results.Close())
		},
		"Flush": func(ctx context.Context, p *Pipeline) (n int, err error) {
			if err := p.Flush(ctx); err != nil {
				return 0, err
			}
			return n, p.QueryRow(ctx, "SELECT count(*) FROM words").Scan(&n)
		},
	}
	for name, ask := range asks {
		t.Run(name, func(t *testing.T) {
			empty(t)
			require.NoError(t, db.TransactPipelined(t.Context(), func(ctx context.Context, p *Pipeline) error {
				later(t, ctx, p, "one", "two")
				n, err := ask(ctx, p)
				require.Equal(t, 2, n, "it sees what was made before")
				if err == nil {
					n, err = ask(ctx, p)
					require.Equal(t, 2, n, "the connection is free again")
				}
				return err
			}))
		})
		t.Run(name+"/AfterAnError", func(t *testing.T) {
			empty(t)
			err := db.TransactPipelined(t.Context(), func(ctx context.Context, p *Pipeline) error {
				later(t, ctx, p, "one", "one", "two")
				_, err := ask(ctx, p)
				require.Error(t, err)
				return err
			})
			require.Equal(t, "words_pkey", Violated(err))
			n, err := db.count(t.Context())
			require.NoError(t, err)
			require.Zero(t, n, "nothing is left of it")
		})
	}

	t.Run("TheLastBeforeTheCommit", func(t *testing.T) {
		empty(t)
		transact := func(words ...string) error {
			return db.TransactPipelined(t.Context(), func(ctx context.Context, p *Pipeline) error {
				later(t, ctx, p, words...)
				return nil
			})
		}
		require.NoError(t, transact("one", "two"))
		require.Equal(t, "words_pkey", Violated(transact("three", "two")))
		n, err := db.count(t.Context())
		require.NoError(t, err)
		require.Equal(t, 2, n)
	})

	t.Run("OneRoundTrip", func(t *testing.T) {
		var before int64
		for range 2 { // statements are prepared in the first
			empty(t)
			before = sent.Load()
			require.NoError(t, db.TransactPipelined(t.Context(), func(ctx context.Context, p *Pipeline) error {
				later(t, ctx, p, "one", "two", "three", "four")
				var n int
				return p.QueryRow(ctx, "SELECT count(*) FROM words").Scan(&n)
			}))
		}
		require.EqualValues(t, 3, sent.Load()-before, "begin, five statements, commit")
	})
}

// counted counts what is sent.
type counted struct {
	net.Conn
	sent *atomic.Int64
}

func (c *counted) Write(b []byte) (int, error) {
	c.sent.Add(1)
	return c.Conn.Write(b)
}
