package account

import (
	"context"
	"io"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/paging"
	"github.com/marquee-ads/marquee/platform/throttle"
)

const (
	// RequestLifetime is for how long the repeat of a write gets the first answer.
	RequestLifetime = 24 * time.Hour
	sweepInterval   = time.Minute
	sweepTimeout    = 20 * time.Second
)

// Store keeps accounts and sessions. Its errors are the faults named here,
// database.ErrUnavailable when trying again can help, the context's error, or
// something unexpected.
type Store interface {
	OrganisationStore
	// FindSignUp returns the sign-up that came with this request id before and
	// has not expired at now, or nil, and whether the name is taken: both as of
	// the same moment.
	FindSignUp(ctx context.Context, requestID, nameKey string, now time.Time) (first *SignUp, nameTaken bool, err error)
	// CreateAccount stores the account, its sign-up and its event together, and
	// returns the sign-up that holds the request id afterwards: the given one, or
	// one that came before and has not expired. It waits for another with the same
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
	// ErrPasswordChanged. It ends the account's oldest sessions beyond MaxSessions,
	// a bounded number in one call, and returns them.
	CreateSession(ctx context.Context, s Session, passwordGeneration int, e Event) (ended []Session, err error)
	// ChangeSession calls decide with the session while nobody else can change
	// it, and stores the session and the event that it returns. decide is not
	// called when there is no such session, and may be called again.
	ChangeSession(ctx context.Context, sessionID string, decide func(Session) (*Session, *Event)) error
	// ListSessions returns up to limit of an account's sessions with ids less
	// than before ("" is no bound), the greatest first.
	ListSessions(ctx context.Context, accountID, before string, limit int) ([]Session, error)
	// ChangePassword replaces the hash of the account that the event is about, ends
	// all its sessions but the event's, stores the event, and returns the sessions
	// that ended. It replaces nothing when the password was changed since it was of
	// this generation: ErrPasswordChanged. Of very many sessions the oldest may have
	// ended though it fails.
	ChangePassword(ctx context.Context, generation int, newHash string, e Event) (ended []Session, err error)
	// Failures returns when these keys' budgets are whole again; those that are need
	// not be among them.
	Failures(ctx context.Context, keys []string) (map[string]time.Time, error)
	// AddFailure counts a failure against each of the budgets, and stores the
	// event if there is one.
	AddFailure(ctx context.Context, now time.Time, debits []throttle.Debit, e *Event) error
	// ListEvents returns up to limit of an account's events with ids less than
	// before ("" is no bound), the greatest first.
	ListEvents(ctx context.Context, accountID, before string, limit int) ([]Event, error)
	// Sweep removes what counts for nothing any more at now (sign-ups, requests,
	// sessions, events, failures, invitations, keys), a bounded number in one call,
	// and returns how many it removed.
	Sweep(ctx context.Context, now time.Time) (int64, error)
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

// Published is what every service is to know to verify access tokens:
// Keyring.Published, after Keyring.Await.
func (s *Service) Published(ctx context.Context, page paging.Page) (Published, string, error) {
	s.keys.Await(ctx)
	return s.keys.Published(page)
}

// PublishedKeys are the keys alone. Errors: ErrSigningKeysUnavailable.
func (s *Service) PublishedKeys(ctx context.Context) ([]Key, error) {
	s.keys.Await(ctx)
	return s.keys.PublishedKeys()
}

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
