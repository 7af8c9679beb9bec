package pairer

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	looks     *prometheus.CounterVec
	pairs     prometheus.Gauge
	effective prometheus.Gauge
	datasets  prometheus.Counter
	horizon   prometheus.Gauge
	leftOut   *prometheus.GaugeVec
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
				Help: "What training pairs have told since the newest data set: the sum of the changes of their weights.",
			},
		),
		datasets: prometheus.NewCounter(prometheus.CounterOpts{Name: "ctrloop_pairer_datasets_total", Help: "Data sets announced."}),
		horizon: prometheus.NewGauge(
			prometheus.GaugeOpts{
				Name: "ctrloop_pairer_horizon_seconds",
				Help: "Event time up to which evidence was complete at the last look, Unix seconds.",
			},
		),
		leftOut: prometheus.NewGaugeVec(
			prometheus.GaugeOpts{
				Name: "ctrloop_pairer_left_out_creatives",
				Help: "Creatives with labels that the last look could not learn from, by reason.",
			},
			[]string{"reason"},
		),
	}
	for _, r := range reasons() {
		m.leftOut.WithLabelValues(string(r))
	}
	reg.MustRegister(m.looks, m.pairs, m.effective, m.datasets, m.horizon, m.leftOut)
	return m
}
