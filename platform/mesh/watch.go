package mesh

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
)

const (
	// blockTime is how long the agent holds a query whose answer has not changed.
	blockTime = time.Minute
	// blockGrace is added before a query counts as hung: the agent itself
	// stretches blockTime by up to a sixteenth.
	blockGrace = blockTime/16 + 10*time.Second

	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// query asks the agent once, blocking when the options hold an index.
type query[T any] func(*consulapi.QueryOptions) (T, *consulapi.QueryMeta, error)

// follow keeps applying the answers of a blocking query until ctx ends. What
// was applied stays while the agent is away; report gets the error of every
// failed round and nil after a good one.
func follow[T any](ctx context.Context, log hclog.Logger, what string, ask query[T], apply func(T) error, report func(error)) {
	var index uint64
	failures := 0
	for ctx.Err() == nil {
		next, err := followOnce(ctx, index, ask, apply)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			// The agent may come back with another history: ask afresh.
			index = 0
			failures++
			if failures == 1 || failures%20 == 0 {
				log.Warn("watch failed; what is known stays in force", "of", what, "failures", failures, "error", err)
			}
			report(fmt.Errorf("watch %s: %w", what, err))
			pause(ctx, retryDelay(failures))
			continue
		}
		if failures > 0 {
			log.Info("watch works again", "of", what, "failures", failures)
			failures = 0
		}
		report(nil)
		index = next
	}
}

// followOnce asks once, applies a new answer, and returns the index to wait on.
func followOnce[T any](ctx context.Context, index uint64, ask query[T], apply func(T) error) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, blockTime+blockGrace)
	defer cancel()
	opts := (&consulapi.QueryOptions{WaitIndex: index, WaitTime: blockTime}).WithContext(ctx)
	answer, meta, err := ask(opts)
	if err != nil {
		return 0, err
	}
	if meta.LastIndex == 0 {
		// Waiting on 0 does not wait, so this would become a busy loop.
		return 0, errors.New("the agent answered without an index")
	}
	if meta.LastIndex == index {
		return index, nil
	}
	if err := apply(answer); err != nil {
		return 0, err
	}
	if meta.LastIndex < index {
		// The servers' state was restored from older: waiting on the index that
		// was seen before could take for ever.
		return 0, nil
	}
	return meta.LastIndex, nil
}

// retryDelay doubles from firstRetry to lastRetry, less up to a half at random.
func retryDelay(failures int) time.Duration {
	d := lastRetry
	if failures < 10 {
		d = min(firstRetry<<(failures-1), lastRetry)
	}
	return d - rand.N(d/2)
}

// pause waits for d or for the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
