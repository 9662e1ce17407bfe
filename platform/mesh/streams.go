package mesh

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
)

// stream is a server stream that can be ended from outside.
type stream struct {
	grpc.ServerStream
	ctx    context.Context
	cancel context.CancelCauseFunc
	denied atomic.Pointer[fault.Error]
}

// statusWriter is what gRPC's server transports are beside what their public
// interface says.
type statusWriter interface {
	WriteStatus(*status.Status) error
}

// end finishes the stream with PERMISSION_DENIED. A handler that waits for a
// message is not freed by cancelling a context of ours, only by the transport
// ending the stream: so the status is written here, which also frees every
// RecvMsg and SendMsg, and what the handler then returns is not sent any more.
// On a transport without WriteStatus the stream ends at its next message.
func (s *stream) end(why *fault.Error) {
	s.denied.Store(why)
	if w, ok := grpc.ServerTransportStreamFromContext(s.ctx).(statusWriter); ok {
		// An error means that the connection is gone, and the stream with it.
		_ = w.WriteStatus(grpcfault.ToStatus(why, ""))
	}
	s.cancel(why)
}

// Context carries the peer's identity and ends when the peer is denied.
func (s *stream) Context() context.Context { return s.ctx }

// RecvMsg fails with MESH_DENIED once the peer is denied.
func (s *stream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if why := s.denied.Load(); why != nil {
		return why
	}
	return err
}

// SendMsg fails with MESH_DENIED once the peer is denied.
func (s *stream) SendMsg(m any) error {
	if why := s.denied.Load(); why != nil {
		return why
	}
	err := s.ServerStream.SendMsg(m)
	if why := s.denied.Load(); why != nil {
		return why
	}
	return err
}
