package order_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres/postgrestest"
)

// deviceList stands for the device service: what it lists in pages, the greatest ids
// first.
type deviceList struct {
	pages [][]order.Display
	// reading, when set, is called between reading a page and answering with it.
	reading func(page int)
	err     error
}

func (l *deviceList) ListDisplays(_ context.Context, token string) ([]order.Display, string, error) {
	page := len(token)
	if l.reading != nil {
		l.reading(page)
	}
	if page == len(l.pages)-1 {
		return l.pages[page], "", l.err
	}
	return l.pages[page], token + "x", nil
}

func display(id string, change ...func(*order.Display)) order.Display {
	d := order.Display{
		DeviceID: id, OrganisationID: owner, Name: "Gate 7", Latitude: 48.35, Longitude: 11.79, Address: "Terminal 2",
		VenueType: "transit.airports.gates", WidthPX: 1080, HeightPX: 1920, LoopLength: time.Minute, SlotLength: 10 * time.Second,
		SlotPrice: order.Money{Minor: 250, Currency: "EUR"}, TimeZone: "Europe/Berlin",
		Hours: []airtime.Opening{{Weekday: 1, Open: 360, Close: 1440}}, Revision: 3, Playable: true,
	}
	for _, c := range change {
		c(&d)
	}
	return d
}

func unplayable(d *order.Display) { d.Playable = false }

func (m *market) displays(t *testing.T, ids ...string) map[string]order.Display {
	t.Helper()
	found, err := m.store.Displays(t.Context(), ids)
	require.NoError(t, err)
	return found
}

// tell is what an event about a display does.
func (m *market) tell(t *testing.T, d order.Display) {
	t.Helper()
	postgrestest.Put(t, m.store, m.db, d)
}

func TestDisplayEvents(t *testing.T) {
	m := newMarket(t)
	m.tell(t, display("dev_one"))
	first := m.displays(t, "dev_one", "dev_nobody")
	require.Len(t, first, 1)
	want := display("dev_one")
	want.Number = first["dev_one"].Number
	require.Equal(t, want, first["dev_one"])
	require.NotZero(t, want.Number)

	changed := display("dev_one", func(d *order.Display) {
		d.Name, d.Hours, d.Revision, d.Number = "Gate 8", nil, 4, want.Number
	})
	m.tell(t, changed)
	require.Equal(t, changed, m.displays(t, "dev_one")["dev_one"])
	m.tell(t, display("dev_one", unplayable))
	require.Equal(t, changed, m.displays(t, "dev_one")["dev_one"], "what is older changed something")

	changed.Playable = false
	m.tell(t, changed)
	require.Equal(t, changed, m.displays(t, "dev_one")["dev_one"])
}

func TestSyncDisplays(t *testing.T) {
	m := newMarket(t)
	m.tell(t, display("dev_1"))
	m.tell(t, display("dev_2", unplayable))
	m.tell(t, display("dev_4"))
	m.tell(t, display("dev_6"))
	m.tell(t, display("dev_9"))
	before := m.displays(t, "dev_1", "dev_2", "dev_4", "dev_6", "dev_9")
	devices := &deviceList{pages: [][]order.Display{
		{display("dev_8"), display("dev_7"), display("dev_6")},
		{},
		{display("dev_5"), display("dev_3", unplayable)},
		{display("dev_2"), display("dev_1", func(d *order.Display) { d.Name, d.Revision = "Gate 8", 4 })},
	}}
	sync := func(t *testing.T) int {
		t.Helper()
		changed, err := m.SyncDisplays(t.Context(), devices)
		require.NoError(t, err)
		return changed
	}
	require.Equal(t, 8, sync(t), "new are 8, 7, 5 and 3; 1 and 2 changed; 4 and 9 are gone")
	require.Zero(t, sync(t), "a repeat changes something")
	all := m.displays(t, "dev_1", "dev_2", "dev_3", "dev_4", "dev_5", "dev_6", "dev_7", "dev_8", "dev_9")
	playable := map[string]bool{}
	for id, d := range all {
		playable[id] = d.Playable
		if known, ok := before[id]; ok {
			require.Equal(t, known.Number, d.Number, id)
		}
	}
	require.Equal(t, map[string]bool{
		"dev_1": true, "dev_2": true, "dev_3": false, "dev_4": false, "dev_5": true, "dev_6": true, "dev_7": true, "dev_8": true, "dev_9": false,
	}, playable)
	require.Equal(t, "Gate 8", all["dev_1"].Name)
	require.Equal(t, "Gate 7", all["dev_9"].Name, "what was deleted stays for what was sold on it")

	t.Run("EventsMeanwhileStay", func(t *testing.T) {
		devices.reading = func(page int) {
			if page == 0 { // after the clock was read, so the list may or may not have it
				m.tell(t, display("dev_99"))
				m.tell(t, display("dev_7", unplayable))
				m.tell(t, display("dev_8", func(d *order.Display) { d.Revision, d.Name = 9, "Gate 9" }))
			}
		}
		defer func() { devices.reading = nil }()
		require.Zero(t, sync(t))
		all := m.displays(t, "dev_99", "dev_7", "dev_8")
		require.True(t, all["dev_99"].Playable)
		require.False(t, all["dev_7"].Playable)
		require.Equal(t, "Gate 9", all["dev_8"].Name)
	})
	t.Run("WhatWasMissedComesLater", func(t *testing.T) {
		devices.pages[0] = []order.Display{display("dev_8", func(d *order.Display) { d.Revision, d.Name = 9, "Gate 9" }), display("dev_7"), display("dev_6")}
		require.Equal(t, 2, sync(t), "99 is gone, 7 can play")
	})
	t.Run("OneInstance", func(t *testing.T) {
		devices.pages[3] = []order.Display{display("dev_2")}
		calls := 0
		devices.reading = func(int) {
			calls++
			other, err := m.SyncDisplays(t.Context(), &deviceList{})
			require.NoError(t, err)
			require.Zero(t, other)
		}
		defer func() { devices.reading = nil }()
		require.Equal(t, 1, sync(t))
		require.Equal(t, len(devices.pages), calls)
	})
	t.Run("Errors", func(t *testing.T) {
		devices.err = order.ErrDevicesUnavailable
		_, err := m.SyncDisplays(t.Context(), devices)
		require.ErrorIs(t, err, order.ErrDevicesUnavailable)
		devices.err = nil
		require.Zero(t, sync(t), "the lock is still held")
	})
	t.Run("Many", func(t *testing.T) {
		var many []order.Display
		for n := range 1000 {
			many = append(many, display(fmt.Sprintf("dev_1%03d", 999-n)))
		}
		devices.pages = [][]order.Display{many}
		require.Equal(t, 1000+5, sync(t), "2, 5, 6, 7 and 8 are gone")
		require.Zero(t, sync(t))
	})
	t.Run("Cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		devices.reading = func(int) { cancel() }
		_, err := m.SyncDisplays(ctx, devices)
		require.ErrorIs(t, err, context.Canceled)
		devices.reading = nil
		require.Zero(t, sync(t), "the lock is still held")
	})
	t.Run("PagesWithoutEnd", func(t *testing.T) {
		_, err := m.SyncDisplays(t.Context(), endless{})
		require.Error(t, err)
		require.False(t, errors.Is(err, context.DeadlineExceeded))
	})
}

// endless answers each page with an empty one.
type endless struct{}

func (endless) ListDisplays(context.Context, string) ([]order.Display, string, error) {
	return nil, "next", nil
}
