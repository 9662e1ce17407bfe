package transcode

import (
	"bytes"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxAnys bounds Any in Any: each level looks for its type on its own.
const maxAnys = 8

// any reads a google.protobuf.Any: the type is a member of the object, which
// may stand anywhere in it.
func (e *encoder) any(m *message) *failure {
	if e.peek() != '{' {
		return e.mismatch("an object")
	}
	if e.anys++; e.anys > maxAnys {
		return fail(reasonDepth, "messages of any type nest deeper than %d", maxAnys)
	}
	defer func() { e.anys-- }()
	url, empty, f := e.findType()
	if f != nil {
		return f
	}
	if empty {
		return e.object(&message{name: m.name}, false)
	}
	inner := e.types.find(typeName([]byte(url)))
	if inner == nil {
		return fail(reasonAny, "the type %s is not known here", shown([]byte(url))).in(`"@type"`)
	}
	e.out = append(e.out, m.fields[0].tag...)
	e.out = protowire.AppendString(e.out, url)
	e.out = append(e.out, m.fields[1].tag...)
	i := e.open()
	if inner.shape == plain {
		f = e.object(inner, true)
	} else {
		f = e.anyValue(inner)
	}
	if f != nil {
		return f
	}
	e.close(i)
	return nil
}

// findType looks ahead for the member "@type" of the object that is next.
func (e *encoder) findType() (url string, empty bool, f *failure) {
	ahead := e.scanner
	if f := ahead.enter(); f != nil {
		return "", false, f
	}
	for first := true; ; first = false {
		more, f := ahead.more(first, '}')
		if f != nil {
			return "", false, f
		}
		if !more {
			if url == "" && !first {
				return "", false, fail(reasonAny, `the member "@type" is missing`)
			}
			return url, first, nil
		}
		name, f := ahead.key(&e.scratch)
		if f != nil {
			return "", false, f
		}
		if string(name) != "@type" {
			if f := ahead.skip(&e.scratch); f != nil {
				return "", false, f
			}
			continue
		}
		if url != "" {
			return "", false, fail(reasonDuplicate, "the type is there twice").in(`"@type"`)
		}
		if ahead.peek() != '"' {
			return "", false, ahead.mismatch("a string").in(`"@type"`)
		}
		raw, _, f := ahead.text()
		if f == nil {
			raw, f = ahead.unescape(nil, raw)
		}
		if f != nil {
			return "", false, f
		}
		if url = string(raw); url == "" {
			return "", false, fail(reasonAny, "the type is empty").in(`"@type"`)
		}
	}
}

// anyValue reads the member "value" of an Any that holds a well-known type.
func (e *encoder) anyValue(inner *message) *failure {
	if f := e.enter(); f != nil {
		return f
	}
	found := false
	for first := true; ; first = false {
		more, f := e.more(first, '}')
		if f != nil {
			return f
		}
		if !more {
			if !found && inner.shape != emptyShape {
				return fail(reasonRequired, "the member is missing").in("value")
			}
			return nil
		}
		name, f := e.key(&e.scratch)
		if f != nil {
			return f
		}
		switch string(name) {
		case "@type":
			f = e.skip(&e.scratch)
		case "value":
			if found {
				return fail(reasonDuplicate, "the member is there twice").in("value")
			}
			found = true
			if f = e.value(inner); f != nil {
				f = f.in("value")
			}
		default:
			return fail(reasonUnknown, `an Any of type %s has the members "@type" and "value"`, inner.name).in(fieldName(name))
		}
		if f != nil {
			return f
		}
	}
}

// typeName is the name of the type that the URL in an Any names.
func typeName(url []byte) protoreflect.FullName {
	return protoreflect.FullName(url[bytes.LastIndexByte(url, '/')+1:])
}

// any writes a google.protobuf.Any with what it holds.
func (w *writer) any(m *message, data []byte) *failure {
	if f := w.enter(); f != nil {
		return f
	}
	runs := len(w.runs)
	base, f := w.find(m, data)
	if f != nil {
		return f
	}
	var url, content []byte
	if s := w.slots[base]; s.head != 0 {
		url, _ = protowire.ConsumeBytes(data[s.last:])
	}
	if s := w.slots[base+1]; s.head != 0 {
		content, _ = protowire.ConsumeBytes(data[s.last:])
	}
	w.release(base, runs)
	w.out = append(w.out, '{')
	if len(url) > 0 || len(content) > 0 {
		if f := w.anyContent(url, content); f != nil {
			return f
		}
	}
	w.out = append(w.out, '}')
	w.depth--
	return nil
}

func (w *writer) anyContent(url, content []byte) *failure {
	inner := w.types.find(typeName(url))
	if inner == nil {
		return fail(reasonResponse, "the type %s of an Any is not known here", shown(url))
	}
	w.out = append(w.out, `"@type":`...)
	if f := w.text(url); f != nil {
		return f
	}
	if inner.shape == plain || inner.shape == emptyShape {
		return w.fields(inner, content, true)
	}
	w.out = append(w.out, `,"value":`...)
	return w.message(inner, content)
}
