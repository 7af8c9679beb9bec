package console

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	seconds   prometheus.Histogram
	errors    prometheus.Counter
	streams   prometheus.Gauge
	displaced prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ctrloop_console_overview_seconds", Help: "Time of gathering one overview, in seconds.", NativeHistogramBucketFactor: 1.1}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ctrloop_console_overview_errors_total",
			Help: "Overviews that could not be gathered; the page then shows the last one and its age."}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ctrloop_console_streams", Help: "Live viewers."}),
		displaced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ctrloop_console_streams_displaced_total", Help: "Live viewers that were ended because max_streams newer ones came."}),
	}
	if reg != nil {
		reg.MustRegister(m.seconds, m.errors, m.streams, m.displaced)
	}
	return m
}
