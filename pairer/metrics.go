package pairer

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	looks     *prometheus.CounterVec
	pairs     prometheus.Gauge
	effective prometheus.Gauge
	datasets  prometheus.Counter
	horizon   prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		looks: prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "ctrloop_pairer_looks_total", Help: "Looks at the evidence, by outcome."},
			[]string{"outcome"},
		),
		pairs: prometheus.NewGauge(
			prometheus.GaugeOpts{Name: "ctrloop_pairer_pairs", Help: "Pairs that the evidence gave at the last look."},
		),
		effective: prometheus.NewGauge(
			prometheus.GaugeOpts{
				Name: "ctrloop_pairer_effective_pairs",
				Help: "Sum of the weights of training pairs that no data set has held yet.",
			},
		),
		datasets: prometheus.NewCounter(prometheus.CounterOpts{Name: "ctrloop_pairer_datasets_total", Help: "Data sets announced."}),
		horizon: prometheus.NewGauge(
			prometheus.GaugeOpts{
				Name: "ctrloop_pairer_horizon_seconds",
				Help: "Event time up to which evidence was complete at the last look, Unix seconds.",
			},
		),
	}
	reg.MustRegister(m.looks, m.pairs, m.effective, m.datasets, m.horizon)
	return m
}
