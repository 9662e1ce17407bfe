// Package metrics is the stage that counts requests and measures how long they
// take, by door, method and code.
package metrics

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/marquee-ads/marquee/services/gateway/stage"
)

// New makes the stage and registers its metrics:
// marquee_gateway_calls_total{door,method,code},
// marquee_gateway_call_seconds{door} and marquee_gateway_calls_in_flight{door}.
// The method is one of the catalog's, or "unknown": callers cannot make labels.
func New(registry prometheus.Registerer) (stage.Stage, error) {
	total := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "marquee_gateway_calls_total",
		Help: "Requests that ended, by door, gRPC method and code.",
	}, []string{"door", "method", "code"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "marquee_gateway_call_seconds",
		Help:    "Time from a request's arrival to its end; streams are not in it.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	}, []string{"door"})
	inFlight := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "marquee_gateway_calls_in_flight",
		Help: "Requests being served.",
	}, []string{"door"})
	for _, c := range []prometheus.Collector{total, seconds, inFlight} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("register the gateway's metrics: %w", err)
		}
	}
	type perDoor struct {
		seconds  prometheus.Observer
		inFlight prometheus.Gauge
	}
	// Looked up once: a lookup costs as much as the measurement.
	doors := make(map[stage.Door]perDoor)
	for _, door := range []stage.Door{stage.HTTP, stage.GRPC} {
		doors[door] = perDoor{seconds.WithLabelValues(string(door)), inFlight.WithLabelValues(string(door))}
	}
	return func(next stage.Handler) stage.Handler {
		return func(ctx context.Context, call *stage.Call) error {
			door := doors[call.Door]
			door.inFlight.Inc()
			defer door.inFlight.Dec()
			err := next(ctx, call)
			total.WithLabelValues(string(call.Door), call.Name(), stage.CodeOf(err).String()).Inc()
			if call.Method == nil || call.Method.Unary() {
				door.seconds.Observe(time.Since(call.Start).Seconds())
			}
			return err
		}
	}, nil
}
