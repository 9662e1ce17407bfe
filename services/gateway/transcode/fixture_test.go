package transcode

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	// Known to prototext, which the annotations below are read with.
	_ "google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	// Linked in for their descriptors.
	_ "google.golang.org/protobuf/types/known/anypb"
	_ "google.golang.org/protobuf/types/known/apipb"
	_ "google.golang.org/protobuf/types/known/durationpb"
	_ "google.golang.org/protobuf/types/known/emptypb"
	_ "google.golang.org/protobuf/types/known/fieldmaskpb"
	_ "google.golang.org/protobuf/types/known/structpb"
	_ "google.golang.org/protobuf/types/known/timestamppb"
	_ "google.golang.org/protobuf/types/known/wrapperspb"
)

// scalarKinds are the scalar types of protobuf, in the order of the numbers they
// have in the test messages.
var scalarKinds = []string{
	"DOUBLE", "FLOAT", "INT64", "UINT64", "INT32", "FIXED64", "FIXED32", "BOOL",
	"STRING", "BYTES", "UINT32", "SFIXED32", "SFIXED64", "SINT32", "SINT64",
}

// wellKnownTypes are the message types that JSON treats on their own.
var wellKnownTypes = []string{
	"Any", "Timestamp", "Duration", "FieldMask", "Struct", "Value", "ListValue", "Empty",
	"BoolValue", "Int32Value", "Int64Value", "UInt32Value", "UInt64Value", "FloatValue",
	"DoubleValue", "StringValue", "BytesValue",
}

// fixtureFile describes messages with every kind of field, and a service with
// the annotations given: the text of its methods.
func fixtureFile(methods string) *descriptorpb.FileDescriptorProto {
	var b strings.Builder
	b.WriteString(`name: "fixture.proto" package: "fixture" syntax: "proto3"
		dependency: "google/api/annotations.proto"
		dependency: "google/protobuf/any.proto" dependency: "google/protobuf/timestamp.proto"
		dependency: "google/protobuf/duration.proto" dependency: "google/protobuf/field_mask.proto"
		dependency: "google/protobuf/struct.proto" dependency: "google/protobuf/empty.proto"
		dependency: "google/protobuf/wrappers.proto"
		enum_type { name: "Color" options { allow_alias: true }
			value { name: "COLOR_UNSPECIFIED" number: 0 } value { name: "RED" number: 1 }
			value { name: "CRIMSON" number: 1 } value { name: "BLACK" number: -2 } }
		message_type { name: "Everything"
	`)
	field := func(label, kind, name string, number int, more string) {
		fmt.Fprintf(&b, "field { name: %q number: %d label: LABEL_%s type: TYPE_%s %s }\n", name, number, label, kind, more)
	}
	const color, self = `type_name: ".fixture.Color"`, `type_name: ".fixture.Everything"`
	for i, kind := range scalarKinds {
		name := strings.ToLower(kind) + "_value"
		field("OPTIONAL", kind, "one_"+name, i+1, "")
		field("OPTIONAL", kind, "maybe_"+name, i+21, fmt.Sprintf("proto3_optional: true oneof_index: %d", i+1))
		field("REPEATED", kind, "many_"+name, i+41, "")
		field("REPEATED", kind, "loose_"+name, i+61, loose(kind))
	}
	for i, kind := range scalarKinds {
		field("OPTIONAL", kind, "either_"+strings.ToLower(kind)+"_value", i+81, "oneof_index: 0")
	}
	field("OPTIONAL", "ENUM", "either_color", 103, "oneof_index: 0 "+color)
	field("OPTIONAL", "MESSAGE", "either_self", 106, "oneof_index: 0 "+self)
	field("OPTIONAL", "ENUM", "either_null", 108, `oneof_index: 0 type_name: ".google.protobuf.NullValue"`)
	field("OPTIONAL", "ENUM", "color", 101, color)
	field("REPEATED", "ENUM", "colors", 102, color)
	field("OPTIONAL", "MESSAGE", "self", 104, self)
	field("REPEATED", "MESSAGE", "selves", 105, self)
	field("OPTIONAL", "ENUM", "null", 107, `type_name: ".google.protobuf.NullValue"`)
	field("REPEATED", "ENUM", "nulls", 109, `type_name: ".google.protobuf.NullValue"`)
	field("OPTIONAL", "STRING", "renamed", 110, `json_name: "with \"quotes\""`)
	for i, name := range wellKnownTypes {
		known := fmt.Sprintf(`type_name: ".google.protobuf.%s"`, name)
		name = strings.ToLower(name)
		field("OPTIONAL", "MESSAGE", "one_"+name, i+121, known)
		field("REPEATED", "MESSAGE", "many_"+name, i+141, known)
	}
	var entries strings.Builder
	mapOf := func(number int, name, key, valueKind, value string) {
		entry := strings.ToUpper(name[:1]) + name[1:] + "Entry"
		field("REPEATED", "MESSAGE", name, number, fmt.Sprintf("type_name: %q", ".fixture.Everything."+entry))
		fmt.Fprintf(&entries, `nested_type { name: %q options { map_entry: true }
			field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_%s }
			field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_%s %s } }`+"\n", entry, key, valueKind, value)
	}
	number := 161
	for _, key := range scalarKinds {
		if key == "DOUBLE" || key == "FLOAT" || key == "BYTES" {
			continue
		}
		mapOf(number, "by"+strings.ToLower(key), key, key, "")
		number++
	}
	mapOf(181, "colorsof", "STRING", "ENUM", color)
	mapOf(182, "selvesof", "STRING", "MESSAGE", self)
	mapOf(183, "valuesof", "STRING", "MESSAGE", `type_name: ".google.protobuf.Value"`)
	mapOf(184, "nullsof", "STRING", "ENUM", `type_name: ".google.protobuf.NullValue"`)
	mapOf(185, "floatsof", "STRING", "FLOAT", "")
	b.WriteString(entries.String())
	b.WriteString(`oneof_decl { name: "either" }` + "\n")
	for _, kind := range scalarKinds {
		fmt.Fprintf(&b, "oneof_decl { name: \"_maybe_%s_value\" }\n", strings.ToLower(kind))
	}
	b.WriteString(`}
		message_type { name: "Shelf"
			field { name: "name" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
			field { name: "theme" number: 2 label: LABEL_OPTIONAL type: TYPE_STRING }
			field { name: "parent" number: 3 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".fixture.Shelf" } }
		service { name: "Library" ` + methods + ` }`)
	return parseFile(b.String())
}

func loose(kind string) string {
	if kind == "STRING" || kind == "BYTES" {
		return ""
	}
	return "options { packed: false }"
}

// fixtureProto2 has what only proto2 has: required fields, defaults, closed
// enums; and extensions, which are passed over.
const fixtureProto2 = `name: "fixture2.proto" package: "fixture2" syntax: "proto2"
	enum_type { name: "Step" value { name: "NONE" number: 0 } value { name: "SOME" number: 3 } }
	enum_type { name: "Level" value { name: "LOW" number: 5 } value { name: "HIGH" number: 7 } }
	message_type { name: "Old"
		field { name: "id" number: 1 label: LABEL_REQUIRED type: TYPE_STRING }
		field { name: "count" number: 2 label: LABEL_OPTIONAL type: TYPE_INT32 default_value: "7" }
		field { name: "level" number: 3 label: LABEL_OPTIONAL type: TYPE_ENUM type_name: ".fixture2.Level" }
		field { name: "levels" number: 4 label: LABEL_REPEATED type: TYPE_ENUM type_name: ".fixture2.Level" }
		field { name: "child" number: 5 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".fixture2.Old" }
		field { name: "numbers" number: 6 label: LABEL_REPEATED type: TYPE_SINT64 options { packed: true } }
		field { name: "by_name" number: 7 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".fixture2.Old.ByNameEntry" }
		field { name: "a" number: 8 label: LABEL_OPTIONAL type: TYPE_STRING oneof_index: 0 }
		field { name: "b" number: 9 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".fixture2.Old" oneof_index: 0 }
		oneof_decl { name: "choice" }
		nested_type { name: "ByNameEntry" options { map_entry: true }
			field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
			field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_ENUM type_name: ".fixture2.Step" } }
		extension_range { start: 100 end: 200 } }
	message_type { name: "Grouped"
		field { name: "inner" number: 1 label: LABEL_OPTIONAL type: TYPE_GROUP type_name: ".fixture2.Grouped.Inner" }
		nested_type { name: "Inner" field { name: "x" number: 1 label: LABEL_OPTIONAL type: TYPE_INT32 } } }`

func parseFile(text string) *descriptorpb.FileDescriptorProto {
	file := &descriptorpb.FileDescriptorProto{}
	if err := prototext.Unmarshal([]byte(text), file); err != nil {
		panic(fmt.Sprintf("the test's descriptor: %v", err))
	}
	return file
}

// overTheWire resolves a file as it arrives by reflection: everything it imports
// with it, and its annotations as unknown bytes.
func overTheWire(t testing.TB, file *descriptorpb.FileDescriptorProto) protoreflect.FileDescriptor {
	t.Helper()
	set := &descriptorpb.FileDescriptorSet{}
	seen := map[string]bool{}
	var add func(path string)
	add = func(path string) {
		if seen[path] {
			return
		}
		seen[path] = true
		d, err := protoregistry.GlobalFiles.FindFileByPath(path)
		require.NoError(t, err)
		for i := range d.Imports().Len() {
			add(d.Imports().Get(i).Path())
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(d))
	}
	for _, path := range file.GetDependency() {
		add(path)
	}
	set.File = append(set.File, file)
	wire, err := proto.Marshal(set)
	require.NoError(t, err)
	bare := &descriptorpb.FileDescriptorSet{}
	require.NoError(t, proto.UnmarshalOptions{Resolver: &protoregistry.Types{}}.Unmarshal(wire, bare))
	files, err := protodesc.NewFiles(bare)
	require.NoError(t, err)
	d, err := files.FindFileByPath(file.GetName())
	require.NoError(t, err)
	return d
}

func messageOf(t testing.TB, file protoreflect.FileDescriptor, name string) protoreflect.MessageDescriptor {
	t.Helper()
	d := file.Messages().ByName(protoreflect.Name(name))
	require.NotNil(t, d, name)
	return d
}

// sameTypes resolves, for protojson, the types that a file's Any may hold.
func sameTypes(t testing.TB, file protoreflect.FileDescriptor) *dynamicpb.Types {
	t.Helper()
	files := &protoregistry.Files{}
	var add func(protoreflect.FileDescriptor)
	add = func(d protoreflect.FileDescriptor) {
		if _, err := files.FindFileByPath(d.Path()); err == nil {
			return
		}
		require.NoError(t, files.RegisterFile(d))
		for i := range d.Imports().Len() {
			add(d.Imports().Get(i).FileDescriptor)
		}
	}
	add(file)
	return dynamicpb.NewTypes(files)
}
