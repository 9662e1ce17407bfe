package account_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
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

// office is an organisation with people in it.
type office struct {
	world
	*account.Service
	keys         *account.Keyring
	organisation account.Organisation
	owner        account.LoggedInto
}

func newOffice(t *testing.T, pg *pgtest.Server) office {
	t.Helper()
	w := newWorld(t, pg)
	s, keys, _ := w.service(t, cheap(), 1, 0)
	owner := member(t, s, "owner")
	made, err := s.CreateOrganisation(t.Context(), callerOf(owner), "request-1", "Acme", account.KindAdvertiser, from)
	require.NoError(t, err)
	return office{w, s, keys, made, owner}
}

// hire makes an account that is a member by invitation.
func (o office) hire(t *testing.T, name string, role auth.Role) account.LoggedInto {
	t.Helper()
	in := member(t, o.Service, name)
	_, token, err := o.CreateInvitation(t.Context(), callerOf(o.owner), o.organisation.ID, "invite-"+name, role, 0, from)
	require.NoError(t, err)
	joined, err := o.AcceptInvitation(t.Context(), callerOf(in), token, from)
	require.NoError(t, err)
	require.Equal(t, account.Membership{Organisation: o.organisation, Role: role}, joined)
	return in
}

// roles are what an account is by the next access token that it gets.
func (o office) roles(t *testing.T, in account.LoggedInto) auth.Roles {
	t.Helper()
	granted, err := o.store.Granted(t.Context(), in.Account.ID)
	require.NoError(t, err)
	return granted.Roles
}

// authorize judges an access token as every service does.
func (o office) authorize(t *testing.T, token string, allowed ...auth.Role) error {
	t.Helper()
	v := auth.NewVerifier(auth.Issuer, "test", o.keys, o.clock.now)
	caller, err := v.Verify(t.Context(), token)
	if err != nil {
		return err
	}
	return v.Authorize(caller, o.organisation.ID, allowed)
}

func TestOrganisations(t *testing.T) {
	pg := pgtest.Start(t)

	t.Run("OKCreate", func(t *testing.T) {
		o := newOffice(t, pg)
		require.Equal(t, "Acme", o.organisation.Name)
		again, err := o.CreateOrganisation(t.Context(), callerOf(o.owner), "request-1", " Acme ", account.KindAdvertiser, from)
		require.NoError(t, err)
		require.Equal(t, o.organisation, again)
		_, err = o.CreateOrganisation(t.Context(), callerOf(o.owner), "request-1", "Other", account.KindAdvertiser, from)
		require.ErrorIs(t, err, account.ErrRequestIDReused)
		_, err = o.CreateOrganisation(t.Context(), callerOf(o.owner), "request-1", "Acme", account.KindDisplayOwner, from)
		require.ErrorIs(t, err, account.ErrRequestIDReused)
		// Ids are the caller's own.
		other := member(t, o.Service, "other")
		made, err := o.CreateOrganisation(t.Context(), callerOf(other), "request-1", "Other", account.KindDisplayOwner, from)
		require.NoError(t, err)
		require.NotEqual(t, o.organisation.ID, made.ID)

		list, next, err := o.ListMemberships(t.Context(), callerOf(o.owner), paging.Page{})
		require.NoError(t, err)
		require.Empty(t, next)
		require.Equal(t, []account.Membership{{Organisation: o.organisation, Role: auth.Owner}}, list)
		require.Contains(t, kinds(t, o.Service, callerOf(o.owner)), account.OrganisationCreated)
	})

	t.Run("OKCreateAtOnce", func(t *testing.T) {
		o := newOffice(t, pg)
		answers, errs := make([]account.Organisation, 20), make([]error, 20)
		var all sync.WaitGroup
		for n := range answers {
			all.Go(func() {
				answers[n], errs[n] = o.CreateOrganisation(t.Context(), callerOf(o.owner), "request-2", "Once", account.KindAdvertiser, from)
			})
		}
		all.Wait()
		require.NoError(t, errors.Join(errs...))
		for _, made := range answers {
			require.Equal(t, answers[0], made)
		}
	})

	t.Run("ErrName", func(t *testing.T) {
		o := newOffice(t, pg)
		for what, name := range map[string]string{
			"Empty": "", "Spaces": "  ", "Control": "Ac\x07me", "Null": "Ac\x00me", "Newline": "Ac\nme",
			"RightToLeft": "Ac\u202eme", "ZeroWidth": "Ac\u200bme", "Invalid": "Ac\xffme", "Long": strings.Repeat("x", 101),
		} {
			t.Run(what, func(t *testing.T) {
				_, err := o.CreateOrganisation(t.Context(), callerOf(o.owner), "request-"+what, name, account.KindAdvertiser, from)
				require.ErrorIs(t, err, account.ErrNameInvalid)
				_, _, err = o.CreateAPIKey(t.Context(), callerOf(o.owner), o.organisation.ID, "request-"+what, name, auth.Viewer, 0, from)
				require.ErrorIs(t, err, account.ErrNameInvalid)
			})
		}
		for name, want := range map[string]string{
			"\uff21\uff43\uff4d\uff45": "Acme", "  Two   words ": "Two words", "Robert'); DROP TABLE organisations;--": "Robert'); DROP TABLE organisations;--",
			"Müller & Söhne": "Müller & Söhne", "株式会社": "株式会社",
		} {
			made, err := o.CreateOrganisation(t.Context(), callerOf(o.owner), fmt.Sprintf("request-%x", want), name, account.KindAdvertiser, from)
			require.NoError(t, err)
			require.Equal(t, want, made.Name)
		}
	})

	t.Run("ErrTooMany", func(t *testing.T) {
		o := newOffice(t, pg)
		for n := range account.MaxOrganisations - 1 {
			_, err := o.CreateOrganisation(t.Context(), callerOf(o.owner), fmt.Sprint("many-", n), "Many", account.KindAdvertiser, from)
			require.NoError(t, err)
		}
		_, err := o.CreateOrganisation(t.Context(), callerOf(o.owner), "one-too-many", "Many", account.KindAdvertiser, from)
		require.ErrorIs(t, err, account.ErrTooManyOrganisations)
		// The token that names all of them is one that services take.
		full := logIn(t, o.Service, "owner")
		require.NoError(t, o.keys.Refresh(t.Context()))
		require.NoError(t, o.authorize(t, full.Tokens.Access, auth.Owner))
		require.Less(t, len(full.Tokens.Access), 8<<10)
		// Neither can an invitation be accepted.
		boss := member(t, o.Service, "boss")
		theirs, err := o.CreateOrganisation(t.Context(), callerOf(boss), "request-1", "Theirs", account.KindAdvertiser, from)
		require.NoError(t, err)
		_, token, err := o.CreateInvitation(t.Context(), callerOf(boss), theirs.ID, "request-2", auth.Viewer, 0, from)
		require.NoError(t, err)
		_, err = o.AcceptInvitation(t.Context(), callerOf(o.owner), token, from)
		require.ErrorIs(t, err, account.ErrTooManyOrganisations)
		require.NoError(t, o.Leave(t.Context(), callerOf(logInAnother(t, o)), theirs.ID, from))
	})

	t.Run("OKRoles", func(t *testing.T) {
		o := newOffice(t, pg)
		in := o.hire(t, "worker", auth.Viewer)
		require.NoError(t, o.keys.Refresh(t.Context()))
		require.ErrorIs(t, o.authorize(t, in.Tokens.Access, auth.Viewer), auth.ErrRolesChanged, "the token is older than the role")
		next, err := o.Refresh(t.Context(), "refresh-1", in.Tokens.Refresh, from)
		require.NoError(t, err)
		require.NoError(t, o.authorize(t, next.Access, auth.Viewer))
		require.ErrorIs(t, o.authorize(t, next.Access, auth.Owner, auth.Operator), auth.ErrRoleNotAllowed)

		changed, err := o.SetRole(t.Context(), callerOf(o.owner), o.organisation.ID, in.Account.ID, auth.Operator, from)
		require.NoError(t, err)
		require.Equal(t, auth.Operator, changed.Role)
		before := len(kinds(t, o.Service, callerOf(in)))
		_, err = o.SetRole(t.Context(), callerOf(o.owner), o.organisation.ID, in.Account.ID, auth.Operator, from)
		require.NoError(t, err, "the same role is no error")
		require.Len(t, kinds(t, o.Service, callerOf(in)), before, "nor an event")
		require.NoError(t, o.keys.Refresh(t.Context()))
		require.ErrorIs(t, o.authorize(t, next.Access, auth.Viewer), auth.ErrRolesChanged)
		next, err = o.Refresh(t.Context(), "refresh-2", next.Refresh, from)
		require.NoError(t, err)
		require.NoError(t, o.authorize(t, next.Access, auth.Operator))

		require.NoError(t, o.RemoveMember(t.Context(), callerOf(o.owner), o.organisation.ID, in.Account.ID, from))
		require.NoError(t, o.keys.Refresh(t.Context()))
		require.ErrorIs(t, o.authorize(t, next.Access, auth.AllRoles()...), auth.ErrRolesChanged)
		next, err = o.Refresh(t.Context(), "refresh-3", next.Refresh, from)
		require.NoError(t, err)
		require.ErrorIs(t, o.authorize(t, next.Access, auth.AllRoles()...), auth.ErrNotAMember)

		// Both the organisation's owners and the account see it.
		events, _, err := o.ListOrganisationEvents(t.Context(), o.organisation.ID, paging.Page{})
		require.NoError(t, err)
		counts := map[account.EventKind]int{}
		for _, e := range events {
			counts[e.Kind]++
			require.Equal(t, o.organisation.ID, e.OrganisationID)
			if e.Kind == account.MemberRoleChanged {
				require.Equal(t, [4]string{in.Account.ID, o.owner.Account.ID, string(auth.Operator), o.owner.Tokens.Session.ID}, [4]string{e.AccountID, e.ActorID, string(e.Role), e.SessionID})
			}
		}
		require.Equal(t, map[account.EventKind]int{
			account.OrganisationCreated: 1, account.InvitationCreated: 1, account.MemberJoined: 1, account.MemberRoleChanged: 1, account.MemberRemoved: 1,
		}, counts)
		require.Contains(t, kinds(t, o.Service, callerOf(in)), account.MemberRemoved)
	})

	t.Run("ErrLastOwner", func(t *testing.T) {
		o := newOffice(t, pg)
		boss := callerOf(o.owner)
		leave := func() error { return o.Leave(t.Context(), boss, o.organisation.ID, from) }
		require.ErrorIs(t, leave(), account.ErrLastOwner)
		require.ErrorIs(t, o.RemoveMember(t.Context(), boss, o.organisation.ID, boss.AccountID, from), account.ErrLastOwner)
		_, err := o.SetRole(t.Context(), boss, o.organisation.ID, boss.AccountID, auth.Viewer, from)
		require.ErrorIs(t, err, account.ErrLastOwner)
		_, err = o.SetRole(t.Context(), boss, o.organisation.ID, boss.AccountID, auth.Owner, from)
		require.NoError(t, err)
		o.hire(t, "second", auth.Owner)
		require.NoError(t, leave())
		require.ErrorIs(t, leave(), account.ErrNoSuchMember)
		require.Empty(t, o.roles(t, o.owner))
	})

	t.Run("ErrLastOwnerInARace", func(t *testing.T) {
		// Two owners remove each other at the same moment, again and again: one of
		// them stays.
		for range 5 {
			o := newOffice(t, pg)
			second := o.hire(t, "second", auth.Owner)
			errs := make([]error, 2)
			var all sync.WaitGroup
			for n, who := range []account.LoggedInto{o.owner, second} {
				other := []account.LoggedInto{second, o.owner}[n]
				all.Go(func() {
					if n == 0 {
						errs[n] = o.RemoveMember(t.Context(), callerOf(who), o.organisation.ID, other.Account.ID, from)
					} else {
						_, errs[n] = o.SetRole(t.Context(), callerOf(who), o.organisation.ID, other.Account.ID, auth.Viewer, from)
					}
				})
			}
			all.Wait()
			require.NotEqual(t, errs[0] == nil, errs[1] == nil, "%v", errs)
			owners := 0
			for _, in := range []account.LoggedInto{o.owner, second} {
				if o.roles(t, in)[o.organisation.ID] == auth.Owner {
					owners++
				}
			}
			require.Equal(t, 1, owners)
		}
	})

	t.Run("ErrOldToken", func(t *testing.T) {
		// Whoever was an owner a moment ago still has a token that says so; the
		// database says otherwise.
		o := newOffice(t, pg)
		former, viewer := o.hire(t, "former", auth.Owner), o.hire(t, "viewer", auth.Viewer)
		require.NoError(t, o.RemoveMember(t.Context(), callerOf(o.owner), o.organisation.ID, former.Account.ID, from))
		for who, want := range map[string]struct {
			caller auth.Caller
			err    error
		}{"Removed": {callerOf(former), auth.ErrNotAMember}, "Viewer": {callerOf(viewer), auth.ErrRoleNotAllowed}} {
			for what, try := range map[string]func() error{
				"SetRole": func() error {
					_, err := o.SetRole(t.Context(), want.caller, o.organisation.ID, viewer.Account.ID, auth.Owner, from)
					return err
				},
				"Remove": func() error {
					return o.RemoveMember(t.Context(), want.caller, o.organisation.ID, viewer.Account.ID, from)
				},
				"Invite": func() error {
					_, _, err := o.CreateInvitation(t.Context(), want.caller, o.organisation.ID, "request-9", auth.Owner, 0, from)
					return err
				},
				"RevokeInvitation": func() error {
					return o.RevokeInvitation(t.Context(), want.caller, o.organisation.ID, "inv_1", from)
				},
				"CreateAPIKey": func() error {
					_, _, err := o.CreateAPIKey(t.Context(), want.caller, o.organisation.ID, "request-9", "Key", auth.Viewer, 0, from)
					return err
				},
				"RevokeAPIKey": func() error { return o.RevokeAPIKey(t.Context(), want.caller, o.organisation.ID, "apk_1", from) },
			} {
				require.ErrorIs(t, try(), want.err, "%s by %s", what, who)
			}
		}
	})

	t.Run("ErrNoSuchMember", func(t *testing.T) {
		o := newOffice(t, pg)
		stranger := member(t, o.Service, "stranger")
		_, err := o.SetRole(t.Context(), callerOf(o.owner), o.organisation.ID, stranger.Account.ID, auth.Viewer, from)
		require.ErrorIs(t, err, account.ErrNoSuchMember)
		require.ErrorIs(t, o.RemoveMember(t.Context(), callerOf(o.owner), o.organisation.ID, stranger.Account.ID, from), account.ErrNoSuchMember)
		require.ErrorIs(t, o.Leave(t.Context(), callerOf(stranger), o.organisation.ID, from), account.ErrNoSuchMember)
		require.ErrorIs(t, o.Leave(t.Context(), callerOf(stranger), "org_none", from), account.ErrNoSuchMember)
		_, err = o.SetRole(t.Context(), callerOf(o.owner), "org_none", stranger.Account.ID, auth.Viewer, from)
		require.ErrorIs(t, err, auth.ErrNotAMember)
	})
}

// logInAnother makes somebody who is a member of the organisation "Theirs" and
// may leave it.
func logInAnother(t *testing.T, o office) account.LoggedInto {
	t.Helper()
	boss := logIn(t, o.Service, "boss")
	list, _, err := o.ListMemberships(t.Context(), callerOf(boss), paging.Page{})
	require.NoError(t, err)
	require.Len(t, list, 1)
	helper := member(t, o.Service, "helper")
	_, token, err := o.CreateInvitation(t.Context(), callerOf(boss), list[0].Organisation.ID, "request-helper", auth.Viewer, 0, from)
	require.NoError(t, err)
	_, err = o.AcceptInvitation(t.Context(), callerOf(helper), token, from)
	require.NoError(t, err)
	return helper
}

func TestInvitations(t *testing.T) {
	pg := pgtest.Start(t)
	o := newOffice(t, pg)
	boss := callerOf(o.owner)
	n := 0
	invite := func(t *testing.T, lifetime time.Duration) (account.Invitation, string) {
		t.Helper()
		n++
		made, token, err := o.CreateInvitation(t.Context(), boss, o.organisation.ID, fmt.Sprint("invitation-", n), auth.Operator, lifetime, from)
		require.NoError(t, err)
		return made, token
	}
	accept := func(in account.LoggedInto, token string) error {
		_, err := o.AcceptInvitation(t.Context(), callerOf(in), token, from)
		return err
	}

	t.Run("OKReplay", func(t *testing.T) {
		made, token := invite(t, 0)
		require.Equal(t, made.CreateTime.Add(account.InvitationLifetime), made.ExpireTime)
		again, same, err := o.CreateInvitation(t.Context(), boss, o.organisation.ID, fmt.Sprint("invitation-", n), auth.Operator, 0, from)
		require.NoError(t, err)
		require.Equal(t, made, again)
		require.Equal(t, token, same)
		_, _, err = o.CreateInvitation(t.Context(), boss, o.organisation.ID, fmt.Sprint("invitation-", n), auth.Owner, 0, from)
		require.ErrorIs(t, err, account.ErrRequestIDReused)
		_, _, err = o.CreateAPIKey(t.Context(), boss, o.organisation.ID, fmt.Sprint("invitation-", n), "Key", auth.Operator, 0, from)
		require.ErrorIs(t, err, account.ErrRequestIDReused, "the id of another method's request")
	})

	t.Run("ErrUsed", func(t *testing.T) {
		made, token := invite(t, 0)
		first, second := member(t, o.Service, "first"), member(t, o.Service, "second")
		require.NoError(t, accept(first, token))
		require.NoError(t, accept(first, token), "a repeat")
		require.ErrorIs(t, accept(second, token), account.ErrInvitationUsed)
		require.Empty(t, o.roles(t, second))
		require.ErrorIs(t, o.RevokeInvitation(t.Context(), boss, o.organisation.ID, made.ID, from), account.ErrInvitationUsed)
		// Who was removed does not come back with it.
		require.NoError(t, o.RemoveMember(t.Context(), boss, o.organisation.ID, first.Account.ID, from))
		require.ErrorIs(t, accept(first, token), account.ErrInvitationUsed)
		list, _, err := o.ListInvitations(t.Context(), o.organisation.ID, paging.Page{})
		require.NoError(t, err)
		accepters := map[string]string{}
		for _, i := range list {
			accepters[i.ID] = i.AccepterID
		}
		require.Equal(t, first.Account.ID, accepters[made.ID])
	})

	t.Run("ErrUsedInARace", func(t *testing.T) {
		_, token := invite(t, 0)
		people := make([]account.LoggedInto, 8)
		for n := range people {
			people[n] = member(t, o.Service, fmt.Sprint("racer", n))
		}
		errs := make([]error, len(people))
		var all sync.WaitGroup
		for n := range people {
			all.Go(func() { errs[n] = accept(people[n], token) })
		}
		all.Wait()
		accepted := 0
		for _, err := range errs {
			if err == nil {
				accepted++
				continue
			}
			require.ErrorIs(t, err, account.ErrInvitationUsed)
		}
		require.Equal(t, 1, accepted)
	})

	t.Run("ErrAlreadyAMember", func(t *testing.T) {
		_, token := invite(t, 0)
		require.ErrorIs(t, accept(o.owner, token), account.ErrAlreadyAMember)
		require.NoError(t, accept(member(t, o.Service, "else"), token), "it is left for somebody else")
	})

	t.Run("ErrExpired", func(t *testing.T) {
		late := member(t, o.Service, "late")
		_, token := invite(t, time.Hour)
		o.clock.move(time.Hour)
		require.NoError(t, o.keys.Refresh(t.Context()))
		require.ErrorIs(t, accept(late, token), account.ErrInvitationExpired)
	})

	t.Run("ErrRevoked", func(t *testing.T) {
		made, token := invite(t, 0)
		for range 2 {
			require.NoError(t, o.RevokeInvitation(t.Context(), boss, o.organisation.ID, made.ID, from))
		}
		require.ErrorIs(t, accept(member(t, o.Service, "unwanted"), token), account.ErrInvitationRevoked)
	})

	t.Run("ErrNoSuchInvitation", func(t *testing.T) {
		made, token := invite(t, 0)
		other := newOffice(t, pg)
		_, theirs, err := other.CreateInvitation(t.Context(), callerOf(other.owner), other.organisation.ID, "request-2", auth.Owner, 0, from)
		require.NoError(t, err)
		for _, bad := range []string{"", "x", token[:len(token)-1], token + "A", "mqi_", strings.ToUpper(token), o.owner.Tokens.Refresh, theirs, "mqi_\x00"} {
			require.ErrorIs(t, accept(o.owner, bad), account.ErrNoSuchInvitation, "%q", bad)
		}
		stranger := member(t, o.Service, "stranger")
		mine, err := o.CreateOrganisation(t.Context(), callerOf(stranger), "request-1", "Mine", account.KindAdvertiser, from)
		require.NoError(t, err)
		require.ErrorIs(t, o.RevokeInvitation(t.Context(), callerOf(stranger), mine.ID, made.ID, from), account.ErrNoSuchInvitation, "another organisation's")
		require.ErrorIs(t, o.RevokeInvitation(t.Context(), boss, o.organisation.ID, "inv_none", from), account.ErrNoSuchInvitation)
	})

	t.Run("ErrTooMany", func(t *testing.T) {
		full := newOffice(t, pg)
		made := func(n int, lifetime time.Duration) (account.Invitation, string, error) {
			return full.CreateInvitation(t.Context(), callerOf(full.owner), full.organisation.ID, fmt.Sprint("room-", n), auth.Viewer, lifetime, from)
		}
		first, token, err := made(0, 0)
		require.NoError(t, err)
		second, _, err := made(1, 0)
		require.NoError(t, err)
		for n := 2; n < account.MaxInvitations; n++ {
			_, _, err := made(n, time.Hour)
			require.NoError(t, err)
		}
		refused := func(n int) {
			t.Helper()
			_, _, err := made(n, 0)
			require.ErrorIs(t, err, account.ErrTooManyInvitations)
		}
		refused(200)
		again, _, err := made(0, 0)
		require.NoError(t, err, "a repeat makes no other invitation")
		require.Equal(t, first, again)
		_, err = full.AcceptInvitation(t.Context(), callerOf(member(t, full.Service, "guest")), token, from)
		require.NoError(t, err)
		_, _, err = made(201, 0)
		require.NoError(t, err, "one was accepted")
		refused(202)
		require.NoError(t, full.RevokeInvitation(t.Context(), callerOf(full.owner), full.organisation.ID, second.ID, from))
		_, _, err = made(203, 0)
		require.NoError(t, err, "one was revoked")
		refused(204)
		full.clock.move(time.Hour)
		_, _, err = made(205, 0)
		require.NoError(t, err, "most have expired")
	})
}

func TestAPIKeys(t *testing.T) {
	pg := pgtest.Start(t)
	o := newOffice(t, pg)
	boss := callerOf(o.owner)
	n := 0
	create := func(t *testing.T, lifetime time.Duration) (account.APIKey, string) {
		t.Helper()
		n++
		made, secret, err := o.CreateAPIKey(t.Context(), boss, o.organisation.ID, fmt.Sprint("api-key-", n), "Import", auth.Operator, lifetime, from)
		require.NoError(t, err)
		return made, secret
	}
	exchange := func(secret string) error {
		_, _, err := o.ExchangeAPIKey(t.Context(), secret)
		return err
	}

	t.Run("OK", func(t *testing.T) {
		made, secret := create(t, 0)
		require.Equal(t, made.CreateTime.Add(account.APIKeyLifetime), made.ExpireTime)
		token, expires, err := o.ExchangeAPIKey(t.Context(), secret)
		require.NoError(t, err)
		require.Equal(t, o.clock.now().UTC().Truncate(time.Second).Add(account.TokenLifetime), expires)
		require.NoError(t, o.authorize(t, token, auth.Operator))
		require.ErrorIs(t, o.authorize(t, token, auth.Owner), auth.ErrRoleNotAllowed)
		caller, err := auth.NewVerifier(auth.Issuer, "test", o.keys, o.clock.now).Verify(t.Context(), token)
		require.NoError(t, err)
		require.Equal(t, [2]string{"", made.ID}, [2]string{caller.AccountID, caller.APIKeyID})
		list, _, err := o.ListAPIKeys(t.Context(), o.organisation.ID, paging.Page{})
		require.NoError(t, err)
		require.Equal(t, o.clock.now().UTC().Truncate(time.Second), list[0].UseTime)
		require.NotContains(t, fmt.Sprint(list), secret)

		again, same, err := o.CreateAPIKey(t.Context(), boss, o.organisation.ID, fmt.Sprint("api-key-", n), "Import", auth.Operator, 0, from)
		require.NoError(t, err)
		require.Equal(t, [2]string{made.ID, secret}, [2]string{again.ID, same})
		_, _, err = o.CreateAPIKey(t.Context(), boss, o.organisation.ID, fmt.Sprint("api-key-", n), "Import", auth.Viewer, 0, from)
		require.ErrorIs(t, err, account.ErrRequestIDReused)
	})

	t.Run("ErrRevoked", func(t *testing.T) {
		made, secret := create(t, 0)
		token, _, err := o.ExchangeAPIKey(t.Context(), secret)
		require.NoError(t, err)
		_, elsewhere, _ := o.service(t, cheap(), 1, 0)
		for range 2 {
			require.NoError(t, o.RevokeAPIKey(t.Context(), boss, o.organisation.ID, made.ID, from))
		}
		require.ErrorIs(t, o.authorize(t, token, auth.Operator), auth.ErrSessionEnded, "at once on this instance")
		require.ErrorIs(t, exchange(secret), account.ErrAPIKeyRevoked)
		require.NoError(t, elsewhere.Refresh(t.Context()))
		published, _, err := elsewhere.Published(paging.Page{})
		require.NoError(t, err)
		require.Contains(t, fmt.Sprint(published.Ended), made.ID)
	})

	t.Run("ErrExpired", func(t *testing.T) {
		_, secret := create(t, time.Hour)
		o.clock.move(time.Hour - time.Minute)
		require.NoError(t, o.keys.Refresh(t.Context()))
		_, expires, err := o.ExchangeAPIKey(t.Context(), secret)
		require.NoError(t, err)
		require.LessOrEqual(t, expires.Sub(o.clock.now()), time.Minute, "a token does not outlive its key")
		o.clock.move(time.Minute)
		require.NoError(t, o.keys.Refresh(t.Context()))
		require.ErrorIs(t, exchange(secret), account.ErrAPIKeyExpired)
	})

	t.Run("ErrInvalid", func(t *testing.T) {
		made, secret := create(t, 0)
		for _, bad := range []string{"", "x", made.ID, secret[:len(secret)-1], secret + "A", "mqk_", o.owner.Tokens.Access, "mqk_\x00"} {
			require.ErrorIs(t, exchange(bad), account.ErrAPIKeyInvalid, "%q", bad)
		}
		other := newOffice(t, pg)
		_, err := other.CreateOrganisation(t.Context(), callerOf(other.owner), "request-2", "Other", account.KindAdvertiser, from)
		require.NoError(t, err)
		_, _, err = other.ExchangeAPIKey(t.Context(), secret)
		require.ErrorIs(t, err, account.ErrAPIKeyInvalid, "of another database")
	})

	t.Run("ErrNoSuchAPIKey", func(t *testing.T) {
		made, secret := create(t, 0)
		stranger := member(t, o.Service, "stranger")
		mine, err := o.CreateOrganisation(t.Context(), callerOf(stranger), "request-1", "Mine", account.KindAdvertiser, from)
		require.NoError(t, err)
		require.ErrorIs(t, o.RevokeAPIKey(t.Context(), callerOf(stranger), mine.ID, made.ID, from), account.ErrNoSuchAPIKey)
		require.ErrorIs(t, o.RevokeAPIKey(t.Context(), boss, o.organisation.ID, "apk_none", from), account.ErrNoSuchAPIKey)
		require.NoError(t, exchange(secret))
	})

	t.Run("ErrTooMany", func(t *testing.T) {
		full := newOffice(t, pg)
		make := func(n int) error {
			_, _, err := full.CreateAPIKey(t.Context(), callerOf(full.owner), full.organisation.ID, fmt.Sprint("request-", n+10), "Key", auth.Viewer, 0, from)
			return err
		}
		for n := range account.MaxAPIKeys {
			full.clock.move(account.DefaultThrottle().APIKeys.Every)
			require.NoError(t, make(n))
		}
		require.ErrorIs(t, make(account.MaxAPIKeys), account.ErrTooManyAPIKeys)
		keys, _, err := full.ListAPIKeys(t.Context(), full.organisation.ID, paging.Page{Size: 1})
		require.NoError(t, err)
		require.NoError(t, full.RevokeAPIKey(t.Context(), callerOf(full.owner), full.organisation.ID, keys[0].ID, from))
		require.NoError(t, make(account.MaxAPIKeys))
	})

	t.Run("ErrAPIKeysThrottled", func(t *testing.T) {
		busy := newOffice(t, pg)
		limit := account.DefaultThrottle().APIKeys
		made := func(in account.Organisation, n int) (account.APIKey, error) {
			key, _, err := busy.CreateAPIKey(t.Context(), callerOf(busy.owner), in.ID, fmt.Sprint(in.ID, n), "Key", auth.Viewer, 0, from)
			return key, err
		}
		for n := range limit.Burst {
			key, err := made(busy.organisation, n)
			require.NoError(t, err)
			// That it cannot be used any more makes no room.
			require.NoError(t, busy.RevokeAPIKey(t.Context(), callerOf(busy.owner), busy.organisation.ID, key.ID, from))
		}
		for range 2 {
			_, err := made(busy.organisation, limit.Burst)
			require.ErrorIs(t, err, account.ErrAPIKeysThrottled)
			f, _ := fault.From(err)
			require.Equal(t, limit.Every, f.RetryAfter)
		}
		_, err := made(busy.organisation, 0)
		require.NoError(t, err, "a repeat makes no other key")
		other, err := busy.CreateOrganisation(t.Context(), callerOf(busy.owner), "request-other", "Other", account.KindAdvertiser, from)
		require.NoError(t, err)
		_, err = made(other, 0)
		require.NoError(t, err, "another organisation waits, too")
		busy.clock.move(limit.Every)
		_, err = made(busy.organisation, limit.Burst)
		require.NoError(t, err)
		_, err = made(busy.organisation, limit.Burst+1)
		require.ErrorIs(t, err, account.ErrAPIKeysThrottled)
	})
}

// Whatever bytes come as a token of ours: no panic, and nothing is opened that
// was not sealed.
func FuzzTokens(f *testing.F) {
	secret, err := account.ParseSecret(strings.Repeat("00", 32))
	require.NoError(f, err)
	keys := account.New(nil, nil, nil, secret, account.DefaultThrottle(), time.Now, nil, nil)
	for _, seed := range []string{"", "rft_", "mqi_AAAA", "mqk_AAAA", "dev_AAAA", "rft_" + strings.Repeat("A", 70), "mqk_" + strings.Repeat("A", 64)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, token string) {
		_, err := keys.AcceptInvitation(context.Background(), auth.Caller{}, token, from)
		require.ErrorIs(t, err, account.ErrNoSuchInvitation)
		_, _, err = keys.ExchangeAPIKey(context.Background(), token)
		require.ErrorIs(t, err, account.ErrAPIKeyInvalid)
		_, err = keys.Refresh(context.Background(), "request-1", token, from)
		require.ErrorIs(t, err, account.ErrRefreshTokenInvalid)
		if token != "" {
			_, _, err = keys.ListEvents(context.Background(), auth.Caller{}, paging.Page{Token: token})
			require.ErrorIs(t, err, account.ErrPageTokenInvalid)
		}
	})
}
