package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	"github.com/marquee-ads/marquee/platform/pgtest"
	accessv1 "github.com/marquee-ads/marquee/proto/gen/marquee/access/v1"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
)

// person is somebody with a session that knows their roles.
type person struct {
	one     *instance
	orgs    accountv1.OrganisationServiceClient
	id      string
	access  string
	refresh string
	n       int
}

func (i *instance) conn(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(i.addresses.Mesh, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

func newPerson(t *testing.T, one *instance, name string) *person {
	t.Helper()
	up, err := one.SignUp(within(t), &accountv1.SignUpRequest{RequestId: "request-" + name, Name: name, Password: goodPassword})
	require.NoError(t, err)
	in, err := one.LogIn(within(t), &accountv1.LogInRequest{Name: name, Password: goodPassword})
	require.NoError(t, err)
	return &person{
		one: one, orgs: accountv1.NewOrganisationServiceClient(one.conn(t)),
		id: up.GetAccount().GetAccountId(), access: in.GetAccessToken(), refresh: in.GetRefreshToken(),
	}
}

// renew gets an access token that says what the roles are now.
func (p *person) renew(t *testing.T) {
	t.Helper()
	p.n++
	next, err := p.one.RefreshSession(within(t), &accountv1.RefreshSessionRequest{RequestId: fmt.Sprint("refresh-", p.n), RefreshToken: p.refresh})
	require.NoError(t, err)
	p.access, p.refresh = next.GetAccessToken(), next.GetRefreshToken()
}

func (p *person) ctx(t *testing.T) context.Context { return bearer(within(t), p.access) }

// TestRunOrganisation is the life of an organisation as its people see it.
func TestRunOrganisation(t *testing.T) {
	pg := pgtest.Start(t)
	one := start(t, databaseFlags(pg, t)...)
	ada, grace := newPerson(t, one, "ada"), newPerson(t, one, "grace")
	made, err := ada.orgs.CreateOrganisation(ada.ctx(t), &accountv1.CreateOrganisationRequest{
		RequestId: "request-1", Name: "Acme", Kind: accountv1.OrganisationKind_ORGANISATION_KIND_DISPLAY_OWNER,
	})
	require.NoError(t, err)
	org := made.GetOrganisation().GetOrganisationId()
	require.Regexp(t, `^org_[0-9A-HJKMNP-TV-Z]{26}$`, org)

	// The token is older than the role.
	_, err = ada.orgs.ListMembers(ada.ctx(t), &accountv1.ListMembersRequest{OrganisationId: org})
	require.Contains(t, []string{"ROLES_CHANGED", "NOT_A_MEMBER"}, grpcfault.FromStatus(status.Convert(err)).Reason)
	ada.renew(t)
	got, err := ada.orgs.GetOrganisation(ada.ctx(t), &accountv1.GetOrganisationRequest{OrganisationId: org})
	require.NoError(t, err)
	require.Equal(t, made.GetOrganisation().String(), got.GetOrganisation().String())
	_, err = grace.orgs.GetOrganisation(grace.ctx(t), &accountv1.GetOrganisationRequest{OrganisationId: org})
	refused(t, err, codes.PermissionDenied, "NOT_A_MEMBER")

	invited, err := ada.orgs.CreateInvitation(ada.ctx(t), &accountv1.CreateInvitationRequest{OrganisationId: org, RequestId: "request-2", Role: accessv1.Role_ROLE_VIEWER, LifetimeDays: 3})
	require.NoError(t, err)
	require.Equal(t, 72*time.Hour, invited.GetInvitation().GetExpireTime().AsTime().Sub(invited.GetInvitation().GetCreateTime().AsTime()))
	joined, err := grace.orgs.AcceptInvitation(grace.ctx(t), &accountv1.AcceptInvitationRequest{InvitationToken: invited.GetInvitationToken()})
	require.NoError(t, err)
	require.Equal(t, accessv1.Role_ROLE_VIEWER, joined.GetRole())
	grace.renew(t)
	members, err := grace.orgs.ListMembers(grace.ctx(t), &accountv1.ListMembersRequest{OrganisationId: org})
	require.NoError(t, err)
	roles := map[string]accessv1.Role{}
	for _, m := range members.GetMembers() {
		roles[m.GetName()] = m.GetRole()
	}
	require.Equal(t, map[string]accessv1.Role{"ada": accessv1.Role_ROLE_OWNER, "grace": accessv1.Role_ROLE_VIEWER}, roles)
	_, err = grace.orgs.ListInvitations(grace.ctx(t), &accountv1.ListInvitationsRequest{OrganisationId: org})
	f := refused(t, err, codes.PermissionDenied, "ROLE_NOT_ALLOWED")
	require.Equal(t, "owner", f.Meta["roles"])

	key, err := ada.orgs.CreateAPIKey(ada.ctx(t), &accountv1.CreateAPIKeyRequest{OrganisationId: org, RequestId: "request-3", Name: "Import", Role: accessv1.Role_ROLE_OPERATOR})
	require.NoError(t, err)
	exchanged, err := ada.orgs.ExchangeAPIKey(within(t), &accountv1.ExchangeAPIKeyRequest{Secret: key.GetSecret()})
	require.NoError(t, err)
	program := bearer(within(t), exchanged.GetAccessToken())
	_, err = ada.orgs.ListMembers(program, &accountv1.ListMembersRequest{OrganisationId: org})
	require.NoError(t, err)
	_, err = one.GetAccount(program, &accountv1.GetAccountRequest{AccountId: "me"})
	refused(t, err, codes.PermissionDenied, "ACCOUNT_NEEDED")
	_, err = ada.orgs.CreateAPIKey(program, &accountv1.CreateAPIKeyRequest{OrganisationId: org, RequestId: "request-4", Name: "More", Role: accessv1.Role_ROLE_VIEWER})
	refused(t, err, codes.PermissionDenied, "ROLE_NOT_ALLOWED")
	_, err = ada.orgs.RevokeAPIKey(ada.ctx(t), &accountv1.RevokeAPIKeyRequest{OrganisationId: org, ApiKeyId: key.GetApiKey().GetApiKeyId()})
	require.NoError(t, err)
	_, err = ada.orgs.ListMembers(program, &accountv1.ListMembersRequest{OrganisationId: org})
	refused(t, err, codes.Unauthenticated, "SESSION_ENDED")
	_, err = ada.orgs.ExchangeAPIKey(within(t), &accountv1.ExchangeAPIKeyRequest{Secret: key.GetSecret()})
	refused(t, err, codes.Unauthenticated, "API_KEY_REVOKED")

	_, err = ada.orgs.SetMemberRole(ada.ctx(t), &accountv1.SetMemberRoleRequest{OrganisationId: org, AccountId: ada.id, Role: accessv1.Role_ROLE_VIEWER})
	refused(t, err, codes.FailedPrecondition, "LAST_OWNER")
	_, err = ada.orgs.RemoveMember(ada.ctx(t), &accountv1.RemoveMemberRequest{OrganisationId: org, AccountId: grace.id})
	require.NoError(t, err)
	// Her token says viewer; it stops counting within the time that is promised.
	began := time.Now()
	require.Eventually(t, func() bool {
		_, err = grace.orgs.ListMembers(grace.ctx(t), &accountv1.ListMembersRequest{OrganisationId: org})
		return err != nil
	}, auth.LogOutWithin, 20*time.Millisecond)
	refused(t, err, codes.Unauthenticated, "ROLES_CHANGED")
	t.Logf("the removal was effective after %s", time.Since(began).Round(time.Millisecond))
	published, err := one.GetSigningKeys(within(t), &accountv1.GetSigningKeysRequest{})
	require.NoError(t, err)
	require.Len(t, published.GetChangedAccounts(), 2)
	grace.renew(t)
	_, err = grace.orgs.ListMembers(grace.ctx(t), &accountv1.ListMembersRequest{OrganisationId: org})
	refused(t, err, codes.PermissionDenied, "NOT_A_MEMBER")

	events, err := ada.orgs.ListOrganisationAuditEvents(ada.ctx(t), &accountv1.ListOrganisationAuditEventsRequest{OrganisationId: org})
	require.NoError(t, err)
	counts := map[string]int{}
	for _, e := range events.GetEvents() {
		require.Equal(t, org, e.GetOrganisationId())
		require.NotEmpty(t, e.GetActorId())
		counts[strings.TrimPrefix(e.GetKind().String(), "AUDIT_KIND_")]++
	}
	require.Equal(t, map[string]int{
		"ORGANISATION_CREATED": 1, "INVITATION_CREATED": 1, "MEMBER_JOINED": 1, "API_KEY_CREATED": 1, "API_KEY_REVOKED": 1, "MEMBER_REMOVED": 1,
	}, counts)
}

// TestRunOtherEnvironment: what one environment hands out is worth nothing in
// another, and access tokens not even where the database and the key are shared by
// mistake.
func TestRunOtherEnvironment(t *testing.T) {
	pg := pgtest.Start(t)
	flags := databaseFlags(pg, t)
	here := start(t, flags...)
	secret := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(secret, []byte(strings.Repeat("ab", 32)), 0o600))
	there := start(t, append(databaseFlags(pg, t), "--environment", "other", "--key-encryption-key-file", secret)...)
	mistaken := start(t, append(flags, "--environment", "other")...)

	ada, native := newPerson(t, here, "ada"), newPerson(t, there, "ada")
	made, err := ada.orgs.CreateOrganisation(ada.ctx(t), &accountv1.CreateOrganisationRequest{
		RequestId: "request-1", Name: "Acme", Kind: accountv1.OrganisationKind_ORGANISATION_KIND_ADVERTISER,
	})
	require.NoError(t, err)
	org := made.GetOrganisation().GetOrganisationId()
	ada.renew(t)
	invited, err := ada.orgs.CreateInvitation(ada.ctx(t), &accountv1.CreateInvitationRequest{OrganisationId: org, RequestId: "request-2", Role: accessv1.Role_ROLE_OWNER})
	require.NoError(t, err)
	key, err := ada.orgs.CreateAPIKey(ada.ctx(t), &accountv1.CreateAPIKeyRequest{OrganisationId: org, RequestId: "request-3", Name: "Import", Role: accessv1.Role_ROLE_VIEWER})
	require.NoError(t, err)
	events, err := here.ListAuditEvents(ada.ctx(t), &accountv1.ListAuditEventsRequest{PageSize: 1})
	require.NoError(t, err)
	require.NotEmpty(t, events.GetNextPageToken())

	for _, one := range []*instance{there, mistaken} {
		_, err = one.GetAccount(ada.ctx(t), &accountv1.GetAccountRequest{AccountId: "me"})
		refused(t, err, codes.Unauthenticated, "TOKEN_INVALID")
	}
	_, err = there.RefreshSession(within(t), &accountv1.RefreshSessionRequest{RequestId: "request-1", RefreshToken: ada.refresh})
	refused(t, err, codes.Unauthenticated, "REFRESH_TOKEN_INVALID")
	_, err = native.orgs.AcceptInvitation(native.ctx(t), &accountv1.AcceptInvitationRequest{InvitationToken: invited.GetInvitationToken()})
	refused(t, err, codes.NotFound, "INVITATION_NOT_FOUND")
	_, err = native.orgs.ExchangeAPIKey(within(t), &accountv1.ExchangeAPIKeyRequest{Secret: key.GetSecret()})
	refused(t, err, codes.Unauthenticated, "API_KEY_INVALID")
	_, err = there.ListAuditEvents(native.ctx(t), &accountv1.ListAuditEventsRequest{PageToken: events.GetNextPageToken()})
	refused(t, err, codes.InvalidArgument, "PAGE_TOKEN_INVALID")
	_, err = native.orgs.GetOrganisation(native.ctx(t), &accountv1.GetOrganisationRequest{OrganisationId: org})
	refused(t, err, codes.PermissionDenied, "NOT_A_MEMBER")

	// A device of the other environment is a stranger here.
	in, err := here.LogIn(within(t), &accountv1.LogInRequest{Name: "ada", Password: goodPassword})
	require.NoError(t, err)
	again, err := there.LogIn(within(t), &accountv1.LogInRequest{Name: "ada", Password: goodPassword, DeviceToken: in.GetDeviceToken()})
	require.NoError(t, err)
	require.NotEqual(t, in.GetDeviceToken(), again.GetDeviceToken())
	// All of it is still good at home.
	_, err = here.RefreshSession(within(t), &accountv1.RefreshSessionRequest{RequestId: "request-1", RefreshToken: ada.refresh})
	require.NoError(t, err)
	_, err = ada.orgs.ExchangeAPIKey(within(t), &accountv1.ExchangeAPIKeyRequest{Secret: key.GetSecret()})
	require.NoError(t, err)
}

// TestRunBadInput calls every method without a token, and with every field
// missing, too long, with control characters, letters that look like others and of
// the wrong form: none of it is taken, and none of it is an internal error.
func TestRunBadInput(t *testing.T) {
	pg := pgtest.Start(t)
	one := start(t, append(databaseFlags(pg, t), "--log-in-name-burst", "1000")...)
	ada := newPerson(t, one, "ada")
	made, err := ada.orgs.CreateOrganisation(ada.ctx(t), &accountv1.CreateOrganisationRequest{
		RequestId: "request-1", Name: "Acme", Kind: accountv1.OrganisationKind_ORGANISATION_KIND_ADVERTISER,
	})
	require.NoError(t, err)
	ada.renew(t)
	org := fmt.Sprintf(`"organisationId":%q`, made.GetOrganisation().GetOrganisationId())
	const (
		ulid  = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
		pages = `,"pageSize":1,"pageToken":""`
	)
	// A request of each method that breaks no rule.
	good := map[protoreflect.Name]string{
		"SignUp":          `{"requestId":"request-9","name":"grace","password":"` + goodPassword + `"}`,
		"LogIn":           `{"name":"ada","password":"` + goodPassword + `"}`,
		"RefreshSession":  `{"requestId":"request-9","refreshToken":"x"}`,
		"ListSessions":    `{"pageSize":1}`,
		"RevokeSession":   `{"sessionId":"ses_` + ulid + `"}`,
		"ChangePassword":  `{"currentPassword":"` + goodPassword + `","newPassword":"amber kayak 31 drum"}`,
		"ListAuditEvents": `{"pageSize":1}`,
		"LogOut":          `{}`,
		"GetAccount":      `{"accountId":"me"}`,
		"GetSigningKeys":  `{"pageSize":1}`,

		"GetJSONWebKeySet": `{}`,

		"CreateOrganisation":          `{"requestId":"request-9","name":"Acme","kind":"ORGANISATION_KIND_ADVERTISER"}`,
		"ListOrganisations":           `{"pageSize":1}`,
		"GetOrganisation":             `{` + org + `}`,
		"ListMembers":                 `{` + org + pages + `}`,
		"SetMemberRole":               `{` + org + `,"accountId":"acc_` + ulid + `","role":"ROLE_VIEWER"}`,
		"RemoveMember":                `{` + org + `,"accountId":"acc_` + ulid + `"}`,
		"LeaveOrganisation":           `{` + org + `}`,
		"CreateInvitation":            `{` + org + `,"requestId":"request-9","role":"ROLE_VIEWER","lifetimeDays":1}`,
		"ListInvitations":             `{` + org + pages + `}`,
		"RevokeInvitation":            `{` + org + `,"invitationId":"inv_` + ulid + `"}`,
		"AcceptInvitation":            `{"invitationToken":"x"}`,
		"CreateAPIKey":                `{` + org + `,"requestId":"request-9","name":"Key","role":"ROLE_VIEWER","lifetimeDays":1}`,
		"ListAPIKeys":                 `{` + org + pages + `}`,
		"RevokeAPIKey":                `{` + org + `,"apiKeyId":"apk_` + ulid + `"}`,
		"ExchangeAPIKey":              `{"secret":"x"}`,
		"ListOrganisationAuditEvents": `{` + org + pages + `}`,
	}
	optional := map[protoreflect.Name]bool{"page_size": true, "page_token": true, "device_token": true, "lifetime_days": true}
	anyone := map[protoreflect.Name]bool{
		"SignUp": true, "LogIn": true, "RefreshSession": true, "GetSigningKeys": true, "GetJSONWebKeySet": true, "ExchangeAPIKey": true,
	}
	conn := one.conn(t)
	files := []protoreflect.FileDescriptor{accountv1.File_marquee_account_v1_account_proto, accountv1.File_marquee_account_v1_organisation_proto}
	tried := 0
	for _, file := range files {
		methods := file.Services().Get(0).Methods()
		for n := range methods.Len() {
			d := methods.Get(n)
			base := dynamicpb.NewMessage(d.Input())
			text, ok := good[d.Name()]
			require.True(t, ok, "no good request of %s", d.Name())
			require.NoError(t, protojson.Unmarshal([]byte(text), base))
			rule, _ := proto.GetExtension(d.Options(), accessv1.E_Access).(*accessv1.Access)
			call := func(change func(protoreflect.Message)) error {
				req := dynamicpb.NewMessage(d.Input())
				proto.Merge(req, base)
				change(req)
				return conn.Invoke(ada.ctx(t), fmt.Sprintf("/%s/%s", d.Parent().FullName(), d.Name()), req, dynamicpb.NewMessage(d.Output()))
			}
			if !anyone[d.Name()] {
				t.Run(string(d.Name())+"/NoToken", func(t *testing.T) {
					err := conn.Invoke(within(t), fmt.Sprintf("/%s/%s", d.Parent().FullName(), d.Name()), base, dynamicpb.NewMessage(d.Output()))
					refused(t, err, codes.Unauthenticated, "TOKEN_MISSING")
				})
			}
			for i := range d.Input().Fields().Len() {
				field := d.Input().Fields().Get(i)
				bad := map[string]protoreflect.Value{"Missing": {}}
				switch field.Kind() {
				case protoreflect.StringKind:
					bad["Long"] = protoreflect.ValueOfString(strings.Repeat("x7$kQ2v", 150))
					bad["Null"] = protoreflect.ValueOfString("violet\x00tugboat")
					bad["SQL"] = protoreflect.ValueOfString("x'; DROP TABLE accounts; --")
					// What would do, but for one character: a line's end, and a letter that is
					// none of ASCII's.
					bad["Newline"] = protoreflect.ValueOfString(base.Get(field).String() + "\n")
					bad["LookAlike"] = protoreflect.ValueOfString(base.Get(field).String() + "\u0430")
				case protoreflect.EnumKind:
					bad["Unknown"] = protoreflect.ValueOfEnum(99)
					bad["Negative"] = protoreflect.ValueOfEnum(-1)
				case protoreflect.Int32Kind:
					bad["Negative"] = protoreflect.ValueOfInt32(-1)
					bad["Large"] = protoreflect.ValueOfInt32(1 << 30)
				default:
					require.Fail(t, "a field of a kind that is not tried", "%s", field.FullName())
				}
				for what, value := range bad {
					if what == "Missing" && optional[field.Name()] {
						continue
					}
					// What is free text may hold SQL and any letter, and a password anything.
					if (what == "SQL" || what == "LookAlike") && (field.Name() == "name" && d.Name() != "SignUp" && d.Name() != "LogIn" || strings.Contains(string(field.Name()), "password") || field.Name() == "device_token") {
						continue
					}
					if (what == "Null" || what == "Newline") && field.Name() == "device_token" {
						continue // one that is not the account's is ignored
					}
					tried++
					t.Run(fmt.Sprintf("%s/%s/%s", d.Name(), field.Name(), what), func(t *testing.T) {
						err := call(func(m protoreflect.Message) {
							if value.IsValid() {
								m.Set(field, value)
							} else {
								m.Clear(field)
							}
						})
						require.Error(t, err)
						f := grpcfault.FromStatus(status.Convert(err))
						if what != "Missing" && what != "Long" && field.Kind() == protoreflect.StringKind {
							// Well-formed for a rule, perhaps, but never found.
							require.Contains(t, []codes.Code{codes.InvalidArgument, codes.Unauthenticated, codes.PermissionDenied, codes.NotFound}, status.Code(err), "%v", err)
							return
						}
						if what != "Missing" && string(field.Name()) == rule.GetOrganisationField() {
							require.Equal(t, "NOT_A_MEMBER", f.Reason)
							return
						}
						require.Equal(t, "VALIDATION_FAILED", f.Reason, "%v", err)
						require.Equal(t, string(field.Name()), f.Fields[0].Path)
					})
				}
			}
		}
	}
	require.Greater(t, tried, 200)
	t.Logf("%d bad requests", tried)
	_, err = one.GetAccount(ada.ctx(t), &accountv1.GetAccountRequest{AccountId: "me"})
	require.NoError(t, err, "the accounts are still there")
}
