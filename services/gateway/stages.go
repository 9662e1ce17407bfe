package gateway

import (
	"github.com/marquee-ads/marquee/services/gateway/accesslog"
	"github.com/marquee-ads/marquee/services/gateway/deadline"
	"github.com/marquee-ads/marquee/services/gateway/metrics"
	"github.com/marquee-ads/marquee/services/gateway/overload"
	"github.com/marquee-ads/marquee/services/gateway/recovery"
	"github.com/marquee-ads/marquee/services/gateway/requestid"
	"github.com/marquee-ads/marquee/services/gateway/stage"
	"github.com/marquee-ads/marquee/services/gateway/tracing"
)

// stages is the one list of what every request passes, in this order, whichever
// door it comes in by. A new concern of the edge (authentication, rate limits,
// quotas) is a package with a stage.Stage, and a line here. A new protocol is a
// package beside proxy and rest that runs the same chain.
func stages(cfg Config, around Surroundings) (*stage.Chain, error) {
	measure, err := metrics.New(around.Metrics)
	if err != nil {
		return nil, err
	}
	list := []stage.Stage{requestid.Stage()}
	if around.Tracing != nil {
		list = append(list, tracing.Stage(around.Tracing))
	}
	list = append(list,
		accesslog.Stage(around.Log, cfg.AccessLog == "all"),
		measure,
		recovery.Stage(around.Log),
		deadline.Stage(cfg.limits()),
		// A client has few connections, and on each of them many calls.
		stage.Receive(2*cfg.MaxConnections),
		overload.Stage(around.Admission),
	)
	return stage.NewChain(list...), nil
}
