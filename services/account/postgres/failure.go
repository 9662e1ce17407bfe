package postgres

import (
	"context"
	"time"

	"github.com/marquee-ads/marquee/platform/throttle"
	"github.com/marquee-ads/marquee/services/account"
	"github.com/marquee-ads/marquee/services/account/postgres/query"
)

// Failures implements account.Store.
func (s *Store) Failures(ctx context.Context, keys []string) (whole map[string]time.Time, err error) {
	err = s.read(ctx, func(ctx context.Context) error {
		whole, err = failures(ctx, s.q, keys)
		return err
	})
	return whole, err
}

func failures(ctx context.Context, q *query.Queries, keys []string) (map[string]time.Time, error) {
	rows, err := q.Failures(ctx, keys)
	whole := make(map[string]time.Time, len(rows))
	for _, r := range rows {
		whole[r.FailureKey] = r.FreeTime.UTC()
	}
	return whole, err
}

// AddFailure implements account.Store.
func (s *Store) AddFailure(ctx context.Context, now time.Time, debits []throttle.Debit, event *account.Event) error {
	return s.transact(ctx, func(ctx context.Context, q *query.Queries) error {
		if event != nil {
			if err := insertEvent(ctx, q, *event); err != nil {
				return err
			}
		}
		for _, d := range throttle.InOrder(debits) {
			if err := addFailure(ctx, q, d, now); err != nil {
				return err
			}
		}
		return nil
	})
}

func addFailure(ctx context.Context, q *query.Queries, d throttle.Debit, now time.Time) error {
	return q.AddFailure(ctx, query.AddFailureParams{FailureKey: d.Key, Now: now, EverySeconds: d.Budget.Every.Seconds()})
}

// Spend implements account.Tx.
func (t tx) Spend(ctx context.Context, d throttle.Debit, now time.Time) (wait time.Duration, err error) {
	whole, err := failures(ctx, t.q, []string{d.Key})
	if err != nil {
		return 0, err
	}
	if wait = throttle.Wait([]throttle.Debit{d}, whole, now); wait > 0 {
		return wait, nil
	}
	return 0, addFailure(ctx, t.q, d, now)
}
