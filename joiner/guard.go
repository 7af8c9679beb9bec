package joiner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/telemetry"
	"ctrloop/joiner/breaker"
	"ctrloop/joiner/window"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/schemas/eventpb"
)

// Breaker configures the circuit breaker (package breaker has the rules). While it is open, labels are written as
// always but marked as suspect, and no pairs are built nor training started.
type Breaker struct {
	// Enabled watches the traffic.
	Enabled bool `yaml:"enabled"`
	// Recent is the stretch of event time that is judged, in whole minutes.
	Recent time.Duration `yaml:"recent"`
	// Baseline is the trailing stretch that it is held against.
	Baseline time.Duration `yaml:"baseline"`
	// Warm is how much of the baseline must have been seen before anything is judged.
	Warm time.Duration `yaml:"warm"`
	// Hold is how long all must be well before an open breaker closes.
	Hold time.Duration `yaml:"hold"`
	// Drop trips when clicks per impression, or impressions with a click in a department, fall below this part of the
	// trailing rate.
	Drop float64 `yaml:"drop"`
	// Rise trips when they grow beyond this multiple.
	Rise float64 `yaml:"rise"`
	// Cover trips when the share of clicks that find their impression falls by more than this.
	Cover float64 `yaml:"cover"`
	// Orphan trips when the share of clicks whose impression never came grows by more than this.
	Orphan float64 `yaml:"orphan"`
	// Sigma is how many standard deviations off chance each of these must be besides.
	Sigma float64 `yaml:"sigma"`
}

func defaultBreaker() Breaker {
	d := breaker.Default()
	minutes := func(n int) time.Duration { return time.Duration(n) * time.Minute }
	return Breaker{
		Enabled: true, Recent: minutes(d.Recent), Baseline: minutes(d.Baseline), Warm: minutes(d.Warm), Hold: minutes(d.Hold),
		Drop: d.Drop, Rise: d.Rise, Cover: d.Cover, Orphan: d.Orphan, Sigma: d.Sigma,
	}
}

// rules for a join that settles a click after so long.
func (b Breaker) rules(settle time.Duration) breaker.Config {
	minutes := func(d time.Duration) int { return int(d / time.Minute) }
	return breaker.Config{
		Recent: minutes(
			b.Recent,
		), Baseline: minutes(b.Baseline), Warm: minutes(b.Warm), Hold: minutes(b.Hold), Settle: minutes(settle + 2*time.Minute - 1),
		Drop: b.Drop, Rise: b.Rise, Cover: b.Cover, Orphan: b.Orphan, Sigma: b.Sigma,
	}
}

// guard runs the circuit breaker over the committed transactions of this instance's partitions.
type guard struct {
	instance string // in the names of slices, "" for the only instance
	log      zerolog.Logger
	control  control.Log // where the breaker's state is told, and read back after a restart; nil: nobody is told
	tripped  prometheus.Gauge
	work     *telemetry.Work // of telling

	others map[string]heard // of run alone: what other instances have open

	mu      sync.Mutex
	breaker *breaker.Breaker // nil: off
	changed chan struct{}

	open atomic.Pointer[map[string]bool] // slices, nil if none; breaker.All is one of them
}

// heard is when another instance was heard of last, as seen from here: its clock, and how long ago by ours.
type heard struct {
	toldMS int64
	at     time.Time
}

// While a slice is open its instance says so every tellAgain. One that says nothing for silence, seen from an instance that runs all
// that time, is gone: scaled in, or under another name now. Its slice would hold up learning for ever, and nobody judges it
// any more; its partitions have another owner, who judges them. What it left as suspect stays so.
const (
	tellAgain = 10 * time.Minute
	silence   = time.Hour
)

func newGuard(cfg Config, log zerolog.Logger) *guard {
	g := &guard{log: log, others: map[string]heard{}, changed: make(chan struct{}, 1), tripped: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "ctrloop_joiner_breaker_open_slices",
		Help: "Slices of the traffic whose circuit breaker is open: their labels are marked, no pairs are built and no training starts.",
	})}
	if cfg.TransactionalID != Default().TransactionalID {
		g.instance = cfg.TransactionalID
	}
	if cfg.Breaker.Enabled {
		g.breaker = breaker.New(cfg.Breaker.rules(cfg.Window+cfg.Bucket), nil)
	}
	return g
}

// Guard tells the circuit breaker's state to the control log, and takes over what this instance had open before. Call
// it before Run.
func (s *Service) Guard(c control.Log) {
	g := s.guard
	g.control = c
	if g.breaker == nil {
		return
	}
	var tripped []breaker.Change
	for name, b := range c.State().Breakers {
		if slice, mine := g.mine(name); mine {
			tripped = append(
				tripped,
				breaker.Change{Slice: slice, Open: true, Reason: b.Reason, Value: b.Value, Trailing: breaker.CountsOf(b.Trailing)},
			)
		}
	}
	g.breaker = breaker.New(s.cfg.Breaker.rules(s.cfg.Window+s.cfg.Bucket), tripped)
	g.publish()
}

// Tripped lists what the circuit breaker of this instance has open.
func (s *Service) Tripped() []breaker.Change {
	s.guard.mu.Lock()
	defer s.guard.mu.Unlock()
	if s.guard.breaker == nil {
		return nil
	}
	return s.guard.breaker.Tripped()
}

// name of a slice on the control log: instances judge their own partitions, so each has its own slices.
func (g *guard) name(slice string) string {
	if g.instance == "" {
		return slice
	}
	return slice + "@" + g.instance
}

func (g *guard) mine(name string) (slice string, ok bool) {
	slice, instance, _ := strings.Cut(name, "@")
	return slice, instance == g.instance
}

// suspicion is the guard as far as shards ask it, nil if the breaker is off.
func (g *guard) suspicion() Suspicion {
	if g.breaker == nil {
		return nil
	}
	return g
}

// Suspect says whether labels of a department are not to be learned from.
func (g *guard) Suspect(department []byte) bool {
	open := g.open.Load()
	return open != nil && ((*open)[breaker.All] || (*open)[string(department)])
}

// publish makes the open slices known to the shards.
func (g *guard) publish() {
	var open map[string]bool
	tripped := g.breaker.Tripped()
	g.tripped.Set(float64(len(tripped)))
	for _, c := range tripped {
		if open == nil {
			open = map[string]bool{}
		}
		open[c.Slice] = true
	}
	if open == nil {
		g.open.Store(nil)
		return
	}
	g.open.Store(&open)
}

// judge takes what the shards have committed, and looks at the minutes that all of them have passed.
func (g *guard) judge(shards map[int32]*Shard) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.breaker == nil {
		return
	}
	low := int64(window.None)
	for _, s := range shards {
		for k, c := range s.health.settled {
			g.breaker.Add(k.slice, k.minute*minuteMS, c)
		}
		clear(s.health.settled)
		if wm := s.w.Watermark(); wm != window.None && (low == window.None || wm < low) {
			low = wm
		}
	}
	if low == window.None {
		return
	}
	changes := g.breaker.Judge(low)
	for _, c := range changes {
		state := "closed"
		if c.Open {
			state = "open"
		}
		g.log.Warn().Str("slice", g.name(c.Slice)).Str("reason", c.Reason).Msg("circuit breaker " + state)
	}
	if len(changes) > 0 {
		g.publish()
		select {
		case g.changed <- struct{}{}:
		default: // a look is due already
		}
	}
}

// run holds the control log against the breaker, until they agree, after every change.
func (g *guard) run(ctx context.Context) {
	if g.control == nil {
		return
	}
	const again = 5 * time.Second // after a failure, and in case an operator has reset what is still wrong
	for {
		err := g.tell(ctx)
		if ctx.Err() == nil {
			g.work.Tried(err)
		}
		if err != nil && ctx.Err() == nil {
			g.log.Error().Err(err).Msg("the circuit breaker's state could not be told; trying again")
		}
		if err == nil && g.breaker == nil && len(g.others) == 0 {
			return // it is off: what it had open is reset, and that was all
		}
		select {
		case <-ctx.Done():
			return
		case <-g.changed:
		case <-time.After(again):
		}
	}
}

func (g *guard) tell(ctx context.Context) error {
	now := time.Now()
	g.mu.Lock()
	want := map[string]control.Breaker{}
	if g.breaker != nil {
		for _, c := range g.breaker.Tripped() {
			name := g.name(c.Slice)
			want[name] = control.Breaker{Slice: name, Reason: c.Reason, Value: c.Value, Trailing: c.Trailing.List(), ToldMS: now.UnixMilli()}
		}
	}
	g.mu.Unlock()
	have := g.control.State().Breakers
	var errs []error
	send := func(id string, typ control.Type, b control.Breaker) {
		e, err := control.NewEvent(id, typ, control.BreakerEntity(b.Slice), -1, "joiner", b.Reason, now, b)
		if err == nil {
			_, err = g.control.Append(ctx, e)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s of %s: %w", typ, b.Slice, err))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) { // in order: the log reads the same however often it is made
		if b, ok := have[name]; !ok || now.Sub(time.UnixMilli(b.ToldMS)) >= tellAgain {
			send(uuid.NewString(), control.BreakerTripped, want[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if _, mine := g.mine(name); !mine {
			continue
		}
		if _, ok := want[name]; !ok {
			send(uuid.NewString(), control.BreakerReset, have[name])
		}
	}
	for name := range g.others {
		if _, ok := have[name]; !ok {
			delete(g.others, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if _, mine := g.mine(name); mine {
			continue
		}
		b, before := have[name], g.others[name]
		switch {
		case before.at.IsZero() || before.toldMS != b.ToldMS:
			g.others[name] = heard{b.ToldMS, now}
		case now.Sub(before.at) >= silence:
			g.log.Warn().Str("slice", name).Str("reason", b.Reason).Dur("silent_for", now.Sub(before.at)).
				Msg("circuit breaker closed: its instance is gone; the owners of its partitions judge them, labels that it marked stay suspect")
			b.Reason = fmt.Sprintf("its instance has said nothing for %s and is gone; was: %.200s", now.Sub(before.at).Round(time.Minute), b.Reason)
			send(fmt.Sprintf("breaker-gone-%s-%d", name, b.ToldMS), control.BreakerReset, b) // by whoever is first
		}
	}
	return errors.Join(errs...)
}

// health counts for the circuit breaker what a transaction does, by slice and by the minute in which it happened.
type health struct {
	off     bool
	running map[healthKey]*breaker.Counts
	settled map[healthKey]breaker.Counts // of committed transactions, until the guard takes them
	all     slice
	slices  map[string]*slice // of departments
	last    *slice            // of the last event with a department: most events of a batch are of few
}

type healthKey struct {
	slice  string
	minute int64
}

// slice remembers the counts of the minute that it was asked for last.
type slice struct {
	name   string
	minute int64
	counts *breaker.Counts
}

func newHealth(off bool) health {
	return health{
		off: off, running: map[healthKey]*breaker.Counts{}, settled: map[healthKey]breaker.Counts{},
		all: slice{name: breaker.All}, slices: map[string]*slice{},
	}
}

func (h *health) at(s *slice, ms int64) *breaker.Counts {
	minute := ms / minuteMS
	if s.counts != nil && s.minute == minute {
		return s.counts
	}
	k := healthKey{s.name, minute}
	c := h.running[k]
	if c == nil {
		c = &breaker.Counts{}
		h.running[k] = c
	}
	s.minute, s.counts = minute, c
	return c
}

// maxDepartments bounds the names that are told apart before the breaker, which watches fewer.
const maxDepartments = 256

// of is the slice of a department, nil if it is not watched.
func (h *health) of(department []byte) *slice {
	if len(department) == 0 {
		return nil
	}
	if h.last != nil && h.last.name == string(department) {
		return h.last
	}
	s := h.slices[string(department)]
	if s == nil {
		if len(h.slices) >= maxDepartments || string(department) == breaker.All {
			return nil
		}
		s = &slice{name: string(department)}
		h.slices[s.name] = s
	}
	h.last = s
	return s
}

// impression counts one that was read for the first time and in time, whether it is labelled now or later.
func (h *health) impression(ms int64, department []byte) {
	if h.off {
		return
	}
	h.at(&h.all, ms).Impressions++
	if s := h.of(department); s != nil {
		h.at(s, ms).Impressions++
	}
}

// click counts one that was read and is the first of its impression, or waits for it.
func (h *health) click(ms int64) {
	if !h.off {
		h.at(&h.all, ms).Clicks++
	}
}

// label counts the clicks of a positive verdict, at the time of the first.
func (h *health) label(l *window.Label, department []byte) {
	if h.off || l.Kind != eventpb.LabelKind_LABEL_KIND_POSITIVE {
		return
	}
	ms := l.ID.UnixMilli() + l.DelayMS
	c := h.at(&h.all, ms)
	c.Joined += uint64(l.Clicks) // several, if they waited for their impression
	c.Positive++
	if s := h.of(department); s != nil {
		h.at(s, ms).Positive++
	}
}

// late counts clicks whose impression never came.
func (h *health) late(l *window.Late) {
	if !h.off && l.Reason == schemas.LateOrphan {
		h.at(&h.all, l.TimeMS).Orphans++
	}
}

// commit settles a transaction.
func (h *health) commit() {
	for k, c := range h.running {
		h.settled[k] = h.settled[k].Add(*c)
	}
	h.reset()
}

func (h *health) reset() {
	clear(h.running)
	h.all.counts = nil
	for _, s := range h.slices {
		s.counts = nil
	}
}

// department is the first part of "department/category".
func department(category []byte) []byte {
	d, _, _ := bytes.Cut(category, []byte{'/'})
	return d
}
