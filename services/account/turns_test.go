package account

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTurns(t *testing.T) {
	run := func(name string, test func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
	}
	run("TheLastIsNext", func(t *testing.T) {
		turns := newTurns(2, 10)
		first, second := takes(t, turns), takes(t, turns)
		var order []int
		var waiting sync.WaitGroup
		for i := range 3 {
			waiting.Go(func() {
				done, err := turns.take(t.Context())
				if err != nil {
					t.Errorf("%d: %v", i, err)
					return
				}
				order = append(order, i) // one after the other: the turn is handed on
				time.Sleep(10 * time.Millisecond)
				done()
			})
			synctest.Wait()
		}
		first()
		waiting.Wait()
		require.Equal(t, []int{2, 1, 0}, order)
		second()
		require.Equal(t, 2, turns.free)
	})
	run("FullQueue", func(t *testing.T) {
		turns := newTurns(1, 1)
		first := takes(t, turns)
		go func() {
			if done, err := turns.take(t.Context()); err == nil {
				done()
			}
		}()
		synctest.Wait()
		began := time.Now()
		_, err := turns.take(t.Context())
		require.ErrorIs(t, err, ErrOverloaded)
		require.Zero(t, time.Since(began), "it is told at once")
		first()
		synctest.Wait()
		require.Equal(t, 1, turns.free)
	})
	run("GivesUp", func(t *testing.T) {
		turns := newTurns(1, 10)
		first := takes(t, turns)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		_, err := turns.take(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		began := time.Now()
		_, err = turns.take(t.Context())
		require.ErrorIs(t, err, ErrOverloaded, "nobody's turn ends")
		require.Equal(t, goodWait, time.Since(began))
		require.Empty(t, turns.waiting, "the place in the queue is not given back")
		first()
		require.Equal(t, 1, turns.free)
	})
	// Where a turn takes long the one before it may be waited for.
	run("SlowTurns", func(t *testing.T) {
		turns := newTurns(1, 10)
		turns.taken = 0.2
		first := takes(t, turns)
		go func() { time.Sleep(700 * time.Millisecond); first() }()
		began := time.Now()
		takes(t, turns)()
		require.Equal(t, 700*time.Millisecond, time.Since(began))
	})
	// A turn that is handed over while its caller leaves is not lost.
	run("LeavesMeanwhile", func(t *testing.T) {
		turns := newTurns(1, 10)
		for range 100 {
			first := takes(t, turns)
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				if done, err := turns.take(ctx); err == nil {
					done()
				}
			}()
			synctest.Wait()
			go cancel()
			first()
			synctest.Wait()
			require.Equal(t, 1, turns.free)
			time.Sleep(time.Second) // else it would be an overload
		}
	})
	// What a machine that stood still for a while is asked all at once.
	run("Burst", func(t *testing.T) {
		const takes = 40 * time.Millisecond
		turns := newTurns(1, 100)
		waits := ask(t, turns, takes, slices.Repeat([]time.Duration{0}, int(goodWait/takes)))
		require.Empty(t, waits.refused)
		require.Less(t, slices.Max(waits.served), goodWait)
	})
	// Twice the capacity for a minute, and a quarter of it afterwards.
	run("Overload", func(t *testing.T) {
		const takes = 40 * time.Millisecond
		for _, atOnce := range []int{1, 2, 4} {
			turns := newTurns(atOnce, 32*atOnce)
			each := takes / time.Duration(2*atOnce)
			waits := ask(t, turns, takes, slices.Repeat([]time.Duration{each}, int(time.Minute/each)))
			possible := int(time.Minute/takes) * atOnce
			require.Greater(t, len(waits.served), possible*6/10, "%d at once: calls served", atOnce)
			require.LessOrEqual(t, quantile(waits.served, .99), 2*takes, "%d at once: the wait of those that are served", atOnce)
			require.Zero(t, quantile(waits.refused, .9), "%d at once: the wait of those that are not", atOnce)
			require.LessOrEqual(t, slices.Max(waits.refused), goodWait)

			waits = ask(t, turns, takes, slices.Repeat([]time.Duration{8 * each}, 100))
			require.Empty(t, waits.refused, "%d at once: afterwards", atOnce)
		}
	})
	// As much as can be done is not refused for good when there was an overload.
	run("Recovers", func(t *testing.T) {
		const takes = 40 * time.Millisecond
		turns := newTurns(1, 32)
		ask(t, turns, takes, slices.Repeat([]time.Duration{takes / 3}, 1000))
		ask(t, turns, takes, slices.Repeat([]time.Duration{takes * 11 / 10}, 200))
		waits := ask(t, turns, takes, slices.Repeat([]time.Duration{takes * 11 / 10}, 1000))
		require.Empty(t, waits.refused)
	})
}

func takes(t *testing.T, turns *turns) func() {
	t.Helper()
	done, err := turns.take(t.Context())
	require.NoError(t, err)
	return done
}

// waits are how long callers waited until they were served or refused.
type waits struct{ served, refused []time.Duration }

// ask comes after each pause with a caller whose turn takes so long.
func ask(t *testing.T, turns *turns, takes time.Duration, pauses []time.Duration) waits {
	t.Helper()
	var w waits
	var mu sync.Mutex
	var callers sync.WaitGroup
	for _, pause := range pauses {
		time.Sleep(pause)
		callers.Go(func() {
			began := time.Now()
			done, err := turns.take(t.Context())
			waited := time.Since(began)
			mu.Lock()
			switch {
			case err == nil:
				w.served = append(w.served, waited)
			case errors.Is(err, ErrOverloaded):
				w.refused = append(w.refused, waited)
			default:
				t.Error(err)
			}
			mu.Unlock()
			if err == nil {
				time.Sleep(takes)
				done()
			}
		})
	}
	callers.Wait()
	return w
}

func quantile(all []time.Duration, q float64) time.Duration {
	slices.Sort(all)
	return all[int(q*float64(len(all)-1))]
}
