package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/auth"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

// completed waits until an order is settled.
func (i *instance) completed(t *testing.T, id string) *orderv1.Order {
	t.Helper()
	require.Eventually(t, func() bool {
		return i.order(t, id).GetState() == orderv1.OrderState_ORDER_STATE_COMPLETED
	}, patience, 50*time.Millisecond, "%s is not settled", id)
	return i.order(t, id)
}

// noted waits until an instance's log says something.
func (i *instance) noted(t *testing.T, what string) {
	t.Helper()
	require.Eventually(t, func() bool {
		text, err := os.ReadFile(i.log)
		require.NoError(t, err)
		return strings.Contains(string(text), what)
	}, patience, 50*time.Millisecond, "the log does not say %q", what)
}

// Of what was paid the owner gets 80 percent of what was delivered, and the buyer the
// rest back; every cent is somebody's.
func TestSettlement(t *testing.T) {
	w := newWorld(t)
	i := w.start(t, "--sweep-every=100ms")
	displays := i.displays(t, 5)
	o := i.book(t, "request-1", displays...)
	paid := o.GetPrice().GetAmountMinor()
	require.EqualValues(t, 2880*(1+2+3+4+5), paid)
	require.Zero(t, i.balance(t, buyer))
	day := func(n int) string { return time.Now().UTC().AddDate(0, 0, n).Format(time.DateOnly) }
	lines := o.GetLines()
	// Nothing of the first, half of the second, all of the third, more of the fourth.
	w.device.played(lines[1].GetLineId(), day(-4), 1500, 1440)
	w.device.played(lines[2].GetLineId(), day(-4), 1440, 1440)
	w.device.played(lines[2].GetLineId(), day(-3), 1440, 1440)
	w.device.played(lines[3].GetLineId(), day(-4), 2000, 1872)
	w.device.played(lines[3].GetLineId(), day(-3), 2000, 1872)
	// 7 plays of 2880 of 14400: 35 exactly; a fee of 7.
	w.device.played(lines[4].GetLineId(), day(-4), 7, 7)
	w.past(t, o.GetOrderId(), 5*aDay) // from now on it is settled

	done := i.completed(t, o.GetOrderId())
	delivered := []int64{0, 2880, 3 * 2880, 4 * 2880, 35}
	var earned, fees, back int64
	found, err := i.ListBookings(i.owner(t), &orderv1.ListBookingsRequest{OrganisationId: owner})
	require.NoError(t, err)
	got := map[string]int64{}
	for _, b := range found.GetBookings() {
		got[b.GetLine().GetLineId()] = b.GetEarned().GetAmountMinor()
		require.Equal(t, orderv1.OrderState_ORDER_STATE_COMPLETED, b.GetState())
	}
	for n, amount := range delivered {
		fee := amount * 20 / 100
		require.Equal(t, amount-fee, got[lines[n].GetLineId()], "line %d", n)
		earned, fees, back = earned+amount-fee, fees+fee, back+lines[n].GetPrice().GetAmountMinor()-amount
	}
	require.Equal(t, back, done.GetRefunded().GetAmountMinor())
	require.Equal(t, back, i.balance(t, buyer))
	require.Equal(t, earned, i.balance(t, owner))
	require.Equal(t, paid, earned+fees+back)
	var kept, platform int64
	require.NoError(t, w.db(t).QueryRow(t.Context(), "SELECT balance_minor FROM ledger_accounts WHERE kind = 'ORDER'").Scan(&kept))
	require.NoError(t, w.db(t).QueryRow(t.Context(), "SELECT sum(amount_minor) FROM ledger_entries WHERE to_account = 'platform:EUR'").Scan(&platform))
	require.Zero(t, kept)
	require.Equal(t, fees, platform)
	text, err := w.command(t, "--check-ledger")
	require.NoError(t, err, text)

	report, err := i.GetDelivery(i.buyer(t), &orderv1.GetDeliveryRequest{OrganisationId: buyer, OrderId: o.GetOrderId()})
	require.NoError(t, err)
	require.Equal(t, back, report.GetTotal().GetMakeGood().GetAmountMinor())
	entries, err := i.ListWalletEntries(i.as(t, owner, auth.Viewer), &orderv1.ListWalletEntriesRequest{OrganisationId: owner})
	require.NoError(t, err)
	require.Len(t, entries.GetEntries(), 4)
	for _, e := range entries.GetEntries() {
		require.Equal(t, orderv1.EntryKind_ENTRY_KIND_EARNING, e.GetKind())
		require.Equal(t, o.GetOrderId(), e.GetOrderId())
		require.Equal(t, got[e.GetLineId()], e.GetAmountMinor())
	}
}

// What is not over for so long is left alone, and so is what cannot be known.
func TestSettlementWaits(t *testing.T) {
	w := newWorld(t)
	i := w.start(t, "--sweep-every=50ms", "--settle-after=36h", "--platform-share-percent=0")
	display := i.displays(t, 1)[0]
	w.device.fail(errDeviceAway)
	soon, due, later := i.book(t, "request-1", display), i.book(t, "request-2", display), i.book(t, "request-3", display)
	w.past(t, soon.GetOrderId(), 3*aDay) // it ended at midnight
	w.past(t, due.GetOrderId(), 5*aDay)
	w.past(t, later.GetOrderId(), 6*aDay)
	i.noted(t, "PLAYS_UNAVAILABLE")
	for _, o := range []*orderv1.Order{soon, due, later} {
		require.Equal(t, orderv1.OrderState_ORDER_STATE_BOOKED, i.order(t, o.GetOrderId()).GetState())
	}
	require.Zero(t, i.balance(t, buyer))

	w.device.played(due.GetLines()[0].GetLineId(), time.Now().UTC().AddDate(0, 0, -4).Format(time.DateOnly), 2880, 2880)
	w.device.fail(nil)
	require.Zero(t, i.completed(t, due.GetOrderId()).GetRefunded().GetAmountMinor())
	require.EqualValues(t, 2880, i.completed(t, later.GetOrderId()).GetRefunded().GetAmountMinor())
	require.EqualValues(t, 2880, i.balance(t, buyer))
	require.EqualValues(t, 2880, i.balance(t, owner), "all of it, without a share")
	require.Equal(t, orderv1.OrderState_ORDER_STATE_BOOKED, i.order(t, soon.GetOrderId()).GetState())
}

// An order that cannot be settled is in nobody's way.
func TestSettlementGoesOn(t *testing.T) {
	w := newWorld(t)
	i := w.start(t, "--sweep-every=50ms")
	display := i.displays(t, 1)[0]
	broken, fine := i.book(t, "request-1", display), i.book(t, "request-2", display)
	w.device.mu.Lock()
	w.device.refuses = broken.GetLines()[0].GetLineId()
	w.device.mu.Unlock()
	w.past(t, broken.GetOrderId(), 9*aDay) // it is the first that is tried
	w.past(t, fine.GetOrderId(), 5*aDay)
	i.completed(t, fine.GetOrderId())
	i.noted(t, "settling "+broken.GetOrderId())
	require.Equal(t, orderv1.OrderState_ORDER_STATE_BOOKED, i.order(t, broken.GetOrderId()).GetState())
	w.device.mu.Lock()
	w.device.refuses = ""
	w.device.mu.Unlock()
	i.completed(t, broken.GetOrderId())
}

// Instances that settle the same orders at once settle each once.
func TestSettlementAtOnce(t *testing.T) {
	const orders = 30
	w := newWorld(t)
	first := w.start(t, "--sweep-every=10ms")
	display := first.displays(t, 1)[0]
	w.device.fail(errDeviceAway)
	var ids []string
	for n := range orders {
		// Six slots: each is sold, and past, before the next order comes.
		o := first.book(t, fmt.Sprintf("request-%d", n), display)
		w.past(t, o.GetOrderId(), 5*aDay+time.Duration(n)*2*aDay)
		w.device.played(o.GetLines()[0].GetLineId(), time.Now().UTC().AddDate(0, 0, -4-2*n).Format(time.DateOnly), 1440, 1440)
		ids = append(ids, o.GetOrderId())
	}
	others := []*instance{w.start(t, "--sweep-every=10ms"), w.start(t, "--sweep-every=10ms")}
	for _, i := range others {
		i.noted(t, "PLAYS_UNAVAILABLE")
	}
	w.device.fail(nil)
	for _, id := range ids {
		require.EqualValues(t, 1440, first.completed(t, id).GetRefunded().GetAmountMinor())
	}
	require.EqualValues(t, orders*1440, first.balance(t, buyer))
	require.EqualValues(t, orders*1440*8/10, first.balance(t, owner))
	var refunds int
	require.NoError(t, w.db(t).QueryRow(t.Context(), "SELECT count(*) FROM ledger_entries WHERE kind = 'REFUND'").Scan(&refunds))
	require.Equal(t, orders, refunds)
	text, err := w.command(t, "--check-ledger")
	require.NoError(t, err, text)
}
