package postgres

import (
	"context"
	"time"

	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres/query"
)

// payOut pays what is kept for an order to who gets it, see order.Order.PayOut, and
// notes on the lines what that was. All is one move: accounts are locked in one order.
func (w work) payOut(ctx context.Context, now time.Time, o order.Order) error {
	entries, earned := o.PayOut(w.store.platformShare)
	var lines query.SettleLinesParams
	for _, l := range o.Lines {
		lines.LineIds = append(lines.LineIds, l.ID)
		lines.EarnedMinor = append(lines.EarnedMinor, earned[l.ID])
		lines.RefundedMinor = append(lines.RefundedMinor, l.RefundedMinor)
	}
	if err := w.later.SettleLines(ctx, lines); err != nil {
		return err
	}
	if len(entries) == 0 {
		return nil // it was free
	}
	return w.move(ctx, now, entries...)
}

// DueOrders implements order.DeliveryStore.
func (s *Store) DueOrders(ctx context.Context, endedBefore time.Time, after order.DuePosition, limit int) ([]order.Order, error) {
	var rows []query.DueOrdersRow
	err := s.db.Read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.DueOrders(ctx, query.DueOrdersParams{EndedBefore: endedBefore, AfterTime: after.EndTime, AfterOrder: after.OrderID, AtMost: int32(limit)})
		return err
	})
	if err != nil {
		return nil, err
	}
	due := make([]order.Order, len(rows))
	for i, row := range rows {
		due[i] = order.Order{ID: row.OrderID, OrganisationID: row.OrganisationID, State: order.Booked, EndTime: row.EndTime.UTC()}
	}
	return due, nil
}

// SettleOrder implements order.DeliveryStore.
func (s *Store) SettleOrder(ctx context.Context, o order.Order, counted map[string]int64, now time.Time) (settled bool, err error) {
	err = s.transact(ctx, func(ctx context.Context, w work) error {
		settled = false
		row, err := w.LockOrderToSettle(ctx, o.ID)
		if none(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if order.State(row.State) != order.Booked {
			return nil // somebody else has settled or cancelled it
		}
		// What settling reads of the lines of a booked order does not change any more.
		done, err := o.Settle(counted)
		if err != nil {
			return err
		}
		if err := w.later.LockLinesOf(ctx, o.ID); err != nil {
			return err
		}
		if err := w.updateOrder(ctx, done); err != nil {
			return err
		}
		settled = true
		return w.payOut(ctx, now, done)
	})
	return settled && err == nil, err
}
