package mesh

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"
)

// script answers queries in order and notes the index each was asked with.
type script struct {
	mu      sync.Mutex
	asked   []uint64
	answers []answer
	done    context.CancelFunc
}

type answer struct {
	value string
	index uint64
	err   error
}

func (s *script) ask(opts *consulapi.QueryOptions) (string, *consulapi.QueryMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, opts.WaitIndex)
	if len(s.answers) == 0 {
		s.done()
		return "", nil, context.Canceled
	}
	a := s.answers[0]
	s.answers = s.answers[1:]
	return a.value, &consulapi.QueryMeta{LastIndex: a.index}, a.err
}

func TestFollow(t *testing.T) {
	gone := errors.New("connection refused")
	for name, c := range map[string]struct {
		answers []answer
		asked   []uint64
		applied []string
	}{
		"Changes":        {[]answer{{"a", 5, nil}, {"b", 6, nil}}, []uint64{0, 5, 6}, []string{"a", "b"}},
		"Unchanged":      {[]answer{{"a", 5, nil}, {"a", 5, nil}, {"b", 7, nil}}, []uint64{0, 5, 5, 7}, []string{"a", "b"}},
		"IndexBackwards": {[]answer{{"a", 50, nil}, {"b", 3, nil}, {"b", 3, nil}, {"c", 4, nil}}, []uint64{0, 50, 0, 3, 4}, []string{"a", "b", "b", "c"}},
		"FailsAndAsksAfresh": {
			[]answer{{"a", 5, nil}, {"", 0, gone}, {"", 0, gone}, {"b", 6, nil}}, []uint64{0, 5, 0, 0, 6}, []string{"a", "b"},
		},
		"FirstFails":   {[]answer{{"", 0, gone}, {"a", 5, nil}}, []uint64{0, 0, 5}, []string{"a"}},
		"WithoutIndex": {[]answer{{"a", 0, nil}, {"a", 5, nil}}, []uint64{0, 0, 5}, []string{"a"}},
		"NotUsable":    {[]answer{{"bad", 5, nil}, {"a", 6, nil}}, []uint64{0, 0, 6}, []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			s := &script{answers: c.answers, done: cancel}
			var applied []string
			follow(ctx, hclog.NewNullLogger(), "the test", s.ask, func(v string) error {
				if v == "bad" {
					return errors.New("not usable")
				}
				applied = append(applied, v)
				return nil
			}, func(error) {})
			require.ErrorIs(t, ctx.Err(), context.Canceled)
			require.Equal(t, c.asked, s.asked)
			require.Equal(t, c.applied, applied)
		})
	}
}

func TestRetryDelay(t *testing.T) {
	for failures := 1; failures < 100; failures++ {
		d := retryDelay(failures)
		require.GreaterOrEqual(t, d, firstRetry/2)
		require.LessOrEqual(t, d, lastRetry)
	}
	require.LessOrEqual(t, retryDelay(1), firstRetry)
	require.Greater(t, retryDelay(1000), lastRetry/3)
}
