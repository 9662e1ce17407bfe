package transcode

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// message is a message type compiled into tables.
type message struct {
	desc  protoreflect.MessageDescriptor
	name  protoreflect.FullName
	shape shape
	// fields are in the order of their declaration.
	fields []field
	// byName has JSON names and names as declared.
	byName map[string]*field
	// dense and sparse have the fields by number.
	dense  []*field
	sparse map[protowire.Number]*field
	oneofs int
}

// field is one field of a message.
type field struct {
	name     string
	jsonName string
	index    int
	number   protowire.Number
	kind     protoreflect.Kind
	// wire is the wire type of one value, tag the tag in front of it.
	wire protowire.Type
	tag  string
	// packedTag is in front of a packed list; empty where lists are not packed.
	packedTag string
	// label is the JSON name, quoted, with a colon.
	label string
	// zero is the value of a field that is not set, as JSON; empty where such a
	// field is left out.
	zero string
	list bool
	// entries is whether the field is a map; message is then that of an entry.
	entries bool
	// presence is whether a zero that is set differs from a field that is not.
	presence bool
	// null is whether JSON null is a value of the field.
	null bool
	// oneof is the index of the oneof that the field belongs to, or -1.
	oneof   int
	message *message
	enum    *enum
}

// enum is an enum type compiled into tables.
type enum struct {
	byName map[string]int32
	// byNumber has the names in quotes.
	byNumber map[int32]string
	// null is whether this is google.protobuf.NullValue.
	null bool
}

// shape is how a message is written in JSON.
type shape uint8

const (
	plain shape = iota
	emptyShape
	timestampShape
	durationShape
	fieldMaskShape
	wrapperShape
	structShape
	listShape
	valueShape
	anyShape
)

// wellKnown returns the shape of the types that JSON treats on their own, and
// the fields they must have to be that type and not another of its name.
func wellKnown(name protoreflect.FullName) (shape, string) {
	switch name {
	case "google.protobuf.Empty":
		return emptyShape, ""
	case "google.protobuf.Timestamp":
		return timestampShape, "1:int64 2:int32"
	case "google.protobuf.Duration":
		return durationShape, "1:int64 2:int32"
	case "google.protobuf.FieldMask":
		return fieldMaskShape, "1:string*"
	case "google.protobuf.BoolValue":
		return wrapperShape, "1:bool"
	case "google.protobuf.Int32Value":
		return wrapperShape, "1:int32"
	case "google.protobuf.Int64Value":
		return wrapperShape, "1:int64"
	case "google.protobuf.UInt32Value":
		return wrapperShape, "1:uint32"
	case "google.protobuf.UInt64Value":
		return wrapperShape, "1:uint64"
	case "google.protobuf.FloatValue":
		return wrapperShape, "1:float"
	case "google.protobuf.DoubleValue":
		return wrapperShape, "1:double"
	case "google.protobuf.StringValue":
		return wrapperShape, "1:string"
	case "google.protobuf.BytesValue":
		return wrapperShape, "1:bytes"
	case "google.protobuf.Struct":
		return structShape, "1:message*"
	case "google.protobuf.ListValue":
		return listShape, "1:message*"
	case "google.protobuf.Value":
		return valueShape, "1:enum 2:double 3:string 4:bool 5:message 6:message"
	case "google.protobuf.Any":
		return anyShape, "1:string 2:bytes"
	default:
		return plain, ""
	}
}

func signature(desc protoreflect.MessageDescriptor) string {
	var parts []string
	for i := range desc.Fields().Len() {
		fd := desc.Fields().Get(i)
		part := fmt.Sprintf("%d:%s", fd.Number(), fd.Kind())
		if fd.Cardinality() == protoreflect.Repeated {
			part += "*"
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, " ")
}

// maxDense is the largest field number that is found by index.
const maxDense = 63

// compiler makes the programs of a message type and of all it refers to.
type compiler struct {
	done  map[protoreflect.MessageDescriptor]*message
	added []protoreflect.MessageDescriptor
	enums map[protoreflect.EnumDescriptor]*enum
}

func (c *compiler) message(desc protoreflect.MessageDescriptor) (*message, error) {
	if m := c.done[desc]; m != nil {
		return m, nil
	}
	if desc.IsPlaceholder() {
		return nil, fmt.Errorf("the descriptor of %s is missing", desc.FullName())
	}
	if options, ok := desc.Options().(interface{ GetMessageSetWireFormat() bool }); ok && options.GetMessageSetWireFormat() {
		return nil, fmt.Errorf("%s is a message set", desc.FullName())
	}
	shape, want := wellKnown(desc.FullName())
	if got := signature(desc); shape != plain && got != want {
		return nil, fmt.Errorf("%s has the fields %q, not those of the well-known type, %q", desc.FullName(), got, want)
	}
	m := &message{
		desc:   desc,
		name:   desc.FullName(),
		shape:  shape,
		fields: make([]field, desc.Fields().Len()),
		byName: make(map[string]*field),
		sparse: make(map[protowire.Number]*field),
		oneofs: desc.Oneofs().Len(),
	}
	// Entered before its fields are compiled, as types may refer to themselves.
	c.done[desc] = m
	c.added = append(c.added, desc)
	for i := range m.fields {
		if err := c.field(&m.fields[i], desc.Fields().Get(i)); err != nil {
			return nil, err
		}
	}
	if desc.IsMapEntry() && (len(m.fields) != 2 || m.fields[0].number != 1 || m.fields[1].number != 2) {
		return nil, fmt.Errorf("%s is a map's entry without a key and a value in this order", desc.FullName())
	}
	return m, m.index()
}

// index makes the tables by name and by number. A JSON name goes before a
// declared name that happens to be the same.
func (m *message) index() error {
	for i := range m.fields {
		f := &m.fields[i]
		if other := m.byName[f.jsonName]; other != nil {
			return fmt.Errorf("%s has two fields with the JSON name %s, %s and %s", m.name, f.jsonName, other.name, f.name)
		}
		m.byName[f.jsonName] = f
		if f.number > maxDense {
			m.sparse[f.number] = f
			continue
		}
		if n := int(f.number) + 1; n > len(m.dense) {
			m.dense = append(m.dense, make([]*field, n-len(m.dense))...)
		}
		m.dense[f.number] = f
	}
	for i := range m.fields {
		f := &m.fields[i]
		if _, taken := m.byName[f.name]; !taken {
			m.byName[f.name] = f
		}
	}
	return nil
}

func (m *message) byNumber(n protowire.Number) *field {
	if int(n) < len(m.dense) {
		return m.dense[n]
	}
	return m.sparse[n]
}

func (c *compiler) field(f *field, fd protoreflect.FieldDescriptor) error {
	if fd.Kind() == protoreflect.GroupKind {
		return fmt.Errorf("%s is a group", fd.FullName())
	}
	*f = field{
		name:     string(fd.Name()),
		jsonName: fd.JSONName(),
		index:    fd.Index(),
		number:   fd.Number(),
		kind:     fd.Kind(),
		wire:     wireType(fd.Kind()),
		label:    string(appendQuoted(nil, []byte(fd.JSONName()))) + ":",
		list:     fd.IsList(),
		entries:  fd.IsMap(),
		presence: fd.HasPresence(),
		oneof:    -1,
	}
	f.tag = string(protowire.AppendTag(nil, f.number, f.wire))
	if fd.IsPacked() {
		f.packedTag = string(protowire.AppendTag(nil, f.number, protowire.BytesType))
	}
	if od := fd.ContainingOneof(); od != nil && !od.IsSynthetic() {
		f.oneof = od.Index()
	}
	var err error
	if fd.Message() != nil {
		if f.message, err = c.message(fd.Message()); err != nil {
			return err
		}
		f.null = f.message.shape == valueShape
	}
	if fd.Enum() != nil {
		if f.enum, err = c.enum(fd.Enum()); err != nil {
			return err
		}
		f.null = f.enum.null
	}
	f.zero = f.zeroJSON(fd)
	return nil
}

func (f *field) zeroJSON(fd protoreflect.FieldDescriptor) string {
	switch {
	case f.list:
		return "[]"
	case f.entries:
		return "{}"
	case f.message != nil:
		// Of a map's entry only: a message that is a value and lacks is empty.
		return ""
	case f.presence && !fd.ContainingMessage().IsMapEntry():
		return ""
	}
	switch f.kind {
	case protoreflect.BoolKind:
		return "false"
	case protoreflect.StringKind, protoreflect.BytesKind:
		return `""`
	case protoreflect.EnumKind:
		return string(f.enum.appendJSON(nil, int32(fd.Default().Enum())))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind,
		protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return `"0"`
	default:
		return "0"
	}
}

func (c *compiler) enum(desc protoreflect.EnumDescriptor) (*enum, error) {
	if e := c.enums[desc]; e != nil {
		return e, nil
	}
	if desc.IsPlaceholder() {
		return nil, fmt.Errorf("the descriptor of %s is missing", desc.FullName())
	}
	e := &enum{
		byName:   make(map[string]int32),
		byNumber: make(map[int32]string),
		null:     desc.FullName() == "google.protobuf.NullValue",
	}
	for i := range desc.Values().Len() {
		v := desc.Values().Get(i)
		e.byName[string(v.Name())] = int32(v.Number())
		if _, alias := e.byNumber[int32(v.Number())]; !alias {
			e.byNumber[int32(v.Number())] = `"` + string(v.Name()) + `"`
		}
	}
	if c.enums == nil {
		c.enums = make(map[protoreflect.EnumDescriptor]*enum)
	}
	c.enums[desc] = e
	return e, nil
}

func wireType(kind protoreflect.Kind) protowire.Type {
	switch kind {
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return protowire.Fixed32Type
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return protowire.Fixed64Type
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind:
		return protowire.BytesType
	default:
		return protowire.VarintType
	}
}

// requires is whether the message, or one within it, has a required field.
func (m *message) requires(seen map[*message]bool) bool {
	if seen[m] {
		return false
	}
	seen[m] = true
	if m.desc.RequiredNumbers().Len() > 0 {
		return true
	}
	for i := range m.fields {
		if sub := m.fields[i].message; sub != nil && sub.requires(seen) {
			return true
		}
	}
	return false
}

// textual is whether one value of the field can be written as plain text, as in
// a path or a query string.
func (f *field) textual() bool {
	if f.entries {
		return false
	}
	if f.message == nil {
		return true
	}
	switch f.message.shape {
	case timestampShape, durationShape, fieldMaskShape, wrapperShape:
		return true
	default:
		return false
	}
}

func cutDot(s string) (head, rest string) {
	head, rest, _ = strings.Cut(s, ".")
	return head, rest
}
