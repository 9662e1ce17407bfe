// Package proxy is the gateway's door for native gRPC: it passes calls of all
// four stream kinds to the service that owns the method, as bytes.
package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"

	// Lets clients send compressed messages.
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/services/gateway/backend"
	"github.com/marquee-ads/marquee/services/gateway/catalog"
	"github.com/marquee-ads/marquee/services/gateway/deadline"
	"github.com/marquee-ads/marquee/services/gateway/recovery"
	"github.com/marquee-ads/marquee/services/gateway/stage"
)

// Options are what the door needs.
type Options struct {
	Catalog *catalog.Catalog
	Stages  *stage.Chain
	Limits  deadline.Limits
	// MaxMessage is the largest message in bytes, in either direction.
	MaxMessage int
	// ServedBy lets callers see which instance answered.
	ServedBy bool
	// TLS secures the door; nil is plaintext (behind a load balancer).
	TLS *tls.Config
	Log hclog.Logger
}

const (
	// maxHeader bounds one call's metadata in bytes, as HPACK counts it.
	maxHeader = 32 << 10
	// maxStreams bounds the calls in flight on one connection.
	maxStreams = 1000
	// helloTimeout is how long a client may take to begin: TLS and preface.
	helloTimeout = 5 * time.Second
	// Windows of a fixed size spare a ping for most messages (see mesh).
	streamWindow     = 256 << 10
	connectionWindow = 1 << 20
	// A connection that is silent holds a small buffer to read into and none to
	// write from: by default both are 32 KiB.
	readBuffer = 4 << 10
	// Workers keep grown stacks, which small calls would otherwise grow anew.
	workers = 64
	// acceptWithin is for how long nobody is let in while the services are not known.
	acceptWithin = 5 * time.Second
	// streamGrace is what is left of the drain for streams to be told to go
	// elsewhere, after everything else had its chance to finish.
	streamGrace = 500 * time.Millisecond
)

// Door is the gRPC server.
type Door struct {
	opts   Options
	server *grpc.Server
	health *health.Server

	// leaving ends the streams that are open when the drain runs out.
	leaving context.Context
	leave   context.CancelCauseFunc
	// uploads are the goroutines that read from clients; each ends with its call.
	uploads sync.WaitGroup
	served  chan struct{} // closed when Serve has returned
}

// New makes the door. Serve opens it.
func New(opts Options) *Door {
	d := &Door{opts: opts, health: health.NewServer(), served: make(chan struct{})}
	d.leaving, d.leave = context.WithCancelCause(context.Background())
	options := []grpc.ServerOption{
		grpc.ForceServerCodecV2(backend.Codec()),
		grpc.UnknownServiceHandler(d.handle),
		grpc.InTapHandle(d.tap),
		grpc.UnaryInterceptor(d.recoverUnary),
		grpc.StreamInterceptor(d.recoverStream),
		grpc.MaxRecvMsgSize(opts.MaxMessage),
		grpc.MaxSendMsgSize(opts.MaxMessage),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(helloTimeout),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.ReadBufferSize(readBuffer),
		grpc.NumStreamWorkers(workers),
		grpc.WaitForHandlers(true),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	}
	if opts.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(opts.TLS)))
	}
	d.server = grpc.NewServer(options...)
	healthv1.RegisterHealthServer(d.server, d.health)
	registerReflection(d.server, opts.Catalog)
	return d
}

// Serve takes calls from the listener until Stop, beginning when the services are
// known: a client that is not let in yet calls another gateway, and one that is would
// be told that nothing is known here, and call again at once. When that takes long
// clients are let in, and told. It does not block; failed is called if the door closes
// by itself.
func (d *Door) Serve(listener net.Listener, known <-chan struct{}, failed func(error)) {
	go func() {
		defer close(d.served)
		long := time.NewTimer(acceptWithin)
		defer long.Stop()
		select {
		case <-known:
		case <-long.C:
		case <-d.leaving.Done():
		}
		err := d.server.Serve(listener)
		if err != nil && d.leaving.Err() == nil {
			failed(fmt.Errorf("serve gRPC: %w", err))
		}
	}()
}

// Drain tells health checks that this instance is leaving; it still serves.
func (d *Door) Drain() { d.health.Shutdown() }

// Stop sends clients elsewhere (GOAWAY), lets calls in flight finish, ends the
// streams that do not shortly before ctx does, and cuts what is left then.
func (d *Door) Stop(ctx context.Context) error {
	d.Drain()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		d.server.GracefulStop()
	}()
	if until, ok := ctx.Deadline(); ok {
		timer := time.AfterFunc(time.Until(until)-streamGrace, func() {
			d.leave(fault.New(fault.Unavailable, "GATEWAY_LEAVING", "this gateway is going away; call again"))
		})
		defer timer.Stop()
	}
	var err error
	select {
	case <-stopped:
	case <-ctx.Done():
		err = fmt.Errorf("calls in flight were cut: %w", ctx.Err())
		d.server.Stop()
		<-stopped
	}
	d.leave(nil)
	d.uploads.Wait()
	<-d.served
	return err
}

// panicked logs what recover returned and is the answer where no stage has run
// that would know more.
func (d *Door) panicked(what any, target string) error {
	_ = recovery.Caught(d.opts.Log, what, "target", target)
	return status.Error(codes.Internal, "internal error")
}

// recoverUnary and recoverStream are around everything a call does, also what
// is not in the stages: finding the method, writing the answer, gRPC's own
// services.
func (d *Door) recoverUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (_ any, err error) {
	defer func() {
		if what := recover(); what != nil {
			err = d.panicked(what, info.FullMethod)
		}
	}()
	return handler(ctx, req)
}

func (d *Door) recoverStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer func() {
		if what := recover(); what != nil {
			err = d.panicked(what, info.FullMethod)
		}
	}()
	return handler(srv, stream)
}

// tap gives the call its deadline before its first byte is waited for: the
// caller's own is set already, this adds the limits.
func (d *Door) tap(ctx context.Context, info *tap.Info) (_ context.Context, err error) {
	// It runs in the connection's goroutine.
	defer func() {
		if what := recover(); what != nil {
			err = d.panicked(what, info.FullMethodName)
		}
	}()
	method, known := d.opts.Catalog.Snapshot().Method(info.FullMethodName)
	if !known {
		return ctx, nil
	}
	// The stream's own context ends this one, and with it the timer.
	ctx, _ = d.opts.Limits.Apply(ctx, method, 0)
	return ctx, nil
}

// pump passes the service's side of a stream to the client: header, messages,
// trailer, status.
func (d *Door) pump(ctx context.Context, call *stage.Call, from grpc.ClientStream, to grpc.ServerStream) error {
	header, err := from.Header()
	if err == nil && header != nil {
		if err := to.SendHeader(d.answer(header, call)); err != nil {
			return err
		}
	}
	var frame backend.Frame
	for {
		if err := from.RecvMsg(&frame); err != nil {
			to.SetTrailer(d.answer(from.Trailer(), nil))
			if isEnd(err) {
				return nil
			}
			return call.Method.Backend.Explain(ctx, err, from)
		}
		err := to.SendMsg(&frame)
		frame.Free()
		if err != nil {
			return err
		}
	}
}

// upload passes the client's side of a stream to the service, up to the
// half-close. Whatever goes wrong on the client's side, or here, ends the call
// through cancel; what goes wrong on the service's side arrives at pump as the
// status.
func (d *Door) upload(call *stage.Call, from grpc.ServerStream, to grpc.ClientStream, cancel context.CancelCauseFunc) {
	defer func() {
		if what := recover(); what != nil {
			_ = recovery.Caught(d.opts.Log, what, "target", call.Target, "request_id", call.RequestID)
			cancel(fault.New(fault.Internal, "INTERNAL", "internal error"))
		}
	}()
	var frame backend.Frame
	for {
		err := from.RecvMsg(&frame)
		if isEnd(err) {
			_ = to.CloseSend() // never fails: a broken stream shows in RecvMsg
			return
		}
		if err != nil {
			cancel(err)
			return
		}
		err = to.SendMsg(&frame)
		frame.Free()
		if err != nil {
			return
		}
	}
}

var errNoRequest = errors.New("the client closed its side without a request")
