package joiner

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"ctrloop/joiner/window"
)

// PartitionLedger is the account of one partition at its last commit. Its counts survive restarts.
type PartitionLedger struct {
	Partition       int32         `json:"partition"`
	WatermarkMS     int64         `json:"watermark_ms"`      // 0: none yet
	MaxImpressionMS int64         `json:"max_impression_ms"` // 0: none yet
	MaxClickMS      int64         `json:"max_click_ms"`      // 0: none yet
	ImpressionsAt   int64         `json:"impressions_at"`    // next offset of imp.v1
	ClicksAt        int64         `json:"clicks_at"`         // next offset of clk.v1
	Closing         bool          `json:"closing,omitempty"` // the watermark is on its way: windows are still to close
	Paused          []string      `json:"paused,omitempty"`  // inputs that wait for the other one
	StateBytes      int           `json:"state_bytes"`       // of the open windows in memory
	SpilledBytes    int           `json:"spilled_bytes"`     // of those that are on disk only
	Ledger          window.Ledger `json:"ledger"`
	Problem         string        `json:"problem,omitempty"` // an equation that does not close
}

// Ledger is the account of all partitions that this instance has now.
type Ledger struct {
	Partitions []PartitionLedger `json:"partitions"`
	Total      window.Ledger     `json:"total"`
	// Rebuilding are the partitions that the group has given to this instance and that are not joined yet: their state is on
	// its way.
	Rebuilding []int32 `json:"rebuilding,omitempty"`
	// Balanced says that every equation of every partition closes.
	Balanced bool `json:"balanced"`
}

// ledgers holds what was published at the last commit of each partition.
type ledgers struct {
	mu      sync.Mutex
	at      map[int32]PartitionLedger
	waiting map[int32]bool // assigned, and not ready
}

func (l *ledgers) publish(s *Shard) {
	p := PartitionLedger{
		Partition: s.partition, WatermarkMS: knownTime(s.w.Watermark()),
		MaxImpressionMS: knownTime(s.w.MaxTime(window.Impressions)), MaxClickMS: knownTime(s.w.MaxTime(window.Clicks)),
		ImpressionsAt: s.committed[0], ClicksAt: s.committed[1], Ledger: s.w.Ledger(), Closing: s.w.Behind(),
	}
	p.StateBytes = s.w.Memory()
	_, p.SpilledBytes = s.w.Spilled()
	for in, paused := range s.paused {
		if paused {
			p.Paused = append(p.Paused, inputTopic[in])
		}
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

// Ledger is the account at the last commit of each partition that this instance has.
func (s *Service) Ledger() Ledger { return s.ledgers.snapshot() }

// LedgerHandler serves Ledger as JSON; mount it at GET /joiner/ledger of the admin listener.
func (s *Service) LedgerHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		if err := enc.Encode(s.Ledger()); err != nil {
			return // the client has gone; there is nobody to tell
		}
	})
}

var (
	descImpressions = prometheus.NewDesc(
		"ctrloop_joiner_impressions_total",
		"Impressions by what became of them; 'in' is their sum with ctrloop_joiner_open_impressions.",
		[]string{"partition", "outcome"},
		nil,
	)
	descClicks = prometheus.NewDesc(
		"ctrloop_joiner_clicks_total",
		"Clicks by what became of them; 'in' is their sum with ctrloop_joiner_pending_clicks.",
		[]string{"partition", "outcome"},
		nil,
	)
	descOpen      = prometheus.NewDesc("ctrloop_joiner_open_impressions", "Impressions without a label yet.", []string{"partition"}, nil)
	descPending   = prometheus.NewDesc("ctrloop_joiner_pending_clicks", "Clicks that wait for their impression.", []string{"partition"}, nil)
	descWatermark = prometheus.NewDesc(
		"ctrloop_joiner_watermark_seconds",
		"Watermark, Unix seconds of event time.",
		[]string{"partition"},
		nil,
	)
	descLag = prometheus.NewDesc(
		"ctrloop_joiner_watermark_lag_seconds",
		"Newest event of either input minus the watermark, in event time.",
		[]string{"partition"},
		nil,
	)
	descState   = prometheus.NewDesc("ctrloop_joiner_state_bytes", "Memory of the open windows.", []string{"partition"}, nil)
	descSpilled = prometheus.NewDesc(
		"ctrloop_joiner_spilled_bytes",
		"Open windows that are on disk only, see joiner.memory_limit.",
		[]string{"partition"},
		nil,
	)
	descRebuilding = prometheus.NewDesc(
		"ctrloop_joiner_rebuilding_partitions",
		"Partitions that the group has given to this instance and that are not joined yet: their state is being rebuilt.",
		nil,
		nil,
	)
	descBroken = prometheus.NewDesc(
		"ctrloop_joiner_ledger_broken_partitions",
		"Partitions whose ledger does not close. Anything but 0 is a bug.",
		nil,
		nil,
	)
)

// Describe implements prometheus.Collector.
func (l *ledgers) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descImpressions, descClicks, descOpen, descPending, descWatermark, descLag, descState, descSpilled, descRebuilding, descBroken,
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
			"in": g.ImpressionsIn, "positive": g.Positive, "final_negative": g.FinalNegative, "duplicate": g.Duplicate, "late": g.LateImpressions,
		} {
			send(descImpressions, prometheus.CounterValue, float64(n), name, outcome)
		}
		for outcome, n := range map[string]uint64{
			"in": g.ClicksIn, "joined": g.Joined, "repeated": g.Repeated, "orphan_expired": g.OrphanExpired, "late": g.LateClicks,
		} {
			send(descClicks, prometheus.CounterValue, float64(n), name, outcome)
		}
		send(descOpen, prometheus.GaugeValue, float64(g.Open), name)
		send(descState, prometheus.GaugeValue, float64(p.StateBytes), name)
		send(descSpilled, prometheus.GaugeValue, float64(p.SpilledBytes), name)
		send(descPending, prometheus.GaugeValue, float64(g.Pending), name)
		if p.WatermarkMS != 0 {
			send(descWatermark, prometheus.GaugeValue, float64(p.WatermarkMS)/1000, name)
			send(descLag, prometheus.GaugeValue, float64(max(p.MaxImpressionMS, p.MaxClickMS)-p.WatermarkMS)/1000, name)
		}
		if p.Problem != "" {
			broken++
		}
	}
	send(descBroken, prometheus.GaugeValue, float64(broken))
}
