package stage

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/stream"
	"ctrloop/pairer/evidence"
	"ctrloop/schemas"
)

// auditSpan is how much of the newest settled impression time is held against the warehouse.
const auditSpan = 24 * time.Hour

// maxAlarms bounds the log lines of one look.
const maxAlarms = 5

// Warehouse knows what the views of the warehouse say.
type Warehouse interface {
	// MatureMS is the time up to which the warehouse is complete, Unix milliseconds; 0: nowhere.
	MatureMS(ctx context.Context) (int64, error)
	// Hours adds up mature impressions of the hours that begin in [fromMS, untilMS).
	Hours(ctx context.Context, fromMS, untilMS int64) ([]evidence.Hour, error)
}

// AuditStatus is the outcome of the last look.
type AuditStatus struct {
	At     time.Time `json:"at"`
	Known  bool      `json:"known"`  // false: one side is away, or nothing is settled yet
	Reason string    `json:"reason"` // why it is not known
	FromMS int64     `json:"from_ms"`
	ToMS   int64     `json:"to_ms"` // hours that begin in [FromMS, ToMS) were compared
	// Different are the hours that two looks in a row have found different, by the same figures.
	Different []evidence.Difference `json:"different,omitempty"`
}

// Problem is what somebody must look into; "" for nothing.
func (s AuditStatus) Problem() string {
	if len(s.Different) == 0 {
		return ""
	}
	d := s.Different[0]
	return fmt.Sprintf("%d hours of evidence differ from the warehouse; %s: evidence has %s, the warehouse %s", len(s.Different),
		time.UnixMilli(d.Evidence.HourMS).UTC().Format(time.RFC3339), d.Evidence, d.Warehouse)
}

// Auditor holds evidence.v1 against the warehouse.
type Auditor struct {
	cfg       Config
	warehouse Warehouse
	leads     func() bool
	log       zerolog.Logger
	status    atomic.Pointer[AuditStatus]

	reader *Reader
	before map[evidence.Difference]bool // of the look before

	known     prometheus.Gauge
	hours     prometheus.Gauge
	different prometheus.Gauge
}

// NewAuditor returns an auditor that looks while leads says so.
func NewAuditor(cfg Config, w Warehouse, leads func() bool, log zerolog.Logger, reg prometheus.Registerer) (*Auditor, error) {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "ctrloop_evidence_audit_" + name, Help: help})
	}
	a := &Auditor{
		cfg: cfg, warehouse: w, leads: leads, log: log,
		known:     gauge("known", "1: the last look could compare evidence with the warehouse; 0: one side is away, or nothing is settled yet."),
		hours:     gauge("hours", "Hours that the last look compared."),
		different: gauge("different_hours", "Hours of which evidence and the warehouse differ, two looks in a row. Anything but 0 is a fault."),
	}
	a.status.Store(&AuditStatus{Reason: "no look yet"})
	for _, c := range []prometheus.Collector{a.known, a.hours, a.different} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("evidence metrics: %w", err)
		}
	}
	return a, nil
}

// Status of the last look.
func (a *Auditor) Status() AuditStatus { return *a.status.Load() }

// Run looks every AuditInterval until ctx is done. A look that fails says that nothing is known.
func (a *Auditor) Run(ctx context.Context) error {
	defer a.forget()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(a.cfg.AuditInterval):
		}
		if !a.leads() {
			a.forget()
			a.show(AuditStatus{Reason: "another process leads the pairing"})
			continue
		}
		s, err := a.Look(ctx)
		if err != nil {
			s.Reason = err.Error()
			a.log.Warn().Err(err).Msg("evidence could not be held against the warehouse; trying again")
		}
		if ctx.Err() == nil {
			a.show(s)
		}
	}
}

// forget gives the memory of the evidence back.
func (a *Auditor) forget() {
	if a.reader != nil {
		a.reader.Close()
	}
	a.reader, a.before = nil, nil
}

func (a *Auditor) show(s AuditStatus) {
	if s.At.IsZero() {
		s.At = time.Now()
	}
	a.status.Store(&s)
	a.known.Set(0)
	if s.Known {
		a.known.Set(1)
	}
	a.hours.Set(float64(max(0, s.ToMS-s.FromMS) / time.Hour.Milliseconds()))
	a.different.Set(float64(len(s.Different)))
	for i, d := range s.Different {
		if i == maxAlarms {
			break
		}
		a.log.Error().Time("hour", time.UnixMilli(d.Evidence.HourMS).UTC()).Stringer("evidence", d.Evidence).Stringer("warehouse", d.Warehouse).
			Msg("evidence differs from the warehouse")
	}
}

// Look compares once. It opens evidence.v1 at the first one. Both sides may be on their way to the same (an erasure, a review), so
// a difference counts when the look before has seen it too.
func (a *Auditor) Look(ctx context.Context) (s AuditStatus, err error) {
	if a.reader != nil && a.reader.Lost() != nil {
		a.forget()
	}
	if a.reader == nil {
		report := func(err error) {
			a.log.Warn().Err(stream.Explain(err)).Msg("evidence.v1 cannot be followed; trying again")
		}
		if a.reader, err = OpenReader(ctx, a.cfg.Kafka, report); err != nil {
			return s, err
		}
	}
	uncounted, err := a.uncounted(ctx)
	if err != nil {
		return s, err
	}
	if uncounted >= 0 {
		s.Reason = fmt.Sprintf("partition %d of %s has labels and no evidence yet", uncounted, schemas.TopicLabels)
		return s, nil
	}
	horizon, err := a.warehouse.MatureMS(ctx)
	if err != nil {
		return s, fmt.Errorf("ask the warehouse how far it is: %w", err)
	}
	var ours []evidence.Hour
	a.reader.View(func(f *evidence.Fold) {
		s.ToMS = a.cfg.fold(1).SettledMS(min(horizon, f.MatureMS()))
		s.FromMS = max(s.ToMS-auditSpan.Milliseconds(), evidence.CeilHour(f.SinceMS()), 0)
		ours = f.Hours(s.FromMS, s.ToMS)
	})
	if s.FromMS >= s.ToMS {
		s.FromMS, s.ToMS, s.Reason = 0, 0, "no hour is settled on both sides yet"
		return s, nil
	}
	theirs, err := a.warehouse.Hours(ctx, s.FromMS, s.ToMS)
	if err != nil {
		s.FromMS, s.ToMS = 0, 0
		return s, fmt.Errorf("ask the warehouse for its sums: %w", err)
	}
	s.Known = true
	seen := map[evidence.Difference]bool{}
	for _, d := range evidence.Compare(ours, theirs) {
		seen[d] = true
		if a.before[d] {
			s.Different = append(s.Different, d)
		}
	}
	a.before = seen
	return s, nil
}

// uncounted is a partition with labels of which evidence.v1 says nothing yet; -1: there is none.
func (a *Auditor) uncounted(ctx context.Context) (int32, error) {
	starts, err := stream.StartOffsets(ctx, a.cfg.Kafka, schemas.TopicLabels)
	if err != nil {
		return -1, err
	}
	ends, err := stream.EndOffsets(ctx, a.cfg.Kafka, schemas.TopicLabels)
	if err != nil {
		return -1, err
	}
	var counted map[int32]int64
	a.reader.View(func(f *evidence.Fold) { counted = f.Vector() })
	for tp, end := range ends {
		if _, ok := counted[tp.Partition]; !ok && end > starts[tp] {
			return tp.Partition, nil
		}
	}
	return -1, nil
}
