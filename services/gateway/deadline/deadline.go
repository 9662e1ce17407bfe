// Package deadline is the stage that gives every call an end: the caller's own
// deadline within a maximum, or a default.
package deadline

import (
	"context"
	"time"

	"github.com/marquee-ads/marquee/services/gateway/catalog"
	"github.com/marquee-ads/marquee/services/gateway/stage"
)

// Limits bound how long calls take.
type Limits struct {
	// Default is for unary calls whose caller does not say how long it waits.
	Default time.Duration
	// Max is the longest a unary call may take, whatever the caller says.
	Max time.Duration
	// Stream is the longest any stream may last; the caller opens it again.
	Stream time.Duration
}

// Apply returns a context that ends in time for a call of the method (nil is
// one that does not exist). asked is how long the caller said it waits, 0 if it
// did not; a deadline that ctx has already counts as asked for too.
func (l Limits) Apply(ctx context.Context, method *catalog.Method, asked time.Duration) (context.Context, context.CancelFunc) {
	limit := l.Max
	if method != nil && !method.Unary() {
		limit = l.Stream
	} else if _, set := ctx.Deadline(); !set && asked == 0 {
		limit = min(l.Default, l.Max)
	}
	if asked > 0 {
		limit = min(limit, asked)
	}
	if deadline, set := ctx.Deadline(); set && time.Until(deadline) <= limit {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, limit)
}

// Stage applies the limits to every call.
func Stage(limits Limits) stage.Stage {
	return func(next stage.Handler) stage.Handler {
		return func(ctx context.Context, call *stage.Call) error {
			ctx, cancel := limits.Apply(ctx, call.Method, call.Timeout)
			defer cancel()
			return next(ctx, call)
		}
	}
}
