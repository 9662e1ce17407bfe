// Package transcode turns HTTP requests with JSON into protobuf wire bytes, and
// wire bytes into JSON, from message descriptors alone and without building a
// message in between.
//
// The JSON is the proto3 JSON mapping as protojson has it, with these choices:
//
//   - Output names are lowerCamelCase; scalars without presence, lists and maps
//     are always there, unset messages and optional fields are not; fields come
//     in the order of their declaration, map entries in the order of their keys;
//     no white space.
//   - Extensions are not read from JSON, and left out of it.
//   - Messages with groups (delimited fields) are refused when compiled.
//   - JSON nests at most 100 deep, Any in Any at most 8.
//   - A number needs digits in its exponent: "1e" is malformed.
//   - The types an Any may hold are those of the file that declares the method
//     or message, and of everything it imports.
//   - In wire bytes a value that a later one replaces is not looked into.
package transcode

import (
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/marquee-ads/marquee/platform/fault"
)

// Codec reads and writes the JSON of one message type. It is safe for
// concurrent use.
type Codec struct {
	types   *types
	message *message
	// required is whether a message of this type can lack a required field.
	required bool
}

// NewCodec compiles a message type. It fails for a type that uses groups, or
// whose descriptor is incomplete.
func NewCodec(desc protoreflect.MessageDescriptor) (*Codec, error) {
	return newTypes(desc.ParentFile()).codec(desc)
}

// AppendJSON appends the JSON of the message whose wire bytes are given. The
// error is a *fault.Error: INTERNAL (RESPONSE_MALFORMED), for bytes that are no
// such message, or that have no JSON, as a timestamp in the year 10000.
func (c *Codec) AppendJSON(dst, wire []byte) ([]byte, error) {
	return c.appendJSON(dst, wire, nil)
}

// AppendWire appends the wire bytes of the message whose JSON is given. The
// error is a *fault.Error: INVALID_ARGUMENT, with the field's path.
func (c *Codec) AppendWire(dst, json []byte) ([]byte, error) {
	e := c.types.encoder(dst)
	f := e.body(json, func() *failure { return e.value(c.message) })
	return c.finish(e, len(dst), f)
}

// appendJSON appends the message's JSON, or that of one of its fields.
func (c *Codec) appendJSON(dst, wire []byte, only *field) ([]byte, error) {
	w := c.types.writer(dst)
	var f *failure
	if only == nil {
		f = w.message(c.message, wire)
	} else {
		f = w.single(c.message, only, wire)
	}
	out := w.out
	c.types.releaseWriter(w)
	if f != nil {
		cause := fmt.Errorf("writing %s as JSON: %s", c.message.name, f.text())
		return dst, fault.New(fault.Internal, reasonResponse, "internal error").Because(cause)
	}
	return out, nil
}

// finish ends an encoding that began at offset start of the output.
func (c *Codec) finish(e *encoder, start int, f *failure) ([]byte, error) {
	dst := e.out[:start:start]
	if f == nil {
		e.finish()
		f = c.checkRequired(e.out[start:])
	}
	out := e.out
	c.types.releaseEncoder(e)
	if f != nil {
		return dst, f.fault()
	}
	return out, nil
}

// checkRequired refuses a message that lacks a required field (proto2). It is
// the one place that builds a message: few types have such fields, and path,
// query and body may each have set a part of what is to be checked.
func (c *Codec) checkRequired(wire []byte) *failure {
	if !c.required {
		return nil
	}
	if err := proto.Unmarshal(wire, dynamicpb.NewMessage(c.message.desc)); err != nil {
		return fail(reasonRequired, "a required field is missing: %v", err)
	}
	return nil
}

// types are the compiled messages of one file and what it imports.
type types struct {
	files    []protoreflect.FileDescriptor
	encoders sync.Pool
	writers  sync.Pool

	mu       sync.RWMutex
	messages map[protoreflect.MessageDescriptor]*message
	// refused are the types that cannot be compiled.
	refused map[protoreflect.MessageDescriptor]error
}

func newTypes(file protoreflect.FileDescriptor) *types {
	t := &types{
		messages: make(map[protoreflect.MessageDescriptor]*message),
		refused:  make(map[protoreflect.MessageDescriptor]error),
	}
	t.add(file, make(map[string]bool))
	return t
}

func (t *types) add(file protoreflect.FileDescriptor, seen map[string]bool) {
	if file == nil || file.IsPlaceholder() || seen[file.Path()] {
		return
	}
	seen[file.Path()] = true
	t.files = append(t.files, file)
	for i := range file.Imports().Len() {
		t.add(file.Imports().Get(i).FileDescriptor, seen)
	}
}

func (t *types) codec(desc protoreflect.MessageDescriptor) (*Codec, error) {
	m, err := t.compile(desc)
	if err != nil {
		return nil, err
	}
	return &Codec{types: t, message: m, required: m.requires(make(map[*message]bool))}, nil
}

// compile returns the program of a message type, and makes it if there is none.
func (t *types) compile(desc protoreflect.MessageDescriptor) (*message, error) {
	t.mu.RLock()
	m, refused := t.messages[desc], t.refused[desc]
	t.mu.RUnlock()
	if m != nil || refused != nil {
		return m, refused
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	c := compiler{done: t.messages}
	m, err := c.message(desc)
	if err != nil {
		for _, d := range c.added {
			delete(t.messages, d)
		}
		t.refused[desc] = fmt.Errorf("compiling %s: %w", desc.FullName(), err)
		return nil, t.refused[desc]
	}
	return m, nil
}

// find returns the program of the message type with the name, or nil if the
// files have no such type, or none that can be compiled.
func (t *types) find(name protoreflect.FullName) *message {
	if !name.IsValid() {
		return nil
	}
	for _, file := range t.files {
		rest, ok := within(file.Package(), name)
		if !ok {
			continue
		}
		if desc := findMessage(file.Messages(), rest); desc != nil {
			m, err := t.compile(desc)
			if err != nil {
				return nil
			}
			return m
		}
	}
	return nil
}

// within returns what follows the package in a name.
func within(pkg, name protoreflect.FullName) (string, bool) {
	if pkg == "" {
		return string(name), true
	}
	if len(name) > len(pkg)+1 && name[:len(pkg)] == pkg && name[len(pkg)] == '.' {
		return string(name[len(pkg)+1:]), true
	}
	return "", false
}

func findMessage(messages protoreflect.MessageDescriptors, name string) protoreflect.MessageDescriptor {
	head, rest := cutDot(name)
	desc := messages.ByName(protoreflect.Name(head))
	if desc == nil || rest == "" {
		return desc
	}
	return findMessage(desc.Messages(), rest)
}

// keep is how many elements of working memory stay with a pooled worker.
const keep = 4096

func (t *types) encoder(dst []byte) *encoder {
	e, ok := t.encoders.Get().(*encoder)
	if !ok {
		e = &encoder{types: t}
	}
	e.out = dst
	return e
}

func (t *types) releaseEncoder(e *encoder) {
	*e = encoder{types: t, fixes: e.fixes[:0], scratch: e.scratch[:0]}
	if cap(e.fixes) > keep || cap(e.scratch) > keep {
		return
	}
	t.encoders.Put(e)
}

func (t *types) writer(dst []byte) *writer {
	w, ok := t.writers.Get().(*writer)
	if !ok {
		w = &writer{types: t}
	}
	w.out, w.start = dst, len(dst)
	return w
}

func (t *types) releaseWriter(w *writer) {
	*w = writer{types: t, slots: w.slots[:0], runs: w.runs[:0], entries: w.entries[:0]}
	if cap(w.slots) > keep || cap(w.runs) > keep || cap(w.entries) > keep {
		return
	}
	clear(w.entries[:cap(w.entries)])
	t.writers.Put(w)
}
