package postgres

import (
	"context"
	"time"

	"github.com/marquee-ads/marquee/services/account"
	"github.com/marquee-ads/marquee/services/account/postgres/query"
)

// rotationLock is the name of the advisory lock that whoever rotates the signing
// keys holds.
const rotationLock int64 = 0x6d617271_0002

// SigningKeys implements account.KeyStore.
func (s *Store) SigningKeys(ctx context.Context, now time.Time) ([]account.Key, error) {
	var rows []query.SigningKey
	err := s.read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.SigningKeys(ctx, now)
		return err
	})
	return keys(rows), err
}

func keys(rows []query.SigningKey) []account.Key {
	list := make([]account.Key, len(rows))
	for i, r := range rows {
		list[i] = account.Key{
			ID: r.KeyID, Public: r.PublicKey, Sealed: r.SealedPrivateKey,
			CreateTime: r.CreateTime.UTC(), SignFrom: r.SignFromTime.UTC(),
		}
		if r.ExpireTime != nil {
			list[i].ExpireTime = r.ExpireTime.UTC()
		}
	}
	return list
}

// Ended implements account.KeyStore.
func (s *Store) Ended(ctx context.Context, now time.Time) ([]account.EndedSession, []account.ChangedAccount, error) {
	// For how long a change counts, with the clocks of two machines that differ.
	const counts = account.TokenLifetime + account.ClockLeeway
	var rows []query.EndedRow
	err := s.read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.Ended(ctx, query.EndedParams{ExpiredAfter: now.Add(-account.ClockLeeway), ChangedAfter: now.Add(-counts)})
		return err
	})
	var (
		ended   []account.EndedSession
		changed []account.ChangedAccount
	)
	for _, r := range rows {
		if r.RolesVersion > 0 {
			changed = append(changed, account.ChangedAccount{ID: r.ID, Version: r.RolesVersion, ExpireTime: r.Since.UTC().Add(counts)})
		} else {
			ended = append(ended, account.EndedSession{ID: r.ID, ExpireTime: r.Since.UTC().Add(account.ClockLeeway)})
		}
	}
	return ended, changed, err
}

// RotateSigningKeys implements account.KeyStore.
func (s *Store) RotateSigningKeys(ctx context.Context, decide func([]account.Key) ([]account.Key, error)) error {
	return s.transact(ctx, func(ctx context.Context, q *query.Queries) error {
		if err := q.LockSigningKeys(ctx, rotationLock); err != nil {
			return err
		}
		rows, err := q.SigningKeys(ctx, time.Time{})
		if err != nil {
			return err
		}
		stored := map[string]bool{}
		for _, r := range rows {
			stored[r.KeyID] = true
		}
		changed, err := decide(keys(rows))
		if err != nil {
			return err
		}
		// The old ones first: only one key may be without a successor.
		for _, k := range changed {
			if stored[k.ID] {
				if err := q.SetSigningKeyExpiry(ctx, query.SetSigningKeyExpiryParams{KeyID: k.ID, ExpireTime: k.ExpireTime}); err != nil {
					return err
				}
			}
		}
		for _, k := range changed {
			if !stored[k.ID] {
				if err := q.InsertSigningKey(ctx, query.InsertSigningKeyParams{
					KeyID: k.ID, PublicKey: k.Public, SealedPrivateKey: k.Sealed, CreateTime: k.CreateTime, SignFromTime: k.SignFrom,
				}); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
