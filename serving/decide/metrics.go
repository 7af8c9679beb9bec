package decide

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	decisions *prometheus.CounterVec
	latency   prometheus.Histogram
	total     atomic.Int64
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		decisions: prometheus.NewCounterVec(
			prometheus.CounterOpts{
				Namespace: "ctrloop",
				Subsystem: "decide",
				Name:      "decisions_total",
				Help:      "Decisions, by policy; error: none could be made.",
			},
			[]string{"policy"},
		),
		latency: prometheus.NewHistogram(
			prometheus.HistogramOpts{
				Namespace: "ctrloop",
				Subsystem: "decide",
				Name:      "request_seconds",
				Help:      "Time of a call, batches included.",
				Buckets:   prometheus.ExponentialBuckets(2e-5, 2, 16),
			},
		),
	}
	reg.MustRegister(m.decisions, m.latency)
	return m
}

// counts sums a batch, so that the counters are touched once per call.
type counts struct{ uniform, fallback, explore, failed int }

func (c *counts) add(d *Decision) {
	switch {
	case d.Error != "":
		c.failed++
	case d.Variant == VariantExplore:
		c.explore++
	case d.Policy == PolicyFallback:
		c.fallback++
	default:
		c.uniform++
	}
}

func (m *metrics) add(c counts) {
	for policy, n := range map[string]int{PolicyUniform: c.uniform, PolicyFallback: c.fallback, PolicyExplore: c.explore, "error": c.failed} {
		if n > 0 {
			m.decisions.WithLabelValues(policy).Add(float64(n))
		}
	}
	m.total.Add(int64(c.uniform + c.fallback + c.explore))
}
