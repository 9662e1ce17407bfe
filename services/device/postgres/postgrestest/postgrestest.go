// Package postgrestest gives tests a store on an empty database of a real Postgres.
package postgrestest

import (
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/platform/events"
	"github.com/marquee-ads/marquee/platform/pgtest"
	"github.com/marquee-ads/marquee/services/device/postgres"
	"github.com/marquee-ads/marquee/services/device/server"
)

// New makes a store that is ready, and the database below it; they end with the
// test.
func New(tb testing.TB, pg *pgtest.Server) (*postgres.Store, *database.Database) {
	tb.Helper()
	name, _, _ := strings.Cut(strings.TrimPrefix(pg.Database(tb), "postgres:///"), "?")
	db, err := database.Open(tb.Context(), database.Config{
		Application: "device", Host: pg.SocketDir(tb), Name: name, User: "test", MaxConns: 6,
	}, hclog.NewNullLogger())
	if err != nil {
		tb.Fatalf("postgrestest: %v", err)
	}
	tb.Cleanup(db.Close)
	outbox, err := events.NewOutbox(postgres.Stream(1))
	if err != nil {
		tb.Fatalf("postgrestest: %v", err)
	}
	store := postgres.New(db, outbox, server.Event)
	if err := store.Prepare(tb.Context()); err != nil {
		tb.Fatalf("postgrestest: %v", err)
	}
	return store, db
}
