package postgres

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrations embed.FS

// The names of the advisory locks in this database.
const (
	migrationLock int64 = 0x6d617271_0001
	rotationLock  int64 = 0x6d617271_0002
)

// Migrate brings the schema up to date. Instances that start together take
// turns; those that come later find nothing to do. The error is
// account.ErrDatabaseUnavailable when trying again can help.
func (s *Store) Migrate(ctx context.Context) error {
	return translate(ctx, s.migrate(ctx))
}

func (s *Store) migrate(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, migrationTimeout)
	defer cancel()
	config := s.pool.Config().ConnConfig.Copy()
	// A migration, and waiting for another instance's, may take longer than a call.
	for _, limit := range []string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"} {
		config.RuntimeParams[limit] = "0"
	}
	db := stdlib.OpenDB(*config)
	defer db.Close()
	provider, err := provider(db)
	if err != nil {
		return err
	}
	results, err := provider.Up(ctx)
	if err != nil {
		return fmt.Errorf("migrating the database: %w", err)
	}
	for _, r := range results {
		s.log.Info("migrated the database", "to", r.Source.Version, "took", r.Duration.Round(time.Millisecond))
	}
	return nil
}

func provider(db *sql.DB) (*goose.Provider, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, fmt.Errorf("finding the migrations: %w", err)
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithSessionLocker(advisoryLock{}), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return nil, fmt.Errorf("preparing the migrations: %w", err)
	}
	return p, nil
}

// advisoryLock makes instances take turns at migrating. goose's own asks again
// every few seconds; this one waits in the database and goes on at once.
type advisoryLock struct{}

func (advisoryLock) SessionLock(ctx context.Context, conn *sql.Conn) error {
	if _, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock($1)", migrationLock); err != nil {
		return fmt.Errorf("waiting for the turn to migrate: %w", err)
	}
	return nil
}

func (advisoryLock) SessionUnlock(ctx context.Context, conn *sql.Conn) error {
	var held bool
	if err := conn.QueryRowContext(ctx, "SELECT pg_advisory_unlock($1)", migrationLock).Scan(&held); err != nil {
		return fmt.Errorf("ending the turn to migrate: %w", err)
	}
	if !held {
		return errors.New("ending the turn to migrate: the lock was not held")
	}
	return nil
}
