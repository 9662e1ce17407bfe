package order_test

import (
	"context"
	"crypto/rand"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/services/order"
)

const (
	firstDevice  = "dev_01ARZ3NDEKTSV4RRFFQ69G5FAV"
	secondDevice = "dev_01BX5ZZKBKACTAV9WEVGEMMVRZ"
)

func TestSold(t *testing.T) {
	m := newMarket(t)
	m.fund(t, buyer, eur(100_000_000))
	for _, id := range []string{firstDevice, secondDevice} {
		m.put(t, id)
	}
	now := func() time.Time { return time.Unix(0, m.clock.Load()) }
	var want []order.LinePosition
	for range 3 {
		o := m.booked(t, m.held(t, buyer, slotOn(secondDevice, 10, 12), slotOn(firstDevice, 10, 20)))
		want = append(want, order.LinePosition{DeviceID: secondDevice, LineID: o.Lines[0].ID}, order.LinePosition{DeviceID: firstDevice, LineID: o.Lines[1].ID})
	}
	m.held(t, buyer, slotOn(firstDevice, 10, 12))
	cancelled := m.booked(t, m.held(t, buyer, slotOn(firstDevice, 10, 12)))
	_, err := m.cancel(t, cancelled)
	require.NoError(t, err)

	sold := func(deviceIDs []string, limit int) (got []order.LinePosition) {
		t.Helper()
		for after := (order.LinePosition{}); ; {
			page, err := m.store.Sold(t.Context(), deviceIDs, now(), after, limit)
			require.NoError(t, err)
			for _, l := range page {
				require.False(t, l.Behind)
				require.EqualValues(t, 1, l.Revision)
				after = order.LinePosition{DeviceID: l.DeviceID, LineID: l.LineID}
				got = append(got, after)
			}
			if len(page) < limit {
				return got
			}
		}
	}
	all := sold(nil, 100)
	require.ElementsMatch(t, want, all)
	require.Equal(t, all, sold(nil, 2))
	require.Len(t, sold([]string{secondDevice}, 1), 3)
	require.Empty(t, sold([]string{"dev_x"}, 1))

	t.Run("Again", func(t *testing.T) {
		told := get[int](t, m, "SELECT count(*) FROM outbox")
		require.Equal(t, 8, told, "a booking of each line, and a cancellation")
		require.NoError(t, m.store.TellAgain(t.Context(), []string{want[0].LineID, want[1].LineID}, now()))
		require.Equal(t, told, get[int](t, m, "SELECT count(*) FROM outbox"), "nothing has changed")
	})

	t.Run("Keep", func(t *testing.T) {
		held := m.held(t, buyer, slotOn(secondDevice, 11, 11))
		booked := make(chan error, 1)
		require.NoError(t, m.store.KeepSold(t.Context(), secondDevice, now(), func(ctx context.Context, lines []order.BookedLine) error {
			require.Len(t, lines, 3)
			go func() {
				_, err := m.BookOrder(t.Context(), ada, "request-waits", held.OrganisationID, held.ID)
				booked <- err
			}()
			// Until it waits for the display.
			require.Eventually(t, func() bool {
				return get[int](t, m, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") == 1
			}, 2*time.Second, 5*time.Millisecond)
			again, err := m.store.Sold(ctx, []string{secondDevice}, now(), order.LinePosition{}, 100)
			require.NoError(t, err)
			require.Len(t, again, 3)
			return nil
		}))
		require.NoError(t, <-booked)
		require.Len(t, sold([]string{secondDevice}, 100), 4)
	})

	t.Run("Over", func(t *testing.T) {
		m.set(time.Date(2026, 3, 15, 0, 0, 0, 0, time.UTC))
		require.Len(t, sold(nil, 100), 3, "those until the 20th")
		m.set(time.Date(2026, 3, 21, 0, 0, 0, 0, time.UTC))
		require.Empty(t, sold(nil, 100))
	})
}

// plays are so many that count, of each line.
type plays map[string]int64

func (p plays) Sum(_ context.Context, lines []order.LinePeriod, _ bool) (sums []order.LinePlays, err error) {
	for _, l := range lines {
		if n, ok := p[l.LineID]; ok {
			sums = append(sums, order.LinePlays{LineID: l.LineID, Plays: n, Counted: n})
		}
	}
	return sums, nil
}

// An order is settled when its last line has ended for so long, and not before.
func TestSettle(t *testing.T) {
	m := newMarket(t)
	m.fund(t, buyer, eur(100_000_000))
	m.put(t, firstDevice, "price_minor = 1")
	counted := plays{}
	m.Service = order.New(m.store, order.Outside{Plays: counted}, func() time.Time { return time.Unix(0, m.clock.Load()) }, rand.Reader)
	before := m.balance(t, buyer)
	o := m.booked(t, m.held(t, buyer, slotOn(firstDevice, 10, 10), slotOn(firstDevice, 12, 12)))
	require.EqualValues(t, 2880, before-m.balance(t, buyer))
	counted[o.Lines[0].ID] = 700
	settle := func(now time.Time, want int) {
		t.Helper()
		m.set(now)
		settled, err := m.Settle(t.Context(), order.DefaultSettleAfter)
		require.NoError(t, err)
		require.Equal(t, want, settled)
	}
	end := o.Lines[1].End()
	settle(end.Add(order.DefaultSettleAfter), 0)
	require.Equal(t, order.Booked, m.find(t, o).State)
	settle(end.Add(order.DefaultSettleAfter+time.Second), 1)
	settle(end.Add(order.DefaultSettleAfter+time.Hour), 0)
	done := m.find(t, o)
	require.Equal(t, order.Completed, done.State)
	require.EqualValues(t, 2880-700, done.RefundedMinor)
	require.EqualValues(t, 560, done.Lines[0].EarnedMinor)
	require.EqualValues(t, 740, done.Lines[0].RefundedMinor)
	require.EqualValues(t, 1440, done.Lines[1].RefundedMinor)
	require.EqualValues(t, 700, before-m.balance(t, buyer))
	require.EqualValues(t, 560, m.balance(t, owner))
	_, err := m.cancel(t, o)
	require.ErrorIs(t, err, order.ErrState)
}
