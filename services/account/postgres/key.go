package postgres

import (
	"context"
	"time"

	"github.com/marquee-ads/marquee/services/account"
	"github.com/marquee-ads/marquee/services/account/postgres/query"
)

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
