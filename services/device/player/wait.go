package player

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	firstPause = time.Second
	lastPause  = time.Minute
	// refusedPause is between attempts that will hardly succeed.
	refusedPause = 10 * time.Minute
)

// backOff is the pause before another attempt, after so many that failed before the
// last one: it doubles, by a random factor so that not all come at once.
func backOff(attempts int) time.Duration {
	pause := lastPause
	if attempts < 6 {
		pause = min(firstPause<<attempts, lastPause)
	}
	return time.Duration(float64(pause) * (0.5 + rand.Float64()))
}

// sleep waits, or returns why ctx ended.
func sleep(ctx context.Context, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
