package discovery

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
)

// wakeInterval is the shortest time between two queries when somebody asks for a
// retry before its time: grpc-go calls ResolveNow on every failed connection.
const wakeInterval = time.Second

// maxStale bounds how old the answer of a server that is not the leader may be; an
// older one counts as a failed query and the leader is asked instead.
const maxStale = 10 * time.Second

// errHidden keeps an answer that ACLs emptied from looking like a service
// without instances.
var errHidden = errors.New("the answer is empty because the token may not read it: it needs service:read and node:read")

// source is what a feed asks for.
type source[T any] struct {
	name string
	// fetch asks Consul once; with opts.WaitIndex it waits for a change.
	fetch func(opts *api.QueryOptions) (T, *api.QueryMeta, error)
	equal func(a, b T) bool
	size  func(T) int
	// merge is an answer, and what was known and is not in it.
	merge func(known, answer T) T
}

// pool holds the feeds of a process by query.
type pool[T any] struct {
	mu     sync.Mutex
	feeds  map[string]*feed[T]
	closed bool
}

// feed is one repeated blocking query and what is known from it. It has any
// number of watches and lives on for Options.Grace without one.
type feed[T any] struct {
	source source[T]
	opts   Options
	log    hclog.Logger
	cancel context.CancelFunc
	wake   chan struct{}

	// Guarded by the pool's mutex.
	watches   int
	idleSince time.Time
	expiry    *time.Timer

	mu      sync.Mutex
	state   state[T]
	changed chan struct{} // closed and replaced when state changes
}

// state is the last answer, or the last error while there has been no answer.
type state[T any] struct {
	version  uint64 // 0: nothing is known yet
	answered bool
	value    T
	err      error
}

// watch delivers a feed's states until ctx ends.
func watch[T any](ctx context.Context, c *Consul, p *pool[T], key string, s source[T], update func(T, error)) {
	f, err := p.join(c, key, s)
	if err != nil {
		var none T
		update(none, err)
		<-ctx.Done()
		return
	}
	defer p.leave(c, key, f)

	var delivered state[T]
	for {
		current, changed := f.current()
		if ctx.Err() != nil {
			return
		}
		// The answer was the same, or changed back before this watch saw it.
		same := delivered.answered && current.answered && s.equal(delivered.value, current.value)
		if current.version != delivered.version && !same {
			update(current.value, current.err)
			delivered = current
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// join finds the running feed of a key or starts one.
func (p *pool[T]) join(c *Consul, key string, s source[T]) (*feed[T], error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	f := p.feeds[key]
	if f == nil {
		f = &feed[T]{
			source: s, opts: c.opts, log: c.opts.Log.With("query", s.name),
			wake: make(chan struct{}, 1), changed: make(chan struct{}),
		}
		var ctx context.Context
		ctx, f.cancel = context.WithCancel(c.ctx)
		if p.feeds == nil {
			p.feeds = make(map[string]*feed[T])
		}
		p.feeds[key] = f
		c.running.Go(func() { f.run(ctx) })
	}
	f.watches++
	if f.expiry != nil {
		f.expiry.Stop()
	}
	return f, nil
}

// leave ends the feed a grace period after its last watch has gone.
func (p *pool[T]) leave(c *Consul, key string, f *feed[T]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f.watches--
	if f.watches > 0 || p.closed {
		return
	}
	f.idleSince = time.Now()
	f.expiry = time.AfterFunc(c.opts.Grace, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		// The timer may have fired while a watch joined and left again.
		if f.watches > 0 || time.Since(f.idleSince) < c.opts.Grace || p.closed {
			return
		}
		delete(p.feeds, key)
		f.cancel()
	})
}

func (p *pool[T]) wake(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.feeds[key]
	if f == nil {
		return
	}
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (p *pool[T]) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, f := range p.feeds {
		if f.expiry != nil {
			f.expiry.Stop()
		}
		f.cancel()
	}
	p.feeds = nil
}

func (f *feed[T]) current() (state[T], <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state, f.changed
}

// run asks until ctx ends.
func (f *feed[T]) run(ctx context.Context) {
	var (
		index    uint64
		last     uint64 // of the answer that stands
		failures int
		leader   bool
		settled  time.Time // from when on an answer may take away
	)
	for {
		started := time.Now()
		wait := jitter(f.opts.WaitTime)
		if settling := time.Until(settled); settling > 0 {
			wait = min(wait, settling)
		}
		value, meta, err := f.ask(ctx, index, api.QueryOptions{AllowStale: !leader, WaitTime: wait})
		if err == nil && f.doubtful(value, meta, last) {
			value, meta, err = f.ask(ctx, 0, api.QueryOptions{RequireConsistent: true})
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			if failures > 0 && f.opts.Settle > 0 {
				settled = time.Now().Add(f.opts.Settle)
			}
			err = f.accept(value, meta, leader, time.Now().Before(settled))
			// Too old: ask the leader once, then any server again.
			leader = err != nil
		}
		if err != nil {
			failures++
			f.failed(err, failures)
			// The agent that answers next may know a smaller index, and a
			// query for one that is far away would wait for nothing.
			index = 0
			if !f.backoff(ctx, started, f.retryDelay(failures)) {
				return
			}
			continue
		}
		if failures > 0 {
			f.log.Info("consul answers again", "after_failures", failures)
			failures = 0
		}
		last = meta.LastIndex
		index = nextIndex(index, meta.LastIndex)
		if !pause(ctx, f.opts.MinInterval-time.Since(started)) {
			return
		}
	}
}

// nextIndex is what to wait for after an answer with the given index. Zero asks
// without waiting.
func nextIndex(asked, answered uint64) uint64 {
	switch {
	case answered < asked:
		// The state was replaced, for example from a snapshot: start over.
		return 0
	case answered == 0:
		// Consul's rule is that an index is at least 1; asking with 0 again
		// would not wait.
		return 1
	default:
		return answered
	}
}

// doubtful says whether an answer has to be confirmed by a leader that has read
// its whole log before it is believed: a server that has just started answers
// with as much of its state as it has read so far, at first none. Such answers
// have an index from the past, or take everything away.
func (f *feed[T]) doubtful(value T, meta *api.QueryMeta, last uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.state.answered {
		return false
	}
	return meta.LastIndex < last || f.source.size(value) == 0 && f.source.size(f.state.value) > 0
}

// ask makes one query; opts say how consistent the answer has to be.
func (f *feed[T]) ask(ctx context.Context, index uint64, opts api.QueryOptions) (T, *api.QueryMeta, error) {
	limit := f.opts.Timeout
	opts.WaitIndex = index
	if index > 0 {
		// Consul adds up to a sixteenth of its own.
		limit += opts.WaitTime + opts.WaitTime/16
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	value, meta, err := f.source.fetch(opts.WithContext(ctx))
	if err != nil {
		return value, nil, fmt.Errorf("ask consul for %s: %w", f.source.name, err)
	}
	return value, meta, nil
}

// accept publishes an answer unless it is not to be believed. While the agent is
// settling what was known stays.
func (f *feed[T]) accept(value T, meta *api.QueryMeta, leader, settling bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.source.size(value) == 0 && meta.ResultsFilteredByACLs {
		return fmt.Errorf("ask consul for %s: %w", f.source.name, errHidden)
	}
	// An old answer is better than none at all.
	if !leader && meta.LastContact > maxStale && f.state.answered {
		return fmt.Errorf("ask consul for %s: the answer is %s old", f.source.name, meta.LastContact)
	}
	if settling && f.state.answered {
		value = f.source.merge(f.state.value, value)
	}
	f.publish(state[T]{answered: true, value: value})
	return nil
}

// failed publishes an error while there has been no answer, and logs the first
// of a row.
func (f *feed[T]) failed(err error, failures int) {
	level := hclog.Debug
	if failures == 1 {
		level = hclog.Warn
	}
	f.log.Log(level, "consul does not answer; what it said last stands", "error", err)
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.state.answered {
		f.publish(state[T]{err: err})
	}
}

func (f *feed[T]) publish(s state[T]) {
	s.version = f.state.version + 1
	f.state = s
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *feed[T]) retryDelay(failures int) time.Duration {
	delay := f.opts.RetryMin << min(failures-1, 20)
	if delay <= 0 || delay > f.opts.RetryMax {
		delay = f.opts.RetryMax
	}
	return jitter(delay)
}

// backoff waits for the delay, or less when woken: then until wakeInterval after
// the query that failed. It reports whether to go on.
func (f *feed[T]) backoff(ctx context.Context, asked time.Time, delay time.Duration) bool {
	// A wish from before the failure has been granted by the query that failed.
	select {
	case <-f.wake:
	default:
	}
	due := time.Now().Add(delay)
	timer := time.NewTimer(delay)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-f.wake:
			if soonest := asked.Add(wakeInterval); soonest.Before(due) {
				due = soonest
				timer.Reset(time.Until(due))
			}
		}
	}
}

// pause reports whether to go on.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
