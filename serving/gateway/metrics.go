package gateway

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Outcome of a request. The list is closed.
type outcome string

const (
	served   outcome = "served"   // answered by the admitted version, client errors included
	full     outcome = "full"     // 503: no replica had room
	failed   outcome = "failed"   // no replica could answer
	refused  outcome = "refused"  // the gateway's own 4xx
	canceled outcome = "canceled" // the client left first
)

type metrics struct {
	requests *prometheus.CounterVec
	retries  *prometheus.CounterVec
	spent    prometheus.Counter
	wrong    prometheus.Counter
	latency  prometheus.Histogram
	inflight prometheus.Gauge

	total, failures, wrongs, fulls atomic.Int64
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(
			prometheus.CounterOpts{Namespace: "ctrloop", Subsystem: "gateway", Name: "requests_total", Help: "Chat completions, by outcome."},
			[]string{"outcome"},
		),
		retries: prometheus.NewCounterVec(
			prometheus.CounterOpts{Namespace: "ctrloop", Subsystem: "gateway", Name: "retries_total", Help: "Attempts on another replica, by why."},
			[]string{"reason"},
		),
		spent: prometheus.NewCounter(
			prometheus.CounterOpts{
				Namespace: "ctrloop", Subsystem: "gateway", Name: "retries_refused_total",
				Help: "Retries that the budget did not allow: too large a share of the requests was being tried again.",
			},
		),
		wrong: prometheus.NewCounter(
			prometheus.CounterOpts{
				Namespace: "ctrloop",
				Subsystem: "gateway",
				Name:      "wrong_version_total",
				Help:      "Answers from another version than the admitted one. None is passed on.",
			},
		),
		latency: prometheus.NewHistogram(
			prometheus.HistogramOpts{
				Namespace: "ctrloop",
				Subsystem: "gateway",
				Name:      "request_seconds",
				Help:      "From the request's arrival to the end of its answer.",
				Buckets:   prometheus.ExponentialBuckets(1e-3, 2, 17),
			},
		),
		inflight: prometheus.NewGauge(
			prometheus.GaugeOpts{Namespace: "ctrloop", Subsystem: "gateway", Name: "in_flight_requests", Help: "Requests being answered."},
		),
	}
	reg.MustRegister(m.requests, m.retries, m.spent, m.wrong, m.latency, m.inflight)
	return m
}

func (m *metrics) end(o outcome) {
	m.requests.WithLabelValues(string(o)).Inc()
	switch o {
	case served:
		m.total.Add(1)
	case failed:
		m.total.Add(1)
		m.failures.Add(1)
	case full:
		m.fulls.Add(1)
	default: // refused and canceled were never admitted
	}
}

// Stats of the requests since the start.
type Stats struct {
	Requests     int64 `json:"requests"` // admitted, served or failed
	Failed       int64 `json:"failed"`   // no replica could answer
	WrongVersion int64 `json:"wrong_version"`
	Full         int64 `json:"full"` // turned away with Retry-After
}
