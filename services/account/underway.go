package account

import (
	"context"
	"fmt"
	"sync"
)

// underWay lets one caller at a time go on for each key. Its zero value is ready.
type underWay struct {
	mu      sync.Mutex
	waiting map[string]*turn
}

// turn is one key's: a token in the channel, and how many hold or want it.
type turn struct {
	free  chan struct{}
	users int
}

// wait returns when nobody else is under way with the key; done lets the next one.
func (u *underWay) wait(ctx context.Context, key string) (done func(), err error) {
	u.mu.Lock()
	if u.waiting == nil {
		u.waiting = map[string]*turn{}
	}
	t, ok := u.waiting[key]
	if !ok {
		t = &turn{free: make(chan struct{}, 1)}
		t.free <- struct{}{}
		u.waiting[key] = t
	}
	t.users++
	u.mu.Unlock()

	leave := func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(u.waiting, key)
		}
	}
	select {
	case <-t.free:
		return func() { t.free <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("waiting for the same request that is under way: %w", context.Cause(ctx))
	}
}
