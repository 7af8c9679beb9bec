package joiner

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// metrics of the joiner. What the ledger counts is exported from the ledgers at the last commit, so that a
// scrape never sees a transaction that is then aborted.
type metrics struct {
	records     *prometheus.CounterVec // by topic
	labels      *prometheus.CounterVec // by kind
	lates       *prometheus.CounterVec // by reason
	dead        *prometheus.CounterVec // by reason
	pauses      *prometheus.CounterVec // by topic
	behind      *prometheus.GaugeVec   // by topic and partition
	transaction prometheus.Histogram
	rebuild     prometheus.Histogram
	aborts      prometheus.Counter
	slices      prometheus.Counter
	sessions    prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, l *ledgers) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ctrloop_joiner_" + name, Help: help}, labels)
	}
	m := &metrics{
		records: counter("records_total", "Records of the inputs in committed transactions.", "topic"),
		labels:  counter("labels_total", "Labels committed.", "kind"),
		lates:   counter("late_total", "Events that could not become a label of their own, see late.v1.", "reason"),
		dead:    counter("dead_letters_total", "Input records that could not be read, see dlq.v1.", "reason"),
		pauses:  counter("input_pauses_total", "Times an input was paused because it ran ahead of the other one in event time.", "topic"),
		behind: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ctrloop_joiner_input_lag_records", Help: "Records of the input behind its end, at the last commit.",
		}, []string{"topic", "partition"}),
		transaction: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ctrloop_joiner_transaction_seconds", Help: "From the poll's return to the end of the transaction.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 15), NativeHistogramBucketFactor: 1.1,
		}),
		rebuild: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ctrloop_joiner_rebuild_seconds", Help: "Time to rebuild one partition's state.",
			Buckets: prometheus.ExponentialBuckets(0.01, 3, 10), NativeHistogramBucketFactor: 1.1,
		}),
		aborts: prometheus.NewCounter(prometheus.CounterOpts{Name: "ctrloop_joiner_aborts_total", Help: "Transactions aborted and undone."}),
		slices: prometheus.NewCounter(
			prometheus.CounterOpts{
				Name: "ctrloop_joiner_watermark_slices_total",
				Help: "Transactions of a partition that left windows to the next one to close, because a watermark jumped.",
			},
		),
		sessions: prometheus.NewCounter(
			prometheus.CounterOpts{
				Name: "ctrloop_joiner_session_failures_total",
				Help: "Sessions that ended with an error, each followed by a rebuild.",
			},
		),
	}
	for _, r := range []schemas.LateReason{schemas.LateImpression, schemas.LateClick, schemas.LateOrphan, schemas.LateClickAfterClose} {
		m.lates.WithLabelValues(string(r)) // closed list: every series exists from the start
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.records, m.labels, m.lates, m.dead, m.pauses, m.behind, m.transaction, m.rebuild, m.aborts, m.slices, m.sessions, l,
	} {
		errs = append(errs, reg.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("joiner metrics: %w", err)
	}
	return m, nil
}

// add counts a committed transaction of one partition.
func (m *metrics) add(partition int32, c *counts) {
	p := strconv.Itoa(int(partition))
	for in, topic := range inputTopic {
		if c.records[in] > 0 {
			m.records.WithLabelValues(topic).Add(float64(c.records[in]))
			m.behind.WithLabelValues(topic, p).Set(float64(c.behind[in]))
		}
	}
	for kind, n := range c.labels {
		if n > 0 {
			m.labels.WithLabelValues(kindName(eventpb.LabelKind(kind))).Add(float64(n))
		}
	}
	for reason, n := range c.lates {
		m.lates.WithLabelValues(string(reason)).Add(float64(n))
	}
	for reason, n := range c.dead {
		m.dead.WithLabelValues(string(reason)).Add(float64(n))
	}
}

func kindName(k eventpb.LabelKind) string {
	switch k {
	case eventpb.LabelKind_LABEL_KIND_POSITIVE:
		return "positive"
	case eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE:
		return "final_negative"
	case eventpb.LabelKind_LABEL_KIND_PROVISIONAL_NEGATIVE:
		return "provisional_negative"
	case eventpb.LabelKind_LABEL_KIND_CORRECTED:
		return "corrected"
	default:
		return "unspecified"
	}
}
