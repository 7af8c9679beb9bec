package stage

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"ctrloop/pairer/evidence"
)

// PartitionLedger is the account of one partition at its last commit. Its counts survive restarts.
type PartitionLedger struct {
	Partition   int32           `json:"partition"`
	LabelsAt    int64           `json:"labels_at"`    // next offset of labels.v1
	Behind      int64           `json:"behind"`       // labels that waited when it was read last
	WatermarkMS int64           `json:"watermark_ms"` // of the newest label; 0: none yet
	Cells       int             `json:"cells"`        // of the hours that are open
	Doubted     int             `json:"doubted"`      // suspect negatives that a click may still correct
	StateBytes  int             `json:"state_bytes"`  // memory of both
	Ledger      evidence.Ledger `json:"ledger"`
	Problem     string          `json:"problem,omitempty"` // an equation that does not close
}

// Ledger is the account of all partitions that this instance has now.
type Ledger struct {
	Partitions []PartitionLedger `json:"partitions"`
	Total      evidence.Ledger   `json:"total"`
	// Rebuilding are the partitions that the group has given to this instance and whose evidence is being read.
	Rebuilding []int32 `json:"rebuilding,omitempty"`
	// Balanced says that every equation of every partition closes.
	Balanced bool `json:"balanced"`
}

// Ledger is the account at the last commit of each partition that this instance has.
func (s *Service) Ledger() Ledger { return s.ledgers.snapshot() }

// ledgers holds what was published at the last commit of each partition.
type ledgers struct {
	mu      sync.Mutex
	at      map[int32]PartitionLedger
	waiting map[int32]bool // assigned, and not ready
}

func (l *ledgers) publish(s *shard) {
	p := PartitionLedger{
		Partition: s.partition, LabelsAt: s.meta.Next, Behind: s.behind, WatermarkMS: s.meta.WatermarkMS, Cells: s.fold.Cells(),
		Doubted: s.fold.Doubted(), StateBytes: s.fold.Bytes(), Ledger: s.meta.Ledger,
	}
	if err := p.Ledger.Check(); err != nil {
		p.Problem = err.Error()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at == nil {
		l.at = map[int32]PartitionLedger{}
	}
	l.at[s.partition] = p
	delete(l.waiting, s.partition)
}

// expect notes a partition that was assigned and is not ready.
func (l *ledgers) expect(partition int32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting == nil {
		l.waiting = map[int32]bool{}
	}
	l.waiting[partition] = true
}

func (l *ledgers) forget(partition int32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.at, partition)
	delete(l.waiting, partition)
}

func (l *ledgers) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.at)
	clear(l.waiting)
}

func (l *ledgers) snapshot() Ledger {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := Ledger{
		Partitions: slices.SortedFunc(maps.Values(l.at), func(a, b PartitionLedger) int { return cmp.Compare(a.Partition, b.Partition) }),
		Rebuilding: slices.Sorted(maps.Keys(l.waiting)),
		Balanced:   true,
	}
	for _, p := range out.Partitions {
		out.Total = out.Total.Add(p.Ledger)
		out.Balanced = out.Balanced && p.Problem == ""
	}
	return out
}

// metrics of the stage. What the ledger counts is exported from the ledgers at the last commit, so that a scrape never sees a
// transaction that is then aborted.
type metrics struct {
	records     prometheus.Counter
	transaction prometheus.Histogram
	rebuild     prometheus.Histogram
	aborts      prometheus.Counter
	sessions    prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, l *ledgers) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "ctrloop_evidence_" + name, Help: help})
	}
	m := &metrics{
		records: counter("records_total", "Records of evidence.v1 in committed transactions."),
		transaction: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ctrloop_evidence_transaction_seconds", Help: "From the poll's return to the end of the transaction.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 15), NativeHistogramBucketFactor: 1.1,
		}),
		rebuild: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ctrloop_evidence_rebuild_seconds", Help: "Time to read the evidence of one partition back.",
			Buckets: prometheus.ExponentialBuckets(0.01, 3, 10), NativeHistogramBucketFactor: 1.1,
		}),
		aborts:   counter("aborts_total", "Transactions aborted and undone."),
		sessions: counter("session_failures_total", "Sessions that ended with an error, each followed by a rebuild."),
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.records, m.transaction, m.rebuild, m.aborts, m.sessions, l} {
		errs = append(errs, reg.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("evidence metrics: %w", err)
	}
	return m, nil
}

var (
	descLabels = prometheus.NewDesc("ctrloop_evidence_labels_total",
		"Labels by what they were to the evidence; 'in' is the sum of the first seven, the others are part of them.",
		[]string{"partition", "outcome"}, nil)
	descImpressions = prometheus.NewDesc(
		"ctrloop_evidence_impressions", "Impressions in all cells, suspect ones too.", []string{"partition"}, nil)
	descClicks  = prometheus.NewDesc("ctrloop_evidence_clicks", "Clicks in all cells, suspect ones too.", []string{"partition"}, nil)
	descCells   = prometheus.NewDesc("ctrloop_evidence_open_cells", "Cells of hours that are open.", []string{"partition"}, nil)
	descDoubted = prometheus.NewDesc("ctrloop_evidence_doubted_impressions",
		"Suspect negatives that a click may still correct.", []string{"partition"}, nil)
	descState  = prometheus.NewDesc("ctrloop_evidence_state_bytes", "Memory of open cells and suspect negatives.", []string{"partition"}, nil)
	descBehind = prometheus.NewDesc("ctrloop_evidence_lag_records", "Labels behind the end, at the last commit.", []string{"partition"}, nil)
	descMark   = prometheus.NewDesc("ctrloop_evidence_watermark_seconds", "Watermark of the newest label that was counted, Unix seconds.",
		[]string{"partition"}, nil)
	descForced = prometheus.NewDesc("ctrloop_evidence_forced_hours_total",
		"Hours that were closed early because memory was short (pairer.evidence.max_bytes).", []string{"partition"}, nil)
	descReopened = prometheus.NewDesc("ctrloop_evidence_reopened_cells_total",
		"Cells that were made anew because their hour was closed.", []string{"partition"}, nil)
	descRebuilding = prometheus.NewDesc("ctrloop_evidence_rebuilding_partitions",
		"Partitions that the group has given to this instance and whose evidence is being read.", nil, nil)
	descBroken = prometheus.NewDesc("ctrloop_evidence_ledger_broken_partitions",
		"Partitions whose ledger does not close. Anything but 0 is a bug.", nil, nil)
)

// Describe implements prometheus.Collector.
func (l *ledgers) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descLabels, descImpressions, descClicks, descCells, descDoubted, descState, descBehind, descMark, descForced, descReopened,
		descRebuilding, descBroken,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (l *ledgers) Collect(ch chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, t, v, labels...)
	}
	broken := 0
	now := l.snapshot()
	send(descRebuilding, prometheus.GaugeValue, float64(len(now.Rebuilding)))
	for _, p := range now.Partitions {
		name, g := strconv.Itoa(int(p.Partition)), p.Ledger
		for outcome, n := range map[string]uint64{
			"in": g.In, "positive": g.Positive, "negative": g.Negative, "corrected": g.Corrected, "withdrawn": g.Withdrawn,
			"provisional": g.Provisional, "robot": g.Robots, "unreadable": g.Unreadable,
			"suspect": g.Suspect, "flipped": g.Flipped, "unsure": g.Unsure, "weighted": g.Weighted,
		} {
			send(descLabels, prometheus.CounterValue, float64(n), name, outcome)
		}
		send(descImpressions, prometheus.GaugeValue, float64(g.Impressions), name)
		send(descClicks, prometheus.GaugeValue, float64(g.Clicks), name)
		send(descCells, prometheus.GaugeValue, float64(p.Cells), name)
		send(descDoubted, prometheus.GaugeValue, float64(p.Doubted), name)
		send(descState, prometheus.GaugeValue, float64(p.StateBytes), name)
		send(descBehind, prometheus.GaugeValue, float64(p.Behind), name)
		send(descForced, prometheus.CounterValue, float64(g.Forced), name)
		send(descReopened, prometheus.CounterValue, float64(g.Reopened), name)
		if p.WatermarkMS != 0 {
			send(descMark, prometheus.GaugeValue, float64(p.WatermarkMS)/1000, name)
		}
		if p.Problem != "" {
			broken++
		}
	}
	send(descBroken, prometheus.GaugeValue, float64(broken))
}
