package transcode

import (
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// maxJSON bounds the JSON of one response in bytes: wire bytes can grow much,
// as an empty message takes two bytes and all its zeros are written out.
const maxJSON = 64 << 20

// writer reads wire bytes and writes JSON. It goes over the bytes of a message
// once to find where its fields are, and then writes them in their order.
type writer struct {
	types   *types
	out     []byte
	start   int
	depth   int
	slots   []slot
	runs    []run
	entries []entry
}

// slot is where a field is. There is one for each field of a message that is
// being written, and one for each of its oneofs, whose head is the field set.
type slot struct {
	// head and tail are the field's first and last run, plus one.
	head, tail int32
	// last is where the last value begins, behind its tag.
	last int
	// several is whether there is more than one value.
	several bool
}

// run is a stretch of wire bytes that holds values of one field, with tags.
type run struct {
	start, end int
	next       int32
}

// invalid is the failure for bytes that are no message.
func invalid() *failure { return fail(reasonResponse, "the wire bytes are malformed") }

// find goes over a message and fills its slots, which begin at base.
func (w *writer) find(m *message, data []byte) (base int, f *failure) {
	base = len(w.slots)
	w.slots = slices.Grow(w.slots, len(m.fields)+m.oneofs)[:base+len(m.fields)+m.oneofs]
	slots := w.slots[base:]
	clear(slots)
	var previous *slot
	for pos := 0; pos < len(data); {
		start := pos
		number, kind, n := consumeTag(data[pos:])
		if n < 0 {
			return base, invalid()
		}
		pos += n
		value := pos
		if n = valueLen(number, kind, data[pos:]); n < 0 {
			return base, invalid()
		}
		pos += n
		field := m.byNumber(number)
		if field == nil || kind != field.wire && (kind != protowire.BytesType || !field.packable()) {
			previous = nil
			continue
		}
		s := &slots[field.index]
		if field.oneof >= 0 {
			set := &slots[len(m.fields)+field.oneof]
			if other := int(set.head) - 1; other >= 0 && other != field.index {
				slots[other] = slot{}
			}
			set.head = int32(field.index) + 1
		}
		s.several = s.head != 0
		s.last = value
		if s == previous {
			w.runs[s.tail-1].end = pos
			continue
		}
		previous = s
		w.runs = append(w.runs, run{start: start, end: pos})
		if s.head == 0 {
			s.head = int32(len(w.runs))
		} else {
			w.runs[s.tail-1].next = int32(len(w.runs))
		}
		s.tail = int32(len(w.runs))
	}
	return base, nil
}

// packable is whether values of the field may come packed.
func (f *field) packable() bool { return f.list && f.wire != protowire.BytesType }

// consumeTag reads a tag, most of which are a single byte; n is negative for
// what is none.
func consumeTag(data []byte) (number protowire.Number, kind protowire.Type, n int) {
	if c := data[0]; c < 0x80 && c >= 8 {
		return protowire.Number(c >> 3), protowire.Type(c & 7), 1
	}
	number, kind, n = protowire.ConsumeTag(data)
	if number > protowire.MaxValidNumber {
		return number, kind, -1
	}
	return number, kind, n
}

// valueLen is the length of a value on the wire, or negative.
func valueLen(number protowire.Number, kind protowire.Type, data []byte) int {
	if kind == protowire.BytesType && len(data) > 0 && data[0] < 0x80 {
		if n := 1 + int(data[0]); n <= len(data) {
			return n
		}
		return -1
	}
	return protowire.ConsumeFieldValue(number, kind, data)
}

// release gives the working memory of a message back.
func (w *writer) release(base, runs int) {
	w.slots, w.runs = w.slots[:base], w.runs[:runs]
}

// message writes a message as a JSON value.
func (w *writer) message(m *message, data []byte) *failure {
	switch m.shape {
	case plain, emptyShape:
		w.out = append(w.out, '{')
		if f := w.fields(m, data, false); f != nil {
			return f
		}
		w.out = append(w.out, '}')
		return nil
	case timestampShape, durationShape:
		return w.secondsNanos(m, data)
	case fieldMaskShape:
		return w.fieldMask(m, data)
	case valueShape:
		return w.anything(m, data)
	case anyShape:
		return w.any(m, data)
	default:
		// The wrappers, Struct and ListValue are their only field's value.
		return w.single(m, &m.fields[0], data)
	}
}

// enter bounds how deep messages nest, and how much is written.
func (w *writer) enter() *failure {
	if w.depth++; w.depth > maxDepth {
		return fail(reasonResponse, "the message nests deeper than %d", maxDepth)
	}
	return w.room()
}

func (w *writer) room() *failure {
	if len(w.out)-w.start > maxJSON {
		return fail(reasonResponse, "the JSON is larger than %d bytes", maxJSON)
	}
	return nil
}

// fields writes the members of a message's object.
func (w *writer) fields(m *message, data []byte, comma bool) *failure {
	if f := w.enter(); f != nil {
		return f
	}
	runs := len(w.runs)
	base, f := w.find(m, data)
	if f != nil {
		return f
	}
	for i := range m.fields {
		field := &m.fields[i]
		s := w.slots[base+i]
		if s.head == 0 && field.zero == "" {
			continue
		}
		if comma {
			w.out = append(w.out, ',')
		}
		comma = true
		w.out = append(w.out, field.label...)
		if s.head == 0 {
			w.out = append(w.out, field.zero...)
			continue
		}
		if f := w.field(field, s, data); f != nil {
			return f.in(field.name)
		}
	}
	w.release(base, runs)
	w.depth--
	return nil
}

// single writes the value of one field of a message.
func (w *writer) single(m *message, field *field, data []byte) *failure {
	if f := w.enter(); f != nil {
		return f
	}
	runs := len(w.runs)
	base, f := w.find(m, data)
	if f != nil {
		return f
	}
	if f := w.fieldOrZero(field, w.slots[base+field.index], data); f != nil {
		return f
	}
	w.release(base, runs)
	w.depth--
	return nil
}

// fieldOrZero writes a field's value where something has to stand.
func (w *writer) fieldOrZero(field *field, s slot, data []byte) *failure {
	switch {
	case s.head != 0:
		return w.field(field, s, data)
	case field.zero != "":
		w.out = append(w.out, field.zero...)
	default:
		w.out = append(w.out, "null"...)
	}
	return nil
}

// field writes the value of a field that is set.
func (w *writer) field(field *field, s slot, data []byte) *failure {
	switch {
	case field.list:
		return w.list(field, s, data)
	case field.entries:
		return w.mapEntries(field, s, data)
	case field.message != nil:
		return w.message(field.message, w.merged(s, data))
	default:
		_, f := w.scalar(field, data[s.last:])
		return f
	}
}

// merged returns the bytes of a message; several are put together, which on the
// wire is the same as merging them.
func (w *writer) merged(s slot, data []byte) []byte {
	if !s.several {
		value, _ := protowire.ConsumeBytes(data[s.last:])
		return value
	}
	var all []byte
	w.each(s, data, func(_ protowire.Type, value []byte) *failure {
		part, _ := protowire.ConsumeBytes(value)
		all = append(all, part...)
		return nil
	})
	return all
}

// each visits the values of a field. What find accepted is known to be whole.
func (w *writer) each(s slot, data []byte, visit func(kind protowire.Type, value []byte) *failure) *failure {
	for i := s.head; i != 0; {
		r := w.runs[i-1]
		for pos := r.start; pos < r.end; {
			number, kind, n := consumeTag(data[pos:])
			pos += n
			n = valueLen(number, kind, data[pos:])
			if f := visit(kind, data[pos:pos+n]); f != nil {
				return f
			}
			pos += n
		}
		i = r.next
	}
	return nil
}

func (w *writer) list(field *field, s slot, data []byte) *failure {
	w.out = append(w.out, '[')
	index := 0
	separate := func() {
		if index > 0 {
			w.out = append(w.out, ',')
		}
		index++
	}
	f := w.each(s, data, func(kind protowire.Type, value []byte) *failure {
		if kind == field.wire {
			separate()
			if field.message == nil {
				if _, f := w.scalar(field, value); f != nil {
					return f
				}
				return w.room()
			}
			content, _ := protowire.ConsumeBytes(value)
			return w.message(field.message, content)
		}
		packed, _ := protowire.ConsumeBytes(value)
		for len(packed) > 0 {
			separate()
			n, f := w.scalar(field, packed)
			if f == nil {
				f = w.room()
			}
			if f != nil {
				return f
			}
			packed = packed[n:]
		}
		return nil
	})
	if f != nil {
		return f.at(index - 1)
	}
	w.out = append(w.out, ']')
	return nil
}
