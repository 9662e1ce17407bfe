package transcode

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/marquee-ads/marquee/platform/fault"
)

// libraryMethod is one method of the fixture's service with a rule, as text.
func libraryMethod(name, input, rule string) string {
	return fmt.Sprintf(`method { name: %q input_type: ".fixture.%s" output_type: ".fixture.%s"
		options { [google.api.http] { %s } } }`+"\n", name, input, input, rule)
}

func libraryRoutes(t testing.TB, methods ...string) (*Routes, []error) {
	t.Helper()
	file := overTheWire(t, fixtureFile(strings.Join(methods, "\n")))
	service := file.Services().Get(0).Methods()
	var descs []protoreflect.MethodDescriptor
	for i := range service.Len() {
		descs = append(descs, service.Get(i))
	}
	return NewRoutes(descs)
}

// call matches a path and makes the request; it returns it as JSON, without what
// is not set.
func call(t testing.TB, r *Routes, method, target, body string) (string, error) {
	t.Helper()
	path, query, _ := strings.Cut(target, "?")
	b, params, allowed, ok := r.Match(method, path)
	require.True(t, ok, "%s %s, allowed %v", method, path, allowed)
	require.Empty(t, allowed)
	wire, err := b.Request(nil, params, query, []byte(body))
	if err != nil {
		return "", err
	}
	m := dynamicpb.NewMessage(b.Method().Input())
	require.NoError(t, proto.Unmarshal(wire, m))
	text, err := protojson.Marshal(m)
	require.NoError(t, err)
	return strings.ReplaceAll(string(text), " ", ""), nil
}

func requireFault(t testing.TB, err error, reason, path string) {
	t.Helper()
	f, ok := fault.From(err)
	require.True(t, ok, "%v", err)
	require.Equal(t, fault.InvalidArgument, f.Code)
	require.Equal(t, reason, f.Reason, "%v", err)
	if path == "" {
		require.Empty(t, f.Fields)
		return
	}
	require.Len(t, f.Fields, 1, "%v", err)
	require.Equal(t, path, f.Fields[0].Path)
	require.NotEmpty(t, f.Fields[0].Description)
}

func TestRoutes(t *testing.T) {
	r, errs := libraryRoutes(t,
		libraryMethod("Get", "Shelf", `get: "/v1/{name=shelves/*}"`),
		libraryMethod("Create", "Shelf", `post: "/v1/shelves" body: "*" additional_bindings { put: "/v1/{parent.name=shelves/*}/sub" body: "parent" }`),
		libraryMethod("Cancel", "Shelf", `post: "/v1/{name=shelves/*}:cancel" body: "*"`),
		libraryMethod("Current", "Shelf", `get: "/v1/shelves/current"`),
		libraryMethod("Files", "Shelf", `get: "/v1/files/{name=**}" additional_bindings { get: "/v1/files/{name=**}:stat" }`),
		libraryMethod("Theme", "Shelf", `get: "/v1/themes/{theme}/{parent.theme}" additional_bindings { custom { kind: "LIST" path: "/v1/themes/*" } } additional_bindings { custom { kind: "*" path: "/v1/any" } }`),
		libraryMethod("All", "Everything", `get: "/v1/everything/{one_int32_value}" additional_bindings { get: "/v1/at/{one_timestamp}/{color}/{maybe_bool_value}" } additional_bindings { post: "/v1/tags/{self.one_string_value}" body: "many_string_value" }`),
	)
	require.Empty(t, errs)

	t.Run("OK", func(t *testing.T) {
		for _, c := range []struct{ method, target, body, name, want string }{
			{"GET", "/v1/shelves/5", "", "Get", `{"name":"shelves/5"}`},
			{"GET", "/v1/%73helves/a%20b", "", "Get", `{"name":"shelves/ab"}`},
			{"GET", "/v1/shelves/a%2Fb%3A", "", "Get", `{"name":"shelves/a%2Fb:"}`},
			{"GET", "/v1/shelves/current", "", "Current", `{}`},
			{"GET", "/v1/shelves/x:y", "", "Get", `{"name":"shelves/x:y"}`},
			{"GET", "/v1/shelves/5?theme=a+b%2B&parent.parent.name=n", "", "Get", `{"name":"shelves/5","theme":"ab+","parent":{"parent":{"name":"n"}}}`},
			{"POST", "/v1/shelves", `{"name":"n","parent":{"name":"p"}}`, "Create", `{"name":"n","parent":{"name":"p"}}`},
			{"POST", "/v1/shelves", "", "Create", `{}`},
			{"PUT", "/v1/shelves/9/sub?theme=t", "", "Create", `{"theme":"t","parent":{"name":"shelves/9"}}`},
			{"POST", "/v1/shelves/5:cancel", `{"name":"overridden","theme":"t"}`, "Cancel", `{"name":"shelves/5","theme":"t"}`},
			{"GET", "/v1/files/a/b%2Fc/d", "", "Files", `{"name":"a/b%2Fc/d"}`},
			{"GET", "/v1/files", "", "Files", `{}`},
			{"GET", "/v1/files/a/b:stat", "", "Files", `{"name":"a/b"}`},
			{"GET", "/v1/themes/a%2Fb/c", "", "Theme", `{"theme":"a/b","parent":{"theme":"c"}}`},
			{"LIST", "/v1/themes/x", "", "Theme", `{}`},
			{"PURGE", "/v1/any", "", "Theme", `{}`},
			{"GET", "/v1/everything/-5?many_int32_value=1&manyInt32Value=2&colors=RED&colors=-2&&self.color=1&self.self.oneBytesValue=-_8", "", "All",
				`{"oneInt32Value":-5,"manyInt32Value":[1,2],"colors":["RED","BLACK"],"self":{"color":"RED","self":{"oneBytesValue":"+/8="}}}`},
			{"GET", "/v1/everything/0?one_timestamp=2026-01-01T00:00:00Z&one_duration=1.5s&one_fieldmask=a,bC&one_int64value=7&many_duration=1s&many_duration=2s&maybeBoolValue=false", "", "All",
				`{"maybeBoolValue":false,"oneTimestamp":"2026-01-01T00:00:00Z","oneDuration":"1.500s","manyDuration":["1s","2s"],"oneFieldmask":"a,bC","oneInt64value":"7"}`},
			{"GET", "/v1/at/2026-01-01T00:00:00Z/RED/true", "", "All", `{"maybeBoolValue":true,"color":"RED","oneTimestamp":"2026-01-01T00:00:00Z"}`},
			{"POST", "/v1/tags/x?one_bool_value=true", `["a","b"]`, "All", `{"oneBoolValue":true,"manyStringValue":["a","b"],"self":{"oneStringValue":"x"}}`},
			{"PUT", "/v1/shelves/9/sub", `{"name":"overridden","theme":"t"}`, "Create", `{"parent":{"name":"shelves/9","theme":"t"}}`},
			{"POST", "/v1/tags/x", `null`, "All", `{"self":{"oneStringValue":"x"}}`},
		} {
			got, err := call(t, r, c.method, c.target, c.body)
			require.NoError(t, err, c.target)
			require.Equal(t, c.want, got, c.target)
			path, _, _ := strings.Cut(c.target, "?")
			b, _, _, _ := r.Match(c.method, path)
			require.Equal(t, c.name, string(b.Method().Name()), c.target)
		}
	})

	t.Run("NoMatch", func(t *testing.T) {
		for _, path := range []string{
			"", "/", "v1/shelves", "/v1/shelves/", "/v1//shelves", "/v1/shelves/5/6", "/v1/shelves/5/", "/v2/shelves",
			"/v1/files/", "/v1/files/a/", "/v1/%zz", "/v1%2Fshelves", "/v1/shelves/" + strings.Repeat("x", maxPath),
			strings.Repeat("/v1", maxPathSegments+1),
		} {
			_, _, allowed, ok := r.Match("GET", path)
			require.False(t, ok, path)
			require.Empty(t, allowed, path)
		}
	})

	t.Run("WrongMethod", func(t *testing.T) {
		for path, want := range map[string][]string{
			"/v1/shelves": {"POST"}, "/v1/shelves/5": {"GET"}, "/v1/shelves/5:cancel": {"GET", "POST"},
			"/v1/shelves/5/sub": {"PUT"}, "/v1/themes/x": {"LIST"}, "/v1/files/x/y": {"GET"},
		} {
			_, _, allowed, ok := r.Match("PATCH", path)
			require.False(t, ok)
			require.Equal(t, want, allowed, path)
		}
	})

	t.Run("Refused", func(t *testing.T) {
		for _, c := range []struct{ method, target, body, reason, path string }{
			{"GET", "/v1/shelves/%zz", "", reasonPath, "name"},
			{"GET", "/v1/shelves/%ff", "", reasonUTF8, "name"},
			{"GET", "/v1/everything/x", "", reasonValue, "one_int32_value"},
			{"GET", "/v1/everything/2147483648", "", reasonValue, "one_int32_value"},
			{"GET", "/v1/everything/1?nope=1", "", reasonQueryUnknown, "nope"},
			{"GET", "/v1/everything/1?self.nope=1", "", reasonQueryUnknown, "self.nope"},
			{"GET", "/v1/everything/1?a%0Ab=1", "", reasonQueryUnknown, `"a\nb"`},
			{"GET", "/v1/everything/1?one_timestamp.seconds=1", "", reasonQueryUnknown, "one_timestamp.seconds"},
			{"GET", "/v1/everything/1?selves.color=1", "", reasonQueryUnknown, "selves.color"},
			{"GET", "/v1/everything/1?=1", "", reasonQueryUnknown, `""`},
			{"GET", "/v1/everything/1?oneInt32Value=1", "", reasonQueryUnknown, "oneInt32Value"},
			{"GET", "/v1/everything/1?self=1", "", reasonType, "self"},
			{"GET", "/v1/everything/1?one_struct=1", "", reasonType, "one_struct"},
			{"GET", "/v1/everything/1?bystring=1", "", reasonType, "bystring"},
			{"GET", "/v1/everything/1?color=PINK", "", reasonValue, "color"},
			{"GET", "/v1/everything/1?color=RED&color=RED", "", reasonDuplicate, "color"},
			{"GET", "/v1/everything/1?either_color=RED&either_int32_value=1", "", reasonDuplicate, "either_int32_value"},
			{"GET", "/v1/everything/1?one_bool_value=1", "", reasonValue, "one_bool_value"},
			{"GET", "/v1/everything/1?one_bool_value=%z", "", reasonQuery, "one_bool_value"},
			{"GET", "/v1/everything/1?%z=1", "", reasonQuery, ""},
			{"GET", "/v1/everything/1?one_string_value=%ff", "", reasonUTF8, "one_string_value"},
			{"GET", "/v1/everything/1?one_timestamp=today", "", reasonValue, "one_timestamp"},
			{"GET", "/v1/everything/1?" + strings.Repeat("colors=1&", maxQueryParams+1), "", reasonQueryTooLarge, ""},
			{"GET", "/v1/everything/1?one_string_value=" + strings.Repeat("x", maxQuery), "", reasonQueryTooLarge, ""},
			{"GET", "/v1/everything/1", "{}", reasonBody, ""},
			{"POST", "/v1/shelves?theme=x", "{}", reasonQueryUnknown, "theme"},
			{"PUT", "/v1/shelves/1/sub?parent.theme=x", "{}", reasonQueryUnknown, "parent.theme"},
			{"PUT", "/v1/shelves/1/sub", `{"parent":{"x":1}}`, reasonUnknown, "parent.parent.x"},
			{"POST", "/v1/tags/x", `["a",5]`, reasonType, "many_string_value[1]"},
			{"POST", "/v1/tags/x?manyStringValue=z", `["a"]`, reasonQueryUnknown, "manyStringValue"},
		} {
			_, err := call(t, r, c.method, c.target, c.body)
			requireFault(t, err, c.reason, c.path)
		}
	})
}

// TestForeignParams uses the parameters of another route's match.
func TestForeignParams(t *testing.T) {
	r, errs := libraryRoutes(t, libraryMethod("Long", "Shelf", `get: "/a/b/{name=c/*}"`), libraryMethod("Short", "Shelf", `get: "/a"`))
	require.Empty(t, errs)
	long, _, _, ok := r.Match("GET", "/a/b/c/d")
	require.True(t, ok)
	_, short, _, ok := r.Match("GET", "/a")
	require.True(t, ok)
	for _, params := range []Params{{}, short} {
		_, err := long.Request(nil, params, "", nil)
		requireFault(t, err, reasonPath, "name")
	}
}

func TestResponseBody(t *testing.T) {
	r, errs := libraryRoutes(t, libraryMethod("Get", "Everything", `
		get: "/message" response_body: "self" additional_bindings { get: "/list" response_body: "colors" }
		additional_bindings { get: "/scalar" response_body: "one_int64_value" } additional_bindings { get: "/map" response_body: "bystring" }`))
	require.Empty(t, errs)
	full := `{"self":{"oneString":"x"},"colors":["RED"],"oneInt64Value":"5","bystring":{"a":"b"}}`
	full = strings.Replace(full, "oneString", "oneStringValue", 1)
	for path, want := range map[string][2]string{
		"/message": {"null", ""}, "/list": {"[]", `["RED"]`}, "/scalar": {`"0"`, `"5"`}, "/map": {"{}", `{"a":"b"}`},
	} {
		b, _, _, ok := r.Match("GET", path)
		require.True(t, ok)
		got, err := b.Response(nil, nil)
		require.NoError(t, err)
		require.Equal(t, want[0], string(got))
		codec, err := NewCodec(b.Method().Output())
		require.NoError(t, err)
		wire, err := codec.AppendWire(nil, []byte(full))
		require.NoError(t, err)
		got, err = b.Response([]byte("x"), wire)
		require.NoError(t, err)
		if want[1] != "" {
			require.Equal(t, "x"+want[1], string(got))
		} else {
			require.Contains(t, string(got), `"oneStringValue":"x"`)
		}
	}
}

func TestBadRules(t *testing.T) {
	good := libraryMethod("Good", "Shelf", `get: "/good/{name}"`)
	for name, rule := range map[string]string{
		"NoSlash":          `get: "x"`,
		"Empty":            `get: ""`,
		"EmptySegment":     `get: "/a//b"`,
		"TrailingSlash":    `get: "/a/"`,
		"OpenBrace":        `get: "/a/{name"`,
		"CloseBrace":       `get: "/a/name}"`,
		"Nested":           `get: "/a/{name={theme}}"`,
		"EmptyVariable":    `get: "/a/{}"`,
		"EmptyPattern":     `get: "/a/{name=}"`,
		"StarInText":       `get: "/a*"`,
		"RestNotLast":      `get: "/**/a"`,
		"RestNotLastInVar": `get: "/{name=**}/a"`,
		"AfterVariable":    `get: "/{name}x"`,
		"EmptyVerb":        `get: "/a:"`,
		"BadEscape":        `get: "/a%2"`,
		"UnknownField":     `get: "/a/{nope}"`,
		"MessageField":     `get: "/a/{parent}"`,
		"ThroughScalar":    `get: "/a/{name.x}"`,
		"Twice":            `get: "/a/{name}/{name}"`,
		"TooLong":          fmt.Sprintf(`get: "/%s"`, strings.Repeat("a", maxTemplate)),
		"TooManySegments":  fmt.Sprintf(`get: "%s"`, strings.Repeat("/a", maxSegments+1)),
		"BodyOfGet":        `get: "/a" body: "*"`,
		"UnknownBody":      `post: "/a" body: "nope"`,
		"NestedBody":       `post: "/a" body: "parent.name"`,
		"BodyIsInPath":     `post: "/a/{parent.name}" body: "name" additional_bindings { post: "/b/{name}" body: "name" }`,
		"UnknownResponse":  `get: "/a" response_body: "nope"`,
		"BadMethod":        `custom { kind: "A B" path: "/a" }`,
		"NoPattern":        `body: "*"`,
		"Conflict":         `get: "/good/{theme}"`,
		"NestedBindings":   `get: "/a" additional_bindings { get: "/b" additional_bindings { get: "/c" } }`,
		"TooMany":          `get: "/a"` + strings.Repeat(` additional_bindings { get: "/b" }`, maxBindings),
	} {
		t.Run(name, func(t *testing.T) {
			r, errs := libraryRoutes(t, good, libraryMethod("Bad", "Shelf", rule))
			require.Len(t, errs, 1)
			require.ErrorContains(t, errs[0], "fixture.Library.Bad")
			got, err := call(t, r, "GET", "/good/x", "")
			require.NoError(t, err)
			require.Equal(t, `{"name":"x"}`, got)
		})
	}

	t.Run("ListVariable", func(t *testing.T) {
		_, errs := libraryRoutes(t, libraryMethod("Bad", "Everything", `get: "/{colors}"
			additional_bindings { get: "/{bystring}" } additional_bindings { get: "/{selves.color}" } additional_bindings { get: "/{one_struct}" }
			additional_bindings { get: "/{either_color}/{either_int32_value}" }
			additional_bindings { post: "/{one_timestamp}" body: "*" } additional_bindings { post: "/{self.one_timestamp}" body: "self" }`))
		require.Len(t, errs, 7)
	})
	t.Run("ClientStream", func(t *testing.T) {
		_, errs := libraryRoutes(t, strings.Replace(libraryMethod("Bad", "Shelf", `post: "/a" body: "*"`), "options", "client_streaming: true options", 1))
		require.Len(t, errs, 1)
	})
	t.Run("Group", func(t *testing.T) {
		_, err := NewCodec(messageOf(t, overTheWire(t, parseFile(fixtureProto2)), "Grouped"))
		require.ErrorContains(t, err, "group")
	})
	t.Run("NotTheWellKnownType", func(t *testing.T) {
		file := parseFile(`name: "google/protobuf/timestamp.proto" package: "google.protobuf" syntax: "proto3"
			message_type { name: "Timestamp" field { name: "seconds" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING } }`)
		_, err := NewCodec(messageOf(t, overTheWire(t, file), "Timestamp"))
		require.ErrorContains(t, err, "well-known")
	})
}

// naiveTemplates cover literals, wildcards and verbs that compete.
var naiveTemplates = []string{
	"/a", "/a/b", "/a/*", "/*/b", "/*", "/a/**", "/**", "/a/*:v", "/a/b:v", "/a/**:w", "/*/*/c", "/a/b/**", "/*/b/*:v", "/b:x", "/%41",
}

// naiveMatch tries every template, and takes the one that is the most exact from
// left to right; with a verb first.
func naiveMatch(path string) string {
	if !strings.HasPrefix(path, "/") || path != "/" && slices.Contains(strings.Split(path, "/")[1:], "") {
		return ""
	}
	best, bestRank := "", ""
	for _, template := range naiveTemplates {
		bare, verb, _ := strings.Cut(template, ":")
		rank, rest := "1", path
		if verb != "" {
			var ok bool
			if rest, ok = strings.CutSuffix(path, ":"+verb); !ok || strings.HasSuffix(rest, "/") {
				continue
			}
			rank = "0"
		}
		if more, ok := naiveRank(bare, rest); ok && (best == "" || rank+more < bestRank) {
			best, bestRank = template, rank+more
		}
	}
	return best
}

func naiveRank(template, path string) (rank string, ok bool) {
	var names []string
	if path != "/" {
		names = strings.Split(path, "/")[1:]
	}
	for i, want := range strings.Split(template, "/")[1:] {
		switch {
		case want == "**":
			return rank + "3", true
		case i >= len(names):
			return "", false
		case want == "*":
			rank += "2"
		default:
			name, ok1 := unescapePath(nil, names[i], false)
			literal, ok2 := unescapePath(nil, want, false)
			if !ok1 || !ok2 || string(name) != string(literal) {
				return "", false
			}
			rank += "1"
		}
	}
	return rank, len(names) == strings.Count(template, "/")
}

func FuzzPathMatch(f *testing.F) {
	var methods []string
	for i, template := range naiveTemplates {
		methods = append(methods, libraryMethod(fmt.Sprintf("M%d", i), "Shelf", fmt.Sprintf("get: %q", template)))
	}
	routes, errs := libraryRoutes(f, methods...)
	require.Empty(f, errs)
	for _, path := range []string{
		"/", "/a", "/a/", "/a/b", "/a/b:v", "/a/x:v", "/a/x:w", "/a/b/c:w", "/x/b", "/x/y/c", "/x/y/z", "//", "/a//b", "/:v", "/a/:v", "/a:v:v", "/%61/b", "/a%2Fb", "/A", "/%41", "/b:x", "a", "", "/a/%zz", "/a/b/c/d", "/a/b:",
	} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		want := naiveMatch(path)
		if len(path) > maxPath || strings.Count(path, "/") > maxPathSegments {
			want = ""
		}
		b, _, allowed, ok := routes.Match("GET", path)
		require.Equal(t, want != "", ok, path)
		require.Empty(t, allowed)
		if ok {
			name := fmt.Sprintf("M%d", slices.Index(naiveTemplates, want))
			require.Equal(t, name, string(b.Method().Name()), "%s: want %s", path, want)
		}
		_, _, allowed, ok2 := routes.Match("PUT", path)
		require.False(t, ok2)
		require.Equal(t, ok, len(allowed) > 0)
	})
}

func FuzzQuery(f *testing.F) {
	routes, errs := libraryRoutes(f, libraryMethod("All", "Everything", `get: "/v1/{one_string_value=**}"
		additional_bindings { put: "/v1/{self.one_int32_value}" body: "selves" }`))
	require.Empty(f, errs)
	for _, query := range []string{
		"", "a=b", "&&=&", "color=RED&colors=1&colors=CRIMSON", "self.self.color=1&self.self.oneBoolValue=true", "one_timestamp=2026-01-01T00%3A00:00Z",
		"one_fieldmask=a,b", "many_boolvalue=true&many_boolvalue=false", "one_bytes_value=AA", "either_color=1&eitherSelf.color=1", "%", "a%2Eb=1", "one_string_value=x", "many_string_value=%ff", "self.one_int32_value=1",
	} {
		f.Add("GET", "/v1/x", query, "")
		f.Add("PUT", "/v1/5", query, `[{"color":1}]`)
	}
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		b, params, _, ok := routes.Match(method, path)
		if !ok {
			return
		}
		wire, err := b.Request(nil, params, query, []byte(body))
		if err != nil {
			f, ok := fault.From(err)
			require.True(t, ok)
			require.Equal(t, fault.InvalidArgument, f.Code)
			return
		}
		m := dynamicpb.NewMessage(b.Method().Input())
		require.NoError(t, proto.Unmarshal(wire, m), "%s?%s", path, query)
		_, err = b.Response(nil, wire)
		require.NoError(t, err)
	})
}
