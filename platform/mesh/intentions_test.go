package mesh

import (
	"context"
	"testing"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/metadata"
)

const (
	allowed = consulapi.IntentionActionAllow
	refused = consulapi.IntentionActionDeny
)

func l4(source string, precedence int, action consulapi.IntentionAction) *consulapi.Intention {
	return &consulapi.Intention{SourceName: source, DestinationName: "account", Precedence: precedence, Action: action}
}

func l7(source string, precedence int, permissions ...*consulapi.IntentionPermission) *consulapi.Intention {
	return &consulapi.Intention{SourceName: source, DestinationName: "account", Precedence: precedence, Permissions: permissions}
}

func permit(action consulapi.IntentionAction, http consulapi.IntentionHTTPPermission) *consulapi.IntentionPermission {
	return &consulapi.IntentionPermission{Action: action, HTTP: &http}
}

func header(h consulapi.IntentionHTTPHeaderPermission) *consulapi.Intention {
	h.Name = "X-Tenant"
	return l7("gateway", 9, permit(allowed, consulapi.IntentionHTTPPermission{Header: []consulapi.IntentionHTTPHeaderPermission{h}}))
}

type headerPermission = consulapi.IntentionHTTPHeaderPermission

func TestPolicy(t *testing.T) {
	const method = "/marquee.account.v1.AccountService/GetAccount"
	path := func(p consulapi.IntentionHTTPPermission) *consulapi.Intention {
		return l7("gateway", 9, permit(allowed, p))
	}
	type list = []*consulapi.Intention
	for name, c := range map[string]struct {
		intentions list
		metadata   []string
		call       bool // whether gateway may call method
		connection bool // whether gateway may open a byte connection
		problem    bool
	}{
		"None":                {},
		"Exact":               {intentions: list{l4("gateway", 9, allowed)}, call: true, connection: true},
		"ExactDeny":           {intentions: list{l4("gateway", 9, refused), l4("*", 5, allowed)}},
		"OtherSource":         {intentions: list{l4("echo", 9, allowed)}},
		"SourcePrefixIsOther": {intentions: list{l4("gate", 9, allowed), l4("gateway2", 9, allowed)}},
		"Wildcard":            {intentions: list{l4("*", 8, allowed)}, call: true, connection: true},
		"WildcardDeny":        {intentions: list{l4("*", 8, refused), l4("*", 5, allowed)}},
		"ExactBeforeWildcard": {intentions: list{l4("*", 8, allowed), l4("gateway", 9, refused)}},
		"ExactSourceOfEveryDestinationAfterWildcardOfThis": {
			intentions: list{l4("gateway", 6, allowed), l4("*", 8, refused)},
		},
		"WildcardToWildcardLast": {intentions: list{l4("*", 5, refused), l4("gateway", 6, allowed)}, call: true, connection: true},
		"NoAction":               {intentions: list{l4("gateway", 9, ""), l4("*", 5, allowed)}},
		"PeerOfAnotherClusterIsNotOurs": {
			intentions: list{{SourceName: "gateway", SourcePeer: "east", Action: allowed, Precedence: 9}},
		},
		"OtherSourceTypeIsNotOurs": {
			intentions: list{{SourceName: "gateway", SourceType: "external-uri", Action: allowed, Precedence: 9}},
		},

		"PathExact":            {intentions: list{path(consulapi.IntentionHTTPPermission{PathExact: method})}, call: true},
		"PathExactOther":       {intentions: list{path(consulapi.IntentionHTTPPermission{PathExact: method + "s"})}},
		"PathExactIsCased":     {intentions: list{path(consulapi.IntentionHTTPPermission{PathExact: "/marquee.account.v1.accountservice/getaccount"})}},
		"PathPrefix":           {intentions: list{path(consulapi.IntentionHTTPPermission{PathPrefix: "/marquee.account.v1.AccountService/"})}, call: true},
		"PathPrefixOther":      {intentions: list{path(consulapi.IntentionHTTPPermission{PathPrefix: "/marquee.device.v1"})}},
		"PathRegex":            {intentions: list{path(consulapi.IntentionHTTPPermission{PathRegex: `/marquee\.[a-z]+\.v1\.\w+/Get\w+`})}, call: true},
		"PathRegexMatchesAll":  {intentions: list{path(consulapi.IntentionHTTPPermission{PathRegex: `/marquee`})}},
		"PathRegexAlternative": {intentions: list{path(consulapi.IntentionHTTPPermission{PathRegex: `/a|/marquee`})}},
		"Methods":              {intentions: list{path(consulapi.IntentionHTTPPermission{Methods: []string{"GET", "POST"}})}, call: true},
		"MethodsWithoutPost":   {intentions: list{path(consulapi.IntentionHTTPPermission{Methods: []string{"GET", "PUT"}})}},
		"AllConditions": {
			intentions: list{path(consulapi.IntentionHTTPPermission{
				PathExact: method, Methods: []string{"POST"}, Header: []headerPermission{{Name: "x-a", Exact: "1"}, {Name: "x-b", Present: true}},
			})},
			metadata: []string{"x-a", "1", "x-b", ""}, call: true,
		},
		"OneConditionFails": {
			intentions: list{path(consulapi.IntentionHTTPPermission{
				PathExact: method, Header: []headerPermission{{Name: "x-a", Exact: "1"}, {Name: "x-b", Present: true}},
			})},
			metadata: []string{"x-a", "1"},
		},
		"FirstPermissionDecides": {
			intentions: list{l7("gateway", 9,
				permit(refused, consulapi.IntentionHTTPPermission{PathExact: method}),
				permit(allowed, consulapi.IntentionHTTPPermission{PathPrefix: "/"}))},
		},
		"LaterPermission": {
			intentions: list{l7("gateway", 9,
				permit(refused, consulapi.IntentionHTTPPermission{PathExact: "/other"}),
				permit(allowed, consulapi.IntentionHTTPPermission{PathPrefix: "/"}))},
			call: true,
		},
		"NoPermissionMatchesIsTheDefaultAndNotTheNextIntention": {
			intentions: list{path(consulapi.IntentionHTTPPermission{PathExact: "/other"}), l4("*", 8, allowed)},
		},

		"HeaderPresent":             {intentions: list{header(headerPermission{Present: true})}, metadata: []string{"x-tenant", "a"}, call: true},
		"HeaderPresentAbsent":       {intentions: list{header(headerPermission{Present: true})}},
		"HeaderPresentInverted":     {intentions: list{header(headerPermission{Present: true, Invert: true})}, call: true},
		"HeaderExact":               {intentions: list{header(headerPermission{Exact: "acme"})}, metadata: []string{"x-tenant", "acme"}, call: true},
		"HeaderExactOther":          {intentions: list{header(headerPermission{Exact: "acme"})}, metadata: []string{"x-tenant", "acme2"}},
		"HeaderExactCase":           {intentions: list{header(headerPermission{Exact: "acme"})}, metadata: []string{"x-tenant", "ACME"}},
		"HeaderExactIgnoreCase":     {intentions: list{header(headerPermission{Exact: "Acme", IgnoreCase: true})}, metadata: []string{"x-tenant", "aCME"}, call: true},
		"HeaderExactInverted":       {intentions: list{header(headerPermission{Exact: "acme", Invert: true})}, metadata: []string{"x-tenant", "other"}, call: true},
		"HeaderExactInvertedEqual":  {intentions: list{header(headerPermission{Exact: "acme", Invert: true})}, metadata: []string{"x-tenant", "acme"}},
		"HeaderValueInvertedAbsent": {intentions: list{header(headerPermission{Exact: "acme", Invert: true})}},
		"HeaderSeveralValuesJoined": {intentions: list{header(headerPermission{Exact: "a,b"})}, metadata: []string{"x-tenant", "a", "x-tenant", "b"}, call: true},
		"HeaderPrefix":              {intentions: list{header(headerPermission{Prefix: "ac"})}, metadata: []string{"x-tenant", "acme"}, call: true},
		"HeaderPrefixOther":         {intentions: list{header(headerPermission{Prefix: "me"})}, metadata: []string{"x-tenant", "acme"}},
		"HeaderSuffix":              {intentions: list{header(headerPermission{Suffix: "me"})}, metadata: []string{"x-tenant", "acme"}, call: true},
		"HeaderSuffixOther":         {intentions: list{header(headerPermission{Suffix: "ac"})}, metadata: []string{"x-tenant", "acme"}},
		"HeaderContains":            {intentions: list{header(headerPermission{Contains: "CM", IgnoreCase: true})}, metadata: []string{"x-tenant", "acme"}, call: true},
		"HeaderContainsOther":       {intentions: list{header(headerPermission{Contains: "CM"})}, metadata: []string{"x-tenant", "acme"}},
		"HeaderRegex":               {intentions: list{header(headerPermission{Regex: "a[a-z]+"})}, metadata: []string{"x-tenant", "acme"}, call: true},
		"HeaderRegexMatchesAll":     {intentions: list{header(headerPermission{Regex: "[a-c]+"})}, metadata: []string{"x-tenant", "acme"}},
		"HeaderConditionOfNothing":  {intentions: list{header(headerPermission{})}, metadata: []string{"x-tenant", "acme"}, problem: true},
		"BrokenRegexAllowsNothing":  {intentions: list{path(consulapi.IntentionHTTPPermission{PathRegex: "("})}, problem: true},
		"BrokenRegexDeniesAll": {
			intentions: list{l7("gateway", 9,
				permit(refused, consulapi.IntentionHTTPPermission{PathRegex: "("}),
				permit(allowed, consulapi.IntentionHTTPPermission{PathPrefix: "/"}))},
			problem: true,
		},
		"PermissionWithoutConditons": {intentions: list{l7("gateway", 9, &consulapi.IntentionPermission{Action: allowed})}, call: true},
		"JWTAllowsNothing": {
			intentions: list{l7("gateway", 9, &consulapi.IntentionPermission{
				Action: allowed, JWT: &consulapi.IntentionJWTRequirement{Providers: []*consulapi.IntentionJWTProvider{{Name: "okta"}}},
			})},
			problem: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := newPolicy(c.intentions)
			require.Equal(t, c.problem, err != nil, "%v", err)
			ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs(c.metadata...))
			r := p.ruleFor("gateway")
			require.Equal(t, c.call, p.allowsCall(ctx, r, method), "call")
			require.Equal(t, c.connection, p.allowsConnection(r), "connection")
		})
	}
}

// TestPeerRule: the rule is looked up again for a new version of the policy.
func TestPeerRule(t *testing.T) {
	before, err := newPolicy([]*consulapi.Intention{l4("gateway", 9, allowed)})
	require.NoError(t, err)
	after, err := newPolicy(nil)
	require.NoError(t, err)
	p := &peerInfo{identity: Identity{Service: "gateway"}}
	require.Equal(t, allow, p.rule(before).action)
	require.Equal(t, deny, p.rule(after).action)
	require.Equal(t, allow, p.rule(before).action)
}
