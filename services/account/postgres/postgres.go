// Package postgres keeps accounts, sessions, organisations and signing keys in
// Postgres.
package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"

	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/services/account"
	"github.com/marquee-ads/marquee/services/account/postgres/query"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store implements account.Store and account.KeyStore.
type Store struct {
	db *database.Database
	q  *query.Queries
}

// New keeps them in a database, which Prepare makes ready.
func New(db *database.Database) *Store { return &Store{db: db, q: query.New(db.Pool())} }

// Prepare waits for the database, brings its schema up to date, and does what
// else is needed of it before it is used: database.Database.Prepare.
func (s *Store) Prepare(ctx context.Context, then ...func(context.Context) error) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("finding the migrations: %w", err)
	}
	return s.db.Prepare(ctx, files, then...)
}

func (s *Store) call(ctx context.Context, use func(context.Context) error) error {
	return translate(s.db.Call(ctx, use))
}

func (s *Store) read(ctx context.Context, use func(context.Context) error) error {
	return translate(s.db.Read(ctx, use))
}

func (s *Store) transact(ctx context.Context, use func(context.Context, *query.Queries) error) error {
	return translate(s.db.Transact(ctx, func(ctx context.Context, tx pgx.Tx) error { return use(ctx, s.q.WithTx(tx)) }))
}

// translate is the one place that turns what the database says into what the
// domain knows.
func translate(err error) error {
	switch {
	case none(err):
		return account.ErrNotFound.Because(err)
	case database.Violated(err) == "accounts_name_key_unique":
		return account.ErrNameTaken.Because(err)
	}
	return err
}

// none says whether a query found no row.
func none(err error) bool { return errors.Is(err, pgx.ErrNoRows) }
