package auth_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/auth"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
)

// account answers GetSigningKeys in place of a connection.
type account struct {
	mu     sync.Mutex
	answer *accountv1.GetSigningKeysResponse
	// The answers by page token, if they are paged.
	pages map[string]*accountv1.GetSigningKeysResponse
	err   error
	calls int
	// Calls take this long; the next so many fail after it.
	slow     time.Duration
	failures int
}

func (a *account) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	a.mu.Lock()
	answered := proto.Clone(a.answer)
	if asked, ok := args.(*accountv1.GetSigningKeysRequest); ok && a.pages != nil {
		answered = proto.Clone(a.pages[asked.GetPageToken()])
	}
	slow := a.slow
	a.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-ctx.Done():
		return ctx.Err()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if method != accountv1.AccountService_GetSigningKeys_FullMethodName {
		return errors.New("unexpected call of " + method)
	}
	a.calls++
	if a.err != nil {
		return a.err
	}
	if a.failures > 0 {
		a.failures--
		return errors.New("failing")
	}
	proto.Merge(reply.(proto.Message), answered)
	return nil
}

func (*account) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errors.New("no streams")
}

func (a *account) set(change func(*account)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(a)
}

func (a *account) asked() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls
}

// remoteKeys runs keys in a bubble with a clock of its own.
func remoteKeys(t *testing.T, test func(t *testing.T, a *account, k *auth.RemoteKeys)) {
	synctest.Test(t, func(t *testing.T) {
		public := newIssuer(t).keys.keys["k1"]
		a := &account{answer: &accountv1.GetSigningKeysResponse{Keys: []*accountv1.SigningKey{
			{KeyId: "k1", PublicKey: public},
			{KeyId: "retired", PublicKey: public, ExpireTime: timestamppb.New(time.Now().Add(30 * time.Second))},
			{KeyId: "short", PublicKey: public[:31]},
		}}}
		k := auth.NewRemoteKeys(a, nil)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx) }()
		synctest.Wait()
		test(t, a, k)
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	})
}

func TestRemoteKeys(t *testing.T) {
	has := func(k *auth.RemoteKeys, id string) bool {
		_, ok := k.PublicKey(id)
		return ok
	}
	after := func(d time.Duration) {
		time.Sleep(d)
		synctest.Wait()
	}
	t.Run("ReadsKeysAndSessions", func(t *testing.T) {
		remoteKeys(t, func(t *testing.T, a *account, k *auth.RemoteKeys) {
			require.NoError(t, k.Available())
			require.True(t, has(k, "k1"))
			require.True(t, has(k, "retired"))
			require.False(t, has(k, "short"), "31 bytes are no Ed25519 key")
			require.False(t, k.SessionEnded("s1"))
			a.set(func(a *account) {
				a.answer.EndedSessions = []*accountv1.EndedSession{{SessionId: "s1"}}
				a.answer.ChangedAccounts = []*accountv1.ChangedAccount{{AccountId: "acc_1", RolesVersion: 3}}
			})
			require.Zero(t, k.RolesVersion("acc_1"))
			after(auth.PollInterval)
			require.True(t, k.SessionEnded("s1"), "within an interval")
			require.EqualValues(t, 3, k.RolesVersion("acc_1"))
			require.Zero(t, k.RolesVersion("acc_2"))
		})
	})
	t.Run("ReadsAllPages", func(t *testing.T) {
		remoteKeys(t, func(t *testing.T, a *account, k *auth.RemoteKeys) {
			a.set(func(a *account) {
				a.pages = map[string]*accountv1.GetSigningKeysResponse{
					"":      {Keys: a.answer.GetKeys(), NextPageToken: "two", ChangedAccounts: []*accountv1.ChangedAccount{{AccountId: "acc_1", RolesVersion: 3}}},
					"two":   {Keys: a.answer.GetKeys(), NextPageToken: "three", EndedSessions: []*accountv1.EndedSession{{SessionId: "s1"}}},
					"three": {Keys: a.answer.GetKeys(), EndedSessions: []*accountv1.EndedSession{{SessionId: "s2"}}},
				}
			})
			before := a.asked()
			after(auth.PollInterval)
			require.Equal(t, before+3, a.asked())
			require.True(t, k.SessionEnded("s1"))
			require.True(t, k.SessionEnded("s2"))
			require.EqualValues(t, 3, k.RolesVersion("acc_1"))
			// A page that is missing is a failure: the last whole answer stays.
			a.set(func(a *account) {
				a.pages["two"] = &accountv1.GetSigningKeysResponse{Keys: a.answer.GetKeys(), NextPageToken: "three"}
				a.pages["three"] = &accountv1.GetSigningKeysResponse{}
			})
			after(auth.PollInterval)
			require.True(t, k.SessionEnded("s1"))
			require.True(t, k.SessionEnded("s2"))
			after(auth.LogOutWithinUnreached)
			require.Error(t, k.Available())
		})
	})
	t.Run("KeyExpiresBetweenFetches", func(t *testing.T) {
		remoteKeys(t, func(t *testing.T, a *account, k *auth.RemoteKeys) {
			after(31 * time.Second)
			require.False(t, has(k, "retired"))
			require.True(t, has(k, "k1"))
		})
	})
	t.Run("ALogOutIsEffectiveInTime", func(t *testing.T) {
		remoteKeys(t, func(t *testing.T, a *account, k *auth.RemoteKeys) {
			const slow = 1500*time.Millisecond - time.Millisecond
			for round := range 20 {
				id := fmt.Sprint(round)
				// Account may not know of it before PublishedAge has passed; then one
				// question fails as slowly as it can, and the next is answered slowly.
				began := time.Now()
				after(auth.PublishedAge)
				a.set(func(a *account) {
					a.slow, a.failures = slow, 1
					a.answer = &accountv1.GetSigningKeysResponse{Keys: a.answer.GetKeys(), EndedSessions: []*accountv1.EndedSession{{SessionId: id}},
						ChangedAccounts: []*accountv1.ChangedAccount{{AccountId: id, RolesVersion: 1}}}
				})
				for !k.SessionEnded(id) || k.RolesVersion(id) == 0 {
					// A second is left for what is open.
					require.Less(t, time.Since(began), auth.LogOutWithin-time.Second)
					after(time.Millisecond)
				}
				// Into another moment of the next interval.
				after(time.Duration(round) * 173 * time.Millisecond)
			}
		})
	})
	t.Run("KeepsTheLastAnswerForAWhile", func(t *testing.T) {
		remoteKeys(t, func(t *testing.T, a *account, k *auth.RemoteKeys) {
			a.set(func(a *account) { a.err = errors.New("away") })
			after(25 * time.Second)
			require.NoError(t, k.Available())
			require.True(t, has(k, "k1"))
			after(auth.LogOutWithinUnreached - auth.PublishedAge - time.Second - 25*time.Second + time.Millisecond)
			require.ErrorContains(t, k.Available(), "away")
			a.set(func(a *account) { a.err = nil })
			after(2 * time.Second)
			require.NoError(t, k.Available(), "a failure is tried again after a second")
		})
	})
	t.Run("AnEmptyAnswerIsAFailure", func(t *testing.T) {
		remoteKeys(t, func(t *testing.T, a *account, k *auth.RemoteKeys) {
			a.set(func(a *account) { a.answer = &accountv1.GetSigningKeysResponse{} })
			after(10 * time.Second)
			require.True(t, has(k, "k1"))
		})
	})
	t.Run("UnknownKeyFetchesEarly", func(t *testing.T) {
		remoteKeys(t, func(t *testing.T, a *account, k *auth.RemoteKeys) {
			after(2 * time.Second)
			before := a.asked()
			require.False(t, has(k, "next"))
			a.set(func(a *account) { a.answer.Keys[0].KeyId = "next" })
			synctest.Wait()
			require.Equal(t, before+1, a.asked())
			require.True(t, has(k, "next"))
		})
	})
	t.Run("ForgedKeyIDsAreNoFlood", func(t *testing.T) {
		remoteKeys(t, func(t *testing.T, a *account, k *auth.RemoteKeys) {
			before := a.asked()
			for range 1000 {
				has(k, "forged")
				after(10 * time.Millisecond)
			}
			require.LessOrEqual(t, a.asked()-before, 10, "calls in ten seconds")
			require.GreaterOrEqual(t, a.asked()-before, 8)
		})
	})
	t.Run("BeforeTheFirstAnswer", func(t *testing.T) {
		k := auth.NewRemoteKeys(&account{}, nil)
		require.Error(t, k.Available())
		require.False(t, has(k, "k1"))
		require.True(t, k.SessionEnded("s1"))
	})
}
