package transcode

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// The bounds of what is matched, and of how many routes there may be.
const (
	maxPath         = 8 << 10
	maxPathSegments = 256
	maxRoutes       = 10_000
)

// Routes finds the method that an HTTP request is for. It is immutable and safe
// for concurrent use.
type Routes struct {
	root node
}

// Params are the parts of a path that a binding takes its variables from.
type Params struct {
	// path is as it came, escaped, without the verb.
	path string
}

// node is a place in the tree of all templates, reached by their segments.
type node struct {
	static map[string]*node
	one    *node
	// here are the templates that end at this node, rest those that end with
	// "**", both by verb.
	here, rest map[string]endpoints
}

// endpoints are the bindings of one template by HTTP method; "*" is any.
type endpoints map[string]*Binding

// NewRoutes compiles the google.api.http rules of the methods. Methods without
// a rule are passed over. What is wrong with a rule is returned, one error for
// each, and the rule is left out; of two rules with the same HTTP method and
// template the first is kept. Routes is never nil.
func NewRoutes(methods []protoreflect.MethodDescriptor) (*Routes, []error) {
	r := &Routes{}
	var errs []error
	files := make(map[protoreflect.FileDescriptor]*types)
	count := 0
	for _, method := range methods {
		rules, err := rulesOf(method)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", method.FullName(), err))
			continue
		}
		t := files[method.ParentFile()]
		if t == nil && len(rules) > 0 {
			t = newTypes(method.ParentFile())
			files[method.ParentFile()] = t
		}
		for _, rule := range rules {
			if count++; count > maxRoutes {
				return r, append(errs, fmt.Errorf("%s: there are more than %d routes", method.FullName(), maxRoutes))
			}
			if err := r.add(t, method, rule); err != nil {
				errs = append(errs, fmt.Errorf("%s: %s %s: %w", method.FullName(), rule.verb, rule.template, err))
			}
		}
	}
	return r, errs
}

func (r *Routes) add(t *types, method protoreflect.MethodDescriptor, rule rule) error {
	tmpl, err := parseTemplate(rule.template)
	if err != nil {
		return err
	}
	b, err := newBinding(t, method, rule, tmpl)
	if err != nil {
		return err
	}
	n := &r.root
	for _, s := range tmpl.segments {
		switch s.kind {
		case literalSegment:
			if n.static == nil {
				n.static = make(map[string]*node)
			}
			if n.static[s.literal] == nil {
				n.static[s.literal] = &node{}
			}
			n = n.static[s.literal]
		case oneSegment:
			if n.one == nil {
				n.one = &node{}
			}
			n = n.one
		}
	}
	verbs := &n.here
	if tmpl.segments[len(tmpl.segments)-1].kind == restSegment {
		verbs = &n.rest
	}
	if *verbs == nil {
		*verbs = make(map[string]endpoints)
	}
	at := (*verbs)[tmpl.verb]
	if at == nil {
		at = make(endpoints)
		(*verbs)[tmpl.verb] = at
	}
	if other := at[rule.verb]; other != nil {
		return fmt.Errorf("the route belongs to %s", other.method.FullName())
	}
	at[rule.verb] = b
	return nil
}

// Match finds the binding for an HTTP method and a path as it came, escaped and
// without the query. A literal segment goes before a wildcard, that before "**",
// and a verb before none. When there are routes for the path but none for the
// HTTP method, ok is false and allowed has the methods there are, sorted.
//
// A path with an empty segment, as behind a trailing slash, matches nothing, and
// neither does one of more than 8 KiB or 256 segments.
func (r *Routes) Match(httpMethod, escapedPath string) (b *Binding, params Params, allowed []string, ok bool) {
	if len(escapedPath) == 0 || len(escapedPath) > maxPath || escapedPath[0] != '/' ||
		strings.Count(escapedPath, "/") > maxPathSegments {
		return nil, Params{}, nil, false
	}
	path := escapedPath
	if path == "/" {
		path = ""
	} else if strings.HasSuffix(path, "/") || strings.Contains(path, "//") {
		return nil, Params{}, nil, false
	}
	bare, verb := cutVerb(path)
	if verb != "" {
		if b := r.root.match(httpMethod, bare, verb); b != nil {
			return b, Params{bare}, nil, true
		}
	}
	if b := r.root.match(httpMethod, path, ""); b != nil {
		return b, Params{path}, nil, true
	}
	found := make(map[string]struct{})
	if verb != "" {
		r.root.methods(bare, verb, found)
	}
	r.root.methods(path, "", found)
	for method := range found {
		allowed = append(allowed, method)
	}
	slices.Sort(allowed)
	return nil, Params{}, allowed, false
}

// cutVerb splits the verb off a path's last segment. A segment is never empty.
func cutVerb(path string) (bare, verb string) {
	colon := strings.LastIndexByte(path, ':')
	if slash := strings.LastIndexByte(path, '/'); colon <= slash+1 || colon == len(path)-1 {
		return path, ""
	}
	return path[:colon], path[colon+1:]
}

// match walks down the tree along the path that is left, which is empty or
// begins with a slash.
func (n *node) match(httpMethod, path, verb string) *Binding {
	if path == "" {
		if b := n.here[verb].find(httpMethod); b != nil {
			return b
		}
		return n.rest[verb].find(httpMethod)
	}
	name, after := cutSegment(path)
	if next := n.literal(name); next != nil {
		if b := next.match(httpMethod, after, verb); b != nil {
			return b
		}
	}
	if n.one != nil {
		if b := n.one.match(httpMethod, after, verb); b != nil {
			return b
		}
	}
	return n.rest[verb].find(httpMethod)
}

// methods collects the HTTP methods of all that match a path.
func (n *node) methods(path, verb string, found map[string]struct{}) {
	for method := range n.rest[verb] {
		found[method] = struct{}{}
	}
	if path == "" {
		for method := range n.here[verb] {
			found[method] = struct{}{}
		}
		return
	}
	name, after := cutSegment(path)
	if next := n.literal(name); next != nil {
		next.methods(after, verb, found)
	}
	if n.one != nil {
		n.one.methods(after, verb, found)
	}
}

// literal finds the node behind a segment's text.
func (n *node) literal(name string) *node {
	if len(n.static) == 0 {
		return nil
	}
	if strings.IndexByte(name, '%') < 0 {
		return n.static[name]
	}
	text, ok := unescapePath(nil, name, false)
	if !ok {
		return nil
	}
	return n.static[string(text)]
}

func (e endpoints) find(httpMethod string) *Binding {
	if b := e[httpMethod]; b != nil {
		return b
	}
	return e["*"]
}

// cutSegment splits the first segment off a path that begins with a slash.
func cutSegment(path string) (name, after string) {
	if i := strings.IndexByte(path[1:], '/'); i >= 0 {
		return path[1 : 1+i], path[1+i:]
	}
	return path[1:], ""
}

// errUnmatched is for parameters that another binding's match returned.
var errUnmatched = errors.New("the path is not one that matches")

// span returns the text of a variable's segments.
func (v *variable) span(path string) (string, error) {
	for range v.start {
		if path == "" {
			return "", errUnmatched
		}
		_, path = cutSegment(path)
	}
	if v.end < 0 {
		return strings.TrimPrefix(path, "/"), nil
	}
	end := 0
	for range v.end - v.start {
		if end >= len(path) {
			return "", errUnmatched
		}
		name, _ := cutSegment(path[end:])
		end += 1 + len(name)
	}
	return path[1:end], nil
}
