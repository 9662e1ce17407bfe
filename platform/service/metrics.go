package service

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/fault"
)

// callSeconds is the histogram of the calls that were answered. Its labels are
// bounded: only methods of registered services and known codes occur.
func (s *Service) callSeconds() *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "grpc_server_call_seconds",
		Help:    "How long calls took to answer, by method and gRPC code; streams from beginning to end.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	}, []string{"method", "code"})
	s.registry.MustRegister(h)
	return h
}

func (g *grpcServer) observe(c *call, err error) {
	code := status.Code(err)
	if code > codes.Unauthenticated {
		code = codes.Unknown
	}
	// Looking an observer up costs more than observing: each is kept.
	kept := &c.method.observers[code]
	observer := kept.Load()
	if observer == nil {
		o := g.latency.WithLabelValues(c.method.name, fault.Code(code).String())
		observer = &o
		kept.Store(observer)
	}
	(*observer).Observe(time.Since(c.began).Seconds())
}
