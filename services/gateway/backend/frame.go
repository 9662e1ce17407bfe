package backend

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	// Registers the codec that Codec falls back to.
	_ "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// Frame is one message as the bytes that were on the wire. Whoever received or
// made it calls Free when done with it; sending it leaves it the sender's, so
// that it can be sent again.
type Frame struct {
	data mem.BufferSlice
}

// NewFrame makes a frame of bytes that nobody changes afterwards.
func NewFrame(b []byte) *Frame {
	return &Frame{data: mem.BufferSlice{mem.SliceBuffer(b)}}
}

// Bytes is the message in one piece, valid until Free. It copies only a
// message that arrived in several pieces.
func (f *Frame) Bytes() []byte {
	switch len(f.data) {
	case 0:
		return nil
	case 1:
		return f.data[0].ReadOnlyData()
	default:
		whole := f.data.Materialize()
		f.data.Free()
		f.data = mem.BufferSlice{mem.SliceBuffer(whole)}
		return whole
	}
}

// Free gives the buffers back. The frame is empty afterwards.
func (f *Frame) Free() {
	f.data.Free()
	f.data = nil
}

// Codec passes Frames through without looking at or copying them, and any other
// message as protobuf, so that a server or connection that forces it can still
// serve health and reflection. It calls itself "proto", as its bytes are.
func Codec() encoding.CodecV2 {
	return codec{proto: encoding.GetCodecV2("proto")}
}

type codec struct {
	proto encoding.CodecV2
}

func (c codec) Name() string { return "proto" }

// Marshal hands out another reference: gRPC frees what it is given, and the
// frame stays with its owner.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*Frame); ok {
		f.data.Ref()
		return f.data, nil
	}
	data, err := c.proto.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("marshal %T: %w", v, err)
	}
	return data, nil
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*Frame); ok {
		data.Ref()
		f.data = data
		return nil
	}
	if err := c.proto.Unmarshal(data, v); err != nil {
		return fmt.Errorf("unmarshal %T: %w", v, err)
	}
	return nil
}
