package transcode

import (
	"bytes"
	"encoding/json"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/apipb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/marquee-ads/marquee/platform/fault"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// peer is protojson on dynamicpb beside this package, for one message type.
type peer struct {
	desc  protoreflect.MessageDescriptor
	codec *Codec
	types *dynamicpb.Types
}

func newPeer(t testing.TB, desc protoreflect.MessageDescriptor) *peer {
	t.Helper()
	codec, err := NewCodec(desc)
	require.NoError(t, err)
	return &peer{desc: desc, codec: codec, types: sameTypes(t, desc.ParentFile())}
}

func newPeers(t testing.TB) []*peer {
	t.Helper()
	fixture := overTheWire(t, fixtureFile(""))
	fixture2 := overTheWire(t, parseFile(fixtureProto2))
	var peers []*peer
	for _, desc := range []protoreflect.MessageDescriptor{
		messageOf(t, fixture, "Everything"),
		messageOf(t, fixture2, "Old"),
		(&accountv1.GetSigningKeysResponse{}).ProtoReflect().Descriptor(),
		(&echov1.EchoRequest{}).ProtoReflect().Descriptor(),
		(&structpb.Value{}).ProtoReflect().Descriptor(),
		(&apipb.Api{}).ProtoReflect().Descriptor(),
		(&descriptorpb.FileDescriptorProto{}).ProtoReflect().Descriptor(),
	} {
		peers = append(peers, newPeer(t, desc))
	}
	return peers
}

// bareExponent is where protojson takes a number that is none: 1e.
var bareExponent = regexp.MustCompile(`[0-9][eE][+-]?([^0-9+-]|$)`)

// compareJSON demands that both read the same message from JSON, or neither.
func (p *peer) compareJSON(t testing.TB, text []byte) {
	t.Helper()
	want := dynamicpb.NewMessage(p.desc)
	wantErr := protojson.UnmarshalOptions{Resolver: p.types}.Unmarshal(text, want)
	const prefix = "prefix"
	wire, err := p.codec.AppendWire([]byte(prefix), text)
	require.Equal(t, prefix, string(wire[:len(prefix)]))
	if err != nil {
		f, ok := fault.From(err)
		require.True(t, ok)
		require.Equal(t, fault.InvalidArgument, f.Code)
		require.Len(t, wire, len(prefix))
		if wantErr == nil {
			require.True(t, f.Reason == reasonDepth || bareExponent.Match(text),
				"refused %s, which protojson accepts: %v", text, err)
		}
		return
	}
	require.NoError(t, wantErr, "accepted %s", text)
	got := dynamicpb.NewMessage(p.desc)
	require.NoError(t, proto.Unmarshal(wire[len(prefix):], got), "%s became no message", text)
	p.normalize(got)
	p.normalize(want)
	require.True(t, proto.Equal(want, got), "%s\nwant %v\ngot  %v", text, want, got)
}

// normalize marshals what Any hold in one way, as the order of fields and of map
// entries within them is free.
func (p *peer) normalize(m protoreflect.ProtoMessage) {
	var walk func(m protoreflect.Message)
	walk = func(m protoreflect.Message) {
		m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			switch {
			case fd.IsList() && fd.Message() != nil:
				for i := range v.List().Len() {
					walk(v.List().Get(i).Message())
				}
			case fd.IsMap() && fd.MapValue().Message() != nil:
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					walk(v.Message())
					return true
				})
			case fd.Message() != nil && !fd.IsMap():
				walk(v.Message())
			}
			return true
		})
		if m.Descriptor().FullName() != "google.protobuf.Any" {
			return
		}
		fields := m.Descriptor().Fields()
		kind, err := p.types.FindMessageByURL(m.Get(fields.ByName("type_url")).String())
		if err != nil {
			return
		}
		inner := kind.New()
		options := proto.UnmarshalOptions{AllowPartial: true, Resolver: p.types}
		if options.Unmarshal(m.Get(fields.ByName("value")).Bytes(), inner.Interface()) != nil {
			return
		}
		walk(inner)
		content, err := proto.MarshalOptions{AllowPartial: true, Deterministic: true}.Marshal(inner.Interface())
		if err == nil {
			m.Set(fields.ByName("value"), protoreflect.ValueOfBytes(content))
		}
	}
	walk(m.ProtoReflect())
}

// compareWire demands the same JSON of both, save for white space.
func (p *peer) compareWire(t testing.TB, wire []byte) {
	t.Helper()
	const prefix = "prefix"
	got, err := p.codec.AppendJSON([]byte(prefix), wire)
	require.Equal(t, prefix, string(got[:len(prefix)]))
	if err != nil {
		f, ok := fault.From(err)
		require.True(t, ok)
		require.Equal(t, fault.Internal, f.Code)
		require.Len(t, got, len(prefix))
	} else {
		require.True(t, json.Valid(got[len(prefix):]), "%s is not JSON", got)
	}
	m := dynamicpb.NewMessage(p.desc)
	if !p.unmarshal(wire, m) {
		// What a later value replaces is not looked into here.
		return
	}
	want, wantErr := protojson.MarshalOptions{AllowPartial: true, EmitDefaultValues: true, Resolver: p.types}.Marshal(m)
	if wantErr != nil {
		require.Error(t, err, "wrote %s, where protojson says %v", got, wantErr)
		return
	}
	if err != nil {
		f, _ := fault.From(err)
		require.ErrorContains(t, f.Unwrap(), "nests deeper", "%x", wire)
		return
	}
	var compact bytes.Buffer
	require.NoError(t, json.Compact(&compact, want))
	require.Equal(t, compact.String(), string(got[len(prefix):]), "%x", wire)
}

// unmarshal is proto.Unmarshal, which panics for a map's entry whose key comes
// again with another wire type.
func (p *peer) unmarshal(wire []byte, m proto.Message) (ok bool) {
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	return (proto.UnmarshalOptions{AllowPartial: true, Resolver: p.types}).Unmarshal(wire, m) == nil
}

// jsonSeeds are JSON texts with something to get wrong in each.
var jsonSeeds = []string{
	`{}`, ` {} `, ``, `null`, `[]`, `{} {}`, `{,}`, `{"a"}`, `{"a":}`, "\xef\xbb\xbf{}",
	`{"oneInt32Value":1}`, `{"one_int32_value":1.0e0}`, `{"oneInt32Value":"10e-1"}`, `{"oneInt32Value":1.5}`,
	`{"oneInt32Value":2147483648}`, `{"oneInt32Value":-2147483648}`, `{"oneInt32Value":01}`, `{"oneInt32Value":" 1"}`,
	`{"oneInt64Value":"-9223372036854775808"}`, `{"oneInt64Value":-9223372036854775809}`, `{"oneInt64Value":0.000001e22}`,
	`{"oneUint64Value":18446744073709551615}`, `{"oneUint64Value":1.8446744073709551615e19}`, `{"oneUint64Value":-0}`,
	`{"oneUint64Value":18446744073709551616}`, `{"oneSint32Value":-1,"oneSint64Value":"-1","oneSfixed32Value":-1,"oneSfixed64Value":-1}`,
	`{"oneFixed32Value":4294967295,"oneFixed64Value":"1","oneUint32Value":4294967296}`,
	`{"oneDoubleValue":1e308,"oneFloatValue":3.4e38}`, `{"oneDoubleValue":1e309}`, `{"manyFloatValue":[1e-6,9.9e-7,1e21,9.9e20,0,-0.0],"manyDoubleValue":[1e-6,9.9e-7,1e21,9.9e20,1e-10]}`, `{"oneFloatValue":3.5e38}`,
	`{"oneDoubleValue":"NaN","oneFloatValue":"-Infinity"}`, `{"oneDoubleValue":-0.0}`, `{"oneDoubleValue":"1e5"}`, `{"oneDoubleValue":1e}`,
	`{"oneBoolValue":true,"maybeBoolValue":false}`, `{"oneBoolValue":"true"}`, `{"oneBoolValue":truefalse}`, `{"oneBoolValue":null}`,
	`{"oneStringValue":"\u00e9\ud83d\ude00\n\"\\\/"}`, `{"oneStringValue":"\ud83d"}`, `{"oneStringValue":"\ud83dx"}`, "{\"oneStringValue\":\"\xff\"}",
	`{"oneStringValue":"` + "\x01" + `"}`, `{"oneStringValue":"\x"}`, `{"oneStringValue":"\u12"}`, `{"oneStringValue":"\`, `{"oneStringValue":1}`,
	`{"oneBytesValue":"-_8="}`, `{"oneBytesValue":"+/8"}`, `{"oneBytesValue":"+_8"}`, `{"oneBytesValue":"A"}`, `{"oneBytesValue":"AA\n=="}`,
	`{"maybeInt32Value":0,"maybeStringValue":"","maybeBytesValue":""}`, `{"manyInt32Value":[1,"2",3e0],"manyStringValue":["",""]}`,
	`{"manyInt32Value":[]}`, `{"manyInt32Value":[1,]}`, `{"manyInt32Value":[null]}`, `{"manyInt32Value":1}`, `{"looseSint64Value":[-1,0,1]}`,
	`{"color":"RED","colors":["CRIMSON",-2,77]}`, `{"color":"PINK"}`, `{"color":1.0}`, `{"color":""}`,
	`{"eitherInt32Value":0}`, `{"eitherInt32Value":1,"eitherColor":"RED"}`, `{"eitherInt32Value":null,"eitherColor":0}`, `{"eitherNull":null,"eitherSelf":{}}`,
	`{"null":null,"eitherNull":null,"nulls":[null,"NULL_VALUE",0]}`, `{"null":"x"}`,
	`{"self":{"self":{"self":{"oneStringValue":"deep"}}},"selves":[{},{"color":1},{}]}`, `{"self":null,"selves":null}`, `{"selves":[null]}`,
	`{"oneInt32Value":1,"one_int32_value":2}`, `{"oneInt32Value":null,"oneInt32Value":2}`, `{"nope":1}`, `{"with \"quotes\"":"x"}`, `{"renamed":"x"}`, `{"":1}`,
	`{"one\u0049nt32Value":5}`, `{"[fixture.ext]":1}`,
	`{"bystring":{"a":"b","c":"d"},"byint32":{"1":2,"+3":4},"bybool":{"true":false,"false":true}}`, `{"bystring":{"a":"b","\u0061":"d"}}`, `{"byint32":{"1":2,"01":4}}`,
	`{"byuint64":{"18446744073709551615":"1"},"bysint64":{"-5":5},"byfixed32":{"1":1},"bysfixed64":{"-1":1}}`, `{"bybool":{"yes":true}}`, `{"byint32":{"1.0":2}}`,
	`{"bystring":{"a":null}}`, `{"bystring":{"":""}}`, `{"selvesof":{"x":{"selvesof":{"y":{}}}},"colorsof":{"r":"RED","z":0},"valuesof":{"n":null,"l":[1]},"nullsof":{"n":null}}`,
	`{"byint32":{"1":1,"2":2,"3":3,"4":4,"5":5,"6":6,"7":7,"8":8,"9":9,"10":10,"3":0}}`, `{"valuesof":null}`,
	`{"oneTimestamp":"2006-01-02T15:04:05.999999999Z","manyTimestamp":["0001-01-01T00:00:00Z","9999-12-31T23:59:59.999999999Z"]}`,
	`{"oneTimestamp":"2006-01-02T15:04:05+24:00"}`, `{"oneTimestamp":"2006-01-02t15:04:05z"}`, `{"oneTimestamp":"2006-01-02T15:04:05.0000000001Z"}`, `{"oneTimestamp":"0000-01-01T00:00:00Z"}`,
	`{"onetimestamp":"2006-01-02T15:04:05,5Z"}`, `{"one_timestamp":"2016-12-31T23:59:60Z"}`, `{"one_timestamp":5}`, `{"one_timestamp":"1969-12-31T23:59:59.1-07:00"}`,
	`{"one_duration":"1.5s","many_duration":["-0.000000001s","+1s",".5s","1.s","-315576000000.999999999s"]}`, `{"one_duration":"315576000001s"}`, `{"one_duration":"1"}`, `{"one_duration":"01s"}`, `{"one_duration":"1.0000000000s"}`,
	`{"one_fieldmask":"a,bC.dE"}`, `{"one_fieldmask":""}`, `{"one_fieldmask":"a,"}`, `{"one_fieldmask":"a_b"}`, `{"one_fieldmask":" a "}`,
	`{"one_boolvalue":true,"one_int64value":"5","one_stringvalue":"","one_bytesvalue":"AA==","one_doublevalue":"NaN","many_int32value":[0,1]}`, `{"one_boolvalue":{}}`, `{"many_int32value":[null]}`,
	`{"one_struct":{"a":[1,"x",null,{"b":true}],"b":{}},"one_value":null,"many_value":[null,1.5,"s",[],{}],"one_listvalue":[[[]]]}`, `{"one_struct":[]}`, `{"one_struct":{"a":1,"a":2}}`, `{"one_value":1e400}`, `{"one_struct":{"a":}}`,
	`{"one_empty":{},"many_empty":[{},{}]}`, `{"one_empty":{"a":1}}`,
	`{"one_any":{"@type":"type.googleapis.com/fixture.Shelf","name":"x","parent":{"theme":"y"}}}`, `{"one_any":{"name":"x","@type":"fixture.Shelf"}}`, `{"one_any":{}}`, `{"one_any":{"name":"x"}}`,
	`{"one_any":{"@type":"a/google.protobuf.Duration","value":"1s"}}`, `{"one_any":{"value":"1s","@type":"a/google.protobuf.Duration"}}`, `{"one_any":{"@type":"a/google.protobuf.Duration"}}`, `{"one_any":{"@type":"/google.protobuf.Empty"}}`,
	`{"one_any":{"@type":"/google.protobuf.Any","value":{"@type":"/google.protobuf.Value","value":null}}}`, `{"one_any":{"@type":"/nope.Nope"}}`, `{"one_any":{"@type":"","a":1}}`, `{"one_any":{"@type":"/fixture.Shelf","@type":"/fixture.Shelf"}}`,
	`{"one_any":{"@type":"/fixture.Everything","oneAny":null,"byint32":{"1":1},"eitherInt32Value":1,"one_any":{"@type":"/fixture.Shelf"}}}`, `{"one_any":{"@type":5}}`, `{"one_any":null}`,
	`{"id":"x","child":{"id":"y"},"level":"HIGH","levels":[5,6],"numbers":["-1"],"byName":{"k":"SOME"},"b":{"id":"z"}}`, `{"count":1}`, `{"id":"x","child":{}}`, `{"id":null}`,
	`{"keys":[{"keyId":"k","publicKey":"AAEC","signFromTime":"2026-01-01T00:00:00Z"}],"endedSessions":[{"sessionId":"s"}]}`, `{"text":"hello","failWith":16,"delay_ms":"5"}`,
	`{"name":"a.proto","messageType":[{"name":"M","field":[{"name":"f","number":1,"type":"TYPE_INT32","options":{"packed":true}}]}],"options":{"uninterpretedOption":[{"name":[{"namePart":"x","isExtension":false}]}]}}`,
	`[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]`,
	`"text"`, `1.25`, `true`, `{"a":{"b":[{"c":null}]}}`,
}

func TestJSONSeeds(t *testing.T) {
	for _, p := range newPeers(t) {
		for _, seed := range jsonSeeds {
			p.compareJSON(t, []byte(seed))
		}
	}
}

func FuzzJSONToWire(f *testing.F) {
	peers := newPeers(f)
	for i := range peers {
		for _, seed := range jsonSeeds {
			f.Add(uint8(i), []byte(seed))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, text []byte) {
		p := peers[int(which)%len(peers)]
		p.compareJSON(t, text)
		if wire, err := p.codec.AppendWire(nil, text); err == nil {
			p.compareWire(t, wire)
		}
	})
}

// wireSeeds are what the JSON seeds become, and bytes that no marshaler writes:
// split and repeated messages, packed where it should not be, unknown fields and
// groups, oneofs that are set again, broken lengths.
func (p *peer) wireSeeds() [][]byte {
	seeds := [][]byte{
		{}, {0}, {8}, {0x08, 0x80}, {0x0a, 0x05}, {0x0b}, {0x0b, 0x0c}, {0x0c}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01},
		{0x28, 0x01, 0x28, 0x02}, {0x28, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}, {0x2d, 1, 2, 3, 4}, {0x4a, 1, 0xff},
		{0xea, 0x02, 0x02, 0x01, 0x80}, {0xe8, 0x02, 1, 0x28, 1, 0xe8, 0x02, 2, 0xea, 0x02, 2, 3, 4},
		{0xc2, 0x06, 2, 0x28, 1, 0xc2, 0x06, 2, 0x20, 7}, {0xd2, 0x06, 2, 0x28, 1, 0xa8, 0x05, 9, 0xd2, 0x06, 2, 0x20, 7},
		{0x82, 0x0b, 4, 0x10, 1, 0x08, 1}, []byte("\x92\n\r\b\xff0\r0000%00000"), {0x1a, 0}, {0x2a, 4, 0x0a, 2, 0x0a, 0}, {0xfa, 0x07, 0},
	}
	for _, text := range jsonSeeds {
		m := dynamicpb.NewMessage(p.desc)
		if (protojson.UnmarshalOptions{Resolver: p.types, AllowPartial: true}).Unmarshal([]byte(text), m) != nil {
			continue
		}
		wire, err := proto.MarshalOptions{AllowPartial: true, Deterministic: true}.Marshal(m)
		if err != nil {
			continue
		}
		seeds = append(seeds, wire, append(wire, wire...), append(bytes.Clone(wire), 0xfb, 0x3f, 0x08, 0x01, 0xfc, 0x3f))
	}
	return seeds
}

func TestWireSeeds(t *testing.T) {
	for _, p := range newPeers(t) {
		for _, seed := range p.wireSeeds() {
			p.compareWire(t, seed)
		}
	}
}

func FuzzWireToJSON(f *testing.F) {
	peers := newPeers(f)
	for i, p := range peers {
		for _, seed := range p.wireSeeds() {
			f.Add(uint8(i), seed)
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, wire []byte) {
		peers[int(which)%len(peers)].compareWire(t, wire)
	})
}
