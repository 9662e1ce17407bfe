// Package recovery turns a panic into an internal error, so that one request
// cannot end the gateway.
package recovery

import (
	"context"
	"errors"
	"net/http"
	"runtime/debug"

	"github.com/hashicorp/go-hclog"

	"github.com/marquee-ads/marquee/services/gateway/stage"
)

// ErrPanicked is what the rest of the way sees of a panic, which was logged
// where it was caught. Its caller is told INTERNAL.
var ErrPanicked = errors.New("the gateway panicked")

// Stage logs a panic once, with its stack and the request's id, and fails with
// ErrPanicked. What net/http means by a panic with http.ErrAbortHandler passes
// at its door.
func Stage(log hclog.Logger) stage.Stage {
	return func(next stage.Handler) stage.Handler {
		return func(ctx context.Context, call *stage.Call) (err error) {
			defer func() {
				switch what := recover(); {
				case what == nil:
				case what == any(http.ErrAbortHandler) && call.Door == stage.HTTP:
					panic(what) //nolint:forbidigo // net/http's own way to cut a connection
				default:
					err = Caught(log, what, "target", call.Target, "request_id", call.RequestID)
				}
			}()
			return next(ctx, call)
		}
	}
}

// Caught logs what recover returned, which is not nil, and is ErrPanicked: for
// goroutines, and for what a door does before and after the stages. about are
// pairs for the log.
func Caught(log hclog.Logger, what any, about ...any) error {
	log.Error("a request made the gateway panic", append(about, "panic", what, "stack", string(debug.Stack()))...)
	return ErrPanicked
}
