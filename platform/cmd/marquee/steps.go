package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/marquee-ads/marquee/platform/jobs"
)

// steps writes what is going on, a line a step, each with the seconds since the
// start. It is safe for concurrent use.
type steps struct {
	mu    sync.Mutex
	w     io.Writer
	start time.Time
	now   func() time.Time
}

func newSteps(w io.Writer) *steps {
	return &steps{w: w, start: time.Now(), now: time.Now}
}

// say writes one line.
func (s *steps) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.w, "%6.1fs  %s\n", s.now().Sub(s.start).Seconds(), fmt.Sprintf(format, args...))
}

// progress says what a job or a machine is at.
func (s *steps) progress(p jobs.Progress) {
	switch {
	case p.Job == "":
		s.say("%s", p.Message)
	case p.Desired == 0:
		s.say("%s: %s", p.Job, p.Message)
	default:
		s.say("%s: %d of %d healthy: %s", p.Job, p.Healthy, p.Desired, p.Message)
	}
}

// patience is how long something may take before a line says what it is.
const patience = 2 * time.Second

// slowly says what is going on when it is still going on after a while; the
// returned function ends it.
func (s *steps) slowly(what string) (done func()) {
	said := make(chan struct{})
	timer := time.AfterFunc(patience, func() {
		defer close(said)
		s.say("%s", what)
	})
	return func() {
		if !timer.Stop() {
			<-said
		}
	}
}

// elapsed is the time since the start.
func (s *steps) elapsed() time.Duration { return s.now().Sub(s.start) }
