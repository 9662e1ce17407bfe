package postgres

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/services/account"
	"github.com/marquee-ads/marquee/services/account/postgres/query"
)

// Failures implements account.Store.
func (s *Store) Failures(ctx context.Context, keys []string) ([]account.Failures, error) {
	return page(ctx, s, func(ctx context.Context) ([]query.LogInFailure, error) {
		return s.q.Failures(ctx, keys)
	}, func(r query.LogInFailure) account.Failures {
		return account.Failures{Key: r.FailureKey, FreeTime: r.FreeTime.UTC()}
	})
}

// AddFailure implements account.Store.
func (s *Store) AddFailure(ctx context.Context, now time.Time, debits []account.Debit, event *account.Event) error {
	// In one order everywhere, so that two never wait for each other.
	debits = slices.SortedFunc(slices.Values(debits), func(a, b account.Debit) int { return strings.Compare(a.Key, b.Key) })
	return s.transact(ctx, func(ctx context.Context, q *query.Queries) error {
		if event != nil {
			if err := insertEvent(ctx, q, *event); err != nil {
				return err
			}
		}
		for _, d := range debits {
			if err := q.AddFailure(ctx, query.AddFailureParams{FailureKey: d.Key, Now: now, EverySeconds: d.Budget.Every.Seconds()}); err != nil {
				return err
			}
		}
		return nil
	})
}
