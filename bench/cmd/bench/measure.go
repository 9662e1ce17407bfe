package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// callers is how many calls are under way at any time: enough to keep two
// cores busy, few enough that queues do not dominate the latency.
const callers = 16

// row is one way to make the same call.
type row struct {
	name string
	what string // what is switched on
	// against is the row that this one is compared with.
	against   string
	call      func(ctx context.Context) error
	processes []*process // whose CPU is counted, besides the caller's

	samples []sample
}

// sample is one measurement.
type sample struct {
	rate     float64 // calls per second
	p50, p99 time.Duration
	cpu      []float64 // CPU seconds per 10,000 calls of each process; the last is the caller's
}

func (b *bench) measure(ctx context.Context) error {
	rows := slices.DeleteFunc(b.rows, func(r *row) bool { return !strings.Contains(r.name, b.only) })
	b.rows = rows
	for _, r := range rows { // connections, caches and the garbage collector's pace
		if _, err := r.run(ctx, b.each/2); err != nil {
			return fmt.Errorf("warm up %s: %w", r.name, err)
		}
	}
	for round := range b.rounds {
		fmt.Printf("round %d of %d", round+1, b.rounds)
		for _, r := range rows {
			s, err := r.run(ctx, b.each)
			if err != nil {
				return fmt.Errorf("measure %s: %w", r.name, err)
			}
			r.samples = append(r.samples, s)
			fmt.Printf("  %s %.0f/s", r.name, s.rate)
		}
		fmt.Println()
	}
	return nil
}

// run makes calls for a while, callers at a time.
func (r *row) run(ctx context.Context, d time.Duration) (sample, error) {
	before, err := r.cpu()
	if err != nil {
		return sample{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, d+10*time.Second)
	defer cancel()
	var (
		group  sync.WaitGroup
		failed atomic.Pointer[error]
		took   [callers][]time.Duration
		began  = time.Now()
		end    = began.Add(d)
	)
	for i := range callers {
		group.Go(func() {
			for failed.Load() == nil {
				start := time.Now()
				if start.After(end) {
					return
				}
				if err := r.call(ctx); err != nil {
					failed.Store(&err)
					return
				}
				took[i] = append(took[i], time.Since(start))
			}
		})
	}
	group.Wait()
	elapsed := time.Since(began)
	if err := failed.Load(); err != nil {
		return sample{}, *err
	}
	after, err := r.cpu()
	if err != nil {
		return sample{}, err
	}
	all := slices.Concat(took[:]...)
	if len(all) == 0 {
		return sample{}, errors.New("no call came back in time")
	}
	slices.Sort(all)
	s := sample{
		rate: float64(len(all)) / elapsed.Seconds(),
		p50:  all[len(all)/2], p99: all[len(all)*99/100],
	}
	for i := range after {
		s.cpu = append(s.cpu, (after[i]-before[i]).Seconds()*10000/float64(len(all)))
	}
	return s, nil
}

func (r *row) cpu() ([]time.Duration, error) {
	var all []time.Duration
	for _, p := range r.processes {
		t, err := cpuTime(p.cmd.Process.Pid)
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	own, err := cpuTime(0)
	return append(all, own), err
}

// median over the rounds of a figure of each sample.
func (r *row) median(of func(sample) float64) float64 {
	values := make([]float64, len(r.samples))
	for i, s := range r.samples {
		values[i] = of(s)
	}
	return middle(values)
}

// ratio is the median over the rounds of this row's figure divided by the
// other's in the same round.
func (r *row) ratio(other *row, of, ofOther func(sample) float64) float64 {
	values := make([]float64, len(r.samples))
	for i := range r.samples {
		values[i] = of(r.samples[i]) / ofOther(other.samples[i])
	}
	return middle(values)
}

func middle(values []float64) float64 {
	slices.Sort(values)
	if n := len(values); n%2 == 0 {
		return (values[n/2-1] + values[n/2]) / 2
	}
	return values[len(values)/2]
}
