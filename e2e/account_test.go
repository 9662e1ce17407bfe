package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	accessv1 "github.com/marquee-ads/marquee/proto/gen/marquee/access/v1"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	_ "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1" // whose methods are tried
	_ "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"   // its methods are in the table
	_ "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"  // whose methods are tried
)

// crew is an organisation with somebody in each role, and a program in each that
// a program can have.
type crew struct {
	ctx     context.Context
	doors   scenario.Doors
	account accountv1.AccountServiceClient
	orgs    accountv1.OrganisationServiceClient
	org     string
	tokens  map[string]string // access tokens by "nobody", "account", a role, or "API key <role>"
	ids     map[string]string // accounts, and API keys
}

func withToken(ctx context.Context, token string) context.Context {
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

func newCrew(t *testing.T, ctx context.Context) *crew {
	t.Helper()
	d := openDoors(t, ctx)
	c := &crew{
		ctx: ctx, doors: d, account: accountv1.NewAccountServiceClient(d.GRPC), orgs: accountv1.NewOrganisationServiceClient(d.GRPC),
		tokens: map[string]string{"nobody": ""}, ids: map[string]string{},
	}
	accounts := d.Accounts()
	refresh := map[string]string{}
	for _, who := range append([]string{"account"}, rolesAsText()...) {
		in := accounts.LogIn(ctx, t, who)
		c.tokens[who], refresh[who], c.ids[who] = in.GetAccessToken(), in.GetRefreshToken(), in.GetAccount().GetAccountId()
	}
	renew := func(who string) {
		next, err := c.account.RefreshSession(ctx, &accountv1.RefreshSessionRequest{RequestId: "refresh-" + who, RefreshToken: refresh[who]})
		require.NoError(t, err)
		c.tokens[who] = next.GetAccessToken()
	}
	made, err := c.orgs.CreateOrganisation(c.as("owner"), &accountv1.CreateOrganisationRequest{
		RequestId: "organisation", Name: "Acme", Kind: accountv1.OrganisationKind_ORGANISATION_KIND_ADVERTISER,
	})
	require.NoError(t, err)
	c.org = made.GetOrganisation().GetOrganisationId()
	renew("owner")
	for _, role := range auth.AllRoles()[1:] {
		who := string(role)
		invited, err := c.orgs.CreateInvitation(c.as("owner"), &accountv1.CreateInvitationRequest{OrganisationId: c.org, RequestId: "invite-" + who, Role: role.Proto()})
		require.NoError(t, err)
		_, err = c.orgs.AcceptInvitation(c.as(who), &accountv1.AcceptInvitationRequest{InvitationToken: invited.GetInvitationToken()})
		require.NoError(t, err)
		renew(who)
		key, err := c.orgs.CreateAPIKey(c.as("owner"), &accountv1.CreateAPIKeyRequest{OrganisationId: c.org, RequestId: "api-key-" + who, Name: who, Role: role.Proto()})
		require.NoError(t, err)
		exchanged, err := c.orgs.ExchangeAPIKey(ctx, &accountv1.ExchangeAPIKeyRequest{Secret: key.GetSecret()})
		require.NoError(t, err)
		c.tokens["API key "+who], c.ids["API key "+who] = exchanged.GetAccessToken(), key.GetApiKey().GetApiKeyId()
	}
	return c
}

func rolesAsText() []string {
	var all []string
	for _, role := range auth.AllRoles() {
		all = append(all, string(role))
	}
	return all
}

func (c *crew) as(who string) context.Context { return withToken(c.ctx, c.tokens[who]) }

// verdict is a row of docs/authorisation.md.
type verdict struct {
	method  protoreflect.MethodDescriptor
	http    string
	allowed map[string]bool // by column
}

// table reads docs/authorisation.md.
func table(t *testing.T) []verdict {
	t.Helper()
	document, err := os.ReadFile(filepath.Join(the.root, "docs", "authorisation.md"))
	require.NoError(t, err)
	var (
		service string
		columns []string
		rows    []verdict
	)
	for line := range strings.Lines(string(document)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "## marquee."); ok {
			service = "marquee." + name
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if service == "" || len(cells) < 3 {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if cells[0] == "method" {
			columns = cells
			continue
		}
		if !strings.HasPrefix(cells[0], "`") {
			continue
		}
		require.Len(t, cells, len(columns), line)
		found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service + "." + strings.Trim(cells[0], "`")))
		require.NoError(t, err, "import the generated package of %s in this file, so that its methods are tried", service)
		row := verdict{method: found.(protoreflect.MethodDescriptor), http: cells[1], allowed: map[string]bool{}}
		for i := 2; i < len(columns); i++ {
			switch cells[i] {
			case "yes":
				row.allowed[columns[i]] = true
			case "by its role", "":
			default:
				require.Fail(t, "a cell that says something else", line)
			}
			if columns[i] != "API key" {
				continue
			}
			// A program's verdict is its role's where the method needs one.
			for _, role := range rolesAsText()[1:] {
				row.allowed["API key "+role] = cells[i] == "yes" || cells[i] == "by its role" && row.allowed[role]
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// denials are the reasons with which a caller is refused for who they are.
var denials = []string{"TOKEN_MISSING", "TOKEN_INVALID", "TOKEN_EXPIRED", "SESSION_ENDED", "ROLES_CHANGED", "NOT_A_MEMBER", "ROLE_NOT_ALLOWED", "ACCOUNT_NEEDED", "METHOD_UNKNOWN", "ROUTE_UNKNOWN", "SERVICE_NOT_ALLOWED", "MESH_DENIED"}

// TestAuthorisation calls every method as everybody, through the gateway's two
// doors, and compares with the table that is published in docs/authorisation.md.
func TestAuthorisation(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	c := newCrew(t, ctx)
	rows := table(t)
	callers := append([]string{"nobody", "account"}, rolesAsText()...)
	for _, role := range rolesAsText()[1:] {
		callers = append(callers, "API key "+role)
	}
	pairs := 0
	var last []verdict // ends sessions
	call := func(t *testing.T, row verdict) {
		for _, who := range callers {
			pairs++
			c.judge(t, row, who, "gRPC", c.overGRPC(row, who))
			if row.method.Name() != "LogOut" && !row.method.IsStreamingServer() && strings.Contains(row.http, " /") {
				c.judge(t, row, who, "REST", c.overREST(t, row, who))
			}
		}
	}
	for _, row := range rows {
		if row.method.Name() == "LogOut" {
			last = append(last, row)
			continue
		}
		t.Run(string(row.method.FullName()), func(t *testing.T) { call(t, row) })
	}
	for _, row := range last {
		t.Run(string(row.method.FullName()), func(t *testing.T) { call(t, row) })
	}
	require.Len(t, last, 1)
	require.GreaterOrEqual(t, len(rows), 84, "methods")
	t.Logf("%d methods against %d callers: %d pairs", len(rows), len(callers), pairs)
}

// judge compares the reason that a call was refused with ("" when it was not)
// with the table.
func (c *crew) judge(t *testing.T, row verdict, who, door, reason string) {
	t.Helper()
	rule, _ := proto.GetExtension(row.method.Options(), accessv1.E_Access).(*accessv1.Access)
	if row.allowed[who] {
		require.NotContains(t, denials, reason, "%s over %s is refused", who, door)
		return
	}
	want := "ACCOUNT_NEEDED"
	switch {
	case rule.GetCaller() == accessv1.Caller_CALLER_SERVICE:
		want = "METHOD_UNKNOWN"
	case who == "nobody":
		want = "TOKEN_MISSING"
	case who == "account":
		want = "NOT_A_MEMBER"
	case len(rule.GetRoles()) > 0:
		want = "ROLE_NOT_ALLOWED"
	}
	require.Equal(t, want, reason, "%s over %s", who, door)
}

// overGRPC calls a method with nothing in its request but the organisation, where
// it needs a role there: who gets past that is told what is missing.
func (c *crew) overGRPC(row verdict, who string) string {
	ctx, cancel := context.WithTimeout(c.as(who), 10*time.Second)
	defer cancel()
	request := dynamicpb.NewMessage(row.method.Input())
	rule, _ := proto.GetExtension(row.method.Options(), accessv1.E_Access).(*accessv1.Access)
	if path := rule.GetOrganisationField(); path != "" {
		var in protoreflect.Message = request
		names := strings.Split(path, ".")
		for _, name := range names[:len(names)-1] {
			in = in.Mutable(in.Descriptor().Fields().ByName(protoreflect.Name(name))).Message()
		}
		in.Set(in.Descriptor().Fields().ByName(protoreflect.Name(names[len(names)-1])), protoreflect.ValueOfString(c.org))
	}
	// As a stream in both directions every kind of call can be made.
	stream, err := c.doors.GRPC.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
		fmt.Sprintf("/%s/%s", row.method.Parent().FullName(), row.method.Name()))
	if err == nil {
		if err = stream.SendMsg(request); errors.Is(err, io.EOF) {
			err = nil // RecvMsg says why
		}
	}
	if err == nil {
		err = stream.CloseSend()
	}
	if err == nil {
		err = stream.RecvMsg(dynamicpb.NewMessage(row.method.Output()))
	}
	if err == nil || errors.Is(err, io.EOF) {
		return ""
	}
	return grpcfault.FromStatus(status.Convert(err)).Reason
}

var variable = regexp.MustCompile(`\{[^}]*\}`)

// overREST is overGRPC over HTTP.
func (c *crew) overREST(t *testing.T, row verdict, who string) string {
	t.Helper()
	rule, _ := proto.GetExtension(row.method.Options(), accessv1.E_Access).(*accessv1.Access)
	verb, path, _ := strings.Cut(row.http, " ")
	path = variable.ReplaceAllStringFunc(path, func(name string) string {
		if len(rule.GetRoles()) > 0 && strings.Trim(name, "{}") == rule.GetOrganisationField() {
			return c.org
		}
		if f := row.method.Input().Fields().ByName(protoreflect.Name(strings.Trim(name, "{}"))); f != nil && f.Kind() == protoreflect.Int32Kind {
			return "1"
		}
		return "x"
	})
	request := load.Request{Method: verb, Path: path, Token: c.tokens[who]}
	if verb == http.MethodPost || verb == http.MethodPut || verb == http.MethodPatch {
		request.Body = map[string]string{}
	}
	_, err := c.doors.REST.Do(c.ctx, request, nil)
	if err == nil {
		return ""
	}
	var refused *load.ProblemError
	require.ErrorAs(t, err, &refused)
	var problem struct {
		Reason string `json:"reason"`
	}
	require.NoError(t, json.Unmarshal(refused.Body, &problem), "%s", refused.Body)
	require.NotEmpty(t, problem.Reason)
	return problem.Reason
}

// TestOrganisation: what an owner takes away counts in another service, which
// knows tokens alone, within the time that the API promises.
func TestOrganisation(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	c := newCrew(t, ctx)
	visit := func(who string) error {
		var answer struct {
			CallerID string `json:"callerId"`
			Role     string `json:"role"`
		}
		_, err := c.doors.REST.Do(ctx, load.Request{Method: http.MethodGet, Path: "/v1/visits/" + c.org, Token: c.tokens[who]}, &answer)
		if err == nil && answer.CallerID != c.ids[who] {
			return fmt.Errorf("%s is called %s", who, answer.CallerID)
		}
		return err
	}
	until := func(who, reason string, do func() error) {
		t.Helper()
		require.NoError(t, visit(who))
		began := time.Now()
		require.NoError(t, do())
		scenario.Eventually(ctx, t, auth.LogOutWithin, who+" is refused by another service", func() error {
			for range 4 { // both instances, through both gateways
				if err := visit(who); err == nil {
					return errNotYet
				}
			}
			return nil
		})
		requireProblem(t, visit(who), http.StatusUnauthorized, reason)
		t.Logf("%s: refused by another service after %.1f s", who, time.Since(began).Seconds())
	}
	requireProblem(t, visit("viewer"), http.StatusForbidden, "ROLE_NOT_ALLOWED")
	requireProblem(t, visit("account"), http.StatusForbidden, "NOT_A_MEMBER")
	until("operator", "ROLES_CHANGED", func() error {
		_, err := c.orgs.RemoveMember(c.as("owner"), &accountv1.RemoveMemberRequest{OrganisationId: c.org, AccountId: c.ids["operator"]})
		return err
	})
	until("API key operator", "SESSION_ENDED", func() error {
		_, err := c.orgs.RevokeAPIKey(c.as("owner"), &accountv1.RevokeAPIKeyRequest{OrganisationId: c.org, ApiKeyId: c.ids["API key operator"]})
		return err
	})
}

// TestGuessing: who guesses a password is told to wait, and does not keep the
// account's own device out, though both come from one address.
func TestGuessing(t *testing.T) {
	ctx := begin(t, time.Minute)
	d := openDoors(t, ctx)
	client := accountv1.NewAccountServiceClient(d.GRPC)
	in := d.Accounts().LogIn(ctx, t, "guessed")
	name := in.GetAccount().GetName()
	var refused *load.ProblemError
	for guesses := 0; ; guesses++ {
		require.Less(t, guesses, 100, "nobody is throttled")
		_, err := d.REST.Do(ctx, load.Request{Method: http.MethodPost, Path: "/v1/sessions", Body: map[string]string{"name": name, "password": fmt.Sprint("guess ", guesses)}}, nil)
		require.ErrorAs(t, err, &refused)
		if refused.HTTPStatus != http.StatusUnauthorized {
			t.Logf("throttled after %d wrong passwords", guesses)
			break
		}
	}
	requireProblem(t, refused, http.StatusTooManyRequests, "LOG_IN_THROTTLED")
	_, err := client.LogIn(ctx, &accountv1.LogInRequest{Name: name, Password: scenario.Password})
	f := grpcfault.FromStatus(status.Convert(err))
	require.Equal(t, "LOG_IN_THROTTLED", f.Reason)
	require.Positive(t, f.RetryAfter)
	_, err = client.LogIn(ctx, &accountv1.LogInRequest{Name: name, Password: scenario.Password, DeviceToken: in.GetDeviceToken()})
	require.NoError(t, err, "the account's own device is locked out")

	events, err := client.ListAuditEvents(withToken(ctx, in.GetAccessToken()), &accountv1.ListAuditEventsRequest{PageSize: 200})
	require.NoError(t, err)
	failed := 0
	for _, e := range events.GetEvents() {
		if e.GetKind() == accountv1.AuditKind_AUDIT_KIND_LOG_IN_FAILED {
			require.Equal(t, "127.0.0.1", e.GetAddress())
			failed++
		}
	}
	require.Positive(t, failed, "its owner is not told of the guesses")
}
