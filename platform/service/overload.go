package service

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/marquee-ads/marquee/platform/fault"
)

// errOverloaded is for calls that find the service full. It is not UNAVAILABLE,
// which clients repeat at once at another instance: that has as much to do.
var errOverloaded = fault.New(fault.ResourceExhausted, "OVERLOADED", "too much is asked of the service at the moment; try again later").
	WithRetryAfter(time.Second)

// Admission bounds the calls under way. Without a bound, more than a service can
// do makes all of its calls slower and slower until none is answered in time;
// with it those that are let in keep their speed, and the rest is refused while
// that costs next to nothing.
type Admission struct {
	most     int64 // 0: no bound
	underWay atomic.Int64
	refused  prometheus.Counter
}

func newAdmission(most int, registry prometheus.Registerer) *Admission {
	a := &Admission{most: int64(most), refused: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "marquee_calls_refused_total",
		Help: "Calls refused because --max-in-flight were under way.",
	})}
	registry.MustRegister(a.refused, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "marquee_calls_in_flight",
		Help: "Calls under way, of --max-in-flight.",
	}, func() float64 { return float64(a.underWay.Load()) }))
	return a
}

// Enter lets a call in, which calls Leave when it ends, or refuses it: with
// RESOURCE_EXHAUSTED, reason OVERLOADED, and when to try again.
func (a *Admission) Enter() error {
	if a.underWay.Add(1) > a.most && a.most > 0 {
		a.underWay.Add(-1)
		a.refused.Inc()
		return errOverloaded
	}
	return nil
}

// Leave ends a call that was let in.
func (a *Admission) Leave() { a.underWay.Add(-1) }

// Admission is the process's own: the gRPC server of NewGRPCServer asks it about
// unary calls, and so does a service with doors of its own.
func (s *Service) Admission() *Admission { return s.admission }
