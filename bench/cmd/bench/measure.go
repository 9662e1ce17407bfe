package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// echoCallers is how many calls of the echo service are under way at any time:
// enough to keep two cores busy, few enough that queues do not dominate the
// latency.
const echoCallers = 16

// row is one way to make the same call.
type row struct {
	name string
	what string // what is switched on
	// method and by are of the rows of accounts: what is called, and what answers.
	method, by string
	// against are the names of the rows that this one is compared with.
	against []string
	callers int
	call    func(ctx context.Context) error // may fail with a refusedError
	// load, when it is not nil, makes the calls in place of call: a program that does.
	load      func(ctx context.Context, d time.Duration) (calls, error)
	processes []*process // whose CPU is counted, besides the caller's

	samples []sample
}

// refusedError is the answer to a call that finds too many under way: the caller
// is to come again after a time, which is more than none.
type refusedError struct{ after time.Duration }

func (e refusedError) Error() string {
	return fmt.Sprintf("refused, and to be tried again after %s", e.after)
}

// sample is one measurement.
type sample struct {
	rate     float64 // calls per second that did what they were to do
	refused  float64 // calls per second that were refused
	p50, p99 time.Duration
	// cpu are the CPU seconds for one call that was not refused, of each process;
	// the last is the caller's.
	cpu []float64
}

// series is rows that are measured in turn.
type series struct {
	rows   []*row
	rounds int
	each   time.Duration // how long a measurement takes
	warmUp time.Duration
	// before, when it is not nil, is called before each round.
	before func(context.Context) error
}

func (s *series) measure(ctx context.Context) error {
	began := time.Now()
	order := slices.Clone(s.rows)
	for round := range s.rounds {
		if s.before != nil {
			if err := s.before(ctx); err != nil {
				return err
			}
		}
		if round == 0 { // connections, caches and the garbage collector's pace
			for _, r := range order {
				if _, err := r.run(ctx, s.warmUp); err != nil {
					return fmt.Errorf("warm up %s: %w", r.name, err)
				}
			}
		}
		fmt.Fprintf(os.Stderr, "round %d of %d", round+1, s.rounds)
		for _, r := range order {
			one, err := r.run(ctx, s.each)
			if err != nil {
				return fmt.Errorf("measure %s: %w", r.name, err)
			}
			r.samples = append(r.samples, one)
			fmt.Fprintf(os.Stderr, "  %s %.0f/s", strings.TrimSpace(r.name+" "+r.by), one.rate)
		}
		fmt.Fprintln(os.Stderr)
		// So that none always comes after the same other one.
		slices.Reverse(order)
	}
	fmt.Fprintf(os.Stderr, "measured in %s\n", time.Since(began).Round(time.Second))
	return nil
}

// calls are what was called for a while.
type calls struct {
	took    []time.Duration // of each that did what it was to do
	refused int
	elapsed time.Duration
	cpu     time.Duration // the caller's
}

// run makes calls for a while, callers at a time.
func (r *row) run(ctx context.Context, d time.Duration) (sample, error) {
	before, err := cpuOf(r.processes)
	if err != nil {
		return sample{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, d+10*time.Second)
	defer cancel()
	load := r.load
	if load == nil {
		load = r.callAll
	}
	made, err := load(ctx, d)
	if err != nil {
		return sample{}, err
	}
	after, err := cpuOf(r.processes)
	if err != nil {
		return sample{}, err
	}
	all := made.took
	if len(all) == 0 {
		return sample{}, errors.New("no call came back in time")
	}
	slices.Sort(all)
	s := sample{
		rate: float64(len(all)) / made.elapsed.Seconds(), refused: float64(made.refused) / made.elapsed.Seconds(),
		p50: all[len(all)/2], p99: all[len(all)*99/100],
	}
	for i := range after {
		s.cpu = append(s.cpu, (after[i]-before[i]).Seconds()/float64(len(all)))
	}
	s.cpu = append(s.cpu, made.cpu.Seconds()/float64(len(all)))
	return s, nil
}

// callAll makes calls. A caller that is refused waits as long as it was told, and up
// to as long again so that they do not all come back at once.
func (r *row) callAll(ctx context.Context, d time.Duration) (calls, error) {
	ownBefore := ownCPU()
	var (
		group   sync.WaitGroup
		failed  atomic.Pointer[error]
		refused atomic.Int64
		took    = make([][]time.Duration, r.callers)
		began   = time.Now()
		end     = began.Add(d)
	)
	for i := range r.callers {
		group.Go(func() {
			for failed.Load() == nil {
				start := time.Now()
				if start.After(end) {
					return
				}
				err := r.call(ctx)
				var later refusedError
				switch {
				case errors.As(err, &later):
					refused.Add(1)
					pause(ctx, min(time.Until(end), later.after+rand.N(later.after)))
				case err != nil:
					failed.Store(&err)
					return
				default:
					took[i] = append(took[i], time.Since(start))
				}
			}
		})
	}
	group.Wait()
	elapsed := time.Since(began)
	if err := failed.Load(); err != nil {
		return calls{}, *err
	}
	return calls{took: slices.Concat(took...), refused: int(refused.Load()), elapsed: elapsed, cpu: ownCPU() - ownBefore}, nil
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// median over the rounds of a figure of each sample.
func (r *row) median(of func(sample) float64) float64 {
	values := make([]float64, len(r.samples))
	for i, s := range r.samples {
		values[i] = of(s)
	}
	slices.Sort(values)
	return middle(values)
}

// ratio is this row's figure divided by the other's in the same round: the
// median over the rounds, and the least and the greatest.
func (r *row) ratio(other *row, of func(sample) float64) string {
	values := make([]float64, len(r.samples))
	for i := range r.samples {
		values[i] = of(r.samples[i]) / of(other.samples[i])
	}
	slices.Sort(values)
	return fmt.Sprintf("%.2f (%.2f to %.2f)", middle(values), values[0], values[len(values)-1])
}

func middle(sorted []float64) float64 {
	n := len(sorted)
	if n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[n/2]
}
