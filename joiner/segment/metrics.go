package segment

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics of all keepers of a joiner.
type Metrics struct {
	Written   prometheus.Counter     // bytes of segments
	Manifests prometheus.Counter     // written durably
	Spills    prometheus.Counter     // buckets dropped from memory
	Failures  prometheus.Counter     // writes that failed, each the end of writing for a partition
	Loads     prometheus.Counter     // states that came from disk
	Ignored   *prometheus.CounterVec // by reason
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) (*Metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "ctrloop_joiner_segment_" + name, Help: help})
	}
	m := &Metrics{
		Written:   counter("written_bytes_total", "Bytes of sealed buckets written to local segment files."),
		Manifests: counter("manifests_total", "Manifests of local segments made durable."),
		Spills:    counter("spills_total", "Buckets of the join dropped from memory because it was over its limit; they are read from disk."),
		Failures:  counter("failures_total", "Partitions that stopped writing segments because the disk failed; the join goes on in memory."),
		Loads:     counter("loads_total", "Partitions whose state came from local segments."),
		Ignored: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ctrloop_joiner_segment_ignored_total", Help: "Local segments that did not fit and were made anew from the topics, by reason.",
		}, []string{"reason"}),
	}
	for _, r := range []Reason{ReasonCorrupt, ReasonIdentity, ReasonAhead, ReasonEpoch, ReasonHash} {
		m.Ignored.WithLabelValues(string(r)) // closed list: every series exists from the start
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.Written, m.Manifests, m.Spills, m.Failures, m.Loads, m.Ignored} {
		errs = append(errs, reg.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("segment metrics: %w", err)
	}
	return m, nil
}
