package transcode

import (
	"slices"
	"strings"
)

// The bounds of a query string.
const (
	maxQuery       = 64 << 10
	maxQueryParams = 256
)

// readQuery writes the fields that a query string sets.
func (b *Binding) readQuery(e *encoder, query string) *failure {
	if len(query) > maxQuery {
		return fail(reasonQueryTooLarge, "the query string is longer than %d bytes", maxQuery)
	}
	var set []chain
	for n := 0; query != ""; {
		var param string
		param, query, _ = strings.Cut(query, "&")
		if param == "" {
			continue
		}
		if n++; n > maxQueryParams {
			return fail(reasonQueryTooLarge, "the query string has more than %d parameters", maxQueryParams)
		}
		key, value, _ := strings.Cut(param, "=")
		name, ok := unescapeQuery(nil, key)
		if !ok {
			return fail(reasonQuery, "a name in the query string is not properly percent-encoded")
		}
		fields, f := b.queryField(string(name), set)
		if f != nil {
			return f.in(queryName(name))
		}
		set = append(set, fields)
		if e.scratch, ok = unescapeQuery(e.scratch[:0], value); !ok {
			return fail(reasonQuery, "the value is not properly percent-encoded").in(fields.String())
		}
		if f := e.chain(fields, false, e.scratch); f != nil {
			return f.in(fields.String())
		}
	}
	return nil
}

// queryField finds the field that a parameter may set.
func (b *Binding) queryField(name string, set []chain) (chain, *failure) {
	if b.wholeBody {
		return nil, fail(reasonQueryUnknown, "the request takes no query parameters: all its fields are in the body")
	}
	fields, problem := resolve(b.input.message, name)
	if problem != "" {
		return nil, fail(reasonQueryUnknown, "the query parameter is no field of the request: %s", problem)
	}
	if !fields[len(fields)-1].textual() {
		return nil, fail(reasonType, "the field cannot be set by a query parameter")
	}
	for _, other := range b.bound {
		if clash := fields.clash(other); clash != "" {
			return nil, fail(reasonQueryUnknown, "the query parameter is taken by the path or the body: %s", clash)
		}
	}
	for _, other := range set {
		if fields[len(fields)-1].list && slices.Equal(fields, other) {
			continue
		}
		if clash := fields.clash(other); clash != "" {
			return nil, fail(reasonDuplicate, "%s", clash)
		}
	}
	return fields, nil
}

// queryName is a parameter's name as it may stand in a field's path.
func queryName(name []byte) string {
	parts := strings.Split(string(name), ".")
	for _, part := range parts {
		if fieldName([]byte(part)) != part {
			return shown(name)
		}
	}
	return string(name)
}

// unescapeQuery is unescapePath for query strings, where + is a space.
func unescapeQuery(dst []byte, text string) ([]byte, bool) {
	start := len(dst)
	if strings.IndexByte(text, '+') < 0 {
		return unescapePath(dst, text, false)
	}
	for i, part := range strings.Split(text, "+") {
		if i > 0 {
			dst = append(dst, ' ')
		}
		var ok bool
		if dst, ok = unescapePath(dst, part, false); !ok {
			return dst[:start], false
		}
	}
	return dst, true
}
