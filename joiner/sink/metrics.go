package sink

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	rows, inserts, recovered, sessions prometheus.Counter
	mirrored                           *prometheus.CounterVec
	undecodable                        *prometheus.CounterVec
	buffered, watermark, mismatched    prometheus.Gauge
	onTheWay, names                    prometheus.Gauge
	forgotten, lost                    prometheus.Counter
	audits                             prometheus.Counter
	seconds                            prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "ctrloop_sink_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "ctrloop_sink_" + name, Help: help})
	}
	byTopic := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ctrloop_sink_" + name, Help: help}, []string{"topic"})
	}
	m := &metrics{
		rows:        counter("label_rows_total", "Label rows inserted; a block that was repeated counts again."),
		inserts:     counter("label_inserts_total", "Blocks of labels inserted."),
		recovered:   counter("recovered_inserts_total", "Blocks that an earlier session had begun, inserted again under the same token."),
		sessions:    counter("failed_sessions_total", "Sessions that ended with an error and were followed by another."),
		lost:        counter("lost_records_sessions_total", "Sessions that ended because the broker had deleted what comes next. Must be 0."),
		mirrored:    byTopic("mirrored_records_total", "Records mirrored into their tables."),
		undecodable: byTopic("undecodable_records_total", "Records that could not be decoded and were left out. Must be 0."),
		mismatched: gauge(
			"audit_mismatched_minutes",
			"Minutes of the last two days of impression time in which the warehouse differs from audit.v1 with nothing on its way. Must be 0.",
		),
		onTheWay: gauge(
			"audit_waits_for_rows",
			"Rows of labels.v1 and audit.v1 on their way, which the audit waits for before it judges what differed at its last look.",
		),
		audits:    counter("audits_total", "Looks at the audit."),
		names:     gauge("known_names", "Names of products, campaigns and the like that rows which wait refer to, over all partitions."),
		forgotten: counter("forgotten_names_total", "Names that were forgotten because no row had them any more; many: clients send free text."),
		buffered:  gauge("buffered_rows", "Label rows read and not inserted yet."),
		watermark: gauge("inserted_watermark_seconds", "Newest watermark of an inserted label, event time, Unix seconds."),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "ctrloop_sink_insert_seconds", Help: "Duration of inserts of labels.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 14)}),
	}
	for _, c := range []prometheus.Collector{
		m.rows, m.inserts, m.recovered, m.sessions, m.mirrored, m.undecodable, m.buffered, m.watermark, m.mismatched, m.onTheWay, m.audits,
		m.seconds, m.names, m.forgotten, m.lost,
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("sink metrics: %w", err)
		}
	}
	return m, nil
}
