package transcode

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func (e *encoder) mapEntries(f *field) *failure {
	if e.peek() != '{' {
		return e.mismatch("an object")
	}
	if f := e.enter(); f != nil {
		return f
	}
	key, value := &f.message.fields[0], &f.message.fields[1]
	var seen keys
	for first := true; ; first = false {
		more, failed := e.more(first, '}')
		if failed != nil || !more {
			return failed
		}
		name, failed := e.key(&e.scratch)
		if failed != nil {
			return failed
		}
		raw := e.name
		e.out = append(e.out, f.tag...)
		i := e.open()
		start := len(e.out)
		if failed := e.mapKey(key, name); failed != nil {
			return failed.subscript(e.shownKey(raw))
		}
		if !seen.add(e.out, start) {
			return fail(reasonDuplicate, "the key is there twice").subscript(e.shownKey(raw))
		}
		if value.message != nil {
			failed = e.nested(value)
		} else {
			failed = e.scalar(value, value.tag, true)
		}
		if failed != nil {
			return failed.subscript(e.shownKey(raw))
		}
		e.close(i)
	}
}

// shownKey shows a map's key as it stands in the JSON, between its quotes.
func (e *encoder) shownKey(raw []byte) string {
	key, f := e.unescape(nil, raw)
	if f != nil {
		key = raw
	}
	return "[" + shown(key) + "]"
}

// keys are the keys of a map, as places in the output: few are compared one by
// one, more go into a table.
type keys struct {
	places [8][2]int
	n      int
	table  map[string]struct{}
}

// add notes the key that the output ends with, unless it is there already.
func (k *keys) add(out []byte, start int) bool {
	key := out[start:]
	if k.table != nil {
		if _, ok := k.table[string(key)]; ok {
			return false
		}
		k.table[string(key)] = struct{}{}
		return true
	}
	for _, p := range k.places[:k.n] {
		if bytes.Equal(out[p[0]:p[1]], key) {
			return false
		}
	}
	if k.n < len(k.places) {
		k.places[k.n] = [2]int{start, len(out)}
		k.n++
		return true
	}
	k.table = make(map[string]struct{})
	for _, p := range k.places {
		k.table[string(out[p[0]:p[1]])] = struct{}{}
	}
	k.table[string(key)] = struct{}{}
	return true
}

func (e *encoder) mapKey(f *field, name []byte) *failure {
	e.out = append(e.out, f.tag...)
	var err error
	switch f.kind {
	case protoreflect.StringKind:
		e.out = protowire.AppendBytes(e.out, name)
	case protoreflect.BoolKind:
		switch string(name) {
		case "true":
			e.out = append(e.out, 1)
		case "false":
			e.out = append(e.out, 0)
		default:
			return fail(reasonValue, "the key is not true or false")
		}
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		var n uint64
		n, err = strconv.ParseUint(string(name), 10, f.size())
		e.appendUint(f, n)
	default:
		var n int64
		n, err = strconv.ParseInt(string(name), 10, f.size())
		e.appendInt(f, n)
	}
	if err != nil {
		return fail(reasonValue, "the key is not %s", f.takes())
	}
	return nil
}

// entry is one entry of a map, with its key for sorting.
type entry struct {
	text   []byte
	number uint64
	data   []byte
}

// mapEntries writes a map in the order of its keys. Of entries with the same
// key the last one counts.
func (w *writer) mapEntries(field *field, s slot, data []byte) *failure {
	key, value := &field.message.fields[0], &field.message.fields[1]
	first := len(w.entries)
	f := w.each(s, data, func(_ protowire.Type, content []byte) *failure {
		content, _ = protowire.ConsumeBytes(content)
		e, f := w.entry(field.message, content)
		w.entries = append(w.entries, e)
		return f
	})
	if f != nil {
		return f
	}
	entries := w.entries[first:]
	slices.SortStableFunc(entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.number, b.number), bytes.Compare(a.text, b.text))
	})
	w.out = append(w.out, '{')
	comma := false
	for i, e := range entries {
		if i+1 < len(entries) && entries[i+1].number == e.number && string(entries[i+1].text) == string(e.text) {
			continue
		}
		if comma {
			w.out = append(w.out, ',')
		}
		comma = true
		if f := w.mapKey(key, e); f != nil {
			return f
		}
		w.out = append(w.out, ':')
		if f := w.mapValue(field.message, value, e.data); f != nil {
			return f.subscript("[" + shown(e.text) + "]")
		}
	}
	w.out = append(w.out, '}')
	w.entries = w.entries[:first]
	return nil
}

// entry reads the key of a map's entry into a form that sorts.
func (w *writer) entry(m *message, data []byte) (entry, *failure) {
	runs := len(w.runs)
	base, f := w.find(m, data)
	if f != nil {
		return entry{}, f
	}
	s := w.slots[base]
	w.release(base, runs)
	e := entry{data: data}
	key := &m.fields[0]
	switch key.kind {
	case protoreflect.StringKind:
		if s.head != 0 {
			e.text, _ = protowire.ConsumeBytes(data[s.last:])
		}
	case protoreflect.BoolKind:
		if s.head != 0 {
			e.number, _ = protowire.ConsumeVarint(data[s.last:])
		}
		e.number = min(e.number, 1)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		if s.head != 0 {
			e.number, _ = key.uint(data[s.last:])
		}
	default:
		var n int64
		if s.head != 0 {
			n, _ = key.int(data[s.last:])
		}
		// The sign is turned over, so that negative keys sort first.
		e.number = uint64(n) ^ 1<<63
	}
	return e, nil
}

func (w *writer) mapKey(key *field, e entry) *failure {
	switch key.kind {
	case protoreflect.StringKind:
		return w.text(e.text)
	case protoreflect.BoolKind:
		w.out = append(strconv.AppendBool(append(w.out, '"'), e.number != 0), '"')
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		w.out = append(strconv.AppendUint(append(w.out, '"'), e.number, 10), '"')
	default:
		w.out = append(strconv.AppendInt(append(w.out, '"'), int64(e.number^1<<63), 10), '"')
	}
	return nil
}

func (w *writer) mapValue(m *message, value *field, data []byte) *failure {
	runs := len(w.runs)
	base, f := w.find(m, data)
	if f != nil {
		return f
	}
	s := w.slots[base+value.index]
	if s.head == 0 && value.message != nil {
		f = w.message(value.message, nil)
	} else {
		f = w.fieldOrZero(value, s, data)
	}
	w.release(base, runs)
	return f
}
