package order_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/paging"
	"github.com/marquee-ads/marquee/services/order"
)

// eur is an amount of cents.
func eur(minor int64) order.Money { return order.Money{Minor: minor, Currency: "EUR"} }

const priceOfADay = 1440 * 250

func TestBookOrder(t *testing.T) {
	m := newMarket(t)
	m.put(t, "dev_one")
	m.put(t, "dev_two")
	m.put(t, "dev_free", "price_minor = 0")
	m.fund(t, buyer, eur(10*priceOfADay))
	two := slotOn("dev_two", 10, 11)
	two.Slots = 2
	held := m.held(t, buyer, slotOn("dev_one", 10, 10), two)
	m.set(time.Date(2026, 3, 2, 11, 0, 0, 0, time.UTC))
	o, err := m.BookOrder(t.Context(), ada, "request-b", buyer, held.ID)
	require.NoError(t, err)
	require.Equal(t, order.Booked, o.State)
	require.Equal(t, time.Date(2026, 3, 2, 11, 0, 0, 0, time.UTC), o.BookTime)
	require.Equal(t, held.Price, o.Price)
	for i, l := range o.Lines {
		require.True(t, l.Booked)
		require.Equal(t, held.Lines[i].Times, l.Times)
	}
	require.Equal(t, o, m.find(t, o))
	require.Equal(t, int64(5*priceOfADay), m.balance(t, buyer))
	require.Equal(t, 3, get[int](t, m, "SELECT count(*) FROM reservations WHERE hold_expire_time IS NULL"))
	require.Equal(t, 2, get[int](t, m, "SELECT count(*) FROM outbox WHERE subject = 'line.changed'"), "both displays hear of it")

	t.Run("Repeat", func(t *testing.T) {
		again, err := m.BookOrder(t.Context(), ada, "request-b", buyer, held.ID)
		require.NoError(t, err)
		require.Equal(t, o, again)
		other := m.held(t, buyer, slotOn("dev_one", 20, 20))
		_, err = m.BookOrder(t.Context(), ada, "request-b", buyer, other.ID)
		refused(t, err, order.ErrRequestIDReused, "request_id")
		_, err = m.CancelOrder(t.Context(), ada, "request-b", buyer, held.ID)
		refused(t, err, order.ErrRequestIDReused, "request_id")
		require.Equal(t, int64(5*priceOfADay), m.balance(t, buyer))
	})
	t.Run("ErrState", func(t *testing.T) {
		_, err := m.book(t, o)
		f := refused(t, err, order.ErrState, "")
		require.Equal(t, "the order is booked", f.Message)
		cancelled := m.held(t, buyer, slotOn("dev_one", 21, 21))
		_, err = m.cancel(t, cancelled)
		require.NoError(t, err)
		_, err = m.book(t, cancelled)
		f = refused(t, err, order.ErrState, "")
		require.Equal(t, "the order is cancelled", f.Message)
	})
	t.Run("ErrFunds", func(t *testing.T) {
		six := slotOn("dev_one", 10, 10)
		six.StartDate, six.EndDate = "2026-04-10", "2026-04-15"
		dear := m.held(t, buyer, six)
		_, err := m.BookOrder(t.Context(), ada, "request-c", buyer, dear.ID)
		refused(t, err, order.ErrFunds, "")
		require.Equal(t, order.Held, m.find(t, dear).State)
		require.Zero(t, get[int](t, m, "SELECT count(*) FROM reservations WHERE line_id = $1 AND hold_expire_time IS NULL", dear.Lines[0].ID))
		m.fund(t, buyer, eur(priceOfADay))
		_, err = m.BookOrder(t.Context(), ada, "request-c", buyer, dear.ID)
		require.NoError(t, err, "what was refused can be tried again")
		require.Zero(t, m.balance(t, buyer))
	})
	t.Run("ForNothing", func(t *testing.T) {
		free := m.booked(t, m.held(t, another, slotOn("dev_free", 10, 10)))
		require.Zero(t, free.Price.Minor)
		require.Zero(t, get[int](t, m, "SELECT count(*) FROM ledger_entries WHERE order_id = $1", free.ID))
		_, err := m.cancel(t, free)
		require.NoError(t, err)
	})
	t.Run("ReservationsThatAreGone", func(t *testing.T) {
		two := m.held(t, another, slotOn("dev_free", 11, 11), slotOn("dev_free", 12, 12))
		m.exec(t, "DELETE FROM reservations WHERE line_id = $1", two.Lines[1].ID)
		_, err := m.book(t, two)
		refused(t, err, order.ErrHoldExpired, "")
		require.Equal(t, 1, get[int](t, m, "SELECT count(*) FROM reservations WHERE line_id = $1 AND hold_expire_time IS NOT NULL", two.Lines[0].ID))
	})
	t.Run("NoOrder", func(t *testing.T) {
		_, err := m.BookOrder(t.Context(), ada, m.requestID(), buyer, "ord_01ARZ3NDEKTSV4RRFFQ69G5FAV")
		require.ErrorIs(t, err, order.ErrNotFound)
	})
}

// TestBookOrderAsks books what shows something: the displays' owners are asked.
func TestBookOrderAsks(t *testing.T) {
	m := newMarket(t)
	m.put(t, "dev_one")
	m.put(t, "dev_own", "organisation_id = '"+buyer+"'")
	m.fund(t, buyer, eur(10*priceOfADay))
	const creative = "crv_01DZ5ZZKBKACTAV9WEVGEMMVRZ"
	m.creative(t, buyer, creative)
	one, own := slotOn("dev_one", 10, 10), slotOn("dev_own", 10, 10)
	one.CreativeID, own.CreativeID = creative, creative
	o := m.held(t, buyer, one, own)
	require.Zero(t, get[int](t, m, "SELECT count(*) FROM approvals"), "a hold is no booking")
	o = m.booked(t, o)
	require.Equal(t, "PENDING", get[string](t, m, "SELECT state FROM approvals WHERE owner_id = $1", owner))
	require.Equal(t, "APPROVED", get[string](t, m, "SELECT state FROM approvals WHERE owner_id = $1", buyer))
	require.Equal(t, []int{0, 1}, []int{o.Lines[0].ShownVersion, o.Lines[1].ShownVersion})
}

// TestBookOrderAtOnce has many book one order, and many orders from one wallet.
func TestBookOrderAtOnce(t *testing.T) {
	m := newMarket(t)
	m.put(t, "dev_one")
	m.fund(t, buyer, eur(3*priceOfADay))
	const at = 12
	race := func(do func(n int) error) (errs []error) {
		var all sync.WaitGroup
		errs = make([]error, at)
		for n := range at {
			all.Go(func() { errs[n] = do(n) })
		}
		all.Wait()
		return errs
	}
	failed := func(errs []error, want error) int {
		n := 0
		for _, err := range errs {
			if err != nil {
				require.ErrorIs(t, err, want)
				n++
			}
		}
		return n
	}
	o := m.held(t, buyer, slotOn("dev_one", 10, 10))
	require.Equal(t, at-1, failed(race(func(int) error {
		_, err := m.book(t, o)
		return err
	}), order.ErrState))
	require.Equal(t, int64(2*priceOfADay), m.balance(t, buyer))

	o = m.held(t, buyer, slotOn("dev_one", 11, 11))
	require.Zero(t, failed(race(func(int) error {
		booked, err := m.BookOrder(t.Context(), ada, "request-b", buyer, o.ID)
		if err == nil && booked.State != order.Booked {
			return fmt.Errorf("it is %s", booked.State)
		}
		return err
	}), nil), "a repeat is answered like the first")
	require.Equal(t, int64(priceOfADay), m.balance(t, buyer))

	orders := make([]order.Order, at)
	for n := range orders {
		l := slotOn("dev_one", 10, 10)
		l.StartDate, l.EndDate = fmt.Sprintf("2026-05-%02d", n+1), fmt.Sprintf("2026-05-%02d", n+1)
		orders[n] = m.held(t, buyer, l)
	}
	require.Equal(t, at-1, failed(race(func(n int) error {
		_, err := m.book(t, orders[n])
		return err
	}), order.ErrFunds))
	require.Zero(t, m.balance(t, buyer))
}

// TestBookOrderAgainstExpiry books at the moment at which the hold ends and somebody
// else wants the same: one of them has it.
func TestBookOrderAgainstExpiry(t *testing.T) {
	m := newMarket(t)
	const displays = 12
	m.fund(t, buyer, eur(displays*priceOfADay))
	orders := make([]order.Order, displays)
	for n := range orders {
		m.put(t, fmt.Sprintf("dev_%02d", n), "slot_seconds = 60")
	}
	for n := range orders {
		var err error
		orders[n], err = m.HoldOrder(t.Context(), ada, m.requestID(), order.HoldRequest{
			OrganisationID: buyer, Lines: []order.LineRequest{slotOn(fmt.Sprintf("dev_%02d", n), 10, 10)}, Lifetime: time.Second,
		})
		require.NoError(t, err)
	}
	var (
		all              sync.WaitGroup
		bookErr, nextErr = make([]error, displays), make([]error, displays)
	)
	for n, o := range orders {
		// From a while before the end to a while after it.
		moment := o.HoldExpireTime.Add(time.Duration(n-displays/2) * 10 * time.Millisecond)
		tried := make(chan struct{})
		all.Go(func() {
			defer close(tried)
			// Nothing tells when a time of the database comes but the time itself.
			timer := time.NewTimer(time.Until(moment))
			defer timer.Stop()
			<-timer.C
			_, bookErr[n] = m.book(t, o)
		})
		all.Go(func() {
			deadline := time.Now().Add(20 * time.Second)
			for last := false; !last; {
				select {
				case <-tried:
					last = bookErr[n] == nil
				default:
				}
				_, nextErr[n] = m.hold(t, another, slotOn(fmt.Sprintf("dev_%02d", n), 10, 10))
				last = last || nextErr[n] == nil || time.Now().After(deadline)
			}
		})
	}
	all.Wait()
	booked := 0
	for n := range orders {
		if bookErr[n] == nil {
			booked++
			require.ErrorIs(t, nextErr[n], order.ErrSlotTaken)
		} else {
			require.ErrorIs(t, bookErr[n], order.ErrHoldExpired)
			require.NoError(t, nextErr[n], "an expired hold is in nobody's way")
		}
	}
	t.Logf("%d of %d were booked", booked, displays)
	require.Equal(t, int64(displays-booked)*priceOfADay, m.balance(t, buyer))
}

func TestListOrders(t *testing.T) {
	m := newMarket(t)
	m.put(t, "dev_one")
	var all []string
	for day := 10; day < 15; day++ {
		all = append([]string{m.held(t, buyer, slotOn("dev_one", day, day)).ID}, all...)
	}
	m.held(t, another, slotOn("dev_one", 20, 20))
	var found []string
	for page := (paging.Page{Size: 2}); ; {
		orders, next, err := m.ListOrders(t.Context(), buyer, "", page)
		require.NoError(t, err)
		require.LessOrEqual(t, len(orders), 2)
		for _, o := range orders {
			require.Empty(t, o.Lines)
			require.Equal(t, 1, o.LineCount)
			found = append(found, o.ID)
		}
		if page.Token = next; next == "" {
			break
		}
	}
	require.Equal(t, all, found)
	_, next, err := m.ListOrders(t.Context(), buyer, "", paging.Page{Size: 2})
	require.NoError(t, err)
	for _, token := range []string{"?", "bm8"} {
		_, _, err = m.ListOrders(t.Context(), buyer, "", paging.Page{Token: token})
		require.ErrorIs(t, err, paging.ErrTokenInvalid)
	}
	_, _, err = m.ListOrders(t.Context(), another, "", paging.Page{Token: next})
	require.ErrorIs(t, err, paging.ErrTokenInvalid, "of another list")
}
