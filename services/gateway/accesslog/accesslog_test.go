package accesslog_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/services/gateway/accesslog"
	"github.com/marquee-ads/marquee/services/gateway/stage"
)

// By default the log has what the platform has to answer for: callers cannot fill it.
func TestWhatIsLogged(t *testing.T) {
	late := fault.New(fault.DeadlineExceeded, "LATE", "too late")
	for name, test := range map[string]struct {
		err         error
		unreceived  bool
		all, logged bool
	}{
		"Served":             {},
		"ServedAll":          {all: true, logged: true},
		"CallersFault":       {err: fault.New(fault.InvalidArgument, "WRONG", "wrong")},
		"Ours":               {err: late, logged: true},
		"NeverReceived":      {err: late, unreceived: true},
		"NeverReceivedInAll": {err: late, unreceived: true, all: true, logged: true},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			logger := hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Info})
			chain := stage.NewChain(accesslog.Stage(logger, test.all), stage.Receive(0))
			call := &stage.Call{RequestID: "the-request"}
			if test.unreceived {
				call.Receive = func(context.Context) error { return test.err }
			}
			require.ErrorIs(t, chain.Run(t.Context(), call, func(context.Context, *stage.Call) error { return test.err }), test.err)
			require.Equal(t, test.logged, bytes.Contains(log.Bytes(), []byte("the-request")), log.String())
		})
	}
}
