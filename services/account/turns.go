package account

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

const (
	// goodWait is how long callers may wait for their turn, or for as long as
	// fewTurns take where that is more, but never longer than longestWait.
	goodWait    = 300 * time.Millisecond
	fewTurns    = 4
	longestWait = time.Second
	// Somebody has been waiting for that share of the time of late: it is no burst
	// that would pass, and from then on nobody waits.
	overloaded = 0.9
	// No turn was free for less than that share of the time of late: callers may wait
	// again. With one turn and nobody who waits it is what as many callers make as
	// could just be served.
	recovered = 0.5
	// ofLate is how long ago counts little.
	ofLate = time.Second
)

// turns are a few places to work at, and callers that wait for one. The caller
// that came last is the next: when more come than can be served some wait in vain
// in any order, and like this those that are served do not wait for long.
type turns struct {
	queue int

	mu         sync.Mutex
	free       int
	waiting    []chan error // the newest last; each is told once
	taken      float64      // how long a turn takes of late, in seconds
	overloaded bool
	pressure   float64 // the share of the time of late that decides on overloaded
	observed   time.Time
}

func newTurns(atOnce, queue int) *turns {
	return &turns{queue: queue, free: atOnce, observed: time.Now()}
}

// take waits for a turn; done gives it back, and is called once. It fails with
// ErrOverloaded at once when too many come, or when the wait takes too long, and
// with the context's error when that ends first.
func (t *turns) take(ctx context.Context) (done func(), err error) {
	t.mu.Lock()
	t.observe()
	switch {
	case t.free > 0:
		t.free--
		t.mu.Unlock()
		return t.done(), nil
	case t.overloaded || len(t.waiting) >= t.queue:
		t.mu.Unlock()
		return nil, ErrOverloaded
	}
	told := make(chan error, 1)
	t.waiting = append(t.waiting, told)
	patience := min(max(goodWait, time.Duration(fewTurns*t.taken*float64(time.Second))), longestWait)
	t.mu.Unlock()

	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err = <-told:
	case <-timer.C:
		err = t.leave(told, ErrOverloaded)
	case <-ctx.Done():
		err = t.leave(told, fmt.Errorf("waiting for a turn to hash a password: %w", context.Cause(ctx)))
	}
	if err != nil {
		return nil, err
	}
	return t.done(), nil
}

// leave ends a wait with why, or with what the caller was told meanwhile.
func (t *turns) leave(told chan error, why error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(t.waiting, told); i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
		return why
	}
	return <-told
}

// done gives back the turn that begins now: to the caller that came last.
func (t *turns) done() func() {
	began := time.Now()
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.observe()
		t.taken += (time.Since(began).Seconds() - t.taken) / 8
		if last := len(t.waiting) - 1; last >= 0 {
			t.waiting[last] <- nil
			t.waiting = t.waiting[:last]
			return
		}
		t.free++
	}
}

// observe counts the time since it was last called, in which all was as it is now.
// Callers hold mu.
func (t *turns) observe() {
	now, pressed := time.Now(), 0.0
	if t.free == 0 && (t.overloaded || len(t.waiting) > 0) {
		pressed = 1
	}
	t.pressure = pressed + (t.pressure-pressed)*math.Exp(-float64(now.Sub(t.observed))/float64(ofLate))
	t.observed = now
	switch {
	case t.pressure > overloaded:
		t.overloaded = true
		for _, told := range t.waiting {
			told <- ErrOverloaded
		}
		t.waiting = nil
	case t.pressure < recovered:
		t.overloaded = false
	}
}
