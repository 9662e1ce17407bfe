package device

import "github.com/prometheus/client_golang/prometheus"

// planeMetrics count what becomes of plays and commands.
type planeMetrics struct {
	stored, duplicate prometheus.Counter
	rejected          *prometheus.CounterVec // by reason
	waiting           prometheus.Gauge
	commands          *prometheus.CounterVec // by outcome
	all               []prometheus.Collector
}

func newPlaneMetrics(players func() int) *planeMetrics {
	plays := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "device_plays_total", Help: "Plays that players handed in, by what became of them: stored, or duplicate of one that was.",
	}, []string{"outcome"})
	m := &planeMetrics{
		stored: plays.WithLabelValues("stored"), duplicate: plays.WithLabelValues("duplicate"),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "device_plays_rejected_total", Help: "Plays that cannot have been, and whole batches that cannot be read, by reason.",
		}, []string{"reason"}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "device_batches_waiting", Help: "Batches of plays that are not acknowledged yet.",
		}),
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "device_commands_total", Help: "Commands that were handed to players, and replies by what became of their command; ignored are those to no open command of the device.",
		}, []string{"outcome"}),
	}
	for _, outcome := range []string{"sent", "done", "declined", "failed", "ignored"} {
		m.commands.WithLabelValues(outcome)
	}
	for _, reason := range []Rejection{Malformed, UnknownCreative, InTheFuture, TooOld, TooLong} {
		m.rejected.WithLabelValues(string(reason)) // shown from the beginning
	}
	m.all = []prometheus.Collector{plays, m.rejected, m.waiting, m.commands, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "device_players_connected", Help: "Players that are connected to this instance.",
	}, func() float64 { return float64(players()) })}
	return m
}

func (m *planeMetrics) received(r Receipt) {
	m.stored.Add(float64(r.Accepted))
	m.duplicate.Add(float64(r.Duplicate))
	for _, rejection := range r.Rejections {
		m.rejected.WithLabelValues(string(rejection.Reason)).Inc()
	}
}
