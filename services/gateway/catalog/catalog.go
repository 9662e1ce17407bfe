// Package catalog knows what the gateway serves: which services the registry
// has, which methods they offer by their own account (server reflection), and
// which HTTP routes those declare. Nothing in it is compiled in.
package catalog

import (
	"context"
	"errors"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/discovery"
	"github.com/marquee-ads/marquee/services/gateway/backend"
)

// Tag marks, in the registry, a service whose methods the gateway may serve.
const Tag = "grpc"

// Registry is where services are found; *discovery.Consul is one.
type Registry interface {
	discovery.Watcher
	// WatchServices delivers the names of the services that have an instance
	// with all tags, until ctx ends.
	WatchServices(ctx context.Context, tags []string, update func([]string, error))
}

// Options are what a catalog needs. Zero durations are replaced by defaults.
type Options struct {
	Registry Registry
	Dial     backend.Dial
	// EnvironmentTag is demanded of every service and instance.
	EnvironmentTag string
	// Connect asks for instances that speak the mesh's TLS (discovery.Query).
	Connect bool
	// MaxMessage is the largest message in bytes, in either direction.
	MaxMessage int
	// Refresh is how often descriptors are read without a sign of change
	// (default 1 min).
	Refresh time.Duration
	// Settle is when they are read once more after the instances changed, by
	// which time calls go to the new ones (default 2 s).
	Settle time.Duration
	// ReadTimeout bounds one reading (default 5 s).
	ReadTimeout time.Duration
	// Forget is how long a service that left the registry keeps its methods, so
	// that callers are told "unavailable, try again" and not "no such method"
	// when its last instance dies (default 1 min).
	Forget time.Duration
	// FirstWait bounds how long readiness waits for services that cannot be
	// read (default 10 s).
	FirstWait time.Duration
	Log       hclog.Logger
}

func (o Options) withDefaults() Options {
	for _, d := range []struct {
		value     *time.Duration
		otherwise time.Duration
	}{
		{&o.Refresh, time.Minute},
		{&o.Settle, 2 * time.Second},
		{&o.ReadTimeout, 5 * time.Second},
		{&o.Forget, time.Minute},
		{&o.FirstWait, 10 * time.Second},
	} {
		if *d.value <= 0 {
			*d.value = d.otherwise
		}
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	return o
}

// Catalog follows the registry and keeps the current Snapshot.
type Catalog struct {
	opts     Options
	snapshot atomic.Pointer[Snapshot]
	synced   chan struct{}

	// asked is when somebody last asked for what is not known, in Unix nanoseconds.
	asked atomic.Int64
	kicks chan struct{}
}

// askInterval bounds how often unknown methods and paths cause a reading: they
// come from outside, at any rate.
const askInterval = 10 * time.Second

// New makes a catalog that is empty until Run.
func New(opts Options) *Catalog {
	c := &Catalog{opts: opts.withDefaults(), synced: make(chan struct{}), kicks: make(chan struct{}, 1)}
	empty, _ := newSnapshot(nil)
	c.snapshot.Store(empty)
	return c
}

// Snapshot is what is served now; never nil.
func (c *Catalog) Snapshot() *Snapshot { return c.snapshot.Load() }

// Synced is closed when the registry has answered and each service it named
// was read, or could not be for long enough not to be waited for.
func (c *Catalog) Synced() <-chan struct{} { return c.synced }

// Missing notes that a method or path was asked for that is not known: the
// services are read again soon, at most every ten seconds. It does not block.
func (c *Catalog) Missing() {
	now := time.Now().UnixNano()
	last := c.asked.Load()
	if now-last < int64(askInterval) || !c.asked.CompareAndSwap(last, now) {
		return
	}
	select {
	case c.kicks <- struct{}{}:
	default:
	}
}

// follower is one service being followed. Only Run's goroutine touches it.
type follower struct {
	known
	cancel context.CancelFunc
	kick   chan struct{}
	// first is set until its first reading ended one way or the other.
	first bool
	// unread is set until its descriptors were read, or it answered that it
	// has none to give.
	unread bool
	// gone is when it left the registry; zero while it is there.
	gone time.Time
}

// reading is what became of asking one service.
type reading struct {
	service *follower
	offer   *offer // nil when it failed
	settled bool   // there is no point in waiting for it
	final   bool   // it answered, with an offer or with a refusal
}

// Run follows the registry until ctx ends, and then closes all connections.
func (c *Catalog) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	followers := make(map[string]*follower)
	defer func() {
		cancel()
		running.Wait()
		for _, f := range followers {
			_ = f.backend.Close()
		}
	}()

	names := make(chan []string)
	running.Go(func() {
		c.opts.Registry.WatchServices(ctx, []string{Tag, c.opts.EnvironmentTag}, func(list []string, err error) {
			if err != nil {
				c.opts.Log.Warn("the registry does not say which services exist", "error", err)
				return
			}
			select {
			case names <- list:
			case <-ctx.Done():
			}
		})
	})

	readings := make(chan reading)
	var firstWait <-chan time.Time
	forget := time.NewTicker(max(c.opts.Forget/4, time.Millisecond))
	defer forget.Stop()
	answered := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case list := <-names:
			if !answered {
				answered = true
				timer := time.NewTimer(c.opts.FirstWait)
				defer timer.Stop()
				firstWait = timer.C
			}
			c.compare(ctx, &running, followers, list, readings)
		case r := <-readings:
			c.accept(followers, r)
		case <-firstWait:
			for _, f := range followers {
				if f.first {
					c.opts.Log.Warn("a service could not be read yet; not waiting for it", "service", f.name)
					f.first = false
				}
			}
		case <-forget.C:
			c.forget(followers)
		case <-c.kicks:
			for _, f := range followers {
				f.wake()
			}
		}
		c.noteComplete(answered, followers)
		c.noteSynced(answered, followers)
	}
}

func (f *follower) wake() {
	select {
	case f.kick <- struct{}{}:
	default:
	}
}

// noteComplete marks the snapshot as complete once the registry has answered
// and all that it named was read.
func (c *Catalog) noteComplete(answered bool, followers map[string]*follower) {
	for _, f := range followers {
		if f.unread && f.gone.IsZero() {
			answered = false
		}
	}
	if s := c.snapshot.Load(); s.complete != answered {
		changed := *s
		changed.complete = answered
		c.snapshot.Store(&changed)
	}
}

func (c *Catalog) noteSynced(answered bool, followers map[string]*follower) {
	select {
	case <-c.synced:
		return
	default:
	}
	if !answered {
		return
	}
	for _, f := range followers {
		if f.first {
			return
		}
	}
	close(c.synced)
}

// compare starts following the services that are new and notes those that left.
func (c *Catalog) compare(ctx context.Context, running *sync.WaitGroup, followers map[string]*follower, list []string, readings chan<- reading) {
	for _, name := range list {
		if f := followers[name]; f != nil {
			f.gone = time.Time{}
			continue
		}
		b, err := backend.New(name, c.opts.Dial, c.opts.MaxMessage)
		if err != nil {
			c.opts.Log.Error("a service cannot be called", "service", name, "error", err)
			continue
		}
		followCtx, cancel := context.WithCancel(ctx)
		f := &follower{known: known{name: name, backend: b}, cancel: cancel, kick: make(chan struct{}, 1), first: true, unread: true}
		followers[name] = f
		c.opts.Log.Info("found a service", "service", name)
		running.Go(func() { c.follow(followCtx, f, readings) })
	}
	for name, f := range followers {
		if f.gone.IsZero() && !slices.Contains(list, name) {
			c.opts.Log.Info("a service left the registry", "service", name, "forgotten_in", c.opts.Forget)
			f.gone = time.Now()
		}
	}
}

// accept applies one reading. A failed one changes nothing: the last good stands.
func (c *Catalog) accept(followers map[string]*follower, r reading) {
	f := r.service
	if followers[f.name] != f {
		return // forgotten meanwhile
	}
	if r.offer != nil || r.settled {
		f.first = false
	}
	if r.final {
		f.unread = false
	}
	if r.offer != nil {
		f.files, f.grpc = r.offer.files, r.offer.services
		c.publish(followers)
	}
}

// forget drops the services that left long enough ago.
func (c *Catalog) forget(followers map[string]*follower) {
	dropped := false
	for name, f := range followers {
		if f.gone.IsZero() || time.Since(f.gone) < c.opts.Forget {
			continue
		}
		f.cancel()
		delete(followers, name)
		_ = f.backend.Close()
		c.opts.Log.Info("forgot a service", "service", name)
		dropped = true
	}
	if dropped {
		c.publish(followers)
	}
}

func (c *Catalog) publish(followers map[string]*follower) {
	// What one service says of itself must not end every gateway at once.
	defer func() {
		if what := recover(); what != nil {
			c.opts.Log.Error("the services' descriptors made the gateway panic; what was served before stays", "panic", what, "stack", string(debug.Stack()))
		}
	}()
	services := make([]known, 0, len(followers))
	for _, f := range followers {
		services = append(services, f.known)
	}
	snapshot, complaints := newSnapshot(services)
	snapshot.complete = c.snapshot.Load().complete
	c.snapshot.Store(snapshot)
	for _, complaint := range complaints {
		c.opts.Log.Warn("left out", "what", complaint)
	}
	for _, s := range snapshot.services {
		c.opts.Log.Info("serving", "service", s.Name, "grpc_services", s.GRPCServices)
	}
}

// follow reads one service's descriptors whenever its instances change, from
// time to time, and when kicked; after a failure again soon.
func (c *Catalog) follow(ctx context.Context, f *follower, readings chan<- reading) {
	var watching sync.WaitGroup
	defer watching.Wait()
	instances := make(chan int)
	watching.Go(func() {
		query := discovery.Query{Service: f.name, Tags: []string{c.opts.EnvironmentTag}, Connect: c.opts.Connect}
		c.opts.Registry.Watch(ctx, query, func(list []discovery.Instance, err error) {
			if err != nil {
				return // the list of services says it already
			}
			select {
			case instances <- len(list):
			case <-ctx.Done():
			}
		})
	})

	log := c.opts.Log.With("service", f.name)
	timer := time.NewTimer(c.opts.Refresh)
	defer timer.Stop()
	count, failures := 0, 0
	var last offer
	for {
		settle := false
		select {
		case <-ctx.Done():
			return
		case count = <-instances:
			settle = true
		case <-f.kick:
		case <-timer.C:
		}
		timer.Reset(c.opts.Refresh)
		r := reading{service: f}
		if count == 0 {
			r.settled = true
		} else {
			o, err := c.readOnce(ctx, f)
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				r.final = status.Code(err) != codes.Unavailable && status.Code(err) != codes.DeadlineExceeded
				r.settled = r.final
				if failures == 0 {
					log.Warn("a service's descriptors cannot be read; what was known of it stays", "error", err)
				}
				timer.Reset(min(250*time.Millisecond<<min(failures, 6), 10*time.Second))
				failures++
			default:
				if failures > 0 {
					log.Info("a service's descriptors can be read again")
				}
				failures = 0
				if o.digest != last.digest {
					r.offer = o
					last = *o
				}
				r.settled, r.final = true, true
				if settle {
					timer.Reset(c.opts.Settle)
				}
			}
		}
		select {
		case readings <- r:
		case <-ctx.Done():
			return
		}
	}
}

func (c *Catalog) readOnce(ctx context.Context, f *follower) (_ *offer, err error) {
	defer func() {
		if what := recover(); what != nil {
			c.opts.Log.Error("a service's descriptors made the gateway panic", "service", f.name, "panic", what, "stack", string(debug.Stack()))
			err = errPanicked
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, c.opts.ReadTimeout)
	defer cancel()
	return readOffer(ctx, f.backend.Conn())
}

var errPanicked = errors.New("reading it made the gateway panic")
