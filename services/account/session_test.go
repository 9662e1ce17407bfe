package account_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/paging"
	"github.com/marquee-ads/marquee/platform/pgtest"
	"github.com/marquee-ads/marquee/services/account"
)

// member signs up and logs in.
func member(t *testing.T, s *account.Service, name string) account.LoggedInto {
	t.Helper()
	_, err := s.SignUp(t.Context(), "request-"+name, name, password, from)
	require.NoError(t, err)
	return logIn(t, s, name)
}

func logIn(t *testing.T, s *account.Service, name string) account.LoggedInto {
	t.Helper()
	in, err := s.LogIn(t.Context(), account.Credentials{Name: name, Password: password}, from)
	require.NoError(t, err)
	return in
}

// kinds are the kinds of an account's events, the newest first. Events of one
// moment have no order.
func kinds(t *testing.T, s *account.Service, caller auth.Caller) []account.EventKind {
	t.Helper()
	events, _, err := s.ListEvents(t.Context(), caller, paging.Page{})
	require.NoError(t, err)
	var all []account.EventKind
	for _, e := range events {
		all = append(all, e.Kind)
	}
	return all
}

func TestRefresh(t *testing.T) {
	pg := pgtest.Start(t)
	setUp := func(t *testing.T) (world, *account.Service, *account.Keyring, account.LoggedInto) {
		w := newWorld(t, pg)
		s, keys, _ := w.service(t, cheap(), 1, 0)
		return w, s, keys, member(t, s, "Ada")
	}

	t.Run("OK", func(t *testing.T) {
		w, s, keys, in := setUp(t)
		first := in.Tokens
		require.Equal(t, w.clock.now().UTC().Truncate(time.Second).Add(account.SessionIdle), first.Session.ExpireTime)
		w.clock.move(account.TokenLifetime + time.Hour)
		require.NoError(t, keys.Refresh(t.Context()))
		second, err := s.Refresh(t.Context(), "request-1", first.Refresh, from)
		require.NoError(t, err)
		require.NotEqual(t, first.Refresh, second.Refresh)
		require.Equal(t, first.Session.ID, second.Session.ID)
		caller, err := auth.NewVerifier(auth.Issuer, "test", keys, w.clock.now).Verify(t.Context(), second.Access)
		require.NoError(t, err)
		require.Equal(t, callerOf(in), caller)
		third, err := s.Refresh(t.Context(), "request-2", second.Refresh, from)
		require.NoError(t, err)
		require.NotEqual(t, second.Refresh, third.Refresh)
	})

	t.Run("OKReplay", func(t *testing.T) {
		w, s, keys, in := setUp(t)
		w.clock.move(time.Minute)
		first, err := s.Refresh(t.Context(), "request-1", in.Tokens.Refresh, from)
		require.NoError(t, err)
		w.clock.move(account.RefreshReplay)
		require.NoError(t, keys.Refresh(t.Context()))
		again, err := s.Refresh(t.Context(), "request-1", in.Tokens.Refresh, from)
		require.NoError(t, err)
		require.Equal(t, first, again)
		// It counts for nothing: the answer's token still works.
		_, err = s.Refresh(t.Context(), "request-2", first.Refresh, from)
		require.NoError(t, err)
	})

	t.Run("OKReplaysAtOnce", func(t *testing.T) {
		w, s, _, in := setUp(t)
		other, _, _ := w.service(t, cheap(), 1, 0)
		answers, errs := make([]account.Tokens, 20), make([]error, 20)
		var all sync.WaitGroup
		for n := range answers {
			all.Go(func() {
				answers[n], errs[n] = []*account.Service{s, other}[n%2].Refresh(t.Context(), "request-1", in.Tokens.Refresh, from)
			})
		}
		all.Wait()
		for n := range answers {
			require.NoError(t, errs[n])
			require.Equal(t, answers[0], answers[n])
		}
	})

	t.Run("ErrReused", func(t *testing.T) {
		for name, steal := range map[string]func(t *testing.T, w world, s *account.Service, spent, current string) error{
			"AnotherRequest": func(t *testing.T, w world, s *account.Service, spent, _ string) error {
				_, err := s.Refresh(t.Context(), "request-9", spent, from)
				return err
			},
			"ReplayTooLate": func(t *testing.T, w world, s *account.Service, spent, _ string) error {
				w.clock.move(account.RefreshReplay + time.Second)
				_, err := s.Refresh(t.Context(), "request-1", spent, from)
				return err
			},
			"ReplayAfterTheAnswerWasUsed": func(t *testing.T, w world, s *account.Service, spent, current string) error {
				_, err := s.Refresh(t.Context(), "request-2", current, from)
				require.NoError(t, err)
				_, err = s.Refresh(t.Context(), "request-1", spent, from)
				return err
			},
		} {
			t.Run(name, func(t *testing.T) {
				w, s, keys, in := setUp(t)
				w.clock.move(time.Minute)
				require.NoError(t, keys.Refresh(t.Context()))
				next, err := s.Refresh(t.Context(), "request-1", in.Tokens.Refresh, from)
				require.NoError(t, err)
				require.ErrorIs(t, steal(t, w, s, in.Tokens.Refresh, next.Refresh), account.ErrRefreshTokenReused)

				// The family is gone, for both holders, and the access tokens with it.
				for _, token := range []string{in.Tokens.Refresh, next.Refresh} {
					_, err = s.Refresh(t.Context(), "request-3", token, from)
					require.ErrorIs(t, err, auth.ErrSessionEnded)
				}
				require.NoError(t, keys.Refresh(t.Context()))
				_, err = auth.NewVerifier(auth.Issuer, "test", keys, w.clock.now).Verify(t.Context(), next.Access)
				require.ErrorIs(t, err, auth.ErrSessionEnded)
				// Its owner is shown why.
				caller := callerOf(in)
				sessions, _, err := s.ListSessions(t.Context(), caller, paging.Page{})
				require.NoError(t, err)
				require.Len(t, sessions, 1)
				require.Equal(t, account.EndReused, sessions[0].EndReason)
				require.Equal(t, account.RefreshTokenReused, kinds(t, s, caller)[0])
			})
		}
	})

	t.Run("ErrInvalid", func(t *testing.T) {
		_, s, _, in := setUp(t)
		good := in.Tokens.Refresh
		flipped := []byte(good)
		flipped[20]++
		for _, token := range []string{"", "x", "rft_", good[4:], good + "A", good[:len(good)-1], string(flipped), in.Tokens.Access, in.DeviceToken, "rft_\x00"} {
			_, err := s.Refresh(t.Context(), "request-1", token, from)
			require.ErrorIs(t, err, account.ErrRefreshTokenInvalid, "%q", token)
		}
		_, err := s.Refresh(t.Context(), "request-1", good, from)
		require.NoError(t, err, "what others made up ends no session")
	})

	t.Run("ErrGone", func(t *testing.T) {
		w, s, keys, in := setUp(t)
		w.clock.move(account.SessionIdle + account.SessionsKept)
		require.NoError(t, keys.Refresh(t.Context()))
		_, err := w.store.Sweep(t.Context(), w.clock.now())
		require.NoError(t, err)
		_, err = s.Refresh(t.Context(), "request-1", in.Tokens.Refresh, from)
		require.ErrorIs(t, err, account.ErrRefreshTokenInvalid)
	})

	t.Run("ErrExpired", func(t *testing.T) {
		w, s, keys, in := setUp(t)
		token := in.Tokens.Refresh
		// However much it is used, a session is over in the end.
		end := in.Tokens.Session.CreateTime.Add(account.SessionLifetime)
		for n := 0; ; n++ {
			w.clock.move(account.SessionIdle - time.Hour)
			require.NoError(t, keys.Refresh(t.Context()))
			if !w.clock.now().Before(end) {
				break
			}
			next, err := s.Refresh(t.Context(), fmt.Sprint("request-", n), token, from)
			require.NoError(t, err)
			require.False(t, next.Session.ExpireTime.After(end))
			token = next.Refresh
		}
		_, err := s.Refresh(t.Context(), "request-late", token, from)
		require.ErrorIs(t, err, account.ErrRefreshTokenExpired)

		idle := logIn(t, s, "Ada")
		w.clock.move(account.SessionIdle)
		require.NoError(t, keys.Refresh(t.Context()))
		_, err = s.Refresh(t.Context(), "request-idle", idle.Tokens.Refresh, from)
		require.ErrorIs(t, err, account.ErrRefreshTokenExpired)
	})

	t.Run("ErrSigningKeys", func(t *testing.T) {
		// A token is not spent when no access token can be made for it.
		w, s, keys, in := setUp(t)
		w.clock.move(time.Hour)
		_, err := s.Refresh(t.Context(), "request-1", in.Tokens.Refresh, from)
		require.ErrorIs(t, err, account.ErrSigningKeysUnavailable)
		require.NoError(t, keys.Refresh(t.Context()))
		_, err = s.Refresh(t.Context(), "request-2", in.Tokens.Refresh, from)
		require.NoError(t, err)
	})
}

func TestSessions(t *testing.T) {
	pg := pgtest.Start(t)
	w := newWorld(t, pg)
	s, keys, _ := w.service(t, cheap(), 1, 0)
	verify := func(in account.LoggedInto) error {
		_, err := auth.NewVerifier(auth.Issuer, "test", keys, w.clock.now).Verify(t.Context(), in.Tokens.Access)
		return err
	}

	t.Run("OKPages", func(t *testing.T) {
		in := member(t, s, "pages")
		var want []string
		for range 6 {
			w.clock.move(time.Second)
			want = append([]string{logIn(t, s, "pages").Tokens.Session.ID}, want...)
		}
		want = append(want, in.Tokens.Session.ID)
		var got []string
		page := paging.Page{Size: 3}
		for {
			sessions, next, err := s.ListSessions(t.Context(), callerOf(in), page)
			require.NoError(t, err)
			require.LessOrEqual(t, len(sessions), 3)
			for _, session := range sessions {
				require.Equal(t, from.Address, session.Address)
				got = append(got, session.ID)
			}
			if next == "" {
				break
			}
			page.Token = next
		}
		require.Equal(t, want, got)

		// A page token is good for its list alone.
		other := member(t, s, "other")
		_, _, err := s.ListSessions(t.Context(), callerOf(other), page)
		require.ErrorIs(t, err, account.ErrPageTokenInvalid)
		_, _, err = s.ListEvents(t.Context(), callerOf(in), page)
		require.ErrorIs(t, err, account.ErrPageTokenInvalid)
		for _, token := range []string{"x", "AAAA", page.Token + "A", page.Token[1:], "' OR 1=1 --"} {
			_, _, err = s.ListSessions(t.Context(), callerOf(in), paging.Page{Token: token})
			require.ErrorIs(t, err, account.ErrPageTokenInvalid, token)
		}
	})

	t.Run("OKRevoke", func(t *testing.T) {
		here := member(t, s, "revoker")
		there := logIn(t, s, "revoker")
		w.clock.move(time.Second)
		for range 2 { // twice is no error
			require.NoError(t, s.Revoke(t.Context(), callerOf(here), there.Tokens.Session.ID, from))
		}
		require.ErrorIs(t, verify(there), auth.ErrSessionEnded)
		require.NoError(t, verify(here))
		_, err := s.Refresh(t.Context(), "request-1", there.Tokens.Refresh, from)
		require.ErrorIs(t, err, auth.ErrSessionEnded)
		require.Equal(t, []account.EventKind{account.SessionRevoked}, kinds(t, s, callerOf(here))[:1])
		require.Len(t, kinds(t, s, callerOf(here)), 4, "the second time is no event")
	})

	t.Run("ErrNoSuchSession", func(t *testing.T) {
		mine, theirs := member(t, s, "mine"), member(t, s, "theirs")
		for _, id := range []string{theirs.Tokens.Session.ID, "ses_00000000000000000000000000"} {
			require.ErrorIs(t, s.Revoke(t.Context(), callerOf(mine), id, from), account.ErrNoSuchSession)
		}
		require.NoError(t, verify(theirs))
	})

	t.Run("OKChangePassword", func(t *testing.T) {
		here := member(t, s, "changer")
		there := logIn(t, s, "changer")
		w.clock.move(time.Second)
		const replacement = "amber kayak 31 drum"
		for range 2 { // the second is a repeat
			require.NoError(t, s.ChangePassword(t.Context(), callerOf(here), password, replacement, from))
		}
		require.NoError(t, verify(here), "the session that changed it goes on")
		_, err := s.Refresh(t.Context(), "request-1", here.Tokens.Refresh, from)
		require.NoError(t, err)
		require.ErrorIs(t, verify(there), auth.ErrSessionEnded)
		_, err = s.Refresh(t.Context(), "request-1", there.Tokens.Refresh, from)
		require.ErrorIs(t, err, auth.ErrSessionEnded)
		_, err = s.LogIn(t.Context(), account.Credentials{Name: "changer", Password: password}, from)
		require.ErrorIs(t, err, account.ErrWrongCredentials)
		_, err = s.LogIn(t.Context(), account.Credentials{Name: "changer", Password: replacement}, from)
		require.NoError(t, err)
		seen := kinds(t, s, callerOf(here))
		require.Contains(t, seen, account.PasswordChanged)
		require.NotContains(t, seen, account.PasswordChangeFailed)
	})

	t.Run("ErrChangePassword", func(t *testing.T) {
		in := member(t, s, "refused")
		for name, tc := range map[string]struct {
			current, replacement string
			want                 error
			field                string
		}{
			"Wrong":   {"wrong", "amber kayak 31 drum", account.ErrWrongPassword, "current_password"},
			"Invalid": {"wrong\x00", "amber kayak 31 drum", account.ErrWrongPassword, "current_password"},
			"Weak":    {password, "password1", account.ErrPasswordTooWeak, "new_password"},
			"Control": {password, "amber\x00kayak 31 drum", account.ErrPasswordInvalid, "new_password"},
		} {
			t.Run(name, func(t *testing.T) {
				err := s.ChangePassword(t.Context(), callerOf(in), tc.current, tc.replacement, from)
				require.ErrorIs(t, err, tc.want)
				f, _ := fault.From(err)
				require.Len(t, f.Fields, 1)
				require.Equal(t, tc.field, f.Fields[0].Path)
			})
		}
		require.NoError(t, verify(in))
		require.ErrorIs(t, s.ChangePassword(t.Context(), auth.Caller{AccountID: "acc_gone", SessionID: "ses_gone"}, password, "amber kayak 31 drum", from), account.ErrNotFound)
	})

	t.Run("ErrChangePasswordThrottled", func(t *testing.T) {
		// Who stole a session's access token can neither guess the password with it
		// nor keep another session from changing it.
		stolen := member(t, s, "robbed")
		mine := logIn(t, s, "robbed")
		var err error
		for range account.DefaultThrottle().Name.Burst {
			err = s.ChangePassword(t.Context(), callerOf(stolen), "guess", "guess kayak 31 drum", from)
			require.ErrorIs(t, err, account.ErrWrongPassword)
		}
		err = s.ChangePassword(t.Context(), callerOf(stolen), password, "amber kayak 31 drum", from)
		require.ErrorIs(t, err, account.ErrThrottled)
		require.NoError(t, s.ChangePassword(t.Context(), callerOf(mine), password, "amber kayak 31 drum", from))
		require.ErrorIs(t, verify(stolen), auth.ErrSessionEnded)
	})
}

// Whoever logs in again and again, and never out, has their oldest sessions ended.
func TestTooManySessions(t *testing.T) {
	pg := pgtest.Start(t)
	w := newWorld(t, pg)
	s, keys, _ := w.service(t, cheap(), 1, 0)
	verify := func(in account.LoggedInto) error {
		_, err := auth.NewVerifier(auth.Issuer, "test", keys, w.clock.now).Verify(t.Context(), in.Tokens.Access)
		return err
	}
	first := member(t, s, "Ada")
	other := member(t, s, "Grace")
	w.clock.move(time.Second)
	second := logIn(t, s, "Ada")
	for n := 2; n < account.MaxSessions; n++ {
		session := second.Tokens.Session
		session.ID = fmt.Sprintf("ses_7%025d", n)
		ended, err := w.store.CreateSession(t.Context(), session, 0, account.Event{
			ID: fmt.Sprintf("evt_7%025d", n), Time: w.clock.now(), Kind: account.LoggedIn, AccountID: second.Account.ID, ActorID: second.Account.ID, SessionID: session.ID,
		})
		require.NoError(t, err)
		require.Empty(t, ended)
	}
	require.NoError(t, verify(first))
	last := logIn(t, s, "Ada")
	require.ErrorIs(t, verify(first), auth.ErrSessionEnded, "at once on this instance")
	_, err := s.Refresh(t.Context(), "request-1", first.Tokens.Refresh, from)
	require.ErrorIs(t, err, auth.ErrSessionEnded)
	for _, in := range []account.LoggedInto{second, last, other} {
		require.NoError(t, verify(in))
	}
	reasons := map[account.EndReason]int{}
	for page := (paging.Page{Size: 200}); ; {
		sessions, next, err := s.ListSessions(t.Context(), callerOf(last), page)
		require.NoError(t, err)
		for _, session := range sessions {
			reasons[session.EndReason]++
		}
		if page.Token = next; next == "" {
			break
		}
	}
	require.Equal(t, map[account.EndReason]int{"": account.MaxSessions, account.EndTooMany: 1}, reasons)
}
