package mesh

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	consulapi "github.com/hashicorp/consul/api"
	"google.golang.org/grpc/metadata"
)

// grpcHTTPMethod is the HTTP method of every gRPC call.
const grpcHTTPMethod = "POST"

// policy is one version of the intentions that have our service as their
// destination. It never changes: a new version is a new policy.
//
// The rules are Consul's: the highest precedence whose source is the caller
// decides alone (a rule for the caller's name before one for "*"). It allows,
// denies, or lists permissions, of which the first that matches the call
// decides. What nothing matches is refused: Consul's ACL default policy, which a
// service's token may not read, has to be deny.
type policy struct {
	rules []rule // highest precedence first
}

type rule struct {
	source      string
	action      action
	permissions []permission
}

type action int

const (
	deny action = iota
	allow
	byPermission
)

// permission is one L7 rule; conditions that are not set hold.
type permission struct {
	allow   bool
	never   bool // an allow that cannot be checked here; it matches nothing
	path    func(string) bool
	headers []headerCondition
	methods []string
}

type headerCondition struct {
	name    string // lower case, as in gRPC's metadata
	present bool   // presence alone is asked for
	value   func(string) bool
	invert  bool
}

// newPolicy compiles intentions as Connect().IntentionMatch returns them. The
// error names permissions that cannot be checked; the policy is usable then too
// and errs on the side of refusing. Requirements on JWTs are such permissions.
func newPolicy(intentions []*consulapi.Intention) (*policy, error) {
	p := &policy{}
	sorted := slices.Clone(intentions)
	slices.SortStableFunc(sorted, func(a, b *consulapi.Intention) int { return b.Precedence - a.Precedence })
	var problems []string
	for _, in := range sorted {
		// Peers of other clusters and other partitions have other trust
		// domains: none of them can have come through the handshake.
		if in.SourcePeer != "" || in.SourceSamenessGroup != "" || (in.SourceType != "" && in.SourceType != consulapi.IntentionSourceConsul) {
			continue
		}
		r := rule{source: in.SourceName}
		if in.Action == consulapi.IntentionActionAllow {
			r.action = allow
		}
		if len(in.Permissions) > 0 {
			r.action = byPermission
			for i, from := range in.Permissions {
				perm, err := newPermission(from)
				if err != nil {
					problems = append(problems, fmt.Sprintf("permission %d of the intention %s: %v", i, in, err))
				}
				r.permissions = append(r.permissions, perm)
			}
		}
		p.rules = append(p.rules, r)
	}
	if len(problems) > 0 {
		return p, fmt.Errorf("cannot be checked and refuse instead: %s", strings.Join(problems, "; "))
	}
	return p, nil
}

// newPermission compiles one permission. With an error it returns one that
// refuses: a deny that matches every call, or an allow that matches none.
func newPermission(from *consulapi.IntentionPermission) (permission, error) {
	perm := permission{allow: from.Action == consulapi.IntentionActionAllow}
	refusing := permission{allow: perm.allow, never: perm.allow}
	if from.JWT != nil && len(from.JWT.Providers) > 0 {
		return refusing, errors.New("it demands a JWT, which the mesh does not verify")
	}
	if from.HTTP == nil {
		return perm, nil
	}
	switch http := from.HTTP; {
	case http.PathExact != "":
		perm.path = func(path string) bool { return path == http.PathExact }
	case http.PathPrefix != "":
		perm.path = func(path string) bool { return strings.HasPrefix(path, http.PathPrefix) }
	case http.PathRegex != "":
		re, err := fullMatch(http.PathRegex)
		if err != nil {
			return refusing, err
		}
		perm.path = re.MatchString
	}
	for _, header := range from.HTTP.Header {
		condition, err := newHeaderCondition(header)
		if err != nil {
			return refusing, err
		}
		perm.headers = append(perm.headers, condition)
	}
	perm.methods = from.HTTP.Methods
	return perm, nil
}

func newHeaderCondition(from consulapi.IntentionHTTPHeaderPermission) (headerCondition, error) {
	c := headerCondition{name: strings.ToLower(from.Name), invert: from.Invert}
	fold := func(s string) string { return s }
	if from.IgnoreCase {
		fold = strings.ToLower
	}
	switch {
	case from.Exact != "":
		want := fold(from.Exact)
		c.value = func(v string) bool { return fold(v) == want }
	case from.Regex != "":
		re, err := fullMatch(from.Regex)
		if err != nil {
			return c, err
		}
		c.value = re.MatchString
	case from.Prefix != "":
		want := fold(from.Prefix)
		c.value = func(v string) bool { return strings.HasPrefix(fold(v), want) }
	case from.Suffix != "":
		want := fold(from.Suffix)
		c.value = func(v string) bool { return strings.HasSuffix(fold(v), want) }
	case from.Contains != "":
		want := fold(from.Contains)
		c.value = func(v string) bool { return strings.Contains(fold(v), want) }
	case from.Present:
		c.present = true
	default:
		return c, fmt.Errorf("the condition on header %q asks for nothing", from.Name)
	}
	return c, nil
}

// fullMatch compiles an expression that has to match the whole text, as
// Envoy's do; both speak RE2.
func fullMatch(expression string) (*regexp.Regexp, error) {
	return regexp.Compile(`^(?:` + expression + `)$`)
}

// ruleFor is the rule that decides about a source, never nil.
func (p *policy) ruleFor(source string) *rule {
	for i := range p.rules {
		if p.rules[i].source == source || p.rules[i].source == "*" {
			return &p.rules[i]
		}
	}
	return &rule{action: deny}
}

// allowsCall decides about a gRPC call: its full method is the path, the
// incoming metadata of ctx are the headers.
func (p *policy) allowsCall(ctx context.Context, r *rule, fullMethod string) bool {
	if r.action != byPermission {
		return r.action == allow
	}
	for i := range r.permissions {
		if r.permissions[i].matches(ctx, fullMethod) {
			return r.permissions[i].allow
		}
	}
	return false
}

// allowsConnection decides about a connection of bytes, which no permission on
// calls can describe: such rules refuse it, as they do in Envoy.
func (p *policy) allowsConnection(r *rule) bool { return r.action == allow }

func (perm *permission) matches(ctx context.Context, fullMethod string) bool {
	if perm.never {
		return false
	}
	if perm.path != nil && !perm.path(fullMethod) {
		return false
	}
	if len(perm.methods) > 0 && !slices.Contains(perm.methods, grpcHTTPMethod) {
		return false
	}
	for i := range perm.headers {
		if !perm.headers[i].holds(ctx) {
			return false
		}
	}
	return true
}

// holds follows Envoy: several values are joined with commas, and a condition
// on the value of an absent header does not hold even when it is inverted.
func (c *headerCondition) holds(ctx context.Context) bool {
	values := metadata.ValueFromIncomingContext(ctx, c.name)
	if c.present {
		return (len(values) > 0) != c.invert
	}
	if len(values) == 0 {
		return false
	}
	return c.value(strings.Join(values, ",")) != c.invert
}
