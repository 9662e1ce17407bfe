// Package postgrestest gives tests a store on an empty database of a real Postgres.
package postgrestest

import (
	"context"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"

	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/platform/events"
	"github.com/marquee-ads/marquee/platform/pgtest"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres"
	"github.com/marquee-ads/marquee/services/order/server"
)

// On makes a store that is ready, and the database below it; they end with the test.
func On(tb testing.TB, pg *pgtest.Server) (*postgres.Store, *database.Database) {
	tb.Helper()
	name, _, _ := strings.Cut(strings.TrimPrefix(pg.Database(tb), "postgres:///"), "?")
	db, err := database.Open(tb.Context(), database.Config{
		Application: "order", Host: pg.SocketDir(tb), Name: name, User: "test", MaxConns: 8,
	}, hclog.NewNullLogger())
	if err != nil {
		tb.Fatalf("postgrestest: %v", err)
	}
	tb.Cleanup(db.Close)
	outbox, err := events.NewOutbox(postgres.Stream(1))
	if err != nil {
		tb.Fatalf("postgrestest: %v", err)
	}
	store := postgres.New(db, outbox, server.Event, order.DefaultPlatformShare)
	if err := store.Prepare(tb.Context()); err != nil {
		tb.Fatalf("postgrestest: %v", err)
	}
	return store, db
}

// Put stores a display, as an event about it does.
func Put(tb testing.TB, store *postgres.Store, db *database.Database, d order.Display) {
	tb.Helper()
	if err := db.Transact(tb.Context(), func(ctx context.Context, tx pgx.Tx) error { return store.PutDisplay(ctx, tx, d) }); err != nil {
		tb.Fatalf("postgrestest: %v", err)
	}
}
