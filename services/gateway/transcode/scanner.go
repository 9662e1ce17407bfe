package transcode

import (
	"bytes"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth is how deep JSON may nest, and messages in a response.
const maxDepth = 100

// scanner reads JSON (RFC 8259) token by token.
type scanner struct {
	in    []byte
	pos   int
	depth int
	// name is the last name of a member, as it stands in the input.
	name []byte
}

// peek skips white space and returns the next byte, or 0 at the end.
func (s *scanner) peek() byte {
	for s.pos < len(s.in) {
		switch c := s.in[s.pos]; c {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return c
		}
	}
	return 0
}

// malformed says that something else was expected at this place.
func (s *scanner) malformed(expected string) *failure {
	pos := min(s.pos, len(s.in))
	line := bytes.Count(s.in[:pos], []byte("\n")) + 1
	column := utf8.RuneCount(s.in[bytes.LastIndexByte(s.in[:pos], '\n')+1:pos]) + 1
	if pos == len(s.in) {
		return fail(reasonJSON, "the JSON ends at line %d, column %d, where %s is missing", line, column, expected)
	}
	return fail(reasonJSON, "the JSON is malformed at line %d, column %d: expected %s", line, column, expected)
}

// mismatch says that the value at this place is not what the field takes; if it
// is no JSON value at all, it says that.
func (s *scanner) mismatch(wanted string) *failure {
	var got string
	switch c := s.peek(); {
	case c == '{':
		got = "an object"
	case c == '[':
		got = "an array"
	case c == '"':
		got = "a string"
	case c == '-' || '0' <= c && c <= '9':
		got = "a number"
	case s.word("true") || s.word("false"):
		got = "a boolean"
	case s.word("null"):
		got = "null"
	default:
		return s.malformed("a value")
	}
	return fail(reasonType, "expected %s, got %s", wanted, got)
}

// word consumes a literal name if it is next. What follows a value is checked
// by who reads on.
func (s *scanner) word(w string) bool {
	if len(s.in)-s.pos < len(w) || string(s.in[s.pos:s.pos+len(w)]) != w {
		return false
	}
	s.pos += len(w)
	return true
}

// enter consumes the bracket that opens an object or array.
func (s *scanner) enter() *failure {
	if s.depth++; s.depth > maxDepth {
		return fail(reasonDepth, "the JSON nests deeper than %d", maxDepth)
	}
	s.pos++
	return nil
}

// more consumes what stands between the elements of an object or array, or the
// bracket that closes it, and then returns false.
func (s *scanner) more(first bool, closing byte) (bool, *failure) {
	c := s.peek()
	switch {
	case c == closing:
		s.pos++
		s.depth--
		return false, nil
	case first:
		return true, nil
	case c == ',':
		s.pos++
		return true, nil
	case closing == ']':
		return false, s.malformed("',' or ']'")
	default:
		return false, s.malformed("',' or '}'")
	}
}

// key consumes a member's name and the colon. The name is valid until the next
// call with the same scratch.
func (s *scanner) key(scratch *[]byte) ([]byte, *failure) {
	if s.peek() != '"' {
		return nil, s.malformed("a name in double quotes")
	}
	raw, escaped, f := s.text()
	if f != nil {
		return nil, f
	}
	s.name = raw
	if escaped {
		if *scratch, f = s.unescape((*scratch)[:0], raw); f != nil {
			return nil, f
		}
		raw = *scratch
	}
	if s.peek() != ':' {
		return nil, s.malformed("':'")
	}
	s.pos++
	return raw, nil
}

// text consumes a string, whose quote is next, and returns what is between the
// quotes and whether that holds escapes. It is valid UTF-8.
func (s *scanner) text() (raw []byte, escaped bool, f *failure) {
	in, start := s.in, s.pos+1
	var seen byte
	for i := start; i < len(in); i++ {
		c := in[i]
		switch {
		case c == '"':
			raw = in[start:i]
			if seen >= utf8.RuneSelf && !utf8.Valid(raw) {
				return nil, false, fail(reasonUTF8, "the text is not valid UTF-8")
			}
			s.pos = i + 1
			return raw, escaped, nil
		case c == '\\':
			escaped = true
			i++
		case c < ' ':
			s.pos = i
			return nil, false, s.malformed("an escape instead of a control character")
		}
		seen |= c
	}
	s.pos = len(in)
	return nil, false, s.malformed("a closing quote")
}

// unescape appends the text that the inside of a string stands for.
func (s *scanner) unescape(dst, raw []byte) ([]byte, *failure) {
	for {
		i := bytes.IndexByte(raw, '\\')
		if i < 0 {
			return append(dst, raw...), nil
		}
		dst = append(dst, raw[:i]...)
		raw = raw[i:]
		c := raw[1]
		switch c {
		case '"', '\\', '/':
		case 'b':
			c = '\b'
		case 'f':
			c = '\f'
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'u':
			r, size, f := codePoint(raw)
			if f != nil {
				return nil, f
			}
			dst = utf8.AppendRune(dst, r)
			raw = raw[size:]
			continue
		default:
			return nil, fail(reasonJSON, "the JSON is malformed: %s is no escape", shown(raw[:2]))
		}
		dst = append(dst, c)
		raw = raw[2:]
	}
}

// codePoint reads \uXXXX, or the two of them that make a surrogate pair.
func codePoint(raw []byte) (rune, int, *failure) {
	r, ok := hex4(raw)
	if !ok {
		return 0, 0, fail(reasonJSON, "the JSON is malformed: %s is no escape", shown(raw[:min(6, len(raw))]))
	}
	if !utf16.IsSurrogate(r) {
		return r, 6, nil
	}
	if low, ok := hex4(raw[6:]); ok {
		if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
			return pair, 12, nil
		}
	}
	return 0, 0, fail(reasonUTF8, "%s is half of a surrogate pair", shown(raw[:6]))
}

func hex4(raw []byte) (rune, bool) {
	if len(raw) < 6 || raw[0] != '\\' || raw[1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range raw[2:6] {
		d, ok := hexDigit(c)
		if !ok {
			return 0, false
		}
		r = r<<4 | rune(d)
	}
	return r, true
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	default:
		return 0, false
	}
}

// number consumes a number, whose first byte is next.
func (s *scanner) number() ([]byte, *failure) {
	n := numberLen(s.in[s.pos:])
	if n == 0 {
		return nil, s.malformed("a number")
	}
	raw := s.in[s.pos : s.pos+n]
	s.pos += n
	return raw, nil
}

// skip consumes any value.
func (s *scanner) skip(scratch *[]byte) *failure {
	switch c := s.peek(); {
	case c == '{' || c == '[':
		if f := s.enter(); f != nil {
			return f
		}
		for first := true; ; first = false {
			more, f := s.more(first, c+2)
			if f != nil || !more {
				return f
			}
			if c == '{' {
				if _, f := s.key(scratch); f != nil {
					return f
				}
			}
			if f := s.skip(scratch); f != nil {
				return f
			}
		}
	case c == '"':
		_, _, f := s.text()
		return f
	case c == '-' || '0' <= c && c <= '9':
		_, f := s.number()
		return f
	case s.word("true"), s.word("false"), s.word("null"):
		return nil
	default:
		return s.malformed("a value")
	}
}

// end refuses anything after the value.
func (s *scanner) end() *failure {
	if s.peek(); s.pos < len(s.in) {
		return s.malformed("the end")
	}
	return nil
}
