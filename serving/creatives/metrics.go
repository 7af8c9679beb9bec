package creatives

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	images, scored *prometheus.CounterVec
	pixel          prometheus.Gauge
	describe, draw prometheus.Histogram
	queue          prometheus.Gauge
	library        prometheus.GaugeFunc

	made, blocked, alike, worst atomic.Int64
}

func newMetrics(reg prometheus.Registerer, lib *Library) *metrics {
	h := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(
			prometheus.HistogramOpts{
				Namespace: "ctrloop",
				Subsystem: "creatives",
				Name:      name,
				Help:      help,
				Buckets:   prometheus.ExponentialBuckets(1e-3, 2, 16),
			},
		)
	}
	m := &metrics{
		images: prometheus.NewCounterVec(
			prometheus.CounterOpts{
				Namespace: "ctrloop",
				Subsystem: "creatives",
				Name:      "images_total",
				Help:      "Creatives made, by whether they may serve.",
			},
			[]string{"result"},
		),
		scored: prometheus.NewCounterVec(
			prometheus.CounterOpts{
				Namespace: "ctrloop",
				Subsystem: "creatives",
				Name:      "judged_total",
				Help:      "Creatives shown to the matching judge, by what came of it.",
			},
			[]string{"result"},
		),
		pixel: prometheus.NewGauge(
			prometheus.GaugeOpts{
				Namespace: "ctrloop",
				Subsystem: "creatives",
				Name:      "product_pixel_max_error_levels",
				Help:      "Largest difference on product pixels in any creative, 0 to 255. Must be 0.",
			},
		),
		describe: h("describe_seconds", "Time for the descriptions of one product."),
		draw:     h("draw_seconds", "Time to draw, check and store one creative."),
		queue: prometheus.NewGauge(
			prometheus.GaugeOpts{Namespace: "ctrloop", Subsystem: "creatives", Name: "queued_jobs", Help: "Jobs that wait or run."},
		),
		library: prometheus.NewGaugeFunc(
			prometheus.GaugeOpts{Namespace: "ctrloop", Subsystem: "creatives", Name: "library_creatives", Help: "Creatives known."},
			func() float64 { return float64(lib.Len()) },
		),
	}
	reg.MustRegister(m.images, m.scored, m.pixel, m.describe, m.draw, m.queue, m.library)
	return m
}

func (m *metrics) image(blocked string, pixelError int) {
	m.made.Add(1)
	result := "ok"
	if blocked != "" {
		result = "blocked"
		m.blocked.Add(1)
	}
	m.images.WithLabelValues(result).Inc()
	for w := m.worst.Load(); int64(pixelError) > w; w = m.worst.Load() {
		if m.worst.CompareAndSwap(w, int64(pixelError)) {
			m.pixel.Set(float64(pixelError))
		}
	}
}

// Stats since the start.
type Stats struct {
	Images     int64 `json:"images"`
	Blocked    int64 `json:"blocked"`
	Duplicates int64 `json:"duplicates"` // descriptions that a product had already
	PixelError int64 `json:"product_pixel_max_error"`
}
