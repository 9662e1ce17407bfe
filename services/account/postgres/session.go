package postgres

import (
	"context"
	"time"

	"github.com/marquee-ads/marquee/services/account"
	"github.com/marquee-ads/marquee/services/account/postgres/query"
)

// CreateSession implements account.Store.
func (s *Store) CreateSession(ctx context.Context, session account.Session, passwordGeneration int, event account.Event) (ended []account.Session, err error) {
	err = s.transact(ctx, func(ctx context.Context, q *query.Queries) error {
		inserted, err := q.InsertSession(ctx, query.InsertSessionParams{
			SessionID: session.ID, AccountID: session.AccountID, PasswordGeneration: int32(passwordGeneration),
			CreateTime: session.CreateTime, RefreshTime: session.RefreshTime, TokenExpireTime: session.TokenExpireTime,
			RefreshHash: session.RefreshHash, ExpireTime: session.ExpireTime, Address: session.Address,
			EventID: event.ID, EventTime: event.Time, Kind: string(event.Kind),
		})
		switch {
		case err != nil:
			return err
		case inserted == 0:
			return account.ErrPasswordChanged
		}
		rows, err := q.EndOldestSessions(ctx, query.EndOldestSessionsParams{
			AccountID: session.AccountID, KeepSessionID: session.ID, Now: event.Time, EndReason: string(account.EndTooMany),
			Newest: account.MaxSessions - 1, Batch: endedAtOnce,
		})
		ended = make([]account.Session, len(rows))
		for i, r := range rows {
			ended[i] = endedSession(r.SessionID, r.TokenExpireTime, event, account.EndTooMany)
		}
		return err
	})
	return ended, err
}

// endedSession is a session of the event's account that ended with the event.
func endedSession(id string, tokenExpireTime time.Time, event account.Event, reason account.EndReason) account.Session {
	return account.Session{
		ID: id, AccountID: event.AccountID, TokenExpireTime: tokenExpireTime.UTC(), EndTime: event.Time, EndReason: reason,
	}
}

// ChangeSession implements account.Store.
func (s *Store) ChangeSession(ctx context.Context, sessionID string, decide func(account.Session) (*account.Session, *account.Event)) error {
	return s.transact(ctx, func(ctx context.Context, q *query.Queries) error {
		row, err := q.LockSession(ctx, sessionID)
		if none(err) {
			return nil
		}
		if err != nil {
			return err
		}
		changed, event := decide(session(row))
		if changed != nil {
			params := query.UpdateSessionParams{
				SessionID: changed.ID, RefreshTime: changed.RefreshTime, TokenExpireTime: changed.TokenExpireTime,
				RefreshHash: changed.RefreshHash, ExpireTime: changed.ExpireTime,
				EndTime: nullable(changed.EndTime), EndReason: string(changed.EndReason),
			}
			if err := q.UpdateSession(ctx, params); err != nil {
				return err
			}
		}
		if event != nil {
			return insertEvent(ctx, q, *event)
		}
		return nil
	})
}

// ListSessions implements account.Store.
func (s *Store) ListSessions(ctx context.Context, accountID, before string, limit int) ([]account.Session, error) {
	return page(ctx, s, func(ctx context.Context) ([]query.SessionsRow, error) {
		return s.q.Sessions(ctx, query.SessionsParams{AccountID: accountID, Before: before, Most: int32(limit)})
	}, func(r query.SessionsRow) account.Session { return session(query.LockSessionRow(r)) })
}

func session(r query.LockSessionRow) account.Session {
	return account.Session{
		ID: r.SessionID, AccountID: r.AccountID, CreateTime: r.CreateTime.UTC(),
		RefreshTime: r.RefreshTime.UTC(), TokenExpireTime: r.TokenExpireTime.UTC(),
		RefreshHash: r.RefreshHash, ExpireTime: r.ExpireTime.UTC(), Address: r.Address,
		EndTime: moment(r.EndTime), EndReason: account.EndReason(r.EndReason),
	}
}
