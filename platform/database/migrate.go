package database

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

// migrationLock is the advisory lock that whoever migrates holds.
const migrationLock int64 = 0x6d617271_0001

// Prepare returns once the database is there, has today's schema (goose's
// migrations in files), and what else the service needs of it before it serves
// has been done, in this order. While the database is away it waits: exiting
// would only make whoever starts this process do the same. Instances that start
// together take turns at migrating; those that come later find nothing to do.
func (d *Database) Prepare(ctx context.Context, files fs.FS, then ...func(context.Context) error) error {
	for {
		err := d.waitUntilThere(ctx)
		if err == nil {
			err = translate(ctx, d.migrate(ctx, files))
		}
		for _, step := range then {
			if err == nil {
				err = translate(ctx, step(ctx))
			}
		}
		if ctx.Err() != nil || !errors.Is(err, ErrUnavailable) {
			return err
		}
		d.log.Warn("the database went away while starting; waiting for it", "error", err)
	}
}

// migrate brings the schema up to date.
func (d *Database) migrate(ctx context.Context, files fs.FS) error {
	ctx, cancel := context.WithTimeout(ctx, migrationTimeout)
	defer cancel()
	config := d.pool.Config().ConnConfig.Copy()
	// A migration, and waiting for another instance's, may take longer than a call.
	for _, limit := range []string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"} {
		config.RuntimeParams[limit] = "0"
	}
	db := stdlib.OpenDB(*config)
	defer db.Close()
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithSessionLocker(advisoryLock{}), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("preparing the migrations: %w", err)
	}
	results, err := provider.Up(ctx)
	if err != nil {
		return fmt.Errorf("migrating the database: %w", err)
	}
	for _, r := range results {
		d.log.Info("migrated the database", "to", r.Source.Version, "took", r.Duration.Round(time.Millisecond))
	}
	return nil
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
