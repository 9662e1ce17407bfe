// Package edges reads nomad-jobs/edges.hcl: which services exist in the mesh,
// what they speak, and who may call whom. Intentions and the tests that try
// every identity against every service come from the same Edges.
package edges

import (
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclparse"
)

// The protocols that Consul is told. Permissions need gRPC.
const (
	GRPC = "grpc"
	TCP  = "tcp"
)

// Edges is one file, checked. The zero value draws nothing.
type Edges struct {
	services []Service
	edges    []Edge
}

// Service is something that can be called.
type Service struct {
	Name     string
	Protocol string // GRPC or TCP
}

// Edge lets Source call Destination: everything when it has no Permissions,
// else what the first one that matches says, and nothing when none does.
type Edge struct {
	Source      string
	Destination string
	Permissions []Permission
}

// Permission allows or denies the requests that match all that it names. The
// path of a gRPC call is /package.Service/Method.
type Permission struct {
	Allow      bool
	PathExact  string
	PathPrefix string
	PathRegex  string
	Methods    []string
	Headers    []Header
}

// Header is a condition on one request header; exactly one of the conditions
// is set.
type Header struct {
	Name       string
	Present    bool
	Exact      string
	Prefix     string
	Suffix     string
	Contains   string
	Regex      string
	Invert     bool
	IgnoreCase bool
}

// The file as HCL sees it.
type (
	file struct {
		Services []serviceBlock `hcl:"service,block"`
		Edges    []edgeBlock    `hcl:"edge,block"`
	}
	serviceBlock struct {
		Name     string    `hcl:"name,label"`
		Protocol string    `hcl:"protocol"`
		Range    hcl.Range `hcl:",def_range"`
	}
	edgeBlock struct {
		Source      string            `hcl:"caller,label"`
		Destination string            `hcl:"callee,label"`
		Permissions []permissionBlock `hcl:"permission,block"`
		Range       hcl.Range         `hcl:",def_range"`
	}
	permissionBlock struct {
		Action     string        `hcl:"action"`
		PathExact  string        `hcl:"path_exact,optional"`
		PathPrefix string        `hcl:"path_prefix,optional"`
		PathRegex  string        `hcl:"path_regex,optional"`
		Methods    []string      `hcl:"methods,optional"`
		Headers    []headerBlock `hcl:"header,block"`
		Range      hcl.Range     `hcl:",def_range"`
	}
	headerBlock struct {
		Name       string    `hcl:"name,label"`
		Present    bool      `hcl:"present,optional"`
		Exact      string    `hcl:"exact,optional"`
		Prefix     string    `hcl:"prefix,optional"`
		Suffix     string    `hcl:"suffix,optional"`
		Contains   string    `hcl:"contains,optional"`
		Regex      string    `hcl:"regex,optional"`
		Invert     bool      `hcl:"invert,optional"`
		IgnoreCase bool      `hcl:"ignore_case,optional"`
		Range      hcl.Range `hcl:",def_range"`
	}
)

// Load reads and checks a file. The error names the line and the mend.
func Load(path string) (Edges, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Edges{}, fmt.Errorf("read the edges: %w", err)
	}
	return Parse(text, path)
}

// Parse is Load for text that came from elsewhere; name stands in errors.
func Parse(text []byte, name string) (Edges, error) {
	parsed, diags := hclparse.NewParser().ParseHCL(text, path.Base(name))
	if diags.HasErrors() {
		return Edges{}, fmt.Errorf("read the edges: %w", diags)
	}
	var f file
	if diags := gohcl.DecodeBody(parsed.Body, nil, &f); diags.HasErrors() {
		return Edges{}, fmt.Errorf("read the edges: %w", diags)
	}
	return f.check()
}

// namePattern is what Nomad job ids, Consul services and DNS labels all take.
var namePattern = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (f file) check() (Edges, error) {
	var (
		result   Edges
		problems []error
	)
	wrong := func(at hcl.Range, format string, args ...any) {
		problems = append(problems, fmt.Errorf("%s:%d: %s", at.Filename, at.Start.Line, fmt.Sprintf(format, args...)))
	}
	protocols := map[string]string{}
	for _, s := range f.Services {
		switch {
		case !namePattern.MatchString(s.Name):
			wrong(s.Range, "service %q: a name is lower-case letters, digits and hyphens, starts with a letter and has at most 63 characters", s.Name)
		case protocols[s.Name] != "":
			wrong(s.Range, "service %q is there twice", s.Name)
		case s.Protocol != GRPC && s.Protocol != TCP:
			wrong(s.Range, "service %q: protocol %q must be %q or %q", s.Name, s.Protocol, GRPC, TCP)
		}
		protocols[s.Name] = s.Protocol
		result.services = append(result.services, Service{Name: s.Name, Protocol: s.Protocol})
	}
	drawn := map[[2]string]bool{}
	for _, e := range f.Edges {
		label := fmt.Sprintf("edge %q %q", e.Source, e.Destination)
		protocol, known := protocols[e.Destination]
		switch {
		case !namePattern.MatchString(e.Source):
			wrong(e.Range, "%s: a caller is one service by its name; there is no wildcard", label)
		case !known:
			wrong(e.Range, "%s: there is no service %q: add a service block that says what it speaks", label, e.Destination)
		case drawn[[2]string{e.Source, e.Destination}]:
			wrong(e.Range, "%s is there twice", label)
		case len(e.Permissions) > 0 && protocol != GRPC:
			wrong(e.Permissions[0].Range, "%s: a permission needs protocol %q, and %s speaks %q", label, GRPC, e.Destination, protocol)
		}
		drawn[[2]string{e.Source, e.Destination}] = true
		edge := Edge{Source: e.Source, Destination: e.Destination}
		for _, p := range e.Permissions {
			permission, err := p.check()
			if err != nil {
				wrong(p.Range, "%s: %v", label, err)
			}
			edge.Permissions = append(edge.Permissions, permission)
		}
		result.edges = append(result.edges, edge)
	}
	if err := errors.Join(problems...); err != nil {
		return Edges{}, fmt.Errorf("read the edges: %w", err)
	}
	slices.SortFunc(result.services, func(a, b Service) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(result.edges, func(a, b Edge) int {
		return strings.Compare(a.Destination+" "+a.Source, b.Destination+" "+b.Source)
	})
	return result, nil
}

func (p permissionBlock) check() (Permission, error) {
	out := Permission{
		Allow: p.Action == "allow", PathExact: p.PathExact, PathPrefix: p.PathPrefix, PathRegex: p.PathRegex, Methods: p.Methods,
	}
	if p.Action != "allow" && p.Action != "deny" {
		return out, fmt.Errorf(`action %q must be "allow" or "deny"`, p.Action)
	}
	if set(p.PathExact != "", p.PathPrefix != "", p.PathRegex != "") > 1 {
		return out, errors.New("path_exact, path_prefix and path_regex exclude each other")
	}
	for _, path := range []string{p.PathExact, p.PathPrefix} {
		if path != "" && !strings.HasPrefix(path, "/") {
			return out, fmt.Errorf("path %q must start with /", path)
		}
	}
	if _, err := regexp.Compile(p.PathRegex); err != nil {
		return out, fmt.Errorf("path_regex: %w", err)
	}
	if out.PathExact == "" && out.PathPrefix == "" && out.PathRegex == "" && len(p.Methods) == 0 && len(p.Headers) == 0 {
		return out, errors.New("it names no path, method or header: leave the permission out to allow everything")
	}
	for _, h := range p.Headers {
		if set(h.Present, h.Exact != "", h.Prefix != "", h.Suffix != "", h.Contains != "", h.Regex != "") != 1 {
			return out, fmt.Errorf("header %q needs exactly one of present, exact, prefix, suffix, contains and regex", h.Name)
		}
		if _, err := regexp.Compile(h.Regex); err != nil {
			return out, fmt.Errorf("header %q: %w", h.Name, err)
		}
		out.Headers = append(out.Headers, Header{
			Name: h.Name, Present: h.Present, Exact: h.Exact, Prefix: h.Prefix, Suffix: h.Suffix,
			Contains: h.Contains, Regex: h.Regex, Invert: h.Invert, IgnoreCase: h.IgnoreCase,
		})
	}
	return out, nil
}

func set(conditions ...bool) (n int) {
	for _, c := range conditions {
		if c {
			n++
		}
	}
	return n
}

// Services are those that can be called, by name.
func (e Edges) Services() []Service { return slices.Clone(e.services) }

// Edges are the drawn ones, by destination, then source.
func (e Edges) Edges() []Edge { return slices.Clone(e.edges) }

// Identities are all names in the file, callers and services, by name: whom a
// test has to try against every service.
func (e Edges) Identities() []string {
	var names []string
	for _, s := range e.services {
		names = append(names, s.Name)
	}
	for _, d := range e.edges {
		names = append(names, d.Source)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Find is the edge from source to destination, if it is drawn.
func (e Edges) Find(source, destination string) (Edge, bool) {
	for _, d := range e.edges {
		if d.Source == source && d.Destination == destination {
			return d, true
		}
	}
	return Edge{}, false
}

// Allowed says whether source may connect to destination at all. Permissions
// may still deny single requests.
func (e Edges) Allowed(source, destination string) bool {
	_, ok := e.Find(source, destination)
	return ok
}
