package stage_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/services/gateway/stage"
)

func TestReceive(t *testing.T) {
	chain := stage.NewChain(stage.Receive(1))
	forward := func(context.Context, *stage.Call) error { return nil }
	arrived, come := make(chan struct{}), make(chan error)
	slow := &stage.Call{Receive: func(context.Context) error {
		close(arrived)
		return <-come
	}}
	ended := make(chan error)
	go func() { ended <- chain.Run(t.Context(), slow, forward) }()
	<-arrived

	second := &stage.Call{Receive: func(context.Context) error { return nil }}
	err := chain.Run(t.Context(), second, forward)
	f, ok := fault.From(err)
	require.True(t, ok)
	require.Equal(t, "OVERLOADED", f.Reason)
	require.Positive(t, f.RetryAfter)
	require.True(t, second.Unreceived)
	require.NoError(t, chain.Run(t.Context(), &stage.Call{}, forward), "nothing is waited for")

	broken := errors.New("broken")
	come <- broken
	require.ErrorIs(t, <-ended, broken)
	require.True(t, slow.Unreceived)
	second = &stage.Call{Receive: second.Receive}
	require.NoError(t, chain.Run(t.Context(), second, forward))
	require.False(t, second.Unreceived)
}
