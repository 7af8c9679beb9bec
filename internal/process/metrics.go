package process

import "github.com/prometheus/client_golang/prometheus"

type serverMetrics struct {
	restarts prometheus.Counter
	up       prometheus.Gauge
}

func newServerMetrics(name string, reg prometheus.Registerer) *serverMetrics {
	labels := prometheus.Labels{"server": name}
	m := &serverMetrics{
		restarts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ctrloop_process_restarts_total", ConstLabels: labels,
			Help: "Restarts of a supervised server.",
		}),
		up: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ctrloop_process_up", ConstLabels: labels,
			Help: "1 while a supervised server is ready.",
		}),
	}
	reg.MustRegister(m.restarts, m.up)
	return m
}
