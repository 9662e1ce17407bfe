package postgres

import (
	"context"
	"time"

	"github.com/marquee-ads/marquee/services/order"
)

// Move is move in a transaction of its own.
func (s *Store) Move(ctx context.Context, now time.Time, entries ...order.Entry) error {
	return s.transact(ctx, func(ctx context.Context, w work) error { return w.move(ctx, now, entries...) })
}

// Locked calls do while these displays are locked.
func (s *Store) Locked(ctx context.Context, ids []string, do func(map[string]order.Display) error) error {
	return s.transact(ctx, func(ctx context.Context, w work) error {
		if err := w.lockDisplays(ctx, ids); err != nil {
			return err
		}
		read, err := displays(ctx, w.Queries, ids)
		if err != nil {
			return err
		}
		return do(read)
	})
}
