package swap

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	flips    prometheus.Counter
	flip     prometheus.Histogram
	loads    *prometheus.CounterVec
	probes   *prometheus.CounterVec
	failures prometheus.Counter
	drains   prometheus.Histogram
	up       prometheus.Gauge
	resident prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "ctrloop", Subsystem: "swap", Name: name, Help: help}
	}
	m := &metrics{
		flips: prometheus.NewCounter(prometheus.CounterOpts(opts("flips_total", "Times that another version became champion."))),
		flip: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "ctrloop", Subsystem: "swap", Name: "flip_seconds",
			Help:    "From the promotion (or the version's readiness, if later) to the moment that every new request goes to it.",
			Buckets: prometheus.ExponentialBuckets(1e-5, 2, 18)}),
		loads: prometheus.NewCounterVec(
			prometheus.CounterOpts(opts("loads_total", "Adapters sent to a replica, by result.")),
			[]string{"result"},
		),
		probes:   prometheus.NewCounterVec(prometheus.CounterOpts(opts("probes_total", "Activation probes, by result.")), []string{"result"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts(opts("failed_versions_total", "Versions that did not come into service."))),
		drains: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "ctrloop", Subsystem: "swap", Name: "drain_seconds",
			Help: "Time that a retired version's last requests took.", Buckets: prometheus.ExponentialBuckets(1e-3, 4, 9)}),
		up:       prometheus.NewGauge(prometheus.GaugeOpts(opts("up_replicas", "Replicas that answer."))),
		resident: prometheus.NewGauge(prometheus.GaugeOpts(opts("resident_versions", "Versions that can be routed to."))),
	}
	reg.MustRegister(m.flips, m.flip, m.loads, m.probes, m.failures, m.drains, m.up, m.resident)
	return m
}

// Stats of the flips since the start.
type Stats struct {
	Flips     int           `json:"flips"`
	FlipP50   time.Duration `json:"flip_p50"`
	FlipP99   time.Duration `json:"flip_p99"`
	FlipWorst time.Duration `json:"flip_worst"`
}

// recorder keeps the last flips for exact quantiles; the histogram has only buckets.
type recorder struct {
	mu   sync.Mutex
	n    int
	last []time.Duration
}

const keptFlips = 4096

func (r *recorder) add(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.last) < keptFlips {
		r.last = append(r.last, d)
	} else {
		r.last[r.n%keptFlips] = d
	}
	r.n++
}

func (r *recorder) stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Stats{Flips: r.n}
	if len(r.last) == 0 {
		return s
	}
	d := slices.Clone(r.last)
	slices.Sort(d)
	s.FlipP50, s.FlipP99, s.FlipWorst = d[len(d)/2], d[(len(d)*99)/100], d[len(d)-1]
	return s
}
