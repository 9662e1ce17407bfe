package postgres_test

import (
	"crypto/rand"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/events"
	"github.com/marquee-ads/marquee/platform/paging"
	"github.com/marquee-ads/marquee/platform/pgtest"
	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/postgres"
	"github.com/marquee-ads/marquee/services/device/postgres/postgrestest"
)

var pg pgtest.Server

func TestMain(m *testing.M) { os.Exit(pg.Main(m)) }

// The tables of platform/events are its own, as it has them.
func TestEventsMigration(t *testing.T) {
	text, err := os.ReadFile("migrations/00004_events.sql")
	require.NoError(t, err)
	up, _, found := strings.Cut(string(text), "-- +goose Down\n")
	require.True(t, found)
	require.Equal(t, "-- +goose Up\n\n"+events.Schema()+"\n", up)
}

// A change that other services cannot be told of is not made.
func TestUntold(t *testing.T) {
	const organisation = "org_01ARZ3NDEKTSV4RRFFQ69G5FAV"
	settings := device.Settings{
		Name: "one", VenueType: "retail.malls", Screen: device.Screen{Width: 1, Height: 1}, LoopLength: time.Minute, SlotLength: 10 * time.Second,
		SlotPrice: device.Price{Currency: "EUR"}, TimeZone: "UTC",
	}
	store, db := postgrestest.New(t, &pg)
	outbox, err := events.NewOutbox(postgres.Stream(1))
	require.NoError(t, err)
	untold := errors.New("no payload")
	silent := postgres.New(db, outbox, func(device.Device) ([]byte, error) { return nil, untold })
	of := func(s *postgres.Store) *device.Service {
		return device.New(s, device.DefaultThrottle(), time.Now, rand.Reader)
	}
	ctx, telling, mute := t.Context(), of(store), of(silent)

	_, err = mute.Create(ctx, "acc_1", "request-1", organisation, settings)
	require.ErrorIs(t, err, untold)
	list, _, err := telling.List(ctx, organisation, device.Filter{}, paging.Page{})
	require.NoError(t, err)
	require.Empty(t, list)

	made, err := telling.Create(ctx, "acc_1", "request-1", organisation, settings)
	require.NoError(t, err)
	unchanged := func() {
		t.Helper()
		found, err := telling.Find(ctx, organisation, made.ID)
		require.NoError(t, err)
		require.Equal(t, made, found)
	}
	dearer := settings
	dearer.SlotPrice.AmountMinor = 100
	_, err = mute.Update(ctx, organisation, made.ID, dearer, 0)
	require.ErrorIs(t, err, untold)
	unchanged()
	_, err = mute.Update(ctx, organisation, made.ID, settings, 0)
	require.NoError(t, err, "nothing changes, and nothing is to be told")
	code, _, err := mute.CreateClaimCode(ctx, organisation, made.ID)
	require.NoError(t, err)
	_, err = mute.Claim(ctx, code, "")
	require.ErrorIs(t, err, untold)
	unchanged()
	require.NoError(t, mute.Revoke(ctx, organisation, made.ID), "it has no credentials yet")
	require.ErrorIs(t, mute.Delete(ctx, organisation, made.ID), untold)
	unchanged()

	code, _, err = telling.CreateClaimCode(ctx, organisation, made.ID)
	require.NoError(t, err)
	_, err = telling.Claim(ctx, code, "")
	require.NoError(t, err)
	made, err = telling.Find(ctx, organisation, made.ID)
	require.NoError(t, err)
	require.Equal(t, device.Claimed, made.State)
	require.ErrorIs(t, mute.Revoke(ctx, organisation, made.ID), untold)
	unchanged()
}
