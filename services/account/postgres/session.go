package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/marquee-ads/marquee/services/account"
	"github.com/marquee-ads/marquee/services/account/postgres/query"
)

// CreateSession implements account.Store.
func (s *Store) CreateSession(ctx context.Context, session account.Session) error {
	return s.call(ctx, func(ctx context.Context) error {
		return s.q.InsertSession(ctx, query.InsertSessionParams{
			SessionID: session.ID, AccountID: session.AccountID,
			CreateTime: session.CreateTime, TokenExpireTime: session.TokenExpireTime,
		})
	})
}

// EndSession implements account.Store.
func (s *Store) EndSession(ctx context.Context, sessionID string, now time.Time) (time.Time, error) {
	var expires time.Time
	err := s.call(ctx, func(ctx context.Context) (err error) {
		expires, err = s.q.EndSession(ctx, query.EndSessionParams{SessionID: sessionID, Now: now})
		return err
	})
	if errors.Is(err, account.ErrNotFound) {
		return time.Time{}, nil
	}
	return expires.UTC(), err
}

// EndedSessions implements account.KeyStore.
func (s *Store) EndedSessions(ctx context.Context, now time.Time) ([]account.EndedSession, error) {
	var rows []query.EndedSessionsRow
	err := s.read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.EndedSessions(ctx, now.Add(-account.ClockLeeway))
		return err
	})
	ended := make([]account.EndedSession, len(rows))
	for i, r := range rows {
		ended[i] = account.EndedSession{ID: r.SessionID, ExpireTime: r.TokenExpireTime.UTC().Add(account.ClockLeeway)}
	}
	return ended, err
}

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
			return s.q.SweepSessions(ctx, query.SweepSessionsParams{ExpiredBefore: now.Add(-account.ClockLeeway), Batch: sweepBatch})
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
