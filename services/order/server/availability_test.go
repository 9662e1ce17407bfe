package server_test

import (
	"context"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/marquee-ads/marquee/platform/events"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres/postgrestest"
	"github.com/marquee-ads/marquee/services/order/server"
)

// aDevice is what the device service tells of one.
func aDevice() *devicev1.Device {
	return &devicev1.Device{
		DeviceId: display, OrganisationId: owner, State: devicev1.DeviceState_DEVICE_STATE_CLAIMED, Revision: 3,
		Settings: &devicev1.DeviceSettings{
			Name: "Gate 7", Place: &devicev1.Place{Latitude: 48.35, Longitude: 11.79, Address: "Terminal 2"}, VenueType: "transit.airports.gates",
			Screen: &devicev1.Screen{WidthPx: 1080, HeightPx: 1920}, LoopLengthSeconds: 60, SlotLengthSeconds: 10,
			SlotPrice: &devicev1.Price{AmountMinor: 250, Currency: "EUR"}, TimeZone: "Europe/Berlin",
			Hours: []*devicev1.OpeningHours{{Weekday: devicev1.Weekday_WEEKDAY_TUESDAY, OpenMinute: 480, CloseMinute: 600}},
		},
	}
}

// TestSearchAvailability is from an event about a display to what is found, in
// messages.
func TestSearchAvailability(t *testing.T) {
	store, db := postgrestest.On(t, &pg)
	handle := server.DisplayHandler(store)
	tell := func(subject string, payload []byte) error {
		return db.Transact(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
			return handle(ctx, tx, events.Event{Subject: subject, Key: display, Payload: payload})
		})
	}
	changed := func(change func(*devicev1.Device)) []byte {
		d := aDevice()
		change(d)
		payload, err := proto.Marshal(&devicev1.DeviceChanged{Device: d})
		require.NoError(t, err)
		return payload
	}
	now := time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)
	s := server.NewServer(order.New(store, order.Outside{}, func() time.Time { return now }, rand.Reader))
	search := func(t *testing.T, change func(*orderv1.SearchAvailabilityRequest)) []*orderv1.Availability {
		t.Helper()
		request := &orderv1.SearchAvailabilityRequest{OrganisationId: buyer, Flight: &orderv1.Flight{StartDate: "2026-03-09", EndDate: "2026-03-15"}, Slots: 2}
		change(request)
		found, err := s.SearchAvailability(t.Context(), request)
		require.NoError(t, err)
		require.Empty(t, found.GetNextPageToken())
		return found.GetDisplays()
	}
	all := func(*orderv1.SearchAvailabilityRequest) {}

	require.Empty(t, search(t, all))
	require.NoError(t, tell("device.created", changed(func(d *devicev1.Device) { d.State = devicev1.DeviceState_DEVICE_STATE_UNCLAIMED })))
	require.Empty(t, search(t, all), "no player can play on it")
	require.NoError(t, tell("device.claimed", changed(func(*devicev1.Device) {})))
	found := search(t, all)
	require.Len(t, found, 1)
	require.Equal(t, (&orderv1.Availability{
		DeviceId: display, Name: "Gate 7", Place: &orderv1.Place{Latitude: 48.35, Longitude: 11.79, Address: "Terminal 2"},
		VenueType: "transit.airports.gates", WidthPx: 1080, HeightPx: 1920, TimeZone: "Europe/Berlin", SlotLengthSeconds: 10, SlotsPerLoop: 6,
		FreeSlots: 6, SlotPrice: &orderv1.Money{AmountMinor: 250, Currency: "EUR"}, Plays: 240, Price: &orderv1.Money{AmountMinor: 60_000, Currency: "EUR"},
	}).String(), found[0].String())

	for name, c := range map[string]struct {
		change func(*orderv1.SearchAvailabilityRequest)
		found  int
	}{
		"Dayparts": {func(r *orderv1.SearchAvailabilityRequest) {
			r.Dayparts = []*orderv1.Daypart{{Weekday: 3, EndMinute: 60}}
		}, 0},
		"Area": {func(r *orderv1.SearchAvailabilityRequest) {
			r.Area = &orderv1.Area{South: 48, West: 11, North: 49, East: 12}
		}, 1},
		"AreaOther": {func(r *orderv1.SearchAvailabilityRequest) {
			r.Area = &orderv1.Area{South: 48, West: 12, North: 49, East: 11.5}
		}, 0},
		"Venue":     {func(r *orderv1.SearchAvailabilityRequest) { r.VenueTypes = []string{"retail"} }, 0},
		"Landscape": {func(r *orderv1.SearchAvailabilityRequest) { r.Orientation = orderv1.Orientation_ORIENTATION_LANDSCAPE }, 0},
		"Portrait":  {func(r *orderv1.SearchAvailabilityRequest) { r.Orientation = orderv1.Orientation_ORIENTATION_PORTRAIT }, 1},
		"Width":     {func(r *orderv1.SearchAvailabilityRequest) { r.MinWidthPx = 1081 }, 0},
		"Height":    {func(r *orderv1.SearchAvailabilityRequest) { r.MinHeightPx = 1921 }, 0},
		"Price": {func(r *orderv1.SearchAvailabilityRequest) {
			r.MaxSlotPrice = &orderv1.Money{AmountMinor: 249, Currency: "EUR"}
		}, 0},
		"IDs":   {func(r *orderv1.SearchAvailabilityRequest) { r.DeviceIds = []string{"dev_other"} }, 0},
		"Slots": {func(r *orderv1.SearchAvailabilityRequest) { r.Slots = 7 }, 0},
		"Full":  {func(r *orderv1.SearchAvailabilityRequest) { r.Slots, r.IncludeFull = 7, true }, 1},
	} {
		t.Run(name, func(t *testing.T) { require.Len(t, search(t, c.change), c.found) })
	}
	_, err := s.SearchAvailability(t.Context(), &orderv1.SearchAvailabilityRequest{Flight: &orderv1.Flight{StartDate: "2026-03-09", EndDate: "2026-03-08"}})
	require.ErrorIs(t, err, order.ErrSearch)

	t.Run("EventsThatAreNone", func(t *testing.T) {
		for name, payload := range map[string][]byte{
			"Bytes": []byte("no message"), "Empty": {},
			"NoSlots": changed(func(d *devicev1.Device) { d.Settings.SlotLengthSeconds = 0 }),
			"Loop":    changed(func(d *devicev1.Device) { d.Settings.LoopLengthSeconds = 61 }),
		} {
			err := tell("device.updated", payload)
			require.Error(t, err, name)
			require.Equal(t, err, events.Permanent(errors.Unwrap(err)), "%s is tried again", name)
		}
		require.Len(t, search(t, all), 1)
	})
	t.Run("Deleted", func(t *testing.T) {
		require.NoError(t, tell("device.deleted", changed(func(*devicev1.Device) {})))
		require.Empty(t, search(t, all))
	})
}
