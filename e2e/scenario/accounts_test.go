package scenario

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
)

func TestAskedToWait(t *testing.T) {
	refused := func(reason string) error {
		return grpcfault.ToStatus(fault.New(fault.ResourceExhausted, reason, "too much").WithRetryAfter(2*time.Second), "").Err()
	}
	told := func(reason string) error {
		return &load.ProblemError{HTTPStatus: http.StatusTooManyRequests, RetryAfter: "1", Body: []byte(`{"reason": "` + reason + `"}`)}
	}
	for name, c := range map[string]struct {
		err  error
		want time.Duration
	}{
		"Well": {nil, 0}, "GRPC": {refused("OVERLOADED"), 2 * time.Second}, "REST": {told("OVERLOADED"), time.Second},
		"GRPCOtherwise": {refused("TOO_MANY_ATTEMPTS"), 0}, "RESTOtherwise": {told("TOO_MANY_ATTEMPTS"), 0}, "Unknown": {errors.New("no"), 0},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, askedToWait(c.err)) })
	}
}
