package postgres

import (
	"context"
	"time"

	"github.com/marquee-ads/marquee/platform/throttle"
	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/postgres/query"
)

// PutClaimCode implements device.Store.
func (s *Store) PutClaimCode(ctx context.Context, organisationID, id string, code device.ClaimCode) error {
	return s.change(ctx, organisationID, id, false, func(ctx context.Context, q *query.Queries, _ query.Device) error {
		return q.PutClaimCode(ctx, query.PutClaimCodeParams{
			DeviceID: id, CodeHash: code.Hash, CreateTime: code.CreateTime, ExpireTime: code.ExpireTime,
		})
	})
}

// Claim implements device.Store. The device is locked before its code is, as
// everywhere, so that two never wait for each other.
func (s *Store) Claim(ctx context.Context, codeHash, secretHash []byte, now time.Time) (deviceID string, err error) {
	invalid := func(err error) error {
		if none(err) {
			return device.ErrClaimCodeInvalid.Because(err)
		}
		return err
	}
	err = s.transactTelling(ctx, func(ctx context.Context, q *query.Queries, tell tell) error {
		row, err := q.LockDeviceOfClaimCode(ctx, query.LockDeviceOfClaimCodeParams{CodeHash: codeHash, Now: now})
		if err != nil {
			return invalid(err)
		}
		deviceID = row.Device.DeviceID
		if _, err := q.TakeClaimCode(ctx, query.TakeClaimCodeParams{CodeHash: codeHash, Now: now}); err != nil {
			return invalid(err)
		}
		if err := setSecret(ctx, q, deviceID, secretHash, now); err != nil {
			return err
		}
		d, err := find(ctx, q, row.Device.OrganisationID, deviceID)
		if err != nil {
			return err
		}
		return tell(ctx, deviceClaimed, d)
	})
	return deviceID, err
}

func setSecret(ctx context.Context, q *query.Queries, id string, secretHash []byte, now time.Time) error {
	if err := q.SetSecret(ctx, query.SetSecretParams{DeviceID: id, SecretHash: secretHash, ClaimTime: &now}); err != nil {
		return err
	}
	return q.Notify(ctx, string(device.CredentialsChanged)+" "+id)
}

// Rotate implements device.Store.
func (s *Store) Rotate(ctx context.Context, organisationID, id string, secretHash []byte, now time.Time) error {
	return s.change(ctx, organisationID, id, false, func(ctx context.Context, q *query.Queries, row query.Device) error {
		if row.SecretHash == nil {
			return device.ErrNotClaimed
		}
		return setSecret(ctx, q, id, secretHash, now)
	})
}

// Revoke implements device.Store.
func (s *Store) Revoke(ctx context.Context, organisationID, id string, now time.Time) error {
	return s.changeTelling(ctx, organisationID, id, false, func(ctx context.Context, q *query.Queries, row query.Device, tell tell) error {
		if err := withdraw(ctx, q, id); err != nil || row.SecretHash == nil {
			return err
		}
		if err := q.RevokeSecret(ctx, query.RevokeSecretParams{DeviceID: id, RevokeTime: &now}); err != nil {
			return err
		}
		d, err := find(ctx, q, organisationID, id)
		if err != nil {
			return err
		}
		return tell(ctx, deviceRevoked, d)
	})
}

// ClaimFailures implements device.Store.
func (s *Store) ClaimFailures(ctx context.Context, keys []string) (map[string]time.Time, error) {
	var rows []query.ClaimFailure
	err := s.db.Read(ctx, func(ctx context.Context) (err error) {
		rows, err = s.q.ClaimFailures(ctx, keys)
		return err
	})
	free := make(map[string]time.Time, len(rows))
	for _, r := range rows {
		free[r.Key] = r.FreeTime
	}
	return free, err
}

// CountClaimFailure implements device.Store.
func (s *Store) CountClaimFailure(ctx context.Context, debits []throttle.Debit, now time.Time) error {
	return s.transact(ctx, func(ctx context.Context, q *query.Queries) error {
		for _, d := range throttle.InOrder(debits) {
			if err := q.CountClaimFailure(ctx, query.CountClaimFailureParams{
				Key: d.Key, FreeTime: now.Add(d.Budget.Every), CostSeconds: d.Budget.Every.Seconds(),
			}); err != nil {
				return err
			}
		}
		return nil
	})
}
