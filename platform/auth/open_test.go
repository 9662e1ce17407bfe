package auth_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/auth"
)

// available is a keyring that can be too old.
type available struct {
	*keyring
	err atomic.Pointer[error]
}

func (a *available) Available() error {
	if err := a.err.Load(); err != nil {
		return *err
	}
	return nil
}

func TestFollow(t *testing.T) {
	// within is how long an open call goes on at most that a new one would not.
	const within = time.Second
	withdraw := func(a *available, change func(*keyring)) {
		a.mu.Lock()
		defer a.mu.Unlock()
		change(a.keyring)
	}
	for name, test := range map[string]struct {
		needsRole bool
		change    func(*available)
		want      error // of the call of acc_1; nil: it goes on
		others    error // likewise, of that of acc_2
	}{
		"SessionEnded": {want: auth.ErrSessionEnded, change: func(a *available) {
			withdraw(a, func(k *keyring) { k.ended["s_acc_1"] = true })
		}},
		"RolesChanged": {needsRole: true, want: auth.ErrRolesChanged, change: func(a *available) {
			withdraw(a, func(k *keyring) { k.roles = map[string]int64{"acc_1": 2} })
		}},
		"RolesChangedWhereNoneIsNeeded": {change: func(a *available) {
			withdraw(a, func(k *keyring) { k.roles = map[string]int64{"acc_1": 2} })
		}},
		"KeyWithdrawn": {want: auth.ErrTokenInvalid, others: auth.ErrTokenInvalid, change: func(a *available) {
			withdraw(a, func(k *keyring) { clear(k.keys) })
		}},
		"KeysTooOld": {want: auth.ErrKeysUnavailable, others: auth.ErrKeysUnavailable, change: func(a *available) {
			err := errors.New("account is away")
			a.err.Store(&err)
		}},
		// acc_1's token is good for a minute and acc_2's for ten.
		"Expired": {want: auth.ErrTokenExpired, change: func(*available) { time.Sleep(time.Minute + 2*time.Second) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := newIssuer(t)
				keys := &available{keyring: i.keys}
				v := auth.NewVerifier("marquee/account", "test", keys, nil)
				follow := func(account string, life time.Duration) (<-chan error, func()) {
					token := i.token(t, jwt.MapClaims{
						"iss": "marquee/account", "aud": "test", "sub": account, "sid": "s_" + account, "rv": 1,
						"iat": time.Now().Unix(), "exp": time.Now().Add(life).Unix(),
					})
					ended := make(chan error, 10)
					leave, err := v.Follow(token, test.needsRole, func(err error) { ended <- err })
					require.NoError(t, err)
					return ended, leave
				}
				one, leaveOne := follow("acc_1", time.Minute)
				other, leaveOther := follow("acc_2", 10*time.Minute)
				_, leaveEarly := follow("acc_1", time.Minute)
				leaveEarly()
				time.Sleep(10 * within)
				require.Empty(t, one)
				require.Empty(t, other)

				test.change(keys)
				time.Sleep(within)
				synctest.Wait()
				for _, open := range []struct {
					ended <-chan error
					want  error
				}{{one, test.want}, {other, test.others}} {
					if open.want == nil {
						require.Empty(t, open.ended)
						continue
					}
					require.Len(t, open.ended, 1)
					require.ErrorIs(t, <-open.ended, open.want)
				}

				leaveOne()
				leaveOther()
				asked := func() int {
					keys.mu.Lock()
					defer keys.mu.Unlock()
					return keys.asked
				}
				before := asked()
				time.Sleep(10 * within)
				synctest.Wait()
				require.Equal(t, before, asked(), "nothing is judged when no call is open")
				require.Empty(t, one, "a call is ended once")
			})
		})
	}
}

// BenchmarkFollow is what judging every open call costs, which happens once a second.
func BenchmarkFollow(b *testing.B) {
	i := newIssuer(b)
	v := auth.NewVerifier("marquee/account", "test", i.keys, nil)
	for n := range 10000 {
		token := i.token(b, jwt.MapClaims{
			"iss": "marquee/account", "aud": "test", "sub": "acc", "sid": fmt.Sprint(n),
			"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
		})
		leave, err := v.Follow(token, true, func(err error) { b.Error(err) })
		require.NoError(b, err)
		b.Cleanup(leave)
	}
	for b.Loop() {
		v.JudgeOpen()
	}
}
