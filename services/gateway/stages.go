package gateway

import (
	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/marquee-ads/marquee/services/gateway/accesslog"
	"github.com/marquee-ads/marquee/services/gateway/deadline"
	"github.com/marquee-ads/marquee/services/gateway/metrics"
	"github.com/marquee-ads/marquee/services/gateway/recovery"
	"github.com/marquee-ads/marquee/services/gateway/requestid"
	"github.com/marquee-ads/marquee/services/gateway/stage"
)

// stages is the one list of what every request passes, in this order, whichever
// door it comes in by. A new concern of the edge (authentication, rate limits,
// quotas) is a package with a stage.Stage, and a line here. A new protocol is a
// package beside proxy and rest that runs the same chain.
func stages(cfg Config, log hclog.Logger, registry prometheus.Registerer) (*stage.Chain, error) {
	measure, err := metrics.New(registry)
	if err != nil {
		return nil, err
	}
	return stage.NewChain(
		requestid.Stage(),
		accesslog.Stage(log, cfg.AccessLog == "all"),
		measure,
		recovery.Stage(log),
		deadline.Stage(cfg.limits()),
	), nil
}
