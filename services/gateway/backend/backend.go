// Package backend calls one service as bytes: unary calls and streams over a
// balanced connection, repeated within a budget where the method allows it.
package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/fault"
)

const (
	maxAttempts = 4
	maxBackoff  = 250 * time.Millisecond
)

// backoffs are the mean waits before the second, third and fourth attempt.
var backoffs = [maxAttempts - 1]time.Duration{10 * time.Millisecond, 50 * time.Millisecond, 200 * time.Millisecond}

// Dial makes a balanced connection to a service; mesh.Mesh.NewClient is one.
type Dial func(service string, opts ...grpc.DialOption) (*grpc.ClientConn, error)

// Backend is one service behind the gateway. It is safe for concurrent use.
type Backend struct {
	service string
	conn    *grpc.ClientConn
	budget  budget
}

// New makes a backend. It does not block; the connection is made when needed.
// Messages larger than maxMessage bytes are refused in either direction with
// RESOURCE_EXHAUSTED.
func New(service string, dial Dial, maxMessage int) (*Backend, error) {
	conn, err := dial(service,
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(Codec()),
			grpc.MaxCallRecvMsgSize(maxMessage),
			grpc.MaxCallSendMsgSize(maxMessage),
		),
		// Attempts are counted here; grpc-go still repeats by itself what it
		// knows was never sent.
		grpc.WithDisableRetry(),
	)
	if err != nil {
		return nil, fmt.Errorf("make a connection to %s: %w", service, err)
	}
	b := &Backend{service: service, conn: conn}
	b.budget.fill()
	return b, nil
}

// Service is the name of the service in the registry.
func (b *Backend) Service() string { return b.service }

// Conn is the connection, for calls with generated messages (reflection).
func (b *Backend) Conn() grpc.ClientConnInterface { return b.conn }

// Connect starts connecting without waiting for a call.
func (b *Backend) Connect() { b.conn.Connect() }

// Close ends the connection and the calls on it.
func (b *Backend) Close() error { return b.conn.Close() }

// Reply is the answer to a unary call. Header and Trailer are also set when the
// service answered with an error. The caller frees Message.
type Reply struct {
	Message Frame
	Header  metadata.MD
	Trailer metadata.MD
}

// Invoke makes a unary call. The context's outgoing metadata and deadline go
// with it. With idempotent set it is repeated when no instance could be reached
// or one went away; otherwise only if it was never sent. Errors are a gRPC
// status as the service sent it, or a *fault.Error when it never came so far.
func (b *Backend) Invoke(ctx context.Context, path string, idempotent bool, request *Frame, reply *Reply) error {
	for attempt := 0; ; attempt++ {
		reply.Header, reply.Trailer = nil, nil
		err := b.conn.Invoke(ctx, path, request, &reply.Message, grpc.Header(&reply.Header), grpc.Trailer(&reply.Trailer))
		if err == nil {
			if attempt == 0 {
				b.budget.deposit()
			}
			return nil
		}
		reply.Message.Free()
		if !idempotent || !b.again(ctx, attempt, err) {
			return b.explain(ctx, err, len(reply.Header)+len(reply.Trailer) > 0)
		}
	}
}

// Stream is an open stream whose header has arrived.
type Stream struct {
	grpc.ClientStream
	header metadata.MD
	// ended: the status came in place of a first message.
	ended error
}

// Header is the header the service sent; nil if it sent none before its status.
func (s *Stream) Header() (metadata.MD, error) { return s.header, nil }

// RecvMsg is that of grpc.ClientStream: io.EOF is the end with status OK.
func (s *Stream) RecvMsg(m any) error {
	if s.ended != nil {
		return s.ended
	}
	return s.ClientStream.RecvMsg(m)
}

// Watch makes a server-streaming call: it sends the one request and returns
// when the service has answered, with its header or at once with a status. Up to
// there an idempotent call is repeated as in Invoke. The context must be
// cancelled to release the stream. Errors are as for Invoke; those of RecvMsg go
// through Explain.
func (b *Backend) Watch(ctx context.Context, path string, idempotent bool, request *Frame) (*Stream, error) {
	for attempt := 0; ; attempt++ {
		stream, err := b.watch(ctx, path, request)
		if err == nil {
			if attempt == 0 {
				b.budget.deposit()
			}
			return stream, nil
		}
		if idempotent && b.again(ctx, attempt, err) {
			continue
		}
		if stream != nil {
			return stream, nil // RecvMsg says the same, and there is a trailer
		}
		return nil, b.explain(ctx, err, false)
	}
}

var (
	serverStream = &grpc.StreamDesc{ServerStreams: true}
	anyStream    = &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
)

// watch returns the stream also with an error, if there is one.
func (b *Backend) watch(ctx context.Context, path string, request *Frame) (*Stream, error) {
	inner, err := b.conn.NewStream(ctx, serverStream, path)
	if err != nil {
		return nil, err
	}
	stream := &Stream{ClientStream: inner}
	// io.EOF says that the stream has ended already; RecvMsg has the status.
	if err := inner.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := inner.CloseSend(); err != nil {
		return nil, err
	}
	header, err := inner.Header()
	if err == nil && header != nil {
		stream.header = header
		return stream, nil
	}
	var none Frame
	stream.ended = inner.RecvMsg(&none)
	none.Free()
	if errors.Is(stream.ended, io.EOF) {
		return stream, nil
	}
	return stream, stream.ended
}

// Open opens a stream in which both sides send as they like. It is never
// repeated. The context must be cancelled to release it.
func (b *Backend) Open(ctx context.Context, path string) (grpc.ClientStream, error) {
	stream, err := b.conn.NewStream(ctx, anyStream, path)
	if err != nil {
		return nil, b.explain(ctx, err, false)
	}
	return stream, nil
}

// Explain turns the error of a stream's RecvMsg into what the caller is told:
// a status the service sent stays as it is, one that gRPC made up here because
// the service could not be reached is replaced.
func (b *Backend) Explain(ctx context.Context, err error, stream grpc.ClientStream) error {
	header, _ := stream.Header()
	return b.explain(ctx, err, len(header)+len(stream.Trailer()) > 0)
}

// again waits before the next attempt, and says whether there is to be one.
func (b *Backend) again(ctx context.Context, attempt int, err error) bool {
	if attempt == 0 {
		b.budget.deposit()
	}
	if attempt >= len(backoffs) || ctx.Err() != nil {
		return false
	}
	st := status.Convert(err)
	if st.Code() != codes.Unavailable || askedToWait(st) > maxBackoff || !b.budget.withdraw() {
		return false
	}
	// A fifth more or less, so that the calls an instance takes down with it do
	// not come back as one.
	wait := time.Duration(float64(backoffs[attempt]) * (0.8 + 0.4*rand.Float64()))
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// askedToWait is the delay that the service asked for, if it did.
func askedToWait(st *status.Status) time.Duration {
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// explain replaces statuses that this process's gRPC made up: their text has
// addresses of the inside in it, and no reason that a program could act on.
func (b *Backend) explain(ctx context.Context, err error, fromService bool) error {
	// Whoever cancelled the call with a reason of its own says it better.
	if cause, ok := fault.From(context.Cause(ctx)); ok {
		return cause
	}
	st := status.Convert(err)
	local := !fromService || ctx.Err() != nil
	if !local || len(st.Proto().GetDetails()) > 0 {
		return err
	}
	switch st.Code() {
	case codes.Unavailable:
		return fault.New(fault.Unavailable, "SERVICE_UNAVAILABLE", "no instance of %s answers; try again", b.service).
			WithRetryAfter(time.Second).Because(err)
	case codes.DeadlineExceeded:
		return fault.New(fault.DeadlineExceeded, "DEADLINE_EXCEEDED", "%s did not answer in time", b.service).Because(err)
	case codes.Canceled:
		// A client's message that could not be read: its error is a status.
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			return cause
		}
		return fault.New(fault.Canceled, "CANCELLED", "the call was cancelled").Because(err)
	default:
		return err
	}
}
