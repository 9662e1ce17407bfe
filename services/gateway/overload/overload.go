// Package overload is the stage that refuses calls early when as many are under
// way as the gateway can serve at its usual speed.
package overload

import (
	"context"

	"github.com/marquee-ads/marquee/services/gateway/stage"
)

// Admission lets a call in, which leaves when it ends, or says why not and when
// to try again; *service.Admission is one.
type Admission interface {
	Enter() error
	Leave()
}

// Stage asks for admission for every request but streams, which may last.
func Stage(admission Admission) stage.Stage {
	return func(next stage.Handler) stage.Handler {
		return func(ctx context.Context, call *stage.Call) error {
			if call.Method != nil && !call.Method.Unary() {
				return next(ctx, call)
			}
			if err := admission.Enter(); err != nil {
				return err
			}
			defer admission.Leave()
			return next(ctx, call)
		}
	}
}
