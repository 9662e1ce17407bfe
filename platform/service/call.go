package service

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
)

// unary and stream are the way of every call through the harness, outermost
// first: a request id, the access log and metrics, recovery, errors, admission, a
// deadline, the mesh's authorisation, who the caller is and whether they may
// (for the organisation too that the request names), validation, the method.
// Each step is in the file of its name. They are one function and not a chain of
// interceptors because each link of a chain costs allocations on every call.
func (g *grpcServer) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	c := g.begin(ctx, info.FullMethod)
	defer func() { err = g.end(c, err, recover()) }()

	if !c.method.exempt {
		if err := g.service.admission.Enter(); err != nil {
			return nil, err
		}
		defer g.service.admission.Leave()
	}
	ctx, cancel := g.withDeadline(c)
	defer cancel()
	defer func() { c.over = ctx.Err() }()
	return g.meshUnary(ctx, req, info, func(ctx context.Context, req any) (any, error) {
		ctx, err := g.admit(ctx, c)
		if err != nil {
			return nil, err
		}
		if err := g.check(ctx, c.method, req); err != nil {
			return nil, err
		}
		return handler(ctx, req)
	})
}

func (g *grpcServer) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	c := g.begin(ss.Context(), info.FullMethod)
	defer func() { err = g.end(c, err, recover()) }()

	if c.method.exempt {
		defer g.endWithService(c)()
	}
	return g.meshStream(srv, &callStream{ServerStream: ss, ctx: c}, info, func(srv any, ss grpc.ServerStream) error {
		open := grpcfault.NewStream(ss.Context(), ss)
		defer open.Close()
		defer func() { c.over = open.Context().Err() }()
		ctx, err := g.admit(open.Context(), c)
		if err != nil {
			return err
		}
		leave, err := g.follow(open, c)
		if err != nil {
			return err
		}
		defer leave()
		return open.Result(handler(srv, &checkedStream{callStream{ServerStream: open, ctx: ctx}, g, c.method}))
	})
}

// call is one call in progress. It is the call's context as well, so that what
// the harness knows about the call costs one allocation.
type call struct {
	context.Context
	method    *method
	requestID string
	began     time.Time
	// inner is the innermost context, which knows the peer and the caller.
	inner context.Context
	// over is what the method's context said when the method returned: our own
	// cancelling, which follows, is nobody's leaving.
	over error
	// err is what the method returned, for the logs.
	err error
}

type callKey struct{}

// Value finds the call itself under callKey.
func (c *call) Value(key any) any {
	if key == (callKey{}) {
		return c
	}
	return c.Context.Value(key)
}

func (g *grpcServer) begin(ctx context.Context, fullMethod string) *call {
	c := &call{
		Context:   ctx,
		method:    g.methods[fullMethod],
		requestID: incomingRequestID(ctx),
		began:     time.Now(),
		inner:     ctx,
	}
	// The only error is that the headers were sent already, and nothing was.
	_ = grpc.SetHeader(ctx, g.servedBy)
	return c
}

func (g *grpcServer) end(c *call, err error, panicked any) error {
	if panicked != nil {
		err = g.recovered(c, panicked)
	}
	if err != nil {
		err = g.answer(c, err)
		// Only failures say their id: on every answer it costs 3 % of a call,
		// and who wants to follow one that goes well sends an id along. A
		// stream that has answered already cannot say it any more.
		_ = grpc.SetHeader(c, metadata.Pairs(requestIDKey, c.requestID))
	}
	g.observe(c, err)
	g.logAccess(c, err)
	return err
}

// servedByKey is the response header that names the answering instance.
const servedByKey = "x-served-by"

// callStream is a stream with a context of its own.
type callStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context carries what the harness knows about the call.
func (s *callStream) Context() context.Context { return s.ctx }

// checkedStream decides about each message that comes in.
type checkedStream struct {
	callStream
	server *grpcServer
	method *method
}

// RecvMsg fails for a message that breaks its rules, and for one about an
// organisation in which the caller has not the role it takes.
func (s *checkedStream) RecvMsg(m any) error {
	if err := s.callStream.RecvMsg(m); err != nil {
		return err
	}
	return s.server.check(s.ctx, s.method, m)
}
