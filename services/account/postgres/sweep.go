package postgres

import (
	"context"
	"time"

	"github.com/marquee-ads/marquee/services/account"
	"github.com/marquee-ads/marquee/services/account/postgres/query"
)

// What one Sweep removes at most: batches of rows, each a short transaction.
const (
	sweepBatch   = 1000
	sweepBatches = 50
)

// Sweep implements account.Store.
func (s *Store) Sweep(ctx context.Context, now time.Time) (int64, error) {
	var total int64
	for _, sweep := range []func(context.Context) (int64, error){
		func(ctx context.Context) (int64, error) {
			return s.q.SweepSignUps(ctx, query.SweepSignUpsParams{Now: now, Batch: sweepBatch})
		},
		func(ctx context.Context) (int64, error) {
			return s.q.SweepRequests(ctx, query.SweepRequestsParams{Now: now, Batch: sweepBatch})
		},
		func(ctx context.Context) (int64, error) {
			return s.q.SweepSessions(ctx, query.SweepSessionsParams{OverBefore: nullable(now.Add(-account.SessionsKept)), Batch: sweepBatch})
		},
		func(ctx context.Context) (int64, error) {
			return s.q.SweepInvitations(ctx, query.SweepInvitationsParams{OverBefore: nullable(now.Add(-account.OffersKept)), Batch: sweepBatch})
		},
		func(ctx context.Context) (int64, error) {
			return s.q.SweepAPIKeys(ctx, query.SweepAPIKeysParams{OverBefore: nullable(now.Add(-account.OffersKept)), Batch: sweepBatch})
		},
		func(ctx context.Context) (int64, error) {
			return s.q.SweepFailures(ctx, query.SweepFailuresParams{Now: now, Batch: sweepBatch})
		},
		func(ctx context.Context) (int64, error) {
			return s.q.SweepEvents(ctx, query.SweepEventsParams{Before: now.Add(-account.EventsKept), Batch: sweepBatch})
		},
		func(ctx context.Context) (int64, error) { return s.q.SweepSigningKeys(ctx, now) },
	} {
		for range sweepBatches {
			var removed int64
			err := s.call(ctx, func(ctx context.Context) (err error) {
				removed, err = sweep(ctx)
				return err
			})
			total += removed
			if err != nil {
				return total, err
			}
			if removed < sweepBatch {
				break
			}
		}
	}
	return total, nil
}
