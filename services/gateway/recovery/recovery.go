// Package recovery is the stage that turns a panic into an internal error, so
// that one request cannot end the gateway.
package recovery

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"

	"github.com/hashicorp/go-hclog"

	"github.com/marquee-ads/marquee/services/gateway/stage"
)

// Stage logs a panic once, with its stack and the request's id, and answers
// INTERNAL. What net/http means
// by a panic with http.ErrAbortHandler passes at its door.
func Stage(log hclog.Logger) stage.Stage {
	return func(next stage.Handler) stage.Handler {
		return func(ctx context.Context, call *stage.Call) (err error) {
			defer func() {
				switch what := recover(); {
				case what == nil:
				case what == any(http.ErrAbortHandler) && call.Door == stage.HTTP:
					panic(what) //nolint:forbidigo // net/http's own way to cut a connection
				default:
					log.Error("a request made the gateway panic", "panic", what, "target", call.Target,
						"request_id", call.RequestID, "stack", string(debug.Stack()))
					err = fmt.Errorf("panic: %v", what)
				}
			}()
			return next(ctx, call)
		}
	}
}
