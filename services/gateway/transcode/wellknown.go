package transcode

import (
	"bytes"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// The bounds of the well-known types, from their .proto files.
const (
	maxDurationSeconds  = 315_576_000_000
	minTimestampSeconds = -62_135_596_800
	maxTimestampSeconds = 253_402_300_799
	maxNanos            = 999_999_999
)

// wellKnownText writes the well-known type that a text stands for, without tag
// and length.
func (e *encoder) wellKnownText(m *message, text []byte) *failure {
	switch m.shape {
	case timestampShape:
		seconds, nanos, ok := parseTimestamp(string(text))
		if !ok {
			return fail(reasonValue, "%s is not a time such as 2006-01-02T15:04:05Z (RFC 3339), of the years 1 to 9999", shown(text))
		}
		e.secondsNanos(seconds, nanos)
	case durationShape:
		seconds, nanos, ok := parseDuration(text)
		if !ok {
			return fail(reasonValue, "%s is not a duration such as 1.5s, of at most 10,000 years", shown(text))
		}
		e.secondsNanos(seconds, nanos)
	case fieldMaskShape:
		text := bytes.TrimSpace(text)
		for len(text) > 0 {
			path, rest, more := bytes.Cut(text, []byte(","))
			name := snakeCase(path)
			if bytes.IndexByte(path, '_') >= 0 || !name.IsValid() || more && len(rest) == 0 {
				return fail(reasonValue, "%s is not a list of fields in lowerCamelCase, separated by commas", shown(text))
			}
			e.out = protowire.AppendString(append(e.out, m.fields[0].tag...), string(name))
			text = rest
		}
	default:
		return e.scalarText(&m.fields[0], m.fields[0].tag, false, text)
	}
	return nil
}

// secondsNanos writes the fields of a Timestamp or Duration.
func (e *encoder) secondsNanos(seconds int64, nanos int32) {
	if seconds != 0 {
		e.out = protowire.AppendVarint(append(e.out, 1<<3), uint64(seconds))
	}
	if nanos != 0 {
		e.out = protowire.AppendVarint(append(e.out, 2<<3), uint64(int64(nanos)))
	}
}

func parseTimestamp(text string) (seconds int64, nanos int32, ok bool) {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil || t.Unix() < minTimestampSeconds || t.Unix() > maxTimestampSeconds {
		return 0, 0, false
	}
	// time.Parse drops digits beyond nanoseconds without a word.
	point, zone := strings.LastIndexByte(text, '.'), strings.LastIndexAny(text, "Z-+")
	if point >= 0 && zone-point > len(".999999999") {
		return 0, 0, false
	}
	return t.Unix(), int32(t.Nanosecond()), true
}

// parseDuration reads decimal seconds with an s behind them. The digits before
// or behind the point may be left out, as protojson allows.
func parseDuration(text []byte) (seconds int64, nanos int32, ok bool) {
	if len(text) < 2 || text[len(text)-1] != 's' {
		return 0, 0, false
	}
	text = text[:len(text)-1]
	sign := int64(1)
	switch text[0] {
	case '-':
		sign = -1
		text = text[1:]
	case '+':
		text = text[1:]
	}
	whole := digits(text)
	if len(text) == 0 || whole > 1 && text[0] == '0' {
		return 0, 0, false
	}
	if whole > 0 {
		var err error
		if seconds, err = strconv.ParseInt(string(text[:whole]), 10, 64); err != nil || seconds > maxDurationSeconds {
			return 0, 0, false
		}
	}
	if text = text[whole:]; len(text) > 0 {
		n := digits(text[1:])
		if text[0] != '.' || n > 9 || 1+n != len(text) {
			return 0, 0, false
		}
		for i := range 9 {
			nanos *= 10
			if i < n {
				nanos += int32(text[1+i] - '0')
			}
		}
	}
	return sign * seconds, int32(sign) * nanos, true
}

// snakeCase turns lowerCamelCase into the name of a field.
func snakeCase(camel []byte) protoreflect.FullName {
	out := make([]byte, 0, len(camel)+4)
	for _, c := range camel {
		if 'A' <= c && c <= 'Z' {
			out = append(out, '_')
			c += 'a' - 'A'
		}
		out = append(out, c)
	}
	return protoreflect.FullName(out)
}

// appendCamelCase writes a field's name in lowerCamelCase; it fails for a name
// that could not be turned back.
func appendCamelCase(dst, snake []byte) ([]byte, bool) {
	if !protoreflect.FullName(snake).IsValid() {
		return dst, false
	}
	for i := 0; i < len(snake); i++ {
		c := snake[i]
		switch {
		case 'A' <= c && c <= 'Z':
			return dst, false
		case c != '_':
			dst = append(dst, c)
		case i+1 < len(snake) && 'a' <= snake[i+1] && snake[i+1] <= 'z':
			i++
			dst = append(dst, snake[i]-('a'-'A'))
		default:
			return dst, false
		}
	}
	return dst, true
}

// appendTimestamp writes a time with 0, 3, 6 or 9 digits behind the second.
func appendTimestamp(dst []byte, seconds int64, nanos int32) ([]byte, bool) {
	if seconds < minTimestampSeconds || seconds > maxTimestampSeconds || nanos < 0 || nanos > maxNanos {
		return dst, false
	}
	t := time.Unix(seconds, 0).UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	dst = append(dst, '"')
	dst = appendPadded(dst, year, 4)
	dst = appendPadded(append(dst, '-'), int(month), 2)
	dst = appendPadded(append(dst, '-'), day, 2)
	dst = appendPadded(append(dst, 'T'), hour, 2)
	dst = appendPadded(append(dst, ':'), minute, 2)
	dst = appendPadded(append(dst, ':'), second, 2)
	return append(appendNanos(dst, int(nanos)), 'Z', '"'), true
}

// appendDuration writes seconds with 0, 3, 6 or 9 digits behind the point.
func appendDuration(dst []byte, seconds int64, nanos int32) ([]byte, bool) {
	if seconds < -maxDurationSeconds || seconds > maxDurationSeconds || nanos < -maxNanos || nanos > maxNanos {
		return dst, false
	}
	if seconds > 0 && nanos < 0 || seconds < 0 && nanos > 0 {
		return dst, false
	}
	dst = append(dst, '"')
	if seconds < 0 || nanos < 0 {
		dst = append(dst, '-')
		seconds, nanos = -seconds, -nanos
	}
	dst = strconv.AppendInt(dst, seconds, 10)
	return append(appendNanos(dst, int(nanos)), 's', '"'), true
}

func appendNanos(dst []byte, nanos int) []byte {
	switch {
	case nanos == 0:
		return dst
	case nanos%1_000_000 == 0:
		return appendPadded(append(dst, '.'), nanos/1_000_000, 3)
	case nanos%1_000 == 0:
		return appendPadded(append(dst, '.'), nanos/1_000, 6)
	default:
		return appendPadded(append(dst, '.'), nanos, 9)
	}
}

// appendPadded writes a number with leading zeros.
func appendPadded(dst []byte, n, width int) []byte {
	start := len(dst)
	for range width {
		dst = append(dst, '0')
	}
	for i := start + width - 1; i >= start; i-- {
		dst[i] += byte(n % 10)
		n /= 10
	}
	return dst
}

// anything reads a google.protobuf.Value: any JSON value.
func (e *encoder) anything(m *message) *failure {
	const null, number, text, boolean, object, array = 0, 1, 2, 3, 4, 5
	fields := m.fields
	switch e.peek() {
	case '{':
		return e.nested(&fields[object])
	case '[':
		return e.nested(&fields[array])
	case '"':
		return e.scalar(&fields[text], fields[text].tag, true)
	case 't', 'f':
		return e.scalar(&fields[boolean], fields[boolean].tag, true)
	case 'n':
		return e.scalar(&fields[null], fields[null].tag, true)
	default:
		return e.scalar(&fields[number], fields[number].tag, true)
	}
}

// secondsNanos writes a Timestamp or a Duration.
func (w *writer) secondsNanos(m *message, data []byte) *failure {
	var seconds, nanos int64
	for len(data) > 0 {
		number, kind, n := consumeTag(data)
		if n < 0 {
			return invalid()
		}
		data = data[n:]
		if n = valueLen(number, kind, data); n < 0 {
			return invalid()
		}
		if kind == protowire.VarintType && number == 1 {
			seconds, _ = m.fields[0].int(data)
		}
		if kind == protowire.VarintType && number == 2 {
			nanos, _ = m.fields[1].int(data)
		}
		data = data[n:]
	}
	var ok bool
	if m.shape == timestampShape {
		w.out, ok = appendTimestamp(w.out, seconds, int32(nanos))
	} else {
		w.out, ok = appendDuration(w.out, seconds, int32(nanos))
	}
	if !ok {
		return fail(reasonResponse, "%d seconds and %d nanoseconds are no %s", seconds, nanos, m.name)
	}
	return nil
}

func (w *writer) fieldMask(m *message, data []byte) *failure {
	runs := len(w.runs)
	base, f := w.find(m, data)
	if f != nil {
		return f
	}
	w.out = append(w.out, '"')
	start := len(w.out)
	f = w.each(w.slots[base], data, func(_ protowire.Type, value []byte) *failure {
		path, _ := protowire.ConsumeBytes(value)
		if len(w.out) > start {
			w.out = append(w.out, ',')
		}
		var ok bool
		if w.out, ok = appendCamelCase(w.out, path); !ok {
			return fail(reasonResponse, "%s in a field mask cannot be written in lowerCamelCase", shown(path))
		}
		return nil
	})
	w.out = append(w.out, '"')
	w.release(base, runs)
	return f
}

// anything writes a google.protobuf.Value as what it holds.
func (w *writer) anything(m *message, data []byte) *failure {
	runs := len(w.runs)
	base, f := w.find(m, data)
	if f != nil {
		return f
	}
	set := int(w.slots[base+len(m.fields)].head) - 1
	if set < 0 {
		return fail(reasonResponse, "a google.protobuf.Value holds nothing")
	}
	field, s := &m.fields[set], w.slots[base+set]
	if field.kind == protoreflect.DoubleKind {
		bits, _ := protowire.ConsumeFixed64(data[s.last:])
		if n := math.Float64frombits(bits); math.IsNaN(n) || math.IsInf(n, 0) {
			return fail(reasonResponse, "a google.protobuf.Value holds %v, which is no JSON number", n)
		}
	}
	f = w.field(field, s, data)
	w.release(base, runs)
	return f
}
