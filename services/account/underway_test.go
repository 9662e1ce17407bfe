package account

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestUnderWay(t *testing.T) {
	t.Run("OKOneAtATime", func(t *testing.T) {
		var (
			u      underWay
			all    sync.WaitGroup
			inside atomic.Int32
			total  int // guarded by u itself: the race detector looks on
		)
		for range 50 {
			all.Go(func() {
				done, err := u.wait(t.Context(), "a")
				if err != nil || inside.Add(1) != 1 {
					t.Errorf("two at once, or %v", err)
					return
				}
				total++
				inside.Add(-1)
				done()
			})
		}
		all.Wait()
		require.Equal(t, 50, total)
		require.Empty(t, u.waiting, "keys are kept")
	})
	t.Run("OKOtherKey", func(t *testing.T) {
		var u underWay
		one, err := u.wait(t.Context(), "a")
		require.NoError(t, err)
		two, err := u.wait(t.Context(), "b")
		require.NoError(t, err)
		one()
		two()
	})
	t.Run("ErrContext", func(t *testing.T) {
		var u underWay
		done, err := u.wait(t.Context(), "a")
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		_, err = u.wait(ctx, "a")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		done()
		require.Empty(t, u.waiting)
	})
}
