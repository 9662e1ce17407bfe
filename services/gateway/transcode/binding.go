package transcode

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxFieldPath is how many names the path of a field may have.
const maxFieldPath = 16

// Binding is one route of a method: how its request comes out of an HTTP
// request, and its response goes into an HTTP response. It is immutable and safe
// for concurrent use.
type Binding struct {
	method protoreflect.MethodDescriptor
	input  *Codec
	output *Codec

	variables []boundVariable
	// wholeBody is whether the body is the message, bodyField the field that it
	// is otherwise; with neither there is no body.
	wholeBody bool
	bodyField *field
	// responseField is the field of the response that is the response's body;
	// nil for all of it.
	responseField *field
	// bound are the fields that a query string may not set.
	bound []chain
}

type boundVariable struct {
	variable
	fields chain
}

// chain is the path of a field: the fields to go through, and the field.
type chain []*field

func (c chain) String() string {
	names := make([]string, len(c))
	for i, f := range c {
		names[i] = f.name
	}
	return strings.Join(names, ".")
}

// Method is the method that the route calls.
func (b *Binding) Method() protoreflect.MethodDescriptor { return b.method }

// HasBody is whether the route takes a request body. Request refuses one if not.
func (b *Binding) HasBody() bool { return b.wholeBody || b.bodyField != nil }

// isToken is whether the text may be an HTTP method (RFC 9110, token).
func isToken(text string) bool {
	for _, c := range []byte(text) {
		if (c < 'a' || 'z' < c) && (c < 'A' || 'Z' < c) && (c < '0' || '9' < c) && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return text != ""
}

func newBinding(t *types, method protoreflect.MethodDescriptor, rule rule, tmpl *template) (*Binding, error) {
	if !isToken(rule.verb) {
		return nil, fmt.Errorf("%q is no HTTP method", rule.verb)
	}
	if method.IsStreamingClient() {
		return nil, errors.New("a stream of requests cannot come in one HTTP request")
	}
	if rule.body != "" && (rule.verb == "GET" || rule.verb == "HEAD") {
		return nil, fmt.Errorf("%s takes no body", rule.verb)
	}
	input, err := t.codec(method.Input())
	if err != nil {
		return nil, err
	}
	output, err := t.codec(method.Output())
	if err != nil {
		return nil, err
	}
	b := &Binding{method: method, input: input, output: output, wholeBody: rule.body == "*"}
	for _, v := range tmpl.variables {
		fields, err := resolveVariable(input.message, v.path)
		if err != nil {
			return nil, fmt.Errorf("the variable %s: %w", v.path, err)
		}
		if err := b.bind(fields); err != nil {
			return nil, fmt.Errorf("the variable %s: %w", v.path, err)
		}
		b.variables = append(b.variables, boundVariable{v, fields})
	}
	if rule.body != "" && !b.wholeBody {
		if b.bodyField, err = ownField(input.message, rule.body); err != nil {
			return nil, fmt.Errorf("the body: %w", err)
		}
		b.bound = append(b.bound, chain{b.bodyField})
	}
	for _, v := range b.variables {
		if err := b.overBody(v.fields); err != nil {
			return nil, fmt.Errorf("the body: %w", err)
		}
	}
	if rule.responseBody != "" {
		if b.responseField, err = ownField(output.message, rule.responseBody); err != nil {
			return nil, fmt.Errorf("the response body: %w", err)
		}
	}
	return b, nil
}

// bind notes that a field is taken, unless it is already.
func (b *Binding) bind(fields chain) error {
	for _, other := range b.bound {
		if clash := fields.clash(other); clash != "" {
			return errors.New(clash)
		}
	}
	b.bound = append(b.bound, fields)
	return nil
}

// overBody refuses a variable that could not go before what the body says of the
// same field. A scalar does, as the last value on the wire counts; but messages
// would be merged.
func (b *Binding) overBody(fields chain) error {
	if !b.wholeBody && b.bodyField != fields[0] {
		return nil
	}
	if last := fields[len(fields)-1]; last.message != nil || last == b.bodyField {
		return fmt.Errorf("%s is a variable of the path", fields)
	}
	return nil
}

// clash says why two fields cannot both be set from outside the body, or is
// empty. A list may be set again.
func (c chain) clash(other chain) string {
	for i := range min(len(c), len(other)) {
		f, o := c[i], other[i]
		if f == o {
			continue
		}
		if f.oneof >= 0 && f.oneof == o.oneof {
			return fmt.Sprintf("%s is set, of the same oneof", other[:i+1])
		}
		return ""
	}
	return fmt.Sprintf("%s is set already", other)
}

// ownField finds a field of the message itself.
func ownField(m *message, name string) (*field, error) {
	f := m.byName[name]
	if f == nil || m.shape != plain {
		return nil, fmt.Errorf("%s has no field %q", m.name, name)
	}
	return f, nil
}

// resolveVariable finds the field of a path variable: one value that can be
// written as text, by way of messages that are not repeated.
func resolveVariable(m *message, path string) (chain, error) {
	fields, problem := resolve(m, path)
	if problem != "" {
		return nil, errors.New(problem)
	}
	if last := fields[len(fields)-1]; last.list || !last.textual() {
		return nil, fmt.Errorf("%s is not a single plain value", last.name)
	}
	return fields, nil
}

// resolve follows the path of a field; problem says what is wrong with it.
func resolve(m *message, path string) (fields chain, problem string) {
	for path != "" {
		if m == nil || m.shape != plain {
			return nil, "it has no fields within"
		}
		name, rest := cutDot(path)
		f := m.byName[name]
		if f == nil {
			return nil, fmt.Sprintf("there is no such field in %s", m.name)
		}
		if rest != "" && (f.list || f.entries) {
			return nil, "it goes through a list or a map"
		}
		if fields = append(fields, f); len(fields) > maxFieldPath {
			return nil, fmt.Sprintf("it has more than %d names", maxFieldPath)
		}
		m, path = f.message, rest
	}
	if len(fields) == 0 {
		return nil, "the name is empty"
	}
	return fields, ""
}

// Request appends the request message's wire bytes, made of the path's
// parameters, the query string (without "?") and the body. An empty body is a
// message with nothing set.
//
// The path goes before the body where both set a field. A query parameter is the
// path of a field, with the names of the .proto file or those of JSON; lists are
// given by repeating it. Values are as in a JSON string, or true and false.
// Parameters that are no field of the request, or one that the path or the body
// sets, are refused, as are two values for a field that holds one.
//
// The error is a *fault.Error, INVALID_ARGUMENT, with the path of the field in
// the names of the .proto file.
func (b *Binding) Request(dst []byte, params Params, rawQuery string, body []byte) ([]byte, error) {
	e := b.input.types.encoder(dst)
	f := b.readBody(e, body)
	if f == nil {
		f = b.readQuery(e, rawQuery)
	}
	if f == nil {
		f = b.readPath(e, params)
	}
	return b.input.finish(e, len(dst), f)
}

func (b *Binding) readBody(e *encoder, body []byte) *failure {
	switch {
	case len(body) == 0:
		return nil
	case b.wholeBody:
		return e.body(body, func() *failure { return e.value(b.input.message) })
	case b.bodyField != nil:
		return e.body(body, func() *failure {
			if !b.bodyField.null && e.peek() == 'n' && e.word("null") {
				return nil
			}
			if f := e.field(b.bodyField); f != nil {
				return f.in(b.bodyField.name)
			}
			return nil
		})
	default:
		return fail(reasonBody, "the request takes no body")
	}
}

func (b *Binding) readPath(e *encoder, params Params) *failure {
	for i := range b.variables {
		v := &b.variables[i]
		text, err := v.span(params.path)
		if err != nil {
			return fail(reasonPath, "%v", err).in(v.fields.String())
		}
		var ok bool
		if e.scratch, ok = unescapePath(e.scratch[:0], text, v.several); !ok {
			return fail(reasonPath, "the path is not properly percent-encoded").in(v.fields.String())
		}
		// A zero is kept, to go before what the body says.
		if f := e.chain(v.fields, b.HasBody(), e.scratch); f != nil {
			return f.in(v.fields.String())
		}
	}
	return nil
}

// chain writes the field at the end of a path, from text.
func (e *encoder) chain(fields chain, keepZero bool, text []byte) *failure {
	f := fields[0]
	if len(fields) == 1 && f.message == nil {
		keepZero = keepZero || f.list || f.presence
		// A JSON string has an enum's name alone; here there is but text.
		if f.enum != nil && len(text) > 0 && numberLen(text) == len(text) {
			return e.numberValue(f, f.tag, keepZero, text)
		}
		return e.scalarText(f, f.tag, keepZero, text)
	}
	e.out = append(e.out, f.tag...)
	i := e.open()
	var failed *failure
	if len(fields) == 1 {
		failed = e.wellKnownText(f.message, text)
	} else {
		failed = e.chain(fields[1:], keepZero, text)
	}
	if failed != nil {
		return failed
	}
	e.close(i)
	return nil
}

// Response appends the JSON of the response message with these wire bytes, or of
// its field named by response_body: null if that is unset and has no default.
// The error is a *fault.Error, INTERNAL (RESPONSE_MALFORMED).
func (b *Binding) Response(dst, msg []byte) ([]byte, error) {
	return b.output.appendJSON(dst, msg, b.responseField)
}
