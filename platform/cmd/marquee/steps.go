package main

import (
	"fmt"
	"io"
	"sync"
	"time"
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

// elapsed is the time since the start.
func (s *steps) elapsed() time.Duration { return s.now().Sub(s.start) }
