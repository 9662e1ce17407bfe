package account_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/paging"
	"github.com/marquee-ads/marquee/platform/pgtest"
	"github.com/marquee-ads/marquee/platform/throttle"
	"github.com/marquee-ads/marquee/services/account"
)

func TestThrottle(t *testing.T) {
	pg := pgtest.Start(t)
	w := newWorld(t, pg)
	s, keys, _ := w.service(t, cheap(), 1, 0)
	limits := account.DefaultThrottle()
	attacker := account.Origin{Address: "198.51.100.7"}
	try := func(c account.Credentials, from account.Origin) error {
		_, err := s.LogIn(t.Context(), c, from)
		return err
	}
	// exhaust gives wrong passwords until it is throttled, and returns how many
	// were judged and when to try again.
	exhaust := func(t *testing.T, c account.Credentials, from account.Origin) (judged int, retryAfter time.Duration) {
		t.Helper()
		c.Password = "wrong"
		for ; judged <= limits.Address.Burst; judged++ {
			err := try(c, from)
			if f, ok := fault.From(err); ok && f.Is(account.ErrThrottled) {
				return judged, f.RetryAfter
			}
			require.ErrorIs(t, err, account.ErrWrongCredentials)
		}
		require.Fail(t, "it is never throttled")
		return 0, 0
	}
	later := func(t *testing.T, d time.Duration) {
		w.clock.move(d)
		require.NoError(t, keys.Refresh(t.Context()))
	}

	for name, who := range map[string]string{"Taken": "Ada", "OfNobody": "Nobody"} {
		if who == "Ada" {
			member(t, s, who)
		}
		t.Run("ErrName"+name, func(t *testing.T) {
			c := account.Credentials{Name: who}
			judged, wait := exhaust(t, c, attacker)
			require.Equal(t, limits.Name.Burst, judged, "names that exist and names that do not are not the same")
			require.Equal(t, limits.Name.Every, wait)
			// Case, and another address, are no way around.
			judged, _ = exhaust(t, account.Credentials{Name: "" + map[string]string{"Ada": "aDA", "Nobody": "nOBODY"}[who]}, account.Origin{Address: "198.51.100.8"})
			require.Zero(t, judged)
			// The right password is not looked at either: it would tell.
			require.ErrorIs(t, try(account.Credentials{Name: who, Password: password}, attacker), account.ErrThrottled)
			later(t, wait)
			judged, _ = exhaust(t, c, attacker)
			require.Equal(t, 1, judged)
		})
	}

	t.Run("OKNotLockedOut", func(t *testing.T) {
		later(t, time.Hour)
		in := member(t, s, "Grace")
		exhaust(t, account.Credentials{Name: "Grace"}, attacker)
		right := account.Credentials{Name: "Grace", Password: password}
		require.ErrorIs(t, try(right, account.Origin{Address: "203.0.113.9"}), account.ErrThrottled, "a stranger waits")
		require.NoError(t, try(right, from), "not from where the account was logged in to before")
		right.DeviceToken = in.DeviceToken
		require.NoError(t, try(right, account.Origin{Address: "203.0.113.9"}), "nor with the token of a known device")
		// Each of them has a budget, and no more.
		judged, _ := exhaust(t, account.Credentials{Name: "Grace", DeviceToken: in.DeviceToken}, attacker)
		require.Equal(t, limits.Name.Burst, judged)
		require.NoError(t, try(account.Credentials{Name: "Grace", Password: password}, from))
		// An unknown address stays so when the attacker learns another's device.
		other := member(t, s, "Barbara")
		require.ErrorIs(t, try(account.Credentials{Name: "Grace", Password: password, DeviceToken: other.DeviceToken}, attacker), account.ErrThrottled)
	})

	t.Run("ErrAddress", func(t *testing.T) {
		later(t, time.Hour)
		judged := 0
		var err error
		for ; judged <= limits.Address.Burst; judged++ {
			name := "spray-" + string(rune('a'+judged/26)) + string(rune('a'+judged%26))
			if err = try(account.Credentials{Name: name, Password: password}, attacker); !isWrong(err) {
				break
			}
		}
		require.ErrorIs(t, err, account.ErrThrottled)
		require.Equal(t, limits.Address.Burst, judged)
		// Someone at the same address with a known device is not disturbed, and
		// nobody elsewhere is.
		in := logIn(t, s, "Barbara")
		require.NoError(t, try(account.Credentials{Name: "Barbara", Password: password, DeviceToken: in.DeviceToken}, attacker))
	})

	t.Run("ErrNetwork", func(t *testing.T) {
		later(t, time.Hour)
		// All of an IPv6 network counts as one address; what is none is not counted.
		for n := range limits.Address.Burst {
			name := "six-" + string(rune('a'+n/26)) + string(rune('a'+n%26))
			require.True(t, isWrong(try(account.Credentials{Name: name, Password: password}, account.Origin{Address: "2001:db8::" + string(rune('1'+n%9))})))
		}
		require.ErrorIs(t, try(account.Credentials{Name: "six-z", Password: password}, account.Origin{Address: "2001:db8::ffff"}), account.ErrThrottled)
		require.True(t, isWrong(try(account.Credentials{Name: "six-z", Password: password}, account.Origin{Address: "2001:db8:0:1::1"})))
		require.True(t, isWrong(try(account.Credentials{Name: "six-y", Password: password}, account.Origin{Address: "'; DROP TABLE accounts"})))
	})

	t.Run("OKSuccessIsFree", func(t *testing.T) {
		later(t, time.Hour)
		for range limits.Address.Burst + 5 {
			require.NoError(t, try(account.Credentials{Name: "Ada", Password: password}, account.Origin{Address: "203.0.113.77"}))
		}
	})

	t.Run("OKDevice", func(t *testing.T) {
		in := logIn(t, s, "Ada")
		again, err := s.LogIn(t.Context(), account.Credentials{Name: "Ada", Password: password, DeviceToken: in.DeviceToken}, from)
		require.NoError(t, err)
		require.Equal(t, in.DeviceToken, again.DeviceToken)
		for _, token := range []string{"dev_", "dev_AAAA", in.DeviceToken[:20], in.DeviceToken + "A", in.Tokens.Refresh, "\x00"} {
			again, err = s.LogIn(t.Context(), account.Credentials{Name: "Ada", Password: password, DeviceToken: token}, from)
			require.NoError(t, err)
			require.NotEqual(t, token, again.DeviceToken, "one that is not the account's is replaced")
		}
	})

	t.Run("ErrShown", func(t *testing.T) {
		in := logIn(t, s, "Ada")
		before := len(kinds(t, s, callerOf(in)))
		require.True(t, isWrong(try(account.Credentials{Name: "Ada", Password: "wrong"}, account.Origin{Address: "198.51.100.99"})))
		events, _, err := s.ListEvents(t.Context(), callerOf(in), paging.Page{Size: 200})
		require.NoError(t, err)
		failed := 0
		for _, e := range events {
			if e.Kind == account.LogInFailed && e.Address == "198.51.100.99" {
				require.Empty(t, e.ActorID)
				failed++
			}
		}
		require.Equal(t, 1, failed)
		require.Positive(t, before)
	})
}

func isWrong(err error) bool {
	f, ok := fault.From(err)
	return ok && f.Is(account.ErrWrongCredentials)
}

// Names are ASCII: what looks like one of them and is not names nobody.
func TestLookAlikes(t *testing.T) {
	pg := pgtest.Start(t)
	w := newWorld(t, pg)
	s, _, _ := w.service(t, cheap(), 1, 0)
	member(t, s, "kassandra")
	for what, name := range map[string]string{
		"KelvinSign":     "\u212aassandra",
		"CyrillicA":      "k\u0430ssandra",
		"FullWidth":      "\uff4bassandra",
		"LongS":          "ka\u017f\u017fandra",
		"ZeroWidth":      "kas\u200bsandra",
		"CombiningAcute": "ka\u0301ssandra",
		"RightToLeft":    "\u202ekassandra",
		"Space":          "kassandra ",
		"Null":           "kassandra\x00",
		"SQL":            "kassandra' OR '1'='1",
	} {
		t.Run(what, func(t *testing.T) {
			_, err := s.LogIn(t.Context(), account.Credentials{Name: name, Password: password}, from)
			require.ErrorIs(t, err, account.ErrWrongCredentials)
		})
	}
}

func TestThrottleValidate(t *testing.T) {
	require.NoError(t, account.DefaultThrottle().Validate())
	for field, b := range map[string]throttle.Budget{
		"Name.Burst": {Burst: 0, Every: time.Second},
		"Name.Every": {Burst: 1, Every: 0},
	} {
		var wrong *account.SettingError
		limits := account.DefaultThrottle()
		limits.Name = b
		require.ErrorAs(t, limits.Validate(), &wrong)
		require.Equal(t, field, wrong.Field)
	}
}
