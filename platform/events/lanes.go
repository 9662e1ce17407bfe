package events

import (
	"context"
	"sync"
	"time"
)

// lanes handle the events of one key one after another, and those of different
// keys at the same time. An event that waits to be tried again holds up its key
// and no worker.
type lanes struct {
	workers chan struct{} // a place for each
	running sync.WaitGroup

	mu      sync.Mutex
	waiting map[string][]func() time.Duration // by key that is under way
	held    map[uint64]struct{}               // numbers in the stream
}

func newLanes(workers int) *lanes {
	return &lanes{
		workers: make(chan struct{}, workers),
		waiting: make(map[string][]func() time.Duration),
		held:    make(map[uint64]struct{}),
	}
}

// add takes an event behind the earlier ones of its key. handle is called until
// it returns 0, each time after the pause that it returned. An event that comes
// again while it is held is left out.
func (l *lanes) add(ctx context.Context, d *delivery, handle func() time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, held := l.held[d.seq]; held {
		return
	}
	l.held[d.seq] = struct{}{}
	task := func() time.Duration {
		pause := handle()
		if pause == 0 {
			l.mu.Lock()
			delete(l.held, d.seq)
			l.mu.Unlock()
		}
		return pause
	}
	list, busy := l.waiting[d.Key]
	if busy {
		l.waiting[d.Key] = append(list, task)
		return
	}
	l.waiting[d.Key] = nil
	l.running.Go(func() { l.run(ctx, d.Key, task) })
}

// run works off a key until nothing of it waits, or ctx ends.
func (l *lanes) run(ctx context.Context, key string, task func() time.Duration) {
	for {
		select {
		case l.workers <- struct{}{}:
		case <-ctx.Done():
			return
		}
		pause := task()
		<-l.workers
		if ctx.Err() != nil {
			return
		}
		if pause > 0 {
			if !wait(ctx, pause) {
				return
			}
			continue
		}
		l.mu.Lock()
		list := l.waiting[key]
		if len(list) == 0 {
			delete(l.waiting, key)
			l.mu.Unlock()
			return
		}
		task, l.waiting[key] = list[0], list[1:]
		l.mu.Unlock()
	}
}

// wait returns when nothing is handled any more. The context has ended.
func (l *lanes) wait() { l.running.Wait() }
