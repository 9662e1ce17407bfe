package account

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/fault"
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
	OrganisationStore
	// FindSignUp returns the sign-up that came with this request id before and
	// has not expired at now, or nil, and whether the name is taken: both as of
	// the same moment.
	FindSignUp(ctx context.Context, requestID, nameKey string, now time.Time) (first *SignUp, nameTaken bool, err error)
	// CreateAccount stores the account, its sign-up and its event together, and returns the
	// sign-up that holds the request id afterwards: the given one, or one that
	// came before and has not expired. It waits for another with the same
	// request id that is under way. Errors: ErrNameTaken.
	CreateAccount(ctx context.Context, s SignUp, passwordHash string, e Event) (SignUp, error)
	// FindAccount fails with ErrNotFound.
	FindAccount(ctx context.Context, accountID string) (Account, error)
	// FindPassword returns an account, or ErrNotFound.
	FindPassword(ctx context.Context, by PasswordOf) (Password, error)
	// ReplacePasswordHash does nothing when the hash is no longer the old one.
	ReplacePasswordHash(ctx context.Context, accountID, oldHash, newHash string) error
	// CreateSession stores a session, and the event of its account opening it,
	// unless the password was changed since it was of this generation:
	// ErrPasswordChanged.
	CreateSession(ctx context.Context, s Session, passwordGeneration int, e Event) error
	// ChangeSession calls decide with the session while nobody else can change
	// it, and stores the session and the event that it returns. decide is not
	// called when there is no such session, and may be called again.
	ChangeSession(ctx context.Context, sessionID string, decide func(Session) (*Session, *Event)) error
	// ListSessions returns up to limit of an account's sessions with ids less
	// than before ("" is no bound), the greatest first.
	ListSessions(ctx context.Context, accountID, before string, limit int) ([]Session, error)
	// ChangePassword replaces the hash of the account that the event is about, ends
	// all its sessions but the event's, stores the event, and returns the sessions
	// that ended. It does nothing when the password was changed since it was of
	// this generation: ErrPasswordChanged.
	ChangePassword(ctx context.Context, generation int, newHash string, e Event) (ended []Session, err error)
	// Failures returns what is used up of these keys' budgets; nothing for a key
	// is nothing used.
	Failures(ctx context.Context, keys []string) ([]Failures, error)
	// AddFailure counts a failure against each of the budgets, and stores the
	// event if there is one.
	AddFailure(ctx context.Context, now time.Time, debits []Debit, e *Event) error
	// ListEvents returns up to limit of an account's events with ids less than
	// before ("" is no bound), the greatest first.
	ListEvents(ctx context.Context, accountID, before string, limit int) ([]Event, error)
	// Sweep removes what counts for nothing any more at now (sign-ups, requests,
	// sessions, events, failures, invitations, keys), a bounded number in one call, and returns how many it removed.
	Sweep(ctx context.Context, now time.Time) (int64, error)
}

// PasswordOf says whose password is wanted: by NameKey, or by AccountID when
// that is empty.
type PasswordOf struct {
	NameKey, AccountID string
	// Address is where the attempt comes from.
	Address string
}

// Password is an account with its password's hash.
type Password struct {
	Account Account
	Hash    string
	// Generation counts how often the password was changed.
	Generation int
	// Known is whether the account was logged in to from the address asked with,
	// within the time that sessions are kept.
	Known bool
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
	throttle Throttle
	now      func() time.Time
	random   io.Reader
	log      hclog.Logger
	underWay underWay
}

// New wires the service. now is the clock, random the source of ids.
func New(store Store, hasher *Hasher, keys *Keyring, secret *Secret, throttle Throttle, now func() time.Time, random io.Reader, log hclog.Logger) *Service {
	return &Service{store: store, hasher: hasher, keys: keys, secret: secret, throttle: throttle, now: now, random: random, log: log}
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

// LogIn opens a session. Errors: ErrWrongCredentials, ErrThrottled,
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
	err = s.store.CreateSession(ctx, tokens.Session, found.Generation, *event)
	if errors.Is(err, ErrPasswordChanged) {
		return LoggedInto{}, ErrWrongCredentials.Because(err)
	}
	if err != nil {
		return LoggedInto{}, fmt.Errorf("storing the session: %w", err)
	}
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
func (s *Service) failed(ctx context.Context, debits []Debit, kind EventKind, accountID, sessionID string, from Origin, told error) error {
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

// ChangePassword sets a new password and ends all of the account's sessions but
// the caller's. It changes nothing when the new password is in place already.
// Errors: ErrWrongPassword, ErrThrottled, ErrPasswordTooWeak, ErrPasswordInvalid,
// ErrPasswordChanged, ErrNotFound, ErrOverloaded.
func (s *Service) ChangePassword(ctx context.Context, caller auth.Caller, current, replacement string, from Origin) error {
	prepared, err := preparePassword(replacement)
	if err != nil {
		return renamed(err, "new_password")
	}
	done, err := s.hasher.Turn(ctx)
	if err != nil {
		return err
	}
	defer done()

	found, err := s.store.FindPassword(ctx, PasswordOf{AccountID: caller.AccountID})
	if err != nil {
		return fmt.Errorf("looking for the account: %w", err)
	}
	// Whoever stole an access token must not find the password out, nor keep the
	// account's own from changing it in another session.
	debits := s.debits("", "session "+caller.SessionID, false, "", Origin{})
	if err := s.admit(ctx, debits); err != nil {
		return err
	}
	if err := renamed(checkPassword(prepared, found.Account.Name), "new_password"); err != nil {
		return err
	}
	match := false
	if old, invalid := preparePassword(current); invalid == nil {
		if match, _, err = s.hasher.Verify(old, found.Hash); err != nil {
			return fmt.Errorf("verifying the password of %s: %w", found.Account.ID, err)
		}
	}
	if !match {
		again, _, err := s.hasher.Verify(prepared, found.Hash)
		switch {
		case err != nil:
			return fmt.Errorf("verifying the password of %s: %w", found.Account.ID, err)
		case again: // a repeat
			return nil
		}
		return s.failed(ctx, debits, PasswordChangeFailed, found.Account.ID, caller.SessionID, from, ErrWrongPassword)
	}
	hash, err := s.hasher.Hash(prepared)
	if err != nil {
		return err
	}
	event, err := s.event(PasswordChanged, caller.AccountID, caller.AccountID, from)
	if err != nil {
		return err
	}
	event.SessionID = caller.SessionID
	ended, err := s.store.ChangePassword(ctx, found.Generation, hash, *event)
	if err != nil {
		return fmt.Errorf("storing the new password: %w", err)
	}
	s.announceEnd(ended...)
	return nil
}

// renamed is a fault about the field "password" for a request that calls it
// something else.
func renamed(err error, field string) error {
	f, ok := fault.From(err)
	if !ok {
		return err
	}
	c := *f
	c.Fields = slices.Clone(f.Fields)
	for i := range c.Fields {
		if c.Fields[i].Path == "password" {
			c.Fields[i].Path = field
		}
	}
	return &c
}

func (s *Service) rehash(ctx context.Context, accountID, oldHash, prepared string) error {
	hash, err := s.hasher.Hash(prepared)
	if err != nil {
		return err
	}
	return s.store.ReplacePasswordHash(ctx, accountID, oldHash, hash)
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

// Published is what every service is to know to verify access tokens. Errors:
// ErrSigningKeysUnavailable.
func (s *Service) Published() (Published, error) { return s.keys.Published() }

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
