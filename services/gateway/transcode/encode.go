package transcode

import (
	"google.golang.org/protobuf/encoding/protowire"
)

// encoder reads JSON and writes wire bytes as it goes.
//
// The length in front of a nested message is known only at its end. So lengths
// are left out at first and noted as fixes; finish then moves every byte once
// to where it belongs and puts the lengths in.
type encoder struct {
	scanner
	types *types
	out   []byte
	fixes []fix
	// extra is how many bytes the fixes that are closed will take.
	extra   int
	scratch []byte
	// anys is how many Any are open.
	anys int
}

// fix is a length that is still to be put in.
type fix struct {
	// pos is where the length belongs, in the output without lengths.
	pos int
	// size is the length; while the fix is open, extra at its opening.
	size int
}

// open begins something with a length in front.
func (e *encoder) open() int {
	e.fixes = append(e.fixes, fix{pos: len(e.out), size: e.extra})
	return len(e.fixes) - 1
}

// close ends what open began.
func (e *encoder) close(i int) {
	f := &e.fixes[i]
	f.size = len(e.out) - f.pos + e.extra - f.size
	e.extra += protowire.SizeVarint(uint64(f.size))
}

// finish puts the lengths in, from the last to the first.
func (e *encoder) finish() {
	if len(e.fixes) == 0 {
		return
	}
	end := len(e.out)
	for n := e.extra; n > 0; {
		var zeros [64]byte
		k := min(n, len(zeros))
		e.out = append(e.out, zeros[:k]...)
		n -= k
	}
	to := len(e.out)
	for i := len(e.fixes) - 1; i >= 0; i-- {
		f := e.fixes[i]
		to -= copy(e.out[to-(end-f.pos):to], e.out[f.pos:end])
		end = f.pos
		to -= protowire.SizeVarint(uint64(f.size))
		protowire.AppendVarint(e.out[:to], uint64(f.size))
	}
}

// body reads a whole JSON text with read.
func (e *encoder) body(json []byte, read func() *failure) *failure {
	e.in, e.pos = json, 0
	if f := read(); f != nil {
		return f
	}
	return e.end()
}

// value reads a message and writes what is in it, without tag and length.
func (e *encoder) value(m *message) *failure {
	switch m.shape {
	case plain, emptyShape:
		return e.object(m, false)
	case structShape:
		return e.mapEntries(&m.fields[0])
	case listShape:
		return e.list(&m.fields[0])
	case valueShape:
		return e.anything(m)
	case wrapperShape:
		return e.scalar(&m.fields[0], m.fields[0].tag, false)
	case anyShape:
		return e.any(m)
	default:
		if e.peek() != '"' {
			return e.mismatch("a string")
		}
		text, f := e.string()
		if f != nil {
			return f
		}
		return e.wellKnownText(m, text)
	}
}

// string consumes a string; the text is valid until the next one.
func (e *encoder) string() ([]byte, *failure) {
	raw, escaped, f := e.text()
	if f != nil || !escaped {
		return raw, f
	}
	e.scratch, f = e.unescape(e.scratch[:0], raw)
	return e.scratch, f
}

// object reads the members of a message. In an Any the member "@type" is passed
// over: it has been read before.
func (e *encoder) object(m *message, inAny bool) *failure {
	if e.peek() != '{' {
		return e.mismatch("an object")
	}
	if f := e.enter(); f != nil {
		return f
	}
	var fields, oneofs set
	next := 0
	for first := true; ; first = false {
		more, f := e.more(first, '}')
		if f != nil || !more {
			return f
		}
		name, f := e.key(&e.scratch)
		if f != nil {
			return f
		}
		if inAny && string(name) == "@type" {
			if f := e.skip(&e.scratch); f != nil {
				return f
			}
			continue
		}
		field := m.lookup(name, next)
		if field == nil {
			return fail(reasonUnknown, "there is no such field in %s", m.name).in(fieldName(name))
		}
		next = field.index + 1
		if !fields.add(field.index, len(m.fields)) {
			return fail(reasonDuplicate, "the field is there twice").in(field.name)
		}
		if !field.null && e.peek() == 'n' && e.word("null") {
			continue
		}
		if field.oneof >= 0 && !oneofs.add(field.oneof, m.oneofs) {
			return fail(reasonDuplicate, "another field of the oneof %s is set", m.desc.Oneofs().Get(field.oneof).Name()).in(field.name)
		}
		if f := e.field(field); f != nil {
			return f.in(field.name)
		}
	}
}

// lookup finds a field by its name; most callers send fields in order, so the
// one that would be next is tried first.
func (m *message) lookup(name []byte, next int) *field {
	if next < len(m.fields) && m.fields[next].jsonName == string(name) {
		return &m.fields[next]
	}
	return m.byName[string(name)]
}

// fieldName is a name from outside as it may stand in a field's path.
func fieldName(name []byte) string {
	const most = 64
	plain := len(name) <= most && len(name) > 0
	for _, c := range name {
		plain = plain && (c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z')
	}
	if plain {
		return string(name)
	}
	return shown(name)
}

// field reads a field's value and writes it with its tag.
func (e *encoder) field(f *field) *failure {
	switch {
	case f.list:
		return e.list(f)
	case f.entries:
		return e.mapEntries(f)
	case f.message != nil:
		return e.nested(f)
	default:
		return e.scalar(f, f.tag, f.presence)
	}
}

// nested reads a message and writes it with tag and length.
func (e *encoder) nested(f *field) *failure {
	e.out = append(e.out, f.tag...)
	i := e.open()
	if f := e.value(f.message); f != nil {
		return f
	}
	e.close(i)
	return nil
}

func (e *encoder) list(f *field) *failure {
	if e.peek() != '[' {
		return e.mismatch("an array")
	}
	if f := e.enter(); f != nil {
		return f
	}
	packed, tag := -1, f.tag
	for n := 0; ; n++ {
		more, failed := e.more(n == 0, ']')
		if failed != nil {
			return failed
		}
		if !more {
			break
		}
		if n == 0 && f.packedTag != "" {
			e.out = append(e.out, f.packedTag...)
			packed, tag = e.open(), ""
		}
		if f.message != nil {
			failed = e.nested(f)
		} else {
			failed = e.scalar(f, tag, true)
		}
		if failed != nil {
			return failed.at(n)
		}
	}
	if packed >= 0 {
		e.close(packed)
	}
	return nil
}

// set is a set of small numbers.
type set struct {
	small uint64
	large []uint64
}

// add puts a number in, of so many that there are; it returns whether it is new.
func (s *set) add(i, of int) bool {
	word := &s.small
	if of > 64 {
		if s.large == nil {
			s.large = make([]uint64, (of+63)/64)
		}
		word = &s.large[i/64]
	}
	bit := uint64(1) << (i % 64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}
