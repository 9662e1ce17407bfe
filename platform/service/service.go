// Package service is the harness of every service: configuration, logs,
// metrics, tracing, the mesh, a gRPC server with its interceptors, an admin
// port, ordered start and a shutdown that fails no call.
//
// A service's main is service.Main(name, run), and run reads top to bottom:
//
//	func run(ctx context.Context, cfg config) error {
//		svc, err := service.New(ctx, cfg.Config)
//		if err != nil {
//			return err
//		}
//		defer svc.Close()
//		server := svc.NewGRPCServer(service.GRPCOptions{Keys: keys})
//		echov1.RegisterEchoServiceServer(server, echo.New(svc.InstanceID()))
//		return svc.Serve(ctx)
//	}
package service

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/marquee-ads/marquee/platform/discovery"
	"github.com/marquee-ads/marquee/platform/mesh"
)

// Component is a part of a service with a beginning and an end.
type Component struct {
	// Name is what errors and logs call it.
	Name string
	// Start returns when the component works; work that goes on is the
	// component's own to end in Stop. The context ends when the service is told
	// to stop or a part fails. May be nil.
	Start func(ctx context.Context) error
	// Stop returns when nothing of the component runs any more, at the latest
	// when the context ends. It is only called after Start succeeded. May be nil.
	Stop func(ctx context.Context) error
}

// Service is one running process of the platform.
type Service struct {
	cfg        Config
	log        hclog.Logger
	instanceID string
	registry   *prometheus.Registry
	consul     *consul.Client
	discovery  *discovery.Consul
	mesh       mesh.Mesh
	health     *health.Server
	readiness  *readiness
	admin      *admin
	admission  *Admission
	tracing    *tracing

	components []Component
	// life ends with the first failure of a part, its cause.
	life context.Context
	fail context.CancelCauseFunc

	watching sync.WaitGroup // what ends with life
	closing  sync.Once

	mu        sync.Mutex
	serving   []string // names in gRPC health; "" is the whole process
	ready     bool
	listening net.Addr          // of the mesh port; nil until it listens
	tags      []string          // what it is registered with
	meta      map[string]string // likewise
}

// New makes the parts that every service has and opens the admin port, so that
// a process which waits for its database can be looked at. It does not wait
// for anything: Serve does. Close ends what New began.
func New(ctx context.Context, cfg Config) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Service{
		cfg:        cfg,
		log:        newLogger(cfg),
		instanceID: instanceID(cfg.Name),
		registry:   prometheus.NewRegistry(),
		health:     health.NewServer(),
	}
	s.life, s.fail = context.WithCancelCause(context.WithoutCancel(ctx))
	s.serves("")
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	s.readiness = newReadiness(s.log, s.readyChanged)

	s.admission = newAdmission(cfg.MaxInFlight, s.registry)

	var err error
	if s.tracing, err = newTracing(ctx, cfg); err != nil {
		return nil, err
	}
	if err := s.wire(ctx); err != nil {
		s.Close()
		return nil, err
	}
	s.watching.Go(s.watchToken)
	s.Require("mesh", s.mesh.Ready)
	if s.admin, err = newAdmin(ctx, s); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close ends what New and Require began and Serve did not end already. It may
// be called more than once.
func (s *Service) Close() {
	s.closing.Do(func() {
		s.fail(nil)
		s.watching.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s.readiness.close()
		if s.admin != nil {
			s.admin.close(ctx)
		}
		if s.mesh != nil {
			if err := s.mesh.Close(); err != nil {
				s.log.Warn("closing the mesh", "error", err)
			}
		}
		if s.discovery != nil {
			if err := s.discovery.Close(); err != nil {
				s.log.Warn("closing discovery", "error", err)
			}
		}
		if err := s.tracing.close(ctx); err != nil {
			s.log.Warn("handing in the last traces", "error", err)
		}
	})
}

// Log is the service's logger.
func (s *Service) Log() hclog.Logger { return s.log }

// Metrics is where a service registers its own.
func (s *Service) Metrics() prometheus.Registerer { return s.registry }

// Mesh is the service's place in the mesh.
func (s *Service) Mesh() mesh.Mesh { return s.mesh }

// Discovery finds services and their instances.
func (s *Service) Discovery() *discovery.Consul { return s.discovery }

// Consul is a client of the local agent.
func (s *Service) Consul() *consul.Client { return s.consul }

// InstanceID names this instance among those of its service: the Nomad
// allocation's id, or one made at start.
func (s *Service) InstanceID() string { return s.instanceID }

// AdminAddr is where the admin port listens, host:port.
func (s *Service) AdminAddr() string { return s.admin.addr() }

// serves adds a name to gRPC health.
func (s *Service) serves(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serving = append(s.serving, name)
	s.health.SetServingStatus(name, healthStatus(s.ready))
}

func (s *Service) readyChanged(ready bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = ready
	for _, name := range s.serving {
		s.health.SetServingStatus(name, healthStatus(ready))
	}
}

func healthStatus(ready bool) healthpb.HealthCheckResponse_ServingStatus {
	if ready {
		return healthpb.HealthCheckResponse_SERVING
	}
	return healthpb.HealthCheckResponse_NOT_SERVING
}

// NewClient makes a connection to another service through the mesh, which
// hands on the request id and the trace. It does not block.
func (s *Service) NewClient(service string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	base := []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(forwardRequestIDUnary),
		grpc.WithChainStreamInterceptor(forwardRequestIDStream),
	}
	if h := s.tracing.clientHandler(); h != nil {
		base = append(base, grpc.WithStatsHandler(h))
	}
	conn, err := s.mesh.NewClient(service, append(base, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("making a connection to %s: %w", service, err)
	}
	return conn, nil
}

// Require adds something that must work for the service to be ready. check is
// called about once a second with a deadline, from now on, and its answer shows
// in /readyz and in gRPC health. A failing check takes the instance out after
// two failures in a row, and one success brings it back.
func (s *Service) Require(name string, check func(context.Context) error) {
	s.readiness.require(name, check)
}

// Add appends a component: components start in the order they were added, each
// after the one before works, and stop in reverse.
func (s *Service) Add(c Component) { s.components = append(s.components, c) }

// AddBackground adds work that goes on in a goroutine of its own until the
// service stops: run gets a context that ends then, and is waited for. When it
// returns earlier, or with an error other than the context's, the service
// stops with that error.
func (s *Service) AddBackground(name string, run func(ctx context.Context) error) {
	var (
		cancel context.CancelFunc
		done   = make(chan struct{})
	)
	s.Add(Component{
		Name: name,
		Start: func(context.Context) error {
			var ctx context.Context
			ctx, cancel = context.WithCancel(context.Background())
			go func() {
				defer close(done)
				err := run(ctx)
				if ctx.Err() == nil {
					s.Fail(fmt.Errorf("%s ended: %w", name, errors.Join(err, errEarly)))
				}
			}()
			return nil
		},
		Stop: func(ctx context.Context) error {
			cancel()
			select {
			case <-done:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
	})
}

var errEarly = errors.New("it was to run as long as the service")

// Fail stops the service: Serve shuts down in order and returns err. Only the
// first failure counts.
func (s *Service) Fail(err error) { s.fail(err) }

// Announce says where the service listens and which tags it registers with in
// Consul, besides the environment's: for services whose port is not made by
// NewGRPCServer, which announces itself. Called from a component's Start.
func (s *Service) Announce(listening net.Addr, tags ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listening, s.tags = listening, tags
}

// Annotate adds to the metadata that the service registers with in Consul,
// besides its version and its admin address. Called from a component's Start.
func (s *Service) Annotate(key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.meta == nil {
		s.meta = make(map[string]string)
	}
	s.meta[key] = value
}

// metadata is what the service registers with.
func (s *Service) metadata() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	meta := map[string]string{"version": Version(), "admin": s.AdminAddr()}
	maps.Copy(meta, s.meta)
	return meta
}

func (s *Service) announced() (net.Addr, []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listening, s.tags
}

// Serve starts the components in order, takes calls until the context ends or
// something fails, and shuts down so that no call fails: the instance becomes
// unready and leaves Consul, callers get DrainDelay to notice, calls in flight
// get DrainTimeout to finish, then the components stop in reverse order. It
// returns nil after an ordered shutdown.
func (s *Service) Serve(ctx context.Context) error {
	defer s.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()

	began := time.Now()
	started, err := s.start(ctx)
	if err != nil {
		return errors.Join(s.unlessStopped(ctx, err), s.stop(started))
	}
	addresses := Addresses{Admin: s.AdminAddr()}
	if listening, _ := s.announced(); listening != nil {
		addresses.Mesh = listening.String()
	}
	s.log.Info("listening", "mesh", addresses.Mesh, "admin", addresses.Admin,
		"instance", s.instanceID, "version", Version(), "started_in", time.Since(began).Round(time.Millisecond))
	if s.cfg.OnListening != nil {
		s.cfg.OnListening(addresses)
	}
	registered, err := s.register(ctx)
	if err != nil {
		return errors.Join(s.unlessStopped(ctx, err), s.stop(started))
	}
	s.readiness.started(registered)

	<-ctx.Done()
	s.log.Info("stopping")
	s.readiness.drain()
	s.leave(registered)
	s.waitUntilNoticed()
	err = errors.Join(s.failure(), s.stop(started))
	s.log.Info("stopped")
	return err
}

// failure is why the service stops other than by being told to.
func (s *Service) failure() error { return context.Cause(s.life) }

// unlessStopped is err, or what it came from: starting ends with an error also
// when the service is told to stop meanwhile, which is none.
func (s *Service) unlessStopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return s.failure()
	}
	return err
}

// waitUntilNoticed gives callers DrainDelay to learn that the instance left,
// while it still answers.
func (s *Service) waitUntilNoticed() {
	if s.cfg.DrainDelay <= 0 {
		return
	}
	s.log.Info("waiting for callers to notice", "drain_delay", s.cfg.DrainDelay)
	timer := time.NewTimer(s.cfg.DrainDelay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.life.Done():
	}
}

// start starts the components in order and returns how many were.
func (s *Service) start(ctx context.Context) (int, error) {
	for i, c := range s.components {
		if c.Start == nil {
			continue
		}
		s.log.Debug("starting", "component", c.Name)
		if err := c.Start(ctx); err != nil {
			return i, fmt.Errorf("starting %s: %w", c.Name, err)
		}
	}
	return len(s.components), nil
}

// stop stops the first n components in reverse order. They share DrainTimeout,
// and what is left when it is over shares stopRest, so that no number of
// components makes a stop longer than Nomad's kill_timeout.
func (s *Service) stop(n int) error {
	const stopRest = 2 * time.Second
	drained := time.Now().Add(s.cfg.DrainTimeout)
	last := drained.Add(stopRest)
	var errs []error
	for i := n - 1; i >= 0; i-- {
		c := s.components[i]
		if c.Stop == nil {
			continue
		}
		s.log.Debug("stopping", "component", c.Name)
		deadline := drained
		// One that stops after the others used the time up still has to end what
		// it began.
		if time.Until(drained) < min(stopRest, s.cfg.DrainTimeout)/2 {
			deadline = last
		}
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		if err := c.Stop(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stopping %s: %w", c.Name, err))
		}
		cancel()
	}
	return errors.Join(errs...)
}
