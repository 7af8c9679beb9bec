package trainerbridge

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	jobs    *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	running prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		jobs: prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "ctrloop_trainer_jobs_total", Help: "Jobs that ended, by kind and outcome (succeeded or a failure class)."},
			[]string{"kind", "outcome"},
		),
		seconds: prometheus.NewHistogramVec(
			prometheus.HistogramOpts{Name: "ctrloop_trainer_job_duration_seconds", Help: "Wall time of jobs that succeeded.",
				NativeHistogramBucketFactor: 1.1},
			[]string{"kind"},
		),
		running: prometheus.NewGauge(prometheus.GaugeOpts{Name: "ctrloop_trainer_running_jobs", Help: "Jobs running now."}),
	}
	reg.MustRegister(m.jobs, m.seconds, m.running)
	return m
}
