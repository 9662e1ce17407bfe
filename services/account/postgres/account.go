package postgres

import (
	"context"
	"math"
	"time"

	"github.com/marquee-ads/marquee/services/account"
	"github.com/marquee-ads/marquee/services/account/postgres/query"
)

// FindSignUp implements account.Store.
func (s *Store) FindSignUp(ctx context.Context, requestID, nameKey string, now time.Time) (*account.SignUp, bool, error) {
	var row query.SignUpAndNameRow
	err := s.read(ctx, func(ctx context.Context) (err error) {
		row, err = s.q.SignUpAndName(ctx, query.SignUpAndNameParams{RequestID: requestID, NameKey: nameKey, Now: now})
		return err
	})
	if err != nil || !row.Found || row.CreateTime == nil {
		return nil, row.NameTaken, err
	}
	return &account.SignUp{
		RequestID: requestID, Fingerprint: row.Fingerprint,
		Account: account.Account{ID: row.AccountID, Name: row.Name, CreateTime: row.CreateTime.UTC()},
	}, row.NameTaken, nil
}

// CreateAccount implements account.Store.
func (s *Store) CreateAccount(ctx context.Context, up account.SignUp, passwordHash string, event account.Event) (account.SignUp, error) {
	var winner account.SignUp
	err := s.transact(ctx, func(ctx context.Context, q *query.Queries) error {
		winner = up
		claimed, err := q.ClaimRequestID(ctx, query.ClaimRequestIDParams{
			RequestID: up.RequestID, Fingerprint: up.Fingerprint, AccountID: up.Account.ID,
			ExpireTime: up.ExpireTime, Now: up.Account.CreateTime,
		})
		if err != nil {
			return err
		}
		if claimed == 0 {
			row, err := q.SignUp(ctx, up.RequestID)
			winner = account.SignUp{
				RequestID: up.RequestID, Fingerprint: row.Fingerprint, ExpireTime: row.ExpireTime.UTC(),
				Account: account.Account{ID: row.AccountID, Name: row.Name, CreateTime: row.CreateTime.UTC()},
			}
			return err
		}
		if err := q.InsertAccount(ctx, query.InsertAccountParams{
			AccountID: up.Account.ID, Name: up.Account.Name, NameKey: account.NameKey(up.Account.Name),
			PasswordHash: passwordHash, CreateTime: up.Account.CreateTime,
		}); err != nil {
			return err
		}
		return insertEvent(ctx, q, event)
	})
	return winner, err
}

// FindAccount implements account.Store.
func (s *Store) FindAccount(ctx context.Context, accountID string) (account.Account, error) {
	var row query.AccountRow
	err := s.read(ctx, func(ctx context.Context) (err error) {
		row, err = s.q.Account(ctx, accountID)
		return err
	})
	return account.Account{ID: row.AccountID, Name: row.Name, CreateTime: row.CreateTime.UTC()}, err
}

// FindPassword implements account.Store.
func (s *Store) FindPassword(ctx context.Context, by account.PasswordOf) (account.Password, error) {
	var row query.PasswordByNameRow
	err := s.read(ctx, func(ctx context.Context) (err error) {
		if by.NameKey != "" {
			row, err = s.q.PasswordByName(ctx, query.PasswordByNameParams{NameKey: by.NameKey, Address: by.Address})
			return err
		}
		of, err := s.q.PasswordByAccount(ctx, by.AccountID)
		row = query.PasswordByNameRow{
			AccountID: of.AccountID, Name: of.Name, CreateTime: of.CreateTime,
			PasswordHash: of.PasswordHash, PasswordGeneration: of.PasswordGeneration,
		}
		return err
	})
	return account.Password{
		Account: account.Account{ID: row.AccountID, Name: row.Name, CreateTime: row.CreateTime.UTC()},
		Hash:    row.PasswordHash, Generation: int(row.PasswordGeneration), Known: row.Known,
	}, err
}

// ReplacePasswordHash implements account.Store.
func (s *Store) ReplacePasswordHash(ctx context.Context, accountID, oldHash, newHash string) error {
	return s.call(ctx, func(ctx context.Context) error {
		return s.q.ReplacePasswordHash(ctx, query.ReplacePasswordHashParams{AccountID: accountID, OldHash: oldHash, NewHash: newHash})
	})
}

// endedAtOnce is how many sessions one statement ends: an account may have so
// many that ending all of them takes longer than a statement may.
const endedAtOnce = 2000

// ChangePassword implements account.Store. It ends the newest sessions in the
// transaction that stores the password, and those behind them before, in short
// ones: when it fails in between it can be repeated.
func (s *Store) ChangePassword(ctx context.Context, generation int, newHash string, event account.Event) ([]account.Session, error) {
	var all []account.Session
	for {
		var ended []account.Session
		err := s.call(ctx, func(ctx context.Context) (err error) {
			ended, err = endOthers(ctx, s.q, event, endedAtOnce, endedAtOnce)
			return err
		})
		if err != nil {
			return nil, err
		}
		all = append(all, ended...)
		if len(ended) < endedAtOnce {
			break
		}
	}
	var ended []account.Session
	err := s.transact(ctx, func(ctx context.Context, q *query.Queries) error {
		changed, err := q.ChangePassword(ctx, query.ChangePasswordParams{AccountID: event.AccountID, NewHash: newHash, PasswordGeneration: int32(generation)})
		switch {
		case err != nil:
			return err
		case changed == 0:
			return account.ErrPasswordChanged
		}
		// All that are left, and those that were opened meanwhile.
		if ended, err = endOthers(ctx, q, event, 0, math.MaxInt64); err != nil {
			return err
		}
		return insertEvent(ctx, q, event)
	})
	return append(all, ended...), err
}

// endOthers ends sessions of the event's account other than the event's, behind
// the newest so many.
func endOthers(ctx context.Context, q *query.Queries, event account.Event, newest, most int64) ([]account.Session, error) {
	rows, err := q.EndOtherSessions(ctx, query.EndOtherSessionsParams{
		AccountID: event.AccountID, KeepSessionID: event.SessionID, Now: event.Time, EndReason: string(account.EndPasswordChanged),
		Newest: newest, Batch: most,
	})
	ended := make([]account.Session, len(rows))
	for i, r := range rows {
		ended[i] = endedSession(r.SessionID, r.TokenExpireTime, event, account.EndPasswordChanged)
	}
	return ended, err
}
