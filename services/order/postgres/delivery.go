package postgres

import (
	"context"
	"time"

	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres/query"
)

// ListBookings implements order.DeliveryStore.
func (s *Store) ListBookings(ctx context.Context, ownerID string, f order.BookingFilter, before string, limit int) ([]order.Booking, error) {
	var rows []query.BookingsRow
	err := s.db.Read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.Bookings(ctx, query.BookingsParams{
			OwnerID: ownerID, Before: before, DeviceID: f.DeviceID, FromTime: bound(f.From), ToTime: bound(f.To), AtMost: int32(limit),
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	found := make([]order.Booking, len(rows))
	for i, row := range rows {
		line, err := lineOf(row.Line)
		if err != nil {
			return nil, err
		}
		found[i] = order.Booking{Line: line, State: order.State(row.State), BuyerID: row.OrganisationID, Currency: row.Currency}
	}
	return found, nil
}

// bound is nil for the zero time.
func bound(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// LedgerSize implements order.DeliveryStore.
func (s *Store) LedgerSize(ctx context.Context) (entries, orders int64, err error) {
	err = s.db.Read(ctx, func(ctx context.Context) error {
		row, err := s.q.LedgerSize(ctx)
		entries, orders = row.Entries, row.Orders
		return err
	})
	return entries, orders, err
}
