package service

import (
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/mesh"
)

// logAccess writes one line per call: at debug for those that went well and
// for health and reflection, at info for those that failed.
func (g *grpcServer) logAccess(c *call, err error) {
	level := hclog.Debug
	if err != nil && !c.method.exempt {
		level = hclog.Info
	}
	if level < g.log.GetLevel() {
		return
	}
	line := []any{
		"method", c.method.name,
		"code", fault.Code(status.Code(err)),
		"took", time.Since(c.began).Round(time.Microsecond),
		"request_id", c.requestID,
	}
	if peer, ok := mesh.PeerFromContext(c.inner); ok {
		line = append(line, "from", peer.Service)
	}
	if caller, ok := auth.CallerFromContext(c.inner); ok {
		line = append(line, "account", caller.ID())
	}
	if err != nil && status.Code(err) != codes.Internal { // that one was logged already
		line = append(line, "error", c.err)
	}
	g.log.Log(level, "call", line...)
}
