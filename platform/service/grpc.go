package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"time"

	"buf.build/go/protovalidate"
	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	"github.com/marquee-ads/marquee/platform/mesh"
)

// GRPCOptions are what differs between the gRPC servers of services. The zero
// value of a field is its default.
type GRPCOptions struct {
	// Keys verify access tokens, made for the configured environment. A service
	// with a method for accounts does not start without them.
	Keys auth.Keys
	// DefaultDeadline is for unary calls that come without one (15 s), and
	// MaxDeadline bounds the one a unary call comes with (2 min).
	DefaultDeadline, MaxDeadline time.Duration
}

func (o GRPCOptions) withDefaults() GRPCOptions {
	if o.DefaultDeadline == 0 {
		o.DefaultDeadline = 15 * time.Second
	}
	if o.MaxDeadline == 0 {
		o.MaxDeadline = 2 * time.Minute
	}
	return o
}

const (
	// maxHeaderBytes bounds a call's metadata: a token has at most 8 KiB.
	maxHeaderBytes = 32 << 10
	// maxStreams bounds the calls in flight on one connection: more wait at the
	// caller.
	maxStreams = 1000
	// maxMessageBytes bounds one message in either direction, after decompression.
	maxMessageBytes = 4 << 20
)

// grpcServer is the server on the mesh port and what its interceptors need.
type grpcServer struct {
	service *Service
	opts    GRPCOptions
	log     hclog.Logger
	server  *grpc.Server

	servedBy   metadata.MD
	latency    *prometheus.HistogramVec
	verifier   *auth.Verifier
	meshUnary  grpc.UnaryServerInterceptor
	meshStream grpc.StreamServerInterceptor

	// Set by start, before the first call.
	methods   map[string]*method
	validator protovalidate.Validator

	served chan error
	// draining ends when the server stops taking calls.
	draining context.Context
	drain    context.CancelFunc
}

// NewGRPCServer makes the gRPC server of the mesh port, with the mesh's
// credentials, all interceptors, health and reflection, and adds it as a
// component: it listens on Config.Listen once Serve has started what was added
// before. Register services on it before Serve. Serve fails when a method says
// not who may call it (the option marquee.access.v1.access).
func (s *Service) NewGRPCServer(opts GRPCOptions) *grpc.Server {
	opts = opts.withDefaults()
	g := &grpcServer{
		service:    s,
		opts:       opts,
		log:        s.log.Named("grpc"),
		servedBy:   metadata.Pairs(servedByKey, s.instanceID),
		latency:    s.callSeconds(),
		meshUnary:  s.mesh.UnaryServerInterceptor(),
		meshStream: s.mesh.StreamServerInterceptor(),
		served:     make(chan error, 1),
	}
	g.draining, g.drain = context.WithCancel(context.WithoutCancel(s.life))
	if opts.Keys != nil {
		g.verifier = auth.NewVerifier(auth.Issuer, s.cfg.Environment, opts.Keys, nil)
	}
	options := mesh.DefaultDialSettings().ServerOptions()
	options = append(options,
		grpc.Creds(s.mesh.ServerCredentials()),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxRecvMsgSize(maxMessageBytes),
		grpc.MaxSendMsgSize(maxMessageBytes),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.WaitForHandlers(true),
		// Goroutines that stay have grown their stacks already: 5 % of a cheap
		// call. When all are busy a call gets a goroutine of its own.
		grpc.NumStreamWorkers(uint32(4*runtime.GOMAXPROCS(0))),
		grpc.UnaryInterceptor(g.unary),
		grpc.StreamInterceptor(g.stream),
	)
	if h := s.tracing.serverHandler(); h != nil {
		options = append(options, grpc.StatsHandler(h))
	}
	g.server = grpc.NewServer(options...)
	healthpb.RegisterHealthServer(g.server, s.health)
	reflection.Register(g.server)

	s.Add(Component{Name: "the gRPC server", Start: g.start, Stop: g.stop})
	return g.server
}

func (g *grpcServer) start(ctx context.Context) error {
	if err := g.describe(); err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", g.service.cfg.Listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	go func() {
		err := g.server.Serve(listener)
		if errors.Is(err, grpc.ErrServerStopped) { // stopped before it began
			err = nil
		}
		g.served <- err
		if err != nil {
			g.service.Fail(fmt.Errorf("the gRPC server: %w", err))
		}
	}()
	g.service.Announce(listener.Addr(), "grpc")
	return nil
}

// endWithService ends a stream of gRPC's own when the server drains: a client
// that watches health or keeps reflection open never ends it by itself, and
// would hold the shutdown up until DrainTimeout.
func (g *grpcServer) endWithService(ctx context.Context) (release func() bool) {
	return context.AfterFunc(g.draining, func() {
		grpcfault.WriteStatus(ctx, status.New(codes.Unavailable, "the server is stopping"))
	})
}

// handlersLeave is how long handlers whose calls were cut get to return. It is
// less than what Service.stop has for the rest, so that some is left for others.
const handlersLeave = time.Second

// stop refuses new calls and lets those in flight finish until ctx ends; then
// it cuts them.
func (g *grpcServer) stop(ctx context.Context) error {
	g.drain()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		g.server.GracefulStop()
	}()
	select {
	case <-drained:
		return <-g.served
	case <-ctx.Done():
	}
	cut := make(chan struct{})
	go func() {
		defer close(cut)
		g.server.Stop()
		<-drained
	}()
	timer := time.NewTimer(handlersLeave)
	defer timer.Stop()
	select {
	case <-cut:
		g.log.Warn("calls were still in flight after --drain-timeout and were cut")
		return <-g.served
	case <-timer.C:
		return errHandlersStay
	}
}

var errHandlersStay = errors.New("handlers did not return after their calls were cut")
