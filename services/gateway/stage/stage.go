// Package stage is what every request passes on its way through the gateway,
// whichever door it came in by: a list of stages, each of which sees the call,
// may refuse or change it, and sees how it ended.
package stage

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	"github.com/marquee-ads/marquee/services/gateway/catalog"
)

// Door is where a request came in.
type Door string

// The doors.
const (
	HTTP Door = "http"
	GRPC Door = "grpc"
)

// Call is one request on its way to a service. It belongs to one request and is
// not shared.
type Call struct {
	Door Door
	// Method is what is called; nil when there is no such method or route, so
	// that refusals pass the same stages as calls that are served.
	Method *catalog.Method
	// Target is what the caller asked for: a gRPC method's path, or an HTTP
	// method and path. It comes from outside and is for logs.
	Target string
	// Client is the address of the peer, without port.
	Client string
	// RequestID finds this call in the logs of everything it touched.
	RequestID string
	// Timeout is how long the caller is willing to wait; 0 if it did not say.
	Timeout time.Duration
	// Metadata goes to the service: what is allowed through of what the caller
	// sent, and what stages add. Keys are lower case.
	Metadata metadata.MD
	// Start is when the request came in.
	Start time.Time
	// Receive waits for the request itself, if it is not there yet; nil where
	// nothing is to be waited for, or the call is a stream of requests. It is
	// done by the stage of this name, and the door forwards what it received.
	Receive func(ctx context.Context) error
	// Unreceived says that Receive failed: what came of the call is the caller's
	// doing.
	Unreceived bool

	forward Handler
}

// Name is the full name of the method as it may label a metric: one of the
// methods in the catalog, or "unknown".
func (c *Call) Name() string {
	if c.Method == nil {
		return "unknown"
	}
	return c.Method.Path
}

// Handler does a call, or its remaining part. The error is a *fault.Error, or a
// gRPC status that the service answered with.
type Handler func(ctx context.Context, call *Call) error

// Stage wraps the rest of the way. It is made once, when the gateway starts; it
// must be safe for concurrent use.
type Stage func(next Handler) Handler

// Chain is stages in order, ready to run.
type Chain struct {
	handler Handler
}

// NewChain puts stages in order: the first sees a call first and its end last.
func NewChain(stages ...Stage) *Chain {
	handler := Handler(func(ctx context.Context, call *Call) error { return call.forward(ctx, call) })
	for i := len(stages) - 1; i >= 0; i-- {
		handler = stages[i](handler)
	}
	return &Chain{handler: handler}
}

// Run sends a call through the stages; after the last one, forward does it.
func (c *Chain) Run(ctx context.Context, call *Call, forward Handler) error {
	call.forward = forward
	return c.handler(ctx, call)
}

// Receive is the stage that waits for the request, in so many calls at a time; 0
// is no bound. A client may take its time over that, or never finish: what a stage
// before this one holds, it holds for as long.
func Receive(most int) Stage {
	var waiting atomic.Int64
	receive := func(ctx context.Context, call *Call) error {
		defer waiting.Add(-1)
		if waiting.Add(1) > int64(most) && most > 0 {
			return errFull
		}
		return call.Receive(ctx)
	}
	return func(next Handler) Handler {
		return func(ctx context.Context, call *Call) error {
			if call.Receive != nil {
				if err := receive(ctx, call); err != nil {
					call.Unreceived = true
					return err
				}
			}
			return next(ctx, call)
		}
	}
}

var errFull = fault.New(fault.ResourceExhausted, "OVERLOADED",
	"too many calls wait for their requests to arrive; try again later").WithRetryAfter(time.Second)

// CodeOf is the code that the caller is told.
func CodeOf(err error) fault.Code {
	if err == nil {
		return fault.OK
	}
	if f, ok := fault.From(err); ok {
		return f.Code
	}
	return fault.Code(status.Code(err))
}

// Ours says whether a code tells something of the platform and not of the request.
func Ours(code fault.Code) bool {
	switch code {
	case fault.Unknown, fault.DeadlineExceeded, fault.Internal, fault.Unavailable, fault.DataLoss:
		return true
	default:
		return false
	}
}

// StatusOf is the status that the caller is told: a *fault.Error in full, a
// status from the service as it is, anything else as an internal error.
func StatusOf(err error, requestID string) *status.Status {
	if _, ok := fault.From(err); !ok {
		if st, ok := status.FromError(err); ok {
			return st
		}
	}
	return grpcfault.ToStatus(err, requestID)
}
