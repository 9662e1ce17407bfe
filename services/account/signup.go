package account

import (
	"context"
	"crypto/hmac"
	"fmt"
	"time"
)

// SignUp is a sign-up as it is remembered for repeats.
type SignUp struct {
	RequestID string
	// Fingerprint tells whether a repeat has the same body.
	Fingerprint []byte
	Account     Account
	ExpireTime  time.Time
}

// SignUp creates an account; a repeat with the same request id and body gets
// the first answer. Errors: ErrNameTaken, ErrPasswordTooWeak,
// ErrPasswordInvalid, ErrRequestIDReused, ErrOverloaded.
func (s *Service) SignUp(ctx context.Context, requestID, name, password string, from Origin) (Account, error) {
	fingerprint := s.secret.fingerprint(name, password)

	// One at a time for each request id: the repeats wait here, where waiting is
	// cheap, and not with a database connection or a turn to hash.
	done, err := s.underWay.wait(ctx, requestID)
	if err != nil {
		return Account{}, err
	}
	defer done()

	first, taken, err := s.store.FindSignUp(ctx, requestID, NameKey(name), s.now())
	switch {
	case err != nil:
		return Account{}, fmt.Errorf("looking for an earlier sign-up: %w", err)
	case first != nil:
		return first.answer(fingerprint)
	case taken:
		return Account{}, ErrNameTaken
	}

	prepared, err := preparePassword(password)
	if err != nil {
		return Account{}, err
	}
	if err := checkPassword(prepared, name); err != nil {
		return Account{}, err
	}
	hash, err := s.hash(ctx, prepared)
	if err != nil {
		return Account{}, err
	}

	now := s.now().UTC().Truncate(time.Microsecond)
	id, err := newID("acc", now, s.random)
	if err != nil {
		return Account{}, err
	}
	event, err := s.event(SignedUp, id, id, from)
	if err != nil {
		return Account{}, err
	}
	winner, err := s.store.CreateAccount(ctx, SignUp{
		RequestID: requestID, Fingerprint: fingerprint, ExpireTime: now.Add(RequestLifetime),
		Account: Account{ID: id, Name: name, CreateTime: now},
	}, hash, *event)
	if err != nil {
		return Account{}, fmt.Errorf("storing the account: %w", err)
	}
	return winner.answer(fingerprint)
}

func (s SignUp) answer(fingerprint []byte) (Account, error) {
	if !hmac.Equal(s.Fingerprint, fingerprint) {
		return Account{}, ErrRequestIDReused
	}
	return s.Account, nil
}

func (s *Service) hash(ctx context.Context, prepared string) (string, error) {
	done, err := s.hasher.Turn(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	return s.hasher.Hash(prepared)
}
