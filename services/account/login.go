package account

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/marquee-ads/marquee/platform/throttle"
)

// Credentials are what a log-in comes with.
type Credentials struct {
	Name, Password string
	// DeviceToken is of an earlier log-in on the same device, or empty.
	DeviceToken string
}

// LoggedInto is what a log-in returns.
type LoggedInto struct {
	Account Account
	Tokens  Tokens
	// DeviceToken is to be sent with the next log-in from the same device.
	DeviceToken string
}

// LogIn opens a session, and ends the oldest when there are too many. Errors: ErrWrongCredentials, ErrThrottled,
// ErrOverloaded, ErrSigningKeysUnavailable.
func (s *Service) LogIn(ctx context.Context, c Credentials, from Origin) (LoggedInto, error) {
	found, err := s.authenticate(ctx, c, from)
	if err != nil {
		return LoggedInto{}, err
	}
	accountID := found.Account.ID
	tokens, err := s.open(ctx, accountID, from)
	if err != nil {
		return LoggedInto{}, err
	}
	device := c.DeviceToken
	if _, known := s.secret.openDevice(accountID, device); !known {
		if device, err = s.secret.newDevice(accountID, tokens.Session.CreateTime, s.random); err != nil {
			return LoggedInto{}, err
		}
	}
	event, err := s.event(LoggedIn, accountID, accountID, from)
	if err != nil {
		return LoggedInto{}, err
	}
	event.SessionID = tokens.Session.ID
	ended, err := s.store.CreateSession(ctx, tokens.Session, found.Generation, *event)
	if errors.Is(err, ErrPasswordChanged) {
		return LoggedInto{}, ErrWrongCredentials.Because(err)
	}
	if err != nil {
		return LoggedInto{}, fmt.Errorf("storing the session: %w", err)
	}
	s.announceEnd(ended...)
	return LoggedInto{found.Account, tokens, device}, nil
}

func (s *Service) authenticate(ctx context.Context, c Credentials, from Origin) (Password, error) {
	// The turn comes first: a flood of log-ins is turned away before it costs
	// the database anything.
	done, err := s.hasher.Turn(ctx)
	if err != nil {
		return Password{}, err
	}
	defer done()

	// A password that cannot have been set is as wrong as any other.
	prepared, invalid := preparePassword(c.Password)
	nameKey := NameKey(c.Name)
	found, err := Password{}, error(ErrNotFound)
	if !strings.ContainsRune(nameKey, 0) { // which Postgres does not take
		found, err = s.store.FindPassword(ctx, PasswordOf{NameKey: nameKey, Address: from.Address})
	}
	nobody := errors.Is(err, ErrNotFound)
	if err != nil && !nobody {
		return Password{}, fmt.Errorf("looking for the account: %w", err)
	}
	debits := s.debits(found.Account.ID, nameKey, found.Known, c.DeviceToken, from)
	if err := s.admit(ctx, debits); err != nil {
		return Password{}, err
	}

	// What follows takes the same time for a name that nobody has.
	var match, outdated bool
	if nobody || invalid != nil {
		err = s.hasher.VerifyNobody(c.Password)
	} else {
		match, outdated, err = s.hasher.Verify(prepared, found.Hash)
	}
	switch {
	case err != nil:
		return Password{}, fmt.Errorf("verifying the password of %s: %w", found.Account.ID, err)
	case !match:
		return Password{}, s.failed(ctx, debits, LogInFailed, found.Account.ID, "", from, ErrWrongCredentials)
	case outdated:
		// The password is right: nothing that goes wrong here may keep it out.
		if err := s.rehash(ctx, found.Account.ID, found.Hash, prepared); err != nil {
			s.log.Warn("a password hash could not be brought up to date", "account", found.Account.ID, "error", err)
		}
	}
	return found, nil
}

// failed counts a wrong password and returns what the caller is told.
func (s *Service) failed(ctx context.Context, debits []throttle.Debit, kind EventKind, accountID, sessionID string, from Origin, told error) error {
	var event *Event
	if accountID != "" {
		var err error
		// Who it was is not known, or they would have known the password.
		if event, err = s.event(kind, accountID, "", from); err != nil {
			return err
		}
		event.SessionID = sessionID
	}
	if err := s.store.AddFailure(ctx, s.now(), debits, event); err != nil {
		return fmt.Errorf("counting a wrong password: %w", err)
	}
	return told
}

func (s *Service) rehash(ctx context.Context, accountID, oldHash, prepared string) error {
	hash, err := s.hasher.Hash(prepared)
	if err != nil {
		return err
	}
	return s.store.ReplacePasswordHash(ctx, accountID, oldHash, hash)
}
