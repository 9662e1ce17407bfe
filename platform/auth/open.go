package auth

import (
	"sync"
	"time"
)

// judgeInterval is how long a stream goes on at most whose caller a new call
// would refuse.
const judgeInterval = time.Second

// Follow watches over a call that goes on, such as a stream, and that Verify let
// in: end is called, once and from another goroutine, when a new call with this
// token would be refused; when the call needs a role, with ErrRolesChanged too.
// It takes a second at most. leave has to be called when the call has ended.
func (v *Verifier) Follow(token string, needsRole bool, end func(error)) (leave func(), err error) {
	verified, err := v.read(token)
	if err != nil {
		return nil, err
	}
	one := &openCall{verified: verified, needsRole: needsRole, end: end}
	v.open.add(one, v.judgeOpen)
	return func() { v.open.remove(one) }, nil
}

// openCalls are the calls that go on now. While there are any a timer runs, and
// no goroutine: judging ten thousand of them takes a few milliseconds.
type openCalls struct {
	mu    sync.Mutex
	calls map[*openCall]struct{}
	timer *time.Timer // nil when no judging is due
}

type openCall struct {
	verified  verified
	needsRole bool
	// end may be called while the call ends by itself.
	end func(error)
}

func (o *openCalls) add(one *openCall, judge func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.calls == nil {
		o.calls = make(map[*openCall]struct{})
	}
	o.calls[one] = struct{}{}
	if o.timer == nil {
		o.timer = time.AfterFunc(judgeInterval, judge)
	}
}

func (o *openCalls) remove(one *openCall) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.calls, one)
	if len(o.calls) == 0 && o.timer != nil && o.timer.Stop() {
		o.timer = nil
	}
}

// judgeOpen ends the open calls that would be refused now, and comes again while
// others are left.
func (v *Verifier) judgeOpen() {
	ending := make(map[*openCall]error)
	unavailable := v.available()
	o := &v.open
	o.mu.Lock()
	for one := range o.calls {
		err := unavailable
		if err == nil {
			err = v.judge(&one.verified)
		}
		if err == nil && one.needsRole {
			err = v.rolesStand(one.verified.caller)
		}
		if err != nil {
			ending[one] = err
			delete(o.calls, one)
		}
	}
	o.timer = nil
	if len(o.calls) > 0 {
		o.timer = time.AfterFunc(judgeInterval, v.judgeOpen)
	}
	o.mu.Unlock()
	for one, err := range ending {
		one.end(err)
	}
}
