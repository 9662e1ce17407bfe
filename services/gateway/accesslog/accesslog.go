// Package accesslog is the stage that writes a line about requests: about those
// that failed through no fault of their caller, or about all.
package accesslog

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/services/gateway/stage"
)

// Stage logs failures that are the platform's own at warn, with their cause,
// and every other request at info when all is set, else at debug.
func Stage(log hclog.Logger, all bool) stage.Stage {
	log = log.Named("access")
	level := hclog.Debug
	if all {
		level = hclog.Info
	}
	return func(next stage.Handler) stage.Handler {
		return func(ctx context.Context, call *stage.Call) error {
			err := next(ctx, call)
			code := stage.CodeOf(err)
			switch {
			case stage.Ours(code) && !call.Unreceived:
				log.Warn("failed", append(facts(call, code), "error", err)...)
			case level >= log.GetLevel():
				log.Log(level, "served", facts(call, code)...)
			}
			return err
		}
	}
}

// maxTarget bounds what a caller can write into the log with one request.
const maxTarget = 256

func facts(call *stage.Call, code fault.Code) []any {
	target := call.Target
	if len(target) > maxTarget {
		target = target[:maxTarget]
	}
	return []any{
		"request_id", call.RequestID, "door", call.Door, "target", target, "method", call.Name(),
		"client", call.Client, "code", code, "took", time.Since(call.Start).Round(time.Microsecond),
	}
}
