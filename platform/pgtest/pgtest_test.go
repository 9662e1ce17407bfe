package pgtest_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/pgtest"
)

func TestMain(m *testing.M) {
	var pg pgtest.Server
	shared = &pg
	os.Exit(pg.Main(m))
}

var shared *pgtest.Server

func connect(t *testing.T, url string) (*pgx.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err == nil {
		t.Cleanup(func() { conn.Close(context.Background()) })
	}
	return conn, err
}

func TestDatabase(t *testing.T) {
	// Both make the same table: they would clash in one database.
	for range 2 {
		conn, err := connect(t, shared.Database(t))
		require.NoError(t, err)
		_, err = conn.Exec(t.Context(), "CREATE TABLE things (id int)")
		require.NoError(t, err)
	}
}

func TestOutage(t *testing.T) {
	pg := pgtest.Start(t)
	url := pg.Database(t)
	conn, err := connect(t, url)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "CREATE TABLE things (id int)")
	require.NoError(t, err)
	pg.Stop(t)
	_, err = connect(t, url)
	require.Error(t, err)
	pg.Restart(t)
	conn, err = connect(t, url)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "SELECT id FROM things")
	require.NoError(t, err)
}
