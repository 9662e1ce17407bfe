package mesh

import "sync"

// sessions are the streams and connections that are open now: what was let in
// once and has to leave when a new policy no longer allows it.
type sessions struct {
	mu   sync.Mutex
	open map[*session]struct{}
}

type session struct {
	allowed func(*policy) bool
	// end closes it from outside; it may be called while it ends by itself.
	end func()
}

func (s *sessions) add(one *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = make(map[*session]struct{})
	}
	s.open[one] = struct{}{}
}

func (s *sessions) remove(one *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, one)
}

// enforce ends every session that the policy does not allow and returns how many.
func (s *sessions) enforce(p *policy) int {
	var ending []*session
	s.mu.Lock()
	for one := range s.open {
		if !one.allowed(p) {
			ending = append(ending, one)
			delete(s.open, one)
		}
	}
	s.mu.Unlock()
	for _, one := range ending {
		one.end()
	}
	return len(ending)
}
