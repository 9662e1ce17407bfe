package transcode

import (
	"errors"
	"fmt"
	"strings"
)

// The bounds of a path template.
const (
	maxTemplate  = 1024
	maxSegments  = 32
	maxVariables = 16
)

// template is a path template (google/api/http.proto):
//
//	Template = "/" Segments [ Verb ] ;
//	Segments = Segment { "/" Segment } ;
//	Segment  = "*" | "**" | LITERAL | Variable ;
//	Variable = "{" FieldPath [ "=" Segments ] "}" ;
//	FieldPath = IDENT { "." IDENT } ;
//	Verb     = ":" LITERAL ;
type template struct {
	segments  []segment
	verb      string
	variables []variable
}

// segment is one segment of a path: a wildcard, or text without escapes.
type segment struct {
	kind    segmentKind
	literal string
}

type segmentKind uint8

const (
	literalSegment segmentKind = iota
	// oneSegment is "*".
	oneSegment
	// restSegment is "**": all segments that are left, or none.
	restSegment
)

// variable is a field that takes the text of segments [start, end); end is
// negative when that is all up to the end.
type variable struct {
	path       string
	start, end int
	// several is whether it takes more than one segment, or may: then an escaped
	// slash stays escaped, to tell it from those between segments.
	several bool
}

func parseTemplate(text string) (*template, error) {
	if len(text) > maxTemplate {
		return nil, fmt.Errorf("the template is longer than %d bytes", maxTemplate)
	}
	rest, ok := strings.CutPrefix(text, "/")
	if !ok {
		return nil, errors.New("the template does not begin with a slash")
	}
	t := &template{}
	// A verb follows the last segment, so behind the last slash and variable.
	if colon := strings.LastIndexByte(rest, ':'); colon > strings.LastIndexAny(rest, "/}") {
		t.verb = rest[colon+1:]
		rest = rest[:colon]
		if !isLiteral(t.verb) {
			return nil, fmt.Errorf("%q is no verb", t.verb)
		}
	}
	for {
		var err error
		if strings.HasPrefix(rest, "{") {
			closing := strings.IndexByte(rest, '}')
			if closing < 0 {
				return nil, errors.New("a variable lacks its closing brace")
			}
			if err = t.variable(rest[1:closing]); err != nil {
				return nil, err
			}
			rest = rest[closing+1:]
		} else {
			end := strings.IndexByte(rest, '/')
			if end < 0 {
				end = len(rest)
			}
			if err = t.segment(rest[:end]); err != nil {
				return nil, err
			}
			rest = rest[end:]
		}
		if rest == "" {
			return t, t.check()
		}
		if rest, ok = strings.CutPrefix(rest, "/"); !ok {
			return nil, fmt.Errorf("expected a slash before %q", rest)
		}
	}
}

func (t *template) variable(text string) error {
	path, pattern, given := strings.Cut(text, "=")
	if !given {
		pattern = "*"
	}
	if !isFieldPath(path) {
		return fmt.Errorf("%q is no path of a field", path)
	}
	v := variable{path: path, start: len(t.segments)}
	for part := range strings.SplitSeq(pattern, "/") {
		if err := t.segment(part); err != nil {
			return err
		}
	}
	v.end = len(t.segments)
	v.several = v.end-v.start > 1
	if t.segments[v.end-1].kind == restSegment {
		v.end, v.several = -1, true
	}
	t.variables = append(t.variables, v)
	return nil
}

func (t *template) segment(text string) error {
	switch {
	case text == "*":
		t.segments = append(t.segments, segment{kind: oneSegment})
	case text == "**":
		t.segments = append(t.segments, segment{kind: restSegment})
	case isLiteral(text):
		literal, ok := unescapePath(nil, text, false)
		if !ok {
			return fmt.Errorf("%q is not properly percent-encoded", text)
		}
		t.segments = append(t.segments, segment{literal: string(literal)})
	default:
		return fmt.Errorf("%q is no segment of a path", text)
	}
	return nil
}

func (t *template) check() error {
	if len(t.segments) > maxSegments || len(t.variables) > maxVariables {
		return fmt.Errorf("the template has more than %d segments or %d variables", maxSegments, maxVariables)
	}
	for i, s := range t.segments {
		if s.kind == restSegment && i != len(t.segments)-1 {
			return errors.New("** is not the last segment")
		}
	}
	return nil
}

func isLiteral(text string) bool {
	return text != "" && !strings.ContainsAny(text, "*{}/:?#")
}

func isFieldPath(path string) bool {
	for part := range strings.SplitSeq(path, ".") {
		if part == "" {
			return false
		}
		for i, c := range part {
			if c != '_' && (c < 'a' || 'z' < c) && (c < 'A' || 'Z' < c) && (i == 0 || c < '0' || '9' < c) {
				return false
			}
		}
	}
	return true
}

// unescapePath appends the text that percent-encoded text stands for. With
// keepSlash an encoded slash stays as it is.
func unescapePath(dst []byte, text string, keepSlash bool) ([]byte, bool) {
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c != '%' {
			dst = append(dst, c)
			continue
		}
		if i+2 >= len(text) {
			return dst, false
		}
		high, ok1 := hexDigit(text[i+1])
		low, ok2 := hexDigit(text[i+2])
		if !ok1 || !ok2 {
			return dst, false
		}
		if c = high<<4 | low; c == '/' && keepSlash {
			dst = append(dst, text[i:i+3]...)
		} else {
			dst = append(dst, c)
		}
		i += 2
	}
	return dst, true
}
