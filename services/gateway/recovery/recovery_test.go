package recovery_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/services/gateway/recovery"
	"github.com/marquee-ads/marquee/services/gateway/stage"
)

func TestPanic(t *testing.T) {
	var log bytes.Buffer
	chain := stage.NewChain(recovery.Stage(hclog.New(&hclog.LoggerOptions{Output: &log})))
	call := &stage.Call{Target: "GET /v1/echo/x", RequestID: "the-request"}
	err := chain.Run(t.Context(), call, func(context.Context, *stage.Call) error {
		var nothing []int
		return fmt.Errorf("unreachable: %d", nothing[len(call.Target)])
	})
	require.ErrorIs(t, err, recovery.ErrPanicked)
	require.Equal(t, fault.Internal, fault.Code(stage.StatusOf(err, call.RequestID).Code()))
	require.Equal(t, "internal error", stage.StatusOf(err, call.RequestID).Message(), "the panic's text stays inside")
	require.Contains(t, log.String(), "the-request")
	require.Contains(t, log.String(), "recovery_test.go", "the stack")
}

func TestAbortPasses(t *testing.T) {
	chain := stage.NewChain(recovery.Stage(hclog.NewNullLogger()))
	require.PanicsWithValue(t, http.ErrAbortHandler, func() {
		_ = chain.Run(t.Context(), &stage.Call{Door: stage.HTTP}, func(context.Context, *stage.Call) error { panic(http.ErrAbortHandler) })
	})
}
