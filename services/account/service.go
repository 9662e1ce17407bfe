package account

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/marquee-ads/marquee/platform/auth"
)

const (
	// RequestLifetime is for how long a repeated sign-up gets the first answer.
	RequestLifetime = 24 * time.Hour
	sweepInterval   = time.Minute
	sweepTimeout    = 20 * time.Second
)

// Store keeps accounts and sessions. Its errors are the faults named here,
// ErrDatabaseUnavailable when trying again can help, the context's error, or
// something unexpected.
type Store interface {
	// FindSignUp returns the sign-up that came with this request id before and
	// has not expired at now, or nil, and whether the name is taken: both as of
	// the same moment.
	FindSignUp(ctx context.Context, requestID, nameKey string, now time.Time) (first *SignUp, nameTaken bool, err error)
	// CreateAccount stores the account and its sign-up together, and returns the
	// sign-up that holds the request id afterwards: the given one, or one that
	// came before and has not expired. It waits for another with the same
	// request id that is under way. Errors: ErrNameTaken.
	CreateAccount(ctx context.Context, s SignUp, passwordHash string) (SignUp, error)
	// FindAccount fails with ErrNotFound.
	FindAccount(ctx context.Context, accountID string) (Account, error)
	// FindPassword returns an account and its password's hash, or ErrNotFound.
	FindPassword(ctx context.Context, nameKey string) (Account, string, error)
	// ReplacePasswordHash does nothing when the hash is no longer the old one.
	ReplacePasswordHash(ctx context.Context, accountID, oldHash, newHash string) error
	CreateSession(ctx context.Context, s Session) error
	// EndSession marks a session ended, once; it returns when its last token
	// expires, or the zero time when there is no such session any more.
	EndSession(ctx context.Context, sessionID string, now time.Time) (tokenExpireTime time.Time, err error)
	// Sweep removes sign-ups, sessions and keys that count for nothing any more
	// at now, a bounded number in one call, and returns how many it removed.
	Sweep(ctx context.Context, now time.Time) (int64, error)
}

// SignUp is a sign-up as it is remembered for repeats.
type SignUp struct {
	RequestID string
	// Fingerprint tells whether a repeat has the same body.
	Fingerprint []byte
	Account     Account
	ExpireTime  time.Time
}

// Service is what the account service does, apart from how it is called.
type Service struct {
	store    Store
	hasher   *Hasher
	keys     *Keyring
	secret   *Secret
	now      func() time.Time
	random   io.Reader
	log      hclog.Logger
	underWay underWay
}

// New wires the service. now is the clock, random the source of ids.
func New(store Store, hasher *Hasher, keys *Keyring, secret *Secret, now func() time.Time, random io.Reader, log hclog.Logger) *Service {
	return &Service{store: store, hasher: hasher, keys: keys, secret: secret, now: now, random: random, log: log}
}

// SignUp creates an account; a repeat with the same request id and body gets
// the first answer. Errors: ErrNameTaken, ErrPasswordTooWeak,
// ErrPasswordInvalid, ErrRequestIDReused, ErrOverloaded.
func (s *Service) SignUp(ctx context.Context, requestID, name, password string) (Account, error) {
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
	winner, err := s.store.CreateAccount(ctx, SignUp{
		RequestID: requestID, Fingerprint: fingerprint, ExpireTime: now.Add(RequestLifetime),
		Account: Account{ID: id, Name: name, CreateTime: now},
	}, hash)
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

// LogIn opens a session and returns it with its account and an access token.
// Errors: ErrWrongCredentials, ErrOverloaded, ErrSigningKeysUnavailable.
func (s *Service) LogIn(ctx context.Context, name, password string) (Account, Session, string, error) {
	found, err := s.authenticate(ctx, name, password)
	if err != nil {
		return Account{}, Session{}, "", err
	}
	now := s.now().UTC().Truncate(time.Second) // the precision of a token's times
	id, err := newID("ses", now, s.random)
	if err != nil {
		return Account{}, Session{}, "", err
	}
	session := Session{ID: id, AccountID: found.ID, CreateTime: now, TokenExpireTime: now.Add(TokenLifetime)}
	token, err := s.keys.Sign(session)
	if err != nil {
		return Account{}, Session{}, "", err
	}
	if err := s.store.CreateSession(ctx, session); err != nil {
		return Account{}, Session{}, "", fmt.Errorf("storing the session: %w", err)
	}
	return found, session, token, nil
}

func (s *Service) authenticate(ctx context.Context, name, password string) (Account, error) {
	// The turn comes first: a flood of log-ins is turned away before it costs
	// the database anything.
	done, err := s.hasher.Turn(ctx)
	if err != nil {
		return Account{}, err
	}
	defer done()

	// A password that cannot have been set is as wrong as any other.
	prepared, invalid := preparePassword(password)
	found, hash, err := s.store.FindPassword(ctx, NameKey(name))
	if errors.Is(err, ErrNotFound) || (err == nil && invalid != nil) {
		if err := s.hasher.VerifyNobody(password); err != nil {
			return Account{}, err
		}
		return Account{}, ErrWrongCredentials
	}
	if err != nil {
		return Account{}, fmt.Errorf("looking for the account: %w", err)
	}
	match, outdated, err := s.hasher.Verify(prepared, hash)
	switch {
	case err != nil:
		return Account{}, fmt.Errorf("verifying the password of %s: %w", found.ID, err)
	case !match:
		return Account{}, ErrWrongCredentials
	case outdated:
		// The password is right: nothing that goes wrong here may keep it out.
		if err := s.rehash(ctx, found.ID, hash, prepared); err != nil {
			s.log.Warn("a password hash could not be brought up to date", "account", found.ID, "error", err)
		}
	}
	return found, nil
}

func (s *Service) rehash(ctx context.Context, accountID, oldHash, prepared string) error {
	hash, err := s.hasher.Hash(prepared)
	if err != nil {
		return err
	}
	return s.store.ReplacePasswordHash(ctx, accountID, oldHash, hash)
}

// LogOut ends the caller's session: at once on this instance, and on every other
// instance and in every service within ten seconds; up to 30 s where a service
// cannot reach account (auth.LogOutWithin, auth.LogOutWithinUnreached).
func (s *Service) LogOut(ctx context.Context, caller auth.Caller) error {
	expires, err := s.store.EndSession(ctx, caller.SessionID, s.now())
	if err != nil {
		return fmt.Errorf("ending the session: %w", err)
	}
	if !expires.IsZero() {
		s.keys.End(EndedSession{ID: caller.SessionID, ExpireTime: expires.Add(ClockLeeway)})
	}
	return nil
}

// GetAccount returns the caller's own account, by its id or as "me". Errors:
// ErrNotYourAccount, ErrNotFound.
func (s *Service) GetAccount(ctx context.Context, caller auth.Caller, accountID string) (Account, error) {
	if accountID == "me" {
		accountID = caller.AccountID
	}
	if accountID != caller.AccountID {
		return Account{}, ErrNotYourAccount
	}
	return s.store.FindAccount(ctx, accountID)
}

// SigningKeys are the keys and ended sessions that every service is to know.
// Errors: ErrSigningKeysUnavailable.
func (s *Service) SigningKeys() ([]Key, []EndedSession, error) { return s.keys.Published() }

// RunSweep removes what counts for nothing any more, every minute until ctx ends.
func (s *Service) RunSweep(ctx context.Context) error {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		removed, err := s.sweep(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.log.Warn("expired rows could not be removed; trying again in a minute", "error", err)
		case removed > 0:
			s.log.Debug("removed expired rows", "rows", removed)
		}
	}
}

func (s *Service) sweep(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	return s.store.Sweep(ctx, s.now())
}
