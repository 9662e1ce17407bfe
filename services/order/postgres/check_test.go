package postgres_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/pgtest"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres/postgrestest"
)

// With the constraint nothing can be sold twice, whatever the code does. Without it
// the check finds what was.
func TestCheckDoubleSale(t *testing.T) {
	const (
		device = "dev_01ARZ3NDEKTSV4RRFFQ69G5FAV"
		owner  = "org_01CZ5ZZKBKACTAV9WEVGEMMVRZ"
		buyer  = "org_01ARZ3NDEKTSV4RRFFQ69G5FAV"
		caller = "acc_ada"
	)
	ctx := t.Context()
	store, db := postgrestest.On(t, pgtest.Start(t))
	now := time.Now()
	require.NoError(t, db.Transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
		return store.PutDisplay(ctx, tx, order.Display{
			DeviceID: device, OrganisationID: owner, Name: "Gate 7", VenueType: "transit", WidthPX: 1080, HeightPX: 1920,
			LoopLength: time.Minute, SlotLength: 10 * time.Second, SlotPrice: order.Money{Minor: 1, Currency: "EUR"},
			TimeZone: "Europe/Berlin", Revision: 1, Playable: true,
		})
	}))
	require.NoError(t, store.Move(ctx, now, order.Entry{
		Kind: order.TopUp, From: order.External(), To: order.Wallet(buyer), Money: order.Money{Minor: 1_000_000, Currency: "EUR"}, Reference: "cash",
	}))
	service := order.New(store, order.Outside{}, time.Now, rand.Reader)
	date := airtime.DateOf(now, time.UTC).Add(5).String()
	var lines []order.Line
	for n := range 2 {
		held, err := service.HoldOrder(ctx, caller, fmt.Sprintf("hold-%d", n), order.HoldRequest{
			OrganisationID: buyer, Lines: []order.LineRequest{{DeviceID: device, StartDate: date, EndDate: date, Slots: 1}},
		})
		require.NoError(t, err)
		_, err = service.BookOrder(ctx, caller, fmt.Sprintf("book-%d", n), buyer, held.ID)
		require.NoError(t, err)
		lines = append(lines, held.Lines...)
	}
	require.Equal(t, [][]int{{0}, {1}}, [][]int{lines[0].Slots, lines[1].Slots})
	findings := func() []string {
		t.Helper()
		found, err := store.CheckLedger(ctx)
		require.NoError(t, err)
		return found
	}
	require.Empty(t, findings())

	const moves = "UPDATE reservations SET place = (SELECT place FROM reservations WHERE line_id = $1) WHERE line_id = $2"
	_, err := db.Pool().Exec(ctx, moves, lines[0].ID, lines[1].ID)
	var refused *pgconn.PgError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, "reservations_no_double_sale", refused.ConstraintName)
	require.Empty(t, findings())

	_, err = db.Pool().Exec(ctx, "ALTER TABLE reservations DROP CONSTRAINT reservations_no_double_sale")
	require.NoError(t, err)
	_, err = db.Pool().Exec(ctx, moves, lines[0].ID, lines[1].ID)
	require.NoError(t, err)
	_, err = db.Pool().Exec(ctx, "UPDATE lines SET slots = '{0}' WHERE line_id = $1", lines[1].ID)
	require.NoError(t, err)
	one, other := min(lines[0].ID, lines[1].ID), max(lines[0].ID, lines[1].ID)
	require.Equal(t, []string{fmt.Sprintf("place [4096,4097) is sold twice at one time: to line %s and line %s", one, other)}, findings())
}
