package transcode

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/fault"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
)

func TestResponseJSON(t *testing.T) {
	codec, err := NewCodec((&accountv1.GetAccountResponse{}).ProtoReflect().Descriptor())
	require.NoError(t, err)
	for want, m := range map[string]proto.Message{
		`{}`:                                     &accountv1.GetAccountResponse{},
		`{"account":{"accountId":"","name":""}}`: &accountv1.GetAccountResponse{Account: &accountv1.Account{}},
		`{"account":{"accountId":"acc_1","name":"\"é\u0001","createTime":"2026-11-21T10:00:00.500Z"}}`: &accountv1.GetAccountResponse{
			Account: &accountv1.Account{AccountId: "acc_1", Name: "\"é\x01", CreateTime: &timestamppb.Timestamp{Seconds: 1795255200, Nanos: 5e8}},
		},
	} {
		wire, err := proto.Marshal(m)
		require.NoError(t, err)
		got, err := codec.AppendJSON(nil, wire)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
}

func TestRefusedJSON(t *testing.T) {
	file := overTheWire(t, fixtureFile(""))
	codec, err := NewCodec(messageOf(t, file, "Everything"))
	require.NoError(t, err)
	old, err := NewCodec(messageOf(t, overTheWire(t, parseFile(fixtureProto2)), "Old"))
	require.NoError(t, err)
	for _, c := range []struct {
		json, reason, path, message string
	}{
		{``, reasonJSON, "", "a value is missing"},
		{`{"a" 1}`, reasonJSON, "", "line 1, column 6: expected ':'"},
		{"{\n  \"oneInt32Value\": 1\n  \"x\"", reasonJSON, "", "line 3, column 3: expected ',' or '}'"},
		{`{"oneInt32Value":1}x`, reasonJSON, "", "expected the end"},
		{`{"oneStringValue":"a`, reasonJSON, "one_string_value", "a closing quote is missing"},
		{`{"oneStringValue":"\q"}`, reasonJSON, "one_string_value", "no escape"},
		{"{\"oneStringValue\":\"\xc3\"}", reasonUTF8, "one_string_value", ""},
		{`{"oneStringValue":"\ud800"}`, reasonUTF8, "one_string_value", "surrogate"},
		{`{"nope":1}`, reasonUnknown, "nope", "no such field in fixture.Everything"},
		{`{"no pe\u0001":1}`, reasonUnknown, `"no pe\x01"`, ""},
		{`{"self":{"selves":[{},{"nope":1}]}}`, reasonUnknown, "self.selves[1].nope", ""},
		{`{"selvesof":{"a\"b":{"color":"PINK"}}}`, reasonValue, `selvesof["a\"b"].color`, `"PINK"`},
		{`{"selvesof":{"k" : [1]}}`, reasonType, `selvesof["k"]`, "expected an object, got an array"},
		{`{"byint32":{"x":1}}`, reasonValue, `byint32["x"]`, "32-bit integer"},
		{`{"bystring":{"x":"","x":""}}`, reasonDuplicate, `bystring["x"]`, "twice"},
		{`{"color":"RED","color":"RED"}`, reasonDuplicate, "color", "twice"},
		{`{"eitherColor":"RED","eitherSelf":{}}`, reasonDuplicate, "either_self", "oneof either"},
		{`{"oneInt32Value":"x"}`, reasonValue, "one_int32_value", ""},
		{`{"oneInt32Value":true}`, reasonType, "one_int32_value", "expected a 32-bit integer, got a boolean"},
		{`{"oneInt32Value":nul}`, reasonJSON, "one_int32_value", "expected a value"},
		{`{"oneUint64Value":-1}`, reasonValue, "one_uint64_value", "unsigned 64-bit"},
		{`{"oneStringValue":5}`, reasonType, "one_string_value", "expected a string, got a number"},
		{`{"oneBytesValue":"***"}`, reasonValue, "one_bytes_value", "base64"},
		{`{"oneTimestamp":"x"}`, reasonValue, "one_timestamp", "RFC 3339"},
		{`{"oneTimestamp":{}}`, reasonType, "one_timestamp", "expected a string, got an object"},
		{`{"oneDuration":"x"}`, reasonValue, "one_duration", "1.5s"},
		{`{"oneFieldmask":"a_b"}`, reasonValue, "one_fieldmask", "lowerCamelCase"},
		{`{"oneAny":{"@type":"/nope.Nope"}}`, reasonAny, `one_any."@type"`, "not known here"},
		{`{"oneAny":{"x":1}}`, reasonAny, "one_any", "@type"},
		{`{"manyInt32Value":[1,2,"x"]}`, reasonValue, "many_int32_value[2]", ""},
		{`{"manyStringValue":{}}`, reasonType, "many_string_value", "expected an array, got an object"},
		{`{"oneStruct":` + strings.Repeat(`{"a":`, maxDepth) + `1` + strings.Repeat(`}`, maxDepth) + `}`, reasonDepth, "", ""},
		{`{"oneAny":` + strings.Repeat(`{"@type":"/google.protobuf.Any","value":`, maxAnys+1) + `{}` + strings.Repeat(`}`, maxAnys+1) + `}`, reasonDepth, "", ""},
	} {
		_, err := codec.AppendWire(nil, []byte(c.json))
		if c.reason == reasonDepth {
			f, ok := fault.From(err)
			require.True(t, ok)
			require.Equal(t, reasonDepth, f.Reason)
			require.Less(t, len(f.Message), 1024)
			continue
		}
		requireFault(t, err, c.reason, c.path)
		require.ErrorContains(t, err, c.message)
	}
	_, err = old.AppendWire(nil, []byte(`{"child":{"id":"x"}}`))
	requireFault(t, err, reasonRequired, "")
}

func TestRefusedWire(t *testing.T) {
	codec, err := NewCodec(messageOf(t, overTheWire(t, fixtureFile("")), "Everything"))
	require.NoError(t, err)
	nested := []byte{}
	for range maxDepth + 1 {
		nested = protowire.AppendBytes(protowire.AppendTag(nil, 104, protowire.BytesType), nested)
	}
	for name, c := range map[string]struct {
		wire []byte
		want string
	}{
		"Truncated":  {[]byte{0x4a, 5, 'x'}, "malformed"},
		"BadTag":     {[]byte{0}, "malformed"},
		"EndGroup":   {[]byte{0x0c}, "malformed"},
		"NotUTF8":    {[]byte{0x4a, 1, 0xff}, "one_string_value: the text is not valid UTF-8"},
		"BadPacked":  {append(protowire.AppendTag(nil, 45, protowire.BytesType), 2, 1, 0x80), "many_int32_value[1]"},
		"TooDeep":    {nested, "nests deeper"},
		"FarFuture":  {append(protowire.AppendTag(nil, 122, protowire.BytesType), 7, 8, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20), "one_timestamp"},
		"EmptyValue": {append(protowire.AppendTag(nil, 126, protowire.BytesType), 0), "holds nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := codec.AppendJSON([]byte("kept"), c.wire)
			require.Equal(t, "kept", string(out))
			f, ok := fault.From(err)
			require.True(t, ok)
			require.Equal(t, fault.Internal, f.Code)
			require.Equal(t, reasonResponse, f.Reason)
			require.Equal(t, "internal error", f.Message)
			require.ErrorContains(t, err, c.want)
		})
	}
}

// TestLengths nests messages so that the lengths in front of them take one to
// four bytes each.
func TestLengths(t *testing.T) {
	desc := messageOf(t, overTheWire(t, fixtureFile("")), "Everything")
	codec, err := NewCodec(desc)
	require.NoError(t, err)
	for _, size := range []int{0, 1, 118, 119, 120, 121, 122, 123, 124, 125, 126, 127, 128, 129, 16370, 16383, 16384, 2 << 20} {
		text := strings.Repeat("x", size)
		json := fmt.Sprintf(`{"selves":[{"self":{"oneStringValue":"\u0061%s"},"manyInt32Value":[1,300]},{"oneStringValue":"%s"}]}`, text, text)
		json = strings.Repeat(`{"self":`, 20) + json + strings.Repeat("}", 20)
		wire, err := codec.AppendWire(nil, []byte(json))
		require.NoError(t, err)
		m := dynamicpb.NewMessage(desc)
		require.NoError(t, proto.Unmarshal(wire, m))
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		require.NoError(t, err)
		require.Equal(t, len(want), len(wire))
		back, err := codec.AppendJSON(nil, wire)
		require.NoError(t, err)
		again, err := codec.AppendWire(nil, back)
		require.NoError(t, err)
		same := dynamicpb.NewMessage(desc)
		require.NoError(t, proto.Unmarshal(again, same))
		require.True(t, proto.Equal(m, same))
	}
}

// TestConcurrent shares a codec; under -race it shows what is not to be shared.
func TestConcurrent(t *testing.T) {
	codec, err := NewCodec(messageOf(t, overTheWire(t, fixtureFile("")), "Everything"))
	require.NoError(t, err)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 50 {
				json := fmt.Sprintf(`{"oneAny":{"@type":"/fixture.Shelf","name":"%d"},"bystring":{"a":"%d"},"self":{"oneInt32Value":%d}}`, i, n, n+1)
				wire, err := codec.AppendWire(nil, []byte(json))
				if err != nil {
					t.Error(err)
					return
				}
				back, err := codec.AppendJSON(nil, wire)
				if err != nil {
					t.Error(err)
					return
				}
				if !strings.Contains(string(back), fmt.Sprintf(`"bystring":{"a":"%d"}`, n)) {
					t.Errorf("%s became %s", json, back)
					return
				}
			}
		})
	}
	wg.Wait()
}
