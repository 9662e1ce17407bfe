package auth

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
)

// A log-out, the revocation of an API key and a change of roles are effective
// within ten seconds; up to 30 s where a service cannot reach account. The worst
// sums:
//
//	  3 s   PublishedAge:  account answers with what it read before the log-out
//	+ 3 s   PollInterval:  the first question that is late enough is asked
//	+ 1.5 s pollTimeout:   one question that fails; the next follows at once
//	+ 1.5 s pollTimeout:   its answer is slow
//	+ 1 s   judgeInterval: streams that are open are judged again
//	= 10 s  LogOutWithin
//
//	  3 s   PublishedAge:  as above, in the last answer there was
//	+ 26 s  maxAge:        it is trusted
//	+ 1 s   judgeInterval: as above
//	= 30 s  LogOutWithinUnreached
const (
	// LogOutWithin is how long a log-out takes at most to be effective in a
	// service that reaches account at least at every other try.
	LogOutWithin = 10 * time.Second
	// LogOutWithinUnreached is the same for a service that cannot reach account:
	// then it refuses every token.
	LogOutWithinUnreached = 30 * time.Second

	// PollInterval is the longest time between two questions to account, from
	// the moment that one is asked to the moment that the next is.
	PollInterval = 3 * time.Second
	// PublishedAge is how old what account answers may be: an instance of account
	// that knows nothing younger does not answer.
	PublishedAge = 3 * time.Second

	pollTimeout = 1500 * time.Millisecond
	// maxAge is how long ago the last answer may have been asked for. After that
	// log-outs may have been missed for longer than anyone was promised, so
	// tokens are refused.
	maxAge = LogOutWithinUnreached - PublishedAge - judgeInterval
	// earlyInterval is the shortest time between two questions after a failure or
	// because of an unknown key id: forged ids must not become a flood of calls
	// to account. A question that timed out has used it up.
	earlyInterval = time.Second
)

// RemoteKeys are the keys that the account service publishes, read again every
// PollInterval. A log-out is effective within ten seconds; up to 30 s where a
// service cannot reach account, for as long as the last good answer stays. After
// that no token is accepted (ErrKeysUnavailable).
type RemoteKeys struct {
	client accountv1.AccountServiceClient
	log    hclog.Logger
	now    func() time.Time

	current atomic.Pointer[snapshot]
	early   chan struct{}

	mu      sync.Mutex
	lastErr error
}

// pageSize is how many ended sessions and changed accounts one call asks for: a
// megabyte, of the four that a client of gRPC takes.
const pageSize = 20_000

// snapshot is what account answered, all pages of it.
type snapshot struct {
	at    time.Time
	keys  map[string]publishedKey
	ended map[string]struct{}
	roles map[string]int64 // by account, the least version that is not stale
}

type publishedKey struct {
	key     ed25519.PublicKey
	expires time.Time // zero: not yet known
}

var _ Keys = (*RemoteKeys)(nil)

// NewRemoteKeys makes keys that are read over a connection to account, for
// example mesh.NewClient("account"). Nothing is asked before Run. log may be nil.
func NewRemoteKeys(account grpc.ClientConnInterface, log hclog.Logger) *RemoteKeys {
	if log == nil {
		log = hclog.NewNullLogger()
	}
	return &RemoteKeys{
		client: accountv1.NewAccountServiceClient(account),
		log:    log,
		now:    time.Now,
		early:  make(chan struct{}, 1),
	}
}

// Run reads the keys again and again until ctx ends, whose error it returns.
// Its owner waits for it: service.Service.AddBackground.
func (k *RemoteKeys) Run(ctx context.Context) error {
	failing := false
	for {
		asked := k.now()
		err := k.fetch(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch {
		case err != nil && !failing:
			k.log.Warn("reading the signing keys fails; the last answer stays for up to "+maxAge.String(), "error", err)
		case err == nil && failing:
			k.log.Info("reading the signing keys works again")
		}
		failing = err != nil
		if err := k.pause(ctx, asked, failing); err != nil {
			return err
		}
	}
}

// pause waits until the next fetch is due, counted from when the last one was
// asked: PollInterval less up to a fifth, so that instances do not ask at the same
// moment, and earlier after a failure or for an unknown key id.
func (k *RemoteKeys) pause(ctx context.Context, asked time.Time, failing bool) error {
	interval := PollInterval
	if failing {
		interval = earlyInterval
	}
	interval -= time.Duration(rand.Float64() * 0.2 * float64(interval))
	timer := time.NewTimer(interval - k.now().Sub(asked))
	defer timer.Stop()
	early := k.early
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return nil
		case <-early:
			early = nil
			timer.Reset(max(0, min(interval, earlyInterval)-k.now().Sub(asked)))
		}
	}
}

func (k *RemoteKeys) fetch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	// The answer is at least as old as the question.
	asked := k.now()
	s := &snapshot{
		at:    asked,
		keys:  map[string]publishedKey{},
		ended: map[string]struct{}{},
		roles: map[string]int64{},
	}
	for page := (&accountv1.GetSigningKeysRequest{PageSize: pageSize}); ; {
		answer, err := k.client.GetSigningKeys(ctx, page)
		if err == nil && len(answer.GetKeys()) == 0 {
			err = errors.New("account publishes no keys")
		}
		if err != nil {
			err = fmt.Errorf("reading the signing keys from account: %w", err)
			k.mu.Lock()
			k.lastErr = err
			k.mu.Unlock()
			return err
		}
		k.add(s, answer)
		if page.PageToken = answer.GetNextPageToken(); page.PageToken == "" {
			break
		}
	}
	k.current.Store(s)
	return nil
}

// add takes a page into a snapshot.
func (k *RemoteKeys) add(s *snapshot, answer *accountv1.GetSigningKeysResponse) {
	for _, key := range answer.GetKeys() {
		if len(key.GetPublicKey()) != ed25519.PublicKeySize {
			k.log.Warn("a published key is not an Ed25519 key", "key_id", key.GetKeyId())
			continue
		}
		p := publishedKey{key: ed25519.PublicKey(key.GetPublicKey())}
		if key.GetExpireTime() != nil {
			p.expires = key.GetExpireTime().AsTime()
		}
		s.keys[key.GetKeyId()] = p
	}
	for _, session := range answer.GetEndedSessions() {
		s.ended[session.GetSessionId()] = struct{}{}
	}
	for _, changed := range answer.GetChangedAccounts() {
		s.roles[changed.GetAccountId()] = changed.GetRolesVersion()
	}
}

// PublicKey returns a published key. An unknown id brings the next fetch
// forward, at most once a second, so that a key which began to sign early is
// known soon.
func (k *RemoteKeys) PublicKey(keyID string) (ed25519.PublicKey, bool) {
	s := k.current.Load()
	if s == nil {
		return nil, false
	}
	p, ok := s.keys[keyID]
	if !ok {
		select {
		case k.early <- struct{}{}:
		default:
		}
		return nil, false
	}
	if !p.expires.IsZero() && k.now().After(p.expires) {
		return nil, false
	}
	return p.key, true
}

// SessionEnded says whether the session is among those that ended.
func (k *RemoteKeys) SessionEnded(sessionID string) bool {
	s := k.current.Load()
	if s == nil {
		return true
	}
	_, ended := s.ended[sessionID]
	return ended
}

// RolesVersion is what account says of the account's roles.
func (k *RemoteKeys) RolesVersion(accountID string) int64 {
	s := k.current.Load()
	if s == nil {
		return math.MaxInt64
	}
	return s.roles[accountID]
}

// Available fails when the last answer is too old to be trusted (maxAge).
func (k *RemoteKeys) Available() error {
	s := k.current.Load()
	if s != nil && k.now().Sub(s.at) <= maxAge {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lastErr != nil {
		return k.lastErr
	}
	return errors.New("the signing keys have not been read yet")
}
