package account

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"time"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/paging"
	"github.com/marquee-ads/marquee/platform/throttle"
)

// APIKeyLifetime is how long an API key can be used unless it says otherwise.
const APIKeyLifetime = 90 * 24 * time.Hour

// APIKey is what a program acts with for an organisation.
type APIKey struct {
	// ID is "apk_" and a ULID; the "sub" and "sid" of its tokens.
	ID             string
	OrganisationID string
	// Name says what it is for.
	Name string
	Role auth.Role
	// SecretHash is the hash of its secret.
	SecretHash []byte
	// CreatorID is the account that made it. It outlives the creator's membership.
	CreatorID  string
	CreateTime time.Time
	ExpireTime time.Time
	// UseTime is when it was last exchanged, and TokenExpireTime when the last of
	// its tokens expires, or zero.
	UseTime         time.Time
	TokenExpireTime time.Time
	// RevokeTime is when it was revoked, or zero.
	RevokeTime time.Time
}

// hashSecret is what is stored of an API key's secret, which has 256 bits that
// nobody can guess: there is no need for a slow hash.
func hashSecret(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

// CreateAPIKey makes an API key and its secret, which is not stored; lifetime 0
// is APIKeyLifetime. The secret follows from the key's id, so that a repeat of the
// request gets it too. Errors: ErrNameInvalid, ErrRequestIDReused,
// ErrTooManyAPIKeys, ErrAPIKeysThrottled, auth.ErrNotAMember,
// auth.ErrRoleNotAllowed.
func (s *Service) CreateAPIKey(ctx context.Context, caller auth.Caller, organisationID, requestID, name string, role auth.Role, lifetime time.Duration, from Origin) (APIKey, string, error) {
	name, err := displayName(name)
	if err != nil {
		return APIKey{}, "", err
	}
	if lifetime == 0 {
		lifetime = APIKeyLifetime
	}
	event, err := s.memberEvent(APIKeyCreated, caller, organisationID, "", from)
	if err != nil {
		return APIKey{}, "", err
	}
	id, err := newID("apk", event.Time, s.random)
	if err != nil {
		return APIKey{}, "", err
	}
	secret, err := s.secret.sealCredential(apiKeySecret, id)
	if err != nil {
		return APIKey{}, "", err
	}
	event.SubjectID, event.Role = id, role
	made := APIKey{
		ID: id, OrganisationID: organisationID, Name: name, Role: role, SecretHash: hashSecret(secret),
		CreatorID: caller.AccountID, CreateTime: event.Time, ExpireTime: event.Time.Add(lifetime),
	}
	err = s.asOwner(ctx, caller, organisationID, func(ctx context.Context, tx Tx) error {
		before, first, err := s.claim(ctx, tx, caller, requestID, id, event.Time, "CreateAPIKey", organisationID, name, string(role), lifetime.String())
		if err != nil {
			return err
		}
		if !first {
			return earlier(ctx, tx.APIKey, before, &made)
		}
		keys, err := tx.CountAPIKeys(ctx, organisationID, event.Time)
		switch {
		case err != nil:
			return err
		case keys >= MaxAPIKeys:
			return ErrTooManyAPIKeys
		}
		wait, err := tx.Spend(ctx, throttle.Debit{Key: s.budgetKey("API keys", organisationID), Budget: s.throttle.APIKeys}, event.Time)
		switch {
		case err != nil:
			return err
		case wait > 0:
			return ErrAPIKeysThrottled.WithRetryAfter(wait)
		}
		if err := tx.PutAPIKey(ctx, made); err != nil {
			return err
		}
		return tx.Record(ctx, *event)
	})
	if err != nil {
		return APIKey{}, "", fmt.Errorf("making an API key: %w", err)
	}
	secret, err = s.secret.sealCredential(apiKeySecret, made.ID)
	return made, secret, err
}

// ListAPIKeys returns a page of an organisation's API keys, the newest first.
func (s *Service) ListAPIKeys(ctx context.Context, organisationID string, page paging.Page) ([]APIKey, string, error) {
	return list(ctx, s, "API keys of "+organisationID, page, func(ctx context.Context, before string, limit int) ([]APIKey, error) {
		return s.store.ListAPIKeys(ctx, organisationID, before, limit)
	}, func(k APIKey) string { return k.ID })
}

// RevokeAPIKey makes a key worthless, and its access tokens within the time that
// LogOut takes. Errors: ErrNoSuchAPIKey, auth.ErrNotAMember,
// auth.ErrRoleNotAllowed.
func (s *Service) RevokeAPIKey(ctx context.Context, caller auth.Caller, organisationID, keyID string, from Origin) error {
	event, err := s.memberEvent(APIKeyRevoked, caller, organisationID, "", from)
	if err != nil {
		return err
	}
	var revoked APIKey
	err = s.asOwner(ctx, caller, organisationID, func(ctx context.Context, tx Tx) error {
		key, err := tx.APIKey(ctx, keyID)
		switch {
		case err != nil:
			return err
		case key == nil || key.OrganisationID != organisationID:
			return ErrNoSuchAPIKey
		case !key.RevokeTime.IsZero():
			return nil
		}
		key.RevokeTime = event.Time
		revoked = *key
		event.SubjectID, event.Role = keyID, key.Role
		if err := tx.PutAPIKey(ctx, *key); err != nil {
			return err
		}
		return tx.Record(ctx, *event)
	})
	if err != nil {
		return fmt.Errorf("revoking an API key: %w", err)
	}
	if !revoked.TokenExpireTime.IsZero() {
		s.keys.End(EndedSession{ID: keyID, ExpireTime: revoked.TokenExpireTime.Add(ClockLeeway)})
	}
	return nil
}

// ExchangeAPIKey returns an access token for an API key, and when it expires.
// Errors: ErrAPIKeyInvalid, ErrAPIKeyExpired, ErrAPIKeyRevoked,
// ErrSigningKeysUnavailable.
func (s *Service) ExchangeAPIKey(ctx context.Context, secret string) (string, time.Time, error) {
	id, ok := s.secret.openCredential(apiKeySecret, secret)
	if !ok {
		return "", time.Time{}, ErrAPIKeyInvalid
	}
	now := s.now().UTC().Truncate(time.Second)
	var used APIKey
	err := s.store.Change(ctx, func(ctx context.Context, tx Tx) error {
		key, err := tx.APIKey(ctx, id)
		switch {
		case err != nil:
			return err
		case key == nil || subtle.ConstantTimeCompare(key.SecretHash, hashSecret(secret)) != 1:
			return ErrAPIKeyInvalid
		case !key.RevokeTime.IsZero():
			return ErrAPIKeyRevoked
		case !now.Before(key.ExpireTime):
			return ErrAPIKeyExpired
		}
		used = *key
		used.UseTime, used.TokenExpireTime = now, now.Add(TokenLifetime)
		if used.TokenExpireTime.After(used.ExpireTime) {
			used.TokenExpireTime = used.ExpireTime
		}
		return tx.PutAPIKey(ctx, used)
	})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("using an API key: %w", err)
	}
	token, err := s.keys.Sign(Token{
		Subject: used.ID, SessionID: used.ID, IssueTime: now, ExpireTime: used.TokenExpireTime,
		Granted: Granted{Roles: auth.Roles{used.OrganisationID: used.Role}},
	})
	return token, used.TokenExpireTime, err
}
