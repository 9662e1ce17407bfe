package order_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/services/order"
)

func TestCancelOrder(t *testing.T) {
	begins := time.Date(2026, 3, 9, 23, 0, 0, 0, time.UTC) // the 10th in Berlin
	for name, c := range map[string]struct {
		now      time.Time
		refunded int64
		earned   int64
		past     []airtime.Range
		plays    int64
	}{
		"72HoursBefore": {begins.Add(-72 * time.Hour), 2 * priceOfADay, 0, nil, 0},
		"LaterThanThat": {begins.Add(-72*time.Hour + time.Second), priceOfADay, priceOfADay * 8 / 10, nil, 0},
		"InTheMiddle": {
			begins.Add(30*time.Hour - 500*time.Millisecond), 18 * 60 * 250 / 2, (2*priceOfADay - 18*60*250/2) * 8 / 10,
			[]airtime.Range{{From: begins, Until: begins.Add(30 * time.Hour)}}, 30 * 60,
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMarket(t)
			m.put(t, "dev_one", "slot_seconds = 60")
			m.fund(t, buyer, eur(3*priceOfADay))
			booked := m.booked(t, m.held(t, buyer, slotOn("dev_one", 10, 11)))
			told := get[int](t, m, "SELECT count(*) FROM outbox")
			m.set(c.now)
			o, err := m.CancelOrder(t.Context(), ada, "request-c", buyer, booked.ID)
			require.NoError(t, err)
			require.Equal(t, order.Cancelled, o.State)
			require.Equal(t, c.now.Truncate(time.Microsecond), o.CancelTime)
			require.Equal(t, c.refunded, o.RefundedMinor)
			require.Equal(t, booked.Price, o.Price)
			l := o.Lines[0]
			require.Equal(t, c.past, l.Times)
			require.Equal(t, c.plays, l.Plays)
			require.Equal(t, c.refunded, l.RefundedMinor)
			require.Equal(t, c.earned, l.EarnedMinor)
			require.True(t, l.Booked)
			require.Equal(t, priceOfADay+c.refunded, m.balance(t, buyer))
			require.Equal(t, c.earned, m.balance(t, owner))
			require.Equal(t, told+1, get[int](t, m, "SELECT count(*) FROM outbox"), "the display hears of it")
			require.Equal(t, len(c.past), get[int](t, m, "SELECT count(*) FROM reservations"))

			again, err := m.CancelOrder(t.Context(), ada, "request-c", buyer, booked.ID)
			require.NoError(t, err)
			require.Equal(t, o, again)
			_, err = m.cancel(t, o)
			f := refused(t, err, order.ErrState, "")
			require.Equal(t, "the order is cancelled", f.Message)
			_, err = m.BookOrder(t.Context(), ada, "request-c", buyer, booked.ID)
			refused(t, err, order.ErrRequestIDReused, "request_id")

			left := m.held(t, another, slotOn("dev_one", 11, 11))
			require.Equal(t, []int{0}, left.Lines[0].Slots, "what is left is free at once")
		})
	}
}

// TestCancelOrderByLines cancels when one line is over, one is on, and one is far
// ahead.
func TestCancelOrderByLines(t *testing.T) {
	m := newMarket(t)
	m.put(t, "dev_one")
	m.put(t, "dev_own", "organisation_id = '"+buyer+"'")
	m.fund(t, buyer, eur(10*priceOfADay))
	o := m.booked(t, m.held(t, buyer, slotOn("dev_one", 10, 10), slotOn("dev_own", 10, 11), slotOn("dev_one", 20, 20)))
	m.set(time.Date(2026, 3, 10, 23, 0, 0, 0, time.UTC))
	o, err := m.cancel(t, o)
	require.NoError(t, err)
	require.Equal(t, []int64{0, priceOfADay / 2, priceOfADay}, []int64{o.Lines[0].RefundedMinor, o.Lines[1].RefundedMinor, o.Lines[2].RefundedMinor})
	require.Equal(t, []int64{1440, 1440, 0}, []int64{o.Lines[0].Plays, o.Lines[1].Plays, o.Lines[2].Plays})
	require.Equal(t, int64(priceOfADay*3/2), o.RefundedMinor)
	require.Equal(t, int64(priceOfADay*8/10), m.balance(t, owner))
	require.Equal(t, int64(6*priceOfADay+priceOfADay*3/2+priceOfADay*3/2*8/10), m.balance(t, buyer), "who is also an owner")
	require.Equal(t, 2, get[int](t, m, "SELECT count(*) FROM reservations"))
}

func TestCancelOrderThatIsOver(t *testing.T) {
	m := newMarket(t)
	m.put(t, "dev_one")
	m.fund(t, buyer, eur(priceOfADay))
	o := m.booked(t, m.held(t, buyer, slotOn("dev_one", 10, 10)))
	m.set(time.Date(2026, 3, 10, 23, 0, 0, 0, time.UTC))
	_, err := m.cancel(t, o)
	f := refused(t, err, order.ErrState, "")
	require.Equal(t, "the order is over: nothing is left to cancel", f.Message)
	require.Equal(t, order.Booked, m.find(t, o).State)
	require.Zero(t, m.balance(t, owner))
	m.set(time.Date(2026, 3, 10, 22, 59, 58, 0, time.UTC))
	o, err = m.cancel(t, o)
	require.NoError(t, err)
	require.Zero(t, o.RefundedMinor, "no whole loop is left")
}
