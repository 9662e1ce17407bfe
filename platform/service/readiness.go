package service

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/marquee-ads/marquee/platform/discovery"
)

const (
	checkInterval = time.Second
	// checkTimeout leaves a slow dependency less than an interval, so that
	// checks never pile up.
	checkTimeout = 900 * time.Millisecond
	// failuresToLeave in a row make a requirement count as failed: one lost
	// packet does not take an instance out.
	failuresToLeave = 2
)

// readiness knows whether the instance should be called: it has started, does
// not drain, and all requirements hold.
type readiness struct {
	log     hclog.Logger
	changed func(ready bool)

	stop    context.CancelFunc
	ctx     context.Context
	running sync.WaitGroup

	mu           sync.Mutex
	requirements []*requirement
	up           bool // started and not draining
	ready        bool // what was told last
	registered   *discovery.Registered
}

type requirement struct {
	name     string
	checked  bool
	ok       bool
	failures int
	err      error
}

func newReadiness(log hclog.Logger, changed func(bool)) *readiness {
	r := &readiness{log: log, changed: changed}
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r
}

func (r *readiness) require(name string, check func(context.Context) error) {
	q := &requirement{name: name}
	r.mu.Lock()
	r.requirements = append(r.requirements, q)
	r.update()
	r.mu.Unlock()
	r.running.Go(func() {
		ticker := time.NewTicker(checkInterval)
		defer ticker.Stop()
		for {
			r.checkOnce(q, check)
			select {
			case <-ticker.C:
			case <-r.ctx.Done():
				return
			}
		}
	})
}

func (r *readiness) checkOnce(q *requirement, check func(context.Context) error) {
	ctx, cancel := context.WithTimeout(r.ctx, checkTimeout)
	defer cancel()
	err := check(ctx)
	if r.ctx.Err() != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	was := q.ok
	if err == nil {
		q.failures, q.ok = 0, true
	} else {
		q.failures++
		q.ok = q.ok && q.failures < failuresToLeave
	}
	if was && !q.ok {
		r.log.Warn("a requirement fails", "requirement", q.name, "error", err)
	} else if !was && q.ok && q.checked {
		r.log.Info("a requirement holds again", "requirement", q.name)
	}
	q.checked, q.err = true, err
	r.update()
}

// started lets the instance become ready; registered, when not nil, is told.
func (r *readiness) started(registered *discovery.Registered) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.up, r.registered = true, registered
	r.update()
}

// drain makes the instance unready for good.
func (r *readiness) drain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.up = false
	r.update()
}

func (r *readiness) close() {
	r.stop()
	r.running.Wait()
}

// update tells who wants to know when the answer changed. r.mu is held.
func (r *readiness) update() {
	ready := r.up
	for _, q := range r.requirements {
		ready = ready && q.ok
	}
	if ready == r.ready {
		return
	}
	r.ready = ready
	if ready {
		r.log.Info("ready")
	} else {
		r.log.Info("not ready")
	}
	r.changed(ready)
	if r.registered != nil {
		r.registered.SetReady(ready)
	}
}

// state is what /readyz shows.
type state struct {
	Ready        bool               `json:"ready"`
	Reason       string             `json:"reason,omitempty"`
	Requirements []requirementState `json:"requirements"`
}

type requirementState struct {
	Name  string `json:"name"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

func (r *readiness) state() state {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := state{Ready: r.ready, Requirements: make([]requirementState, len(r.requirements))}
	if !r.up {
		s.Reason = "starting or stopping"
	}
	for i, q := range r.requirements {
		s.Requirements[i] = requirementState{Name: q.name, OK: q.ok}
		switch {
		case q.err != nil:
			s.Requirements[i].Error = q.err.Error()
		case !q.checked:
			s.Requirements[i].Error = "not checked yet"
		}
		if !q.ok && s.Reason == "" {
			s.Reason = fmt.Sprintf("%s does not hold", q.name)
		}
	}
	return s
}
