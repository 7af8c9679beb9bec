package experiment

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	looks   *prometheus.CounterVec
	errors  prometheus.Counter
	failing prometheus.Gauge
	seconds prometheus.Histogram
	running prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		looks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ctrloop_experiment_looks_total", Help: "Looks at running experiments, by what they concluded and the rule that fired.",
		}, []string{"action", "rule"}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ctrloop_experiment_look_errors_total", Help: "Looks that failed; the experiment stays as it is until the next."}),
		failing: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ctrloop_experiment_looks_failing", Help: "Experiments whose looks have failed failed_looks.alarm_after times in a row.",
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ctrloop_experiment_look_seconds", Help: "Time of one look at one experiment, in seconds.", NativeHistogramBucketFactor: 1.1}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ctrloop_experiment_running", Help: "Experiments that assign traffic."}),
	}
	if reg != nil {
		reg.MustRegister(m.looks, m.errors, m.failing, m.seconds, m.running)
	}
	return m
}
