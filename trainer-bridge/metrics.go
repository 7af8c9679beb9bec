package trainerbridge

import "github.com/prometheus/client_golang/prometheus"

// Metrics of the bridge and of its runner.
type Metrics struct {
	jobs    *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	running prometheus.Gauge
	failed  prometheus.Counter
	runner  string
}

// NewMetrics registers them.
func NewMetrics(cfg Config, reg prometheus.Registerer) *Metrics {
	calls := prometheus.NewCounterVec(
		prometheus.CounterOpts{
			Name: "ctrloop_trainer_cluster_errors_total",
			Help: "Calls to the cluster that runs jobs, and looks at the folder shared with it, that failed and are tried again.",
		}, []string{"runner"},
	)
	m := &Metrics{
		jobs: prometheus.NewCounterVec(
			prometheus.CounterOpts{
				Name: "ctrloop_trainer_jobs_total",
				Help: "Jobs that ended, by runner, kind and outcome (succeeded or a failure class).",
			},
			[]string{"runner", "kind", "outcome"},
		),
		seconds: prometheus.NewHistogramVec(
			prometheus.HistogramOpts{Name: "ctrloop_trainer_job_duration_seconds", Help: "Wall time of jobs that succeeded.",
				NativeHistogramBucketFactor: 1.1},
			[]string{"kind"},
		),
		running: prometheus.NewGauge(prometheus.GaugeOpts{Name: "ctrloop_trainer_running_jobs", Help: "Jobs running now."}),
		failed:  calls.WithLabelValues(string(cfg.Runner)),
		runner:  string(cfg.Runner),
	}
	reg.MustRegister(m.jobs, m.seconds, m.running, calls)
	return m
}

// CallFailed counts a call to a cluster that failed.
func (m *Metrics) CallFailed(error) { m.failed.Inc() }
