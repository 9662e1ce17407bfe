package backend

import "sync/atomic"

// budget bounds how much retries add to the load of a service that is failing:
// a burst at once, and after that one retry for every five calls. Without it a
// service that fails everything would get every call four times.
type budget struct {
	tenths atomic.Int64 // tenths of a retry
}

const (
	budgetBurst   = 500 * 10 // enough for the calls in flight on an instance that dies
	budgetPerCall = 2        // a fifth of a retry
	budgetRetry   = 10
)

func (b *budget) fill() { b.tenths.Store(budgetBurst) }

// deposit notes one finished call.
func (b *budget) deposit() {
	// Nearly always full: then this is one load and no contention.
	if b.tenths.Load() <= budgetBurst-budgetPerCall {
		b.tenths.Add(budgetPerCall)
	}
}

// withdraw takes one retry, if there is one.
func (b *budget) withdraw() bool {
	for {
		have := b.tenths.Load()
		if have < budgetRetry {
			return false
		}
		if b.tenths.CompareAndSwap(have, have-budgetRetry) {
			return true
		}
	}
}
