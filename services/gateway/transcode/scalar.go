package transcode

import (
	"encoding/base64"
	"math"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// size is the number of bits of a number.
func (f *field) size() int {
	switch f.kind {
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind,
		protoreflect.Uint64Kind, protoreflect.Fixed64Kind, protoreflect.DoubleKind:
		return 64
	default:
		return 32
	}
}

// takes says what a scalar field takes.
func (f *field) takes() string {
	switch f.kind {
	case protoreflect.BoolKind:
		return "true or false"
	case protoreflect.StringKind:
		return "a string"
	case protoreflect.BytesKind:
		return "a string in base64"
	case protoreflect.EnumKind:
		return "the name or number of a value of the enum"
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return "a " + strconv.Itoa(f.size()) + "-bit floating-point number"
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return "an unsigned " + strconv.Itoa(f.size()) + "-bit integer"
	default:
		return "a " + strconv.Itoa(f.size()) + "-bit integer"
	}
}

// scalar reads a scalar and writes it behind the tag. A zero is left out unless
// it is to be kept.
func (e *encoder) scalar(f *field, tag string, keepZero bool) *failure {
	c := e.peek()
	switch {
	case c == '"':
		if f.kind == protoreflect.StringKind {
			return e.stringValue(tag, keepZero)
		}
		if f.kind == protoreflect.BoolKind {
			break
		}
		text, failed := e.string()
		if failed != nil {
			return failed
		}
		return e.scalarText(f, tag, keepZero, text)
	case c == '-' || '0' <= c && c <= '9':
		switch f.kind {
		case protoreflect.BoolKind, protoreflect.StringKind, protoreflect.BytesKind:
			return e.mismatch(f.takes())
		}
		number, failed := e.number()
		if failed != nil {
			return failed
		}
		return e.numberValue(f, tag, keepZero, number)
	case f.kind == protoreflect.BoolKind && c == 't' && e.word("true"):
		e.out = append(append(e.out, tag...), 1)
		return nil
	case f.kind == protoreflect.BoolKind && c == 'f' && e.word("false"):
		if keepZero {
			e.out = append(append(e.out, tag...), 0)
		}
		return nil
	case f.null && f.enum != nil && e.word("null"):
		if keepZero {
			e.out = append(append(e.out, tag...), 0)
		}
		return nil
	}
	return e.mismatch(f.takes())
}

// stringValue copies a string; without escapes its length is known beforehand.
func (e *encoder) stringValue(tag string, keepZero bool) *failure {
	raw, escaped, f := e.text()
	if f != nil {
		return f
	}
	if len(raw) == 0 && !keepZero {
		return nil
	}
	e.out = append(e.out, tag...)
	if !escaped {
		e.out = protowire.AppendBytes(e.out, raw)
		return nil
	}
	i := e.open()
	out, f := e.unescape(e.out, raw)
	if f != nil {
		return f
	}
	e.out = out
	e.close(i)
	return nil
}

// numberValue writes a JSON number into a field of a numeric kind.
func (e *encoder) numberValue(f *field, tag string, keepZero bool, number []byte) *failure {
	switch f.kind {
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		n, ok := parseFloat(number, f.size())
		if !ok {
			return f.outOfRange(number)
		}
		e.float(f, tag, keepZero, n)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		n, ok := parseUint(number, f.size())
		if !ok {
			return f.outOfRange(number)
		}
		if n != 0 || keepZero {
			e.out = append(e.out, tag...)
			e.appendUint(f, n)
		}
	default:
		n, ok := parseInt(number, f.size())
		if !ok {
			return f.outOfRange(number)
		}
		if n != 0 || keepZero {
			e.out = append(e.out, tag...)
			e.appendInt(f, n)
		}
	}
	return nil
}

func (f *field) outOfRange(text []byte) *failure {
	return fail(reasonValue, "%s is not %s", shown(text), f.takes())
}

// scalarText writes what a text stands for: the inside of a JSON string, or a
// value from a path or a query string.
func (e *encoder) scalarText(f *field, tag string, keepZero bool, text []byte) *failure {
	switch f.kind {
	case protoreflect.StringKind:
		if !utf8.Valid(text) {
			return fail(reasonUTF8, "the text is not valid UTF-8")
		}
		if len(text) > 0 || keepZero {
			e.out = protowire.AppendBytes(append(e.out, tag...), text)
		}
	case protoreflect.BytesKind:
		return e.base64(tag, keepZero, text)
	case protoreflect.BoolKind:
		switch string(text) {
		case "true":
			e.out = append(append(e.out, tag...), 1)
		case "false":
			if keepZero {
				e.out = append(append(e.out, tag...), 0)
			}
		default:
			return f.outOfRange(text)
		}
	case protoreflect.EnumKind:
		n, ok := f.enum.byName[string(text)]
		if !ok {
			return f.outOfRange(text)
		}
		if n != 0 || keepZero {
			e.out = append(e.out, tag...)
			e.appendInt(f, int64(n))
		}
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		n, ok := parseFloatText(text, f.size())
		if !ok {
			return f.outOfRange(text)
		}
		e.float(f, tag, keepZero, n)
	default:
		if len(text) == 0 || numberLen(text) != len(text) {
			return f.outOfRange(text)
		}
		return e.numberValue(f, tag, keepZero, text)
	}
	return nil
}

func (e *encoder) base64(tag string, keepZero bool, text []byte) *failure {
	if len(text) == 0 && !keepZero {
		return nil
	}
	e.out = append(e.out, tag...)
	i := e.open()
	enc := base64Encoding(text)
	var err error
	if e.out, err = enc.AppendDecode(e.out, text); err != nil {
		return fail(reasonValue, "the text is not base64")
	}
	e.close(i)
	return nil
}

func (e *encoder) float(f *field, tag string, keepZero bool, n float64) {
	if n == 0 && !math.Signbit(n) && !keepZero {
		return
	}
	e.out = append(e.out, tag...)
	if f.kind == protoreflect.FloatKind {
		e.out = protowire.AppendFixed32(e.out, math.Float32bits(float32(n)))
	} else {
		e.out = protowire.AppendFixed64(e.out, math.Float64bits(n))
	}
}

func (e *encoder) appendInt(f *field, n int64) {
	switch f.kind {
	case protoreflect.Sint32Kind, protoreflect.Sint64Kind:
		e.out = protowire.AppendVarint(e.out, protowire.EncodeZigZag(n))
	case protoreflect.Sfixed32Kind:
		e.out = protowire.AppendFixed32(e.out, uint32(n))
	case protoreflect.Sfixed64Kind:
		e.out = protowire.AppendFixed64(e.out, uint64(n))
	default:
		e.out = protowire.AppendVarint(e.out, uint64(n))
	}
}

func (e *encoder) appendUint(f *field, n uint64) {
	switch f.kind {
	case protoreflect.Fixed32Kind:
		e.out = protowire.AppendFixed32(e.out, uint32(n))
	case protoreflect.Fixed64Kind:
		e.out = protowire.AppendFixed64(e.out, n)
	default:
		e.out = protowire.AppendVarint(e.out, n)
	}
}

// base64Encoding returns the encoding that a text is in, by what is in it.
func base64Encoding(text []byte) *base64.Encoding {
	enc := base64.StdEncoding
	for _, c := range text {
		if c == '-' || c == '_' {
			enc = base64.URLEncoding
			break
		}
	}
	if len(text)%4 == 0 {
		return enc
	}
	if enc == base64.URLEncoding {
		return base64.RawURLEncoding
	}
	return base64.RawStdEncoding
}

// int reads a signed number, and returns how long it is on the wire.
func (f *field) int(data []byte) (int64, int) {
	switch f.kind {
	case protoreflect.Sfixed32Kind:
		n, size := protowire.ConsumeFixed32(data)
		return int64(int32(n)), size
	case protoreflect.Sfixed64Kind:
		n, size := protowire.ConsumeFixed64(data)
		return int64(n), size
	}
	n, size := protowire.ConsumeVarint(data)
	switch f.kind {
	case protoreflect.Sint32Kind:
		return int64(int32(protowire.DecodeZigZag(n & math.MaxUint32))), size
	case protoreflect.Sint64Kind:
		return protowire.DecodeZigZag(n), size
	case protoreflect.Int64Kind:
		return int64(n), size
	default:
		return int64(int32(n)), size
	}
}

// uint reads an unsigned number, and returns how long it is on the wire.
func (f *field) uint(data []byte) (uint64, int) {
	switch f.kind {
	case protoreflect.Fixed32Kind:
		n, size := protowire.ConsumeFixed32(data)
		return uint64(n), size
	case protoreflect.Fixed64Kind:
		return protowire.ConsumeFixed64(data)
	case protoreflect.Uint32Kind:
		n, size := protowire.ConsumeVarint(data)
		return uint64(uint32(n)), size
	default:
		return protowire.ConsumeVarint(data)
	}
}

// scalar writes the value that the wire bytes begin with, and returns how long
// that is.
func (w *writer) scalar(f *field, data []byte) (int, *failure) {
	var size int
	switch f.kind {
	case protoreflect.StringKind:
		text, n := protowire.ConsumeBytes(data)
		return n, w.text(text)
	case protoreflect.BytesKind:
		content, n := protowire.ConsumeBytes(data)
		w.out = base64.StdEncoding.AppendEncode(append(w.out, '"'), content)
		w.out = append(w.out, '"')
		return n, nil
	case protoreflect.BoolKind:
		var n uint64
		n, size = protowire.ConsumeVarint(data)
		w.out = strconv.AppendBool(w.out, n != 0)
	case protoreflect.EnumKind:
		var n int64
		n, size = f.int(data)
		w.out = f.enum.appendJSON(w.out, int32(n))
	case protoreflect.FloatKind:
		var n uint32
		n, size = protowire.ConsumeFixed32(data)
		w.out = appendFloat(w.out, float64(math.Float32frombits(n)), 32)
	case protoreflect.DoubleKind:
		var n uint64
		n, size = protowire.ConsumeFixed64(data)
		w.out = appendFloat(w.out, math.Float64frombits(n), 64)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		var n uint64
		n, size = f.uint(data)
		w.out = strconv.AppendUint(w.out, n, 10)
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		var n uint64
		n, size = f.uint(data)
		w.out = append(strconv.AppendUint(append(w.out, '"'), n, 10), '"')
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		var n int64
		n, size = f.int(data)
		w.out = append(strconv.AppendInt(append(w.out, '"'), n, 10), '"')
	default:
		var n int64
		n, size = f.int(data)
		w.out = strconv.AppendInt(w.out, n, 10)
	}
	if size < 0 {
		return 0, invalid()
	}
	return size, nil
}

func (e *enum) appendJSON(dst []byte, n int32) []byte {
	if e.null {
		return append(dst, "null"...)
	}
	if name, ok := e.byNumber[n]; ok {
		return append(dst, name...)
	}
	return strconv.AppendInt(dst, int64(n), 10)
}

// text writes a string with its quotes.
func (w *writer) text(text []byte) *failure {
	if !utf8.Valid(text) {
		return fail(reasonResponse, "the text is not valid UTF-8")
	}
	w.out = appendQuoted(w.out, text)
	return nil
}

// appendQuoted writes valid UTF-8 as a JSON string.
func appendQuoted(dst, text []byte) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	from := 0
	for i, c := range text {
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, text[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\b':
			dst = append(dst, '\\', 'b')
		case '\f':
			dst = append(dst, '\\', 'f')
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	return append(append(dst, text[from:]...), '"')
}
