// Package load makes open-loop load: calls start when the schedule says so,
// whether or not earlier ones have come back, and each is timed from the moment
// it should have started. A stalled system therefore shows as long calls instead
// of as fewer calls.
package load

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Op is one kind of call. It returns the instance that served it, if it knows.
type Op struct {
	Name string
	Call func(ctx context.Context) (servedBy string, err error)
}

// Plan says what to send.
type Plan struct {
	Rate    int           // calls a second
	Timeout time.Duration // of one call
	Ops     []Op          // taken in turn
	// Calls ends the load after so many; 0 goes on until Stop.
	Calls int
	// MaxInFlight bounds the calls under way; a call that would exceed it
	// counts as failed. 0 is 10 s worth of calls.
	MaxInFlight int
}

// Failure is one failed call.
type Failure struct {
	Op string
	At time.Duration // since the start of the load
	// Took is how long the call took to fail, from when it should have started.
	Took time.Duration
	Err  error
}

// Report is what happened.
type Report struct {
	Calls      int
	Failed     []Failure
	ByInstance map[string]int
	Took       time.Duration

	latencies []time.Duration
}

// Longest is the longest call, measured from when it should have started.
func (r *Report) Longest() time.Duration { return r.Quantile(1) }

// Quantile of the calls' durations; q is between 0 and 1.
func (r *Report) Quantile(q float64) time.Duration {
	if len(r.latencies) == 0 {
		return 0
	}
	return r.latencies[min(int(q*float64(len(r.latencies))), len(r.latencies)-1)]
}

// String is the report in a few lines, for a test's log.
func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d calls in %.1fs, %d failed, p50 %s, p99 %s, longest %s",
		r.Calls, r.Took.Seconds(), len(r.Failed), round(r.Quantile(.5)), round(r.Quantile(.99)), round(r.Longest()))
	ids := make([]string, 0, len(r.ByInstance))
	for id := range r.ByInstance {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		fmt.Fprintf(&b, "\n  %6d by %s", r.ByInstance[id], id)
	}
	for i, f := range r.Failed {
		if i == 10 {
			fmt.Fprintf(&b, "\n  … and %d more failures", len(r.Failed)-i)
			break
		}
		fmt.Fprintf(&b, "\n  failed %s at %s, within %s: %v", f.Op, round(f.At), round(f.Took), f.Err)
	}
	return b.String()
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// Running is load under way.
type Running struct {
	cancel context.CancelFunc
	done   chan struct{}
	began  time.Time

	mu     sync.Mutex
	report Report
}

// Start begins the load; it ends with Stop or with ctx.
func Start(ctx context.Context, p Plan) *Running {
	ctx, cancel := context.WithCancel(ctx)
	r := &Running{cancel: cancel, done: make(chan struct{}), began: time.Now()}
	r.report.ByInstance = map[string]int{}
	if p.MaxInFlight == 0 {
		p.MaxInFlight = 10 * p.Rate
	}
	go r.run(ctx, p)
	return r
}

func (r *Running) run(ctx context.Context, p Plan) {
	defer close(r.done)
	var calls sync.WaitGroup
	defer calls.Wait()
	slots := make(chan struct{}, p.MaxInFlight)
	interval := time.Second / time.Duration(p.Rate)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := 0; p.Calls == 0 || n < p.Calls; n++ {
		due := r.began.Add(time.Duration(n) * interval)
		timer.Reset(time.Until(due))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		op := p.Ops[n%len(p.Ops)]
		select {
		case slots <- struct{}{}:
		default:
			r.record(op, due, "", fmt.Errorf("not sent: %d calls are under way", p.MaxInFlight))
			continue
		}
		calls.Go(func() {
			defer func() { <-slots }()
			// Calls that are under way when the load ends run to their end:
			// a call cut off by the tool would look like a failure.
			ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), due.Add(p.Timeout))
			defer cancel()
			by, err := op.Call(ctx)
			r.record(op, due, by, err)
		})
	}
}

func (r *Running) record(op Op, due time.Time, by string, err error) {
	took := time.Since(due)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Calls++
	r.report.latencies = append(r.report.latencies, took)
	if err != nil {
		r.report.Failed = append(r.report.Failed, Failure{Op: op.Name, At: due.Sub(r.began), Took: took, Err: err})
		return
	}
	if by != "" {
		r.report.ByInstance[by]++
	}
}

// Snapshot is a copy of the counts per instance so far.
func (r *Running) Snapshot() (calls int, byInstance map[string]int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	byInstance = make(map[string]int, len(r.report.ByInstance))
	for id, n := range r.report.ByInstance {
		byInstance[id] = n
	}
	return r.report.Calls, byInstance
}

// Wait waits until a load with a number of Calls is through, and reports.
func (r *Running) Wait() *Report {
	<-r.done
	return r.Stop()
}

// Stop ends the load, waits for the calls under way and reports.
func (r *Running) Stop() *Report {
	r.cancel()
	<-r.done
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Took = time.Since(r.began)
	slices.Sort(r.report.latencies)
	return &r.report
}
