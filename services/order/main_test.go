package order_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/paging"
	"github.com/marquee-ads/marquee/platform/pgtest"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres"
	"github.com/marquee-ads/marquee/services/order/postgres/postgrestest"
)

var pg pgtest.Server

func TestMain(m *testing.M) { os.Exit(pg.Main(m)) }

// Organisations.
const (
	buyer   = "org_01ARZ3NDEKTSV4RRFFQ69G5FAV"
	another = "org_01BX5ZZKBKACTAV9WEVGEMMVRZ"
	owner   = "org_01CZ5ZZKBKACTAV9WEVGEMMVRZ"
)

// ada is whose request ids they are.
const ada = "acc_ada"

// market is a service on a database of its own.
type market struct {
	*order.Service
	store *postgres.Store
	db    *database.Database
	// clock is the service's, in Unix nanoseconds. That of the database is real.
	clock    atomic.Int64
	requests atomic.Int64
}

// newMarket is open on a Monday. When the test ends its ledger is looked through, and
// that no slot is sold twice.
func newMarket(t *testing.T) *market {
	t.Helper()
	store, db := postgrestest.On(t, &pg)
	m := &market{store: store, db: db}
	m.set(time.Date(2026, 3, 2, 10, 0, 0, 250_000_000, time.UTC))
	m.Service = order.New(store, order.Outside{}, func() time.Time { return time.Unix(0, m.clock.Load()) }, rand.Reader)
	t.Cleanup(func() {
		// The test's context has ended.
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		found, err := store.CheckLedger(ctx)
		require.NoError(t, err)
		require.Empty(t, found)
	})
	return m
}

func (m *market) set(now time.Time) { m.clock.Store(now.UnixNano()) }

func (m *market) requestID() string { return fmt.Sprintf("request-%d", m.requests.Add(1)) }

// put makes a display in Berlin, always on, with 6 slots of 10 s at 250 cents, and
// changes of that in SQL.
func (m *market) put(t *testing.T, id string, changes ...string) {
	t.Helper()
	postgrestest.Put(t, m.store, m.db, order.Display{
		DeviceID: id, OrganisationID: owner, Name: id, Latitude: 52.5, Longitude: 13.4, VenueType: "transit", WidthPX: 1920, HeightPX: 1080,
		LoopLength: time.Minute, SlotLength: 10 * time.Second, SlotPrice: eur(250), TimeZone: "Europe/Berlin", Revision: 1, Playable: true,
	})
	for _, change := range changes {
		m.exec(t, "UPDATE displays SET "+change+" WHERE device_id = $1", id)
	}
}

func (m *market) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	_, err := m.db.Pool().Exec(t.Context(), sql, args...)
	require.NoError(t, err)
}

// get is the one value that a query returns.
func get[T any](t *testing.T, m *market, sql string, args ...any) (value T) {
	t.Helper()
	require.NoError(t, m.db.Pool().QueryRow(t.Context(), sql, args...).Scan(&value))
	return value
}

// fund puts money into a wallet.
func (m *market) fund(t *testing.T, organisationID string, money order.Money) {
	t.Helper()
	id := m.requestID()
	_, err := m.store.TopUp(t.Context(), order.Request{
		CallerID: ada, RequestID: id, Fingerprint: make([]byte, 32), Time: time.Now(), ExpireTime: time.Now().Add(time.Hour),
	}, order.Entry{Kind: order.TopUp, From: order.External(), To: order.Wallet(organisationID), Money: money, Reference: id})
	require.NoError(t, err)
}

func (m *market) balance(t *testing.T, organisationID string) int64 {
	t.Helper()
	balances, err := m.Balances(t.Context(), organisationID)
	require.NoError(t, err)
	if len(balances) == 0 {
		return 0
	}
	require.Len(t, balances, 1)
	return balances[0].Minor
}

// slotOn is a slot of a display for days of March.
func slotOn(deviceID string, first, last int) order.LineRequest {
	return order.LineRequest{
		DeviceID: deviceID, StartDate: fmt.Sprintf("2026-03-%02d", first), EndDate: fmt.Sprintf("2026-03-%02d", last), Slots: 1,
	}
}

func (m *market) hold(t *testing.T, organisationID string, lines ...order.LineRequest) (order.Order, error) {
	t.Helper()
	m.clock.Add(int64(time.Millisecond)) // for the order of their ids
	return m.HoldOrder(t.Context(), ada, m.requestID(), order.HoldRequest{OrganisationID: organisationID, Lines: lines})
}

// held is hold when it cannot fail.
func (m *market) held(t *testing.T, organisationID string, lines ...order.LineRequest) order.Order {
	t.Helper()
	o, err := m.hold(t, organisationID, lines...)
	require.NoError(t, err)
	return o
}

func (m *market) book(t *testing.T, o order.Order) (order.Order, error) {
	t.Helper()
	return m.BookOrder(t.Context(), ada, m.requestID(), o.OrganisationID, o.ID)
}

func (m *market) booked(t *testing.T, o order.Order) order.Order {
	t.Helper()
	o, err := m.book(t, o)
	require.NoError(t, err)
	return o
}

func (m *market) cancel(t *testing.T, o order.Order) (order.Order, error) {
	t.Helper()
	return m.CancelOrder(t.Context(), ada, m.requestID(), o.OrganisationID, o.ID)
}

func (m *market) find(t *testing.T, o order.Order) order.Order {
	t.Helper()
	found, err := m.FindOrder(t.Context(), o.OrganisationID, o.ID)
	require.NoError(t, err)
	return found
}

// states are those of the orders in a list, with a state or of all.
func (m *market) states(t *testing.T, organisationID string, state order.State) []order.State {
	t.Helper()
	found, next, err := m.ListOrders(t.Context(), organisationID, state, paging.Page{})
	require.NoError(t, err)
	require.Empty(t, next)
	states := []order.State{}
	for _, o := range found {
		states = append(states, o.State)
	}
	return states
}

// refused requires that err is want, and names a field when that is given.
func refused(t *testing.T, err error, want *fault.Error, path string) *fault.Error {
	t.Helper()
	require.ErrorIs(t, err, want)
	f, ok := fault.From(err)
	require.True(t, ok)
	if path != "" {
		require.Len(t, f.Fields, 1, "%v", err)
		require.Equal(t, path, f.Fields[0].Path, "%v", f.Fields[0])
		require.NotEmpty(t, f.Fields[0].Description)
	}
	return f
}
