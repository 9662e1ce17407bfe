package grpcfault

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// Stream is a server stream that can be ended from outside: the handler's
// context ends, and its RecvMsg and SendMsg fail with why.
type Stream struct {
	grpc.ServerStream
	ctx    context.Context
	cancel context.CancelCauseFunc
	ended  atomic.Pointer[error]
}

// NewStream is inner for a handler, with ctx, which descends from inner's own,
// as its context. Close has to be called when the handler has returned.
func NewStream(ctx context.Context, inner grpc.ServerStream) *Stream {
	s := &Stream{ServerStream: inner}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	return s
}

// End ends the stream with why, as ToStatus has it. It may be called at any
// time, from anywhere; only the first counts.
func (s *Stream) End(why error, requestID string) {
	if s.ended.CompareAndSwap(nil, &why) {
		WriteStatus(s.ctx, ToStatus(why, requestID))
		s.cancel(why)
	}
}

// Close frees what the stream holds.
func (s *Stream) Close() { s.cancel(nil) }

// Result is what the call ends with: err, which is what the handler returned,
// unless End was first.
func (s *Stream) Result(err error) error {
	if why := s.ended.Load(); why != nil {
		return *why
	}
	return err
}

// Context is the handler's.
func (s *Stream) Context() context.Context { return s.ctx }

// RecvMsg receives the next message.
func (s *Stream) RecvMsg(m any) error {
	return s.Result(s.ServerStream.RecvMsg(m))
}

// SendMsg sends a message.
func (s *Stream) SendMsg(m any) error {
	if why := s.ended.Load(); why != nil {
		return *why
	}
	return s.Result(s.ServerStream.SendMsg(m))
}

// WriteStatus finishes the server stream that ctx belongs to while its handler
// still runs. Cancelling a context of ours does not free a handler that waits
// for a message, only the transport ending the stream does; what the handler
// then returns is not sent any more. On a transport that cannot, nothing happens.
func WriteStatus(ctx context.Context, st *status.Status) {
	// What gRPC's server transports have beside what their public interface says.
	w, ok := grpc.ServerTransportStreamFromContext(ctx).(interface{ WriteStatus(*status.Status) error })
	if ok {
		// An error means that the connection is gone, and the stream with it.
		_ = w.WriteStatus(st)
	}
}
