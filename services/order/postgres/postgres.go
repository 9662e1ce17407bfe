// Package postgres keeps orders, creatives and the ledger in Postgres.
package postgres

import (
	"context"
	"crypto/hmac"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"

	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/platform/events"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres/query"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Stream is where displays hear of what they show. The key of its events is the
// device's id, and replicas on how many servers of NATS they are.
func Stream(replicas int) events.Stream {
	return events.Stream{Name: "ORDER", Subjects: []string{"line.>"}, Replicas: replicas}
}

// Store implements order.Store.
type Store struct {
	db      *database.Database
	q       *query.Queries
	outbox  *events.Outbox
	payload func(order.BookedLine) ([]byte, error)
	// platformShare is the platform's share of what is earned, in percent.
	platformShare int
}

// New keeps orders in a database, which Prepare makes ready. Displays hear of what
// they show through outbox, that of Stream, in events whose payload says how a line
// is. platformShare is the platform's of what is earned, in percent.
func New(db *database.Database, outbox *events.Outbox, payload func(order.BookedLine) ([]byte, error), platformShare int) *Store {
	return &Store{db: db, q: query.New(db.Pool()), outbox: outbox, payload: payload, platformShare: platformShare}
}

// Prepare waits for the database and brings its schema up to date.
func (s *Store) Prepare(ctx context.Context) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("finding the migrations: %w", err)
	}
	return s.db.Prepare(ctx, files)
}

// work is one transaction: its queries, and what else happens in it.
type work struct {
	*query.Queries
	// later is for statements whose answers nobody waits for: they go to the server
	// with the next of the others, in their order, and what is wrong with one is the
	// error of that.
	later *query.Queries
	store *Store
	tx    *database.Pipeline
}

// transact commits what use does, all of it or nothing; use may be called again.
func (s *Store) transact(ctx context.Context, use func(context.Context, work) error) error {
	return s.db.TransactPipelined(ctx, func(ctx context.Context, tx *database.Pipeline) error {
		return use(ctx, work{Queries: query.New(tx), later: query.New(tx.Later()), store: s, tx: tx})
	})
}

// none says whether a query found no row.
func none(err error) bool { return errors.Is(err, pgx.ErrNoRows) }

// once is for a request that makes or changes what has this id. When it came before,
// it returns the id of what the first of it made or changed. Errors:
// order.ErrRequestIDReused.
func (w work) once(ctx context.Context, r order.Request, id string) (before string, err error) {
	claimed, err := w.ClaimRequest(ctx, query.ClaimRequestParams{
		CallerID: r.CallerID, RequestID: r.RequestID, Fingerprint: r.Fingerprint, MadeID: id, ExpireTime: r.ExpireTime, Now: r.Time,
	})
	if err != nil || claimed > 0 {
		return "", err
	}
	first, err := w.Request(ctx, query.RequestParams{CallerID: r.CallerID, RequestID: r.RequestID})
	if err != nil {
		return "", err
	}
	if !hmac.Equal(first.Fingerprint, r.Fingerprint) {
		return "", order.ErrRequestIDReused
	}
	return first.MadeID, nil
}
