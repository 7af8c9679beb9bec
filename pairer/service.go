package pairer

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/artifact"
	"ctrloop/internal/controllog"
	"ctrloop/internal/telemetry"
	"ctrloop/pairer/dataset"
	"ctrloop/pairer/pairs"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
)

// Source reads evidence. Only impressions whose window has closed count (see docs/design.md, maturity).
type Source interface {
	Evidence(ctx context.Context) ([]pairs.Evidence, pairs.Span, error)
}

// Creatives knows the creatives and their pictures.
type Creatives interface {
	Creative(id string) (schemas.Creative, bool)
	// View is the picture as models see it, PNG.
	View(c schemas.Creative) ([]byte, error)
	// Caption is the text that models read about a product.
	Caption(product string) (string, bool)
}

// Publisher writes pairs to pairs.v1.
type Publisher interface {
	PublishPairs(ctx context.Context, ps []schemas.Pair) error
}

// Deps are what the pairer works with.
type Deps struct {
	Source    Source
	Creatives Creatives
	Lead      controllog.Leader // the claim on control.RolePairer
	Publisher Publisher
	Store     *artifact.Store
	Work      *telemetry.Work // whether looks succeed; may be nil
	Log       zerolog.Logger
	Registry  prometheus.Registerer
}

// Status is the outcome of the last look.
type Status struct {
	At        time.Time `json:"at"`
	Pairs     int       `json:"pairs"`
	Effective float64   `json:"effective"` // information of training pairs since the newest data set, in effective pairs
	Needed    float64   `json:"needed"`
	ToMS      int64     `json:"to_ms"`
	Reason    string    `json:"reason"`
	LeftOut   LeftOut   `json:"left_out,omitempty"` // creatives with labels that cannot be learned from
}

// Service is the running pairer.
type Service struct {
	cfg    Config
	d      Deps
	m      *metrics
	status atomic.Pointer[Status]
	now    func() time.Time
	// learned is what the newest data set that a model has learned from believes of its pairs, and newest its digest.
	learned beliefs
	newest  string
	// published is the data set whose pairs this process knows to be on pairs.v1.
	published string
}

// New checks the configuration.
func New(cfg Config, d Deps) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, d: d, m: newMetrics(d.Registry), now: time.Now}
	s.status.Store(&Status{Needed: cfg.MinEffectivePairs, Reason: "no look yet"})
	return s, nil
}

// Status of the last look.
func (s *Service) Status() Status { return *s.status.Load() }

// Run looks at the evidence until ctx ends, while this process leads. A failed look is logged and tried again at the next
// interval: nothing is lost, the evidence stays where it is.
func (s *Service) Run(ctx context.Context) error { return s.d.Lead.Lead(ctx, s.run) }

func (s *Service) run(ctx context.Context, log control.Log) error {
	tick := time.NewTicker(s.cfg.Interval)
	defer tick.Stop()
	defer s.d.Work.Worked() // whoever leads now looks
	for {
		outcome, err := s.look(ctx, log)
		if ctx.Err() != nil {
			return nil
		}
		s.d.Work.Tried(err)
		if err != nil {
			s.d.Log.Error().Err(err).Msg("look at the evidence failed; trying again")
		}
		s.m.looks.WithLabelValues(outcome).Inc()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (s *Service) look(ctx context.Context, log control.Log) (outcome string, err error) {
	st := log.State()
	if err := s.publish(ctx, st); err != nil {
		return "error", err
	}
	var span pairs.Span
	var evidence []pairs.Evidence
	var left LeftOut
	l := Look{Busy: Busy(st)}
	if until := Resting(st, s.cfg.FailedPause); l.Busy == "" && s.now().Before(until) {
		l.Busy = "training failed; the next cycle may start at " + until.UTC().Format(time.RFC3339)
	}
	var ps []schemas.Pair
	if l.Busy == "" { // evidence is a query over all labels: not worth it while nothing can start
		all, covered, err := s.d.Source.Evidence(ctx)
		if err != nil {
			return "error", fmt.Errorf("read evidence: %w", err)
		}
		if err := s.readNewest(st); err != nil {
			return "error", err
		}
		evidence, left = usable(all, s.d.Creatives)
		span, ps = covered, pairs.Build(s.cfg.Pairs(), evidence, covered)
		l.Pairs, l.Effective = len(ps), s.worth(ps)
	}
	fire, reason := Trigger(s.cfg, l)
	var rows []dataset.CreativeRow
	if fire { // pictures are read only now: they may show that some of the pairs cannot be learned from
		if rows, ps = s.describe(ps, evidence, left); len(ps) < l.Pairs {
			l.Pairs, l.Effective = len(ps), s.worth(ps)
			fire, reason = Trigger(s.cfg, l)
		}
	}
	s.show(l, span, left, reason)
	if !fire {
		return "skip", nil
	}
	announced, err := s.announce(ctx, log, ps, rows, span, reason)
	switch {
	case err != nil:
		return "error", err
	case !announced: // training on it has failed, or evidence has gone back to what it was, by an erasure perhaps
		s.show(l, span, left, "skip: this very evidence has been a data set before; waiting for more")
		return "skip", nil
	}
	return "dataset", nil
}

// worth is what pairs tell that the newest data set did not.
func (s *Service) worth(ps []schemas.Pair) float64 {
	return information(beliefsOf(ps), s.learned, s.cfg.MaxPerCell > 0)
}

// describe reads what models see of each creative, and takes out the pairs of those that cannot be described.
func (s *Service) describe(ps []schemas.Pair, evidence []pairs.Evidence, left LeftOut) ([]dataset.CreativeRow, []schemas.Pair) {
	rows, blind := CreativeRows(ps, evidence, s.d.Creatives)
	if len(blind) == 0 {
		return rows, ps
	}
	for _, why := range blind {
		left[why]++
	}
	ps = slices.DeleteFunc(ps, func(p schemas.Pair) bool {
		return blind[p.Chosen.Creative] != "" || blind[p.Rejected.Creative] != ""
	})
	rows, _ = CreativeRows(ps, evidence, s.d.Creatives)
	return rows, ps
}

// show publishes the outcome of a look.
func (s *Service) show(l Look, span pairs.Span, left LeftOut, reason string) {
	if l.Busy == "" {
		s.m.horizon.Set(float64(span.ToMS) / 1000)
		s.m.pairs.Set(float64(l.Pairs))
		s.m.effective.Set(l.Effective)
		for _, r := range reasons() {
			s.m.leftOut.WithLabelValues(string(r)).Set(float64(left[r]))
		}
	}
	if before := s.Status().LeftOut; l.Busy == "" && !maps.Equal(before, left) && len(left) > 0 {
		s.d.Log.Warn().Interface("left_out", left).Msg("labels name creatives that cannot be learned from; the rest is")
	}
	s.status.Store(&Status{
		At: time.Now().UTC(), Pairs: l.Pairs, Effective: l.Effective, Needed: s.cfg.MinEffectivePairs, ToMS: span.ToMS, Reason: reason,
		LeftOut: left,
	})
}

// newestOf is the data set that was built last, of those that pass; empty: there is none.
func newestOf(st *control.State, pass func(digest string) bool) (digest string) {
	for d, x := range st.Datasets {
		if !pass(d) {
			continue
		}
		y := st.Datasets[digest]
		if digest == "" || cmp.Or(cmp.Compare(x.BuiltMS, y.BuiltMS), cmp.Compare(x.ToMS, y.ToMS), cmp.Compare(d, digest)) > 0 {
			digest = d
		}
	}
	return digest
}

// readNewest brings what is believed up to the newest data set that a model has learned from: what a failed cycle was to
// learn is still to be learned.
func (s *Service) readNewest(st *control.State) error {
	newest := newestOf(st, func(digest string) bool { return cycleOf(st, digest).learned })
	if newest == s.newest {
		return nil
	}
	rows, err := dataset.Pairs(s.d.Store.Path(newest))
	if err != nil {
		return fmt.Errorf("read data set %s: %w", newest, err)
	}
	s.learned, s.newest = beliefsOfRows(rows), newest
	return nil
}

// publish puts the pairs of the newest data set on pairs.v1, unless this process has. A data set is announced first and
// published after that, so each pair of the topic belongs to a data set, and a process that dies in between leaves it to the
// next one. Pairs that are published again replace themselves, by their ids.
func (s *Service) publish(ctx context.Context, st *control.State) error {
	newest := newestOf(st, func(string) bool { return true })
	if newest == s.published {
		return nil
	}
	ps, err := dataset.Records(s.d.Store.Path(newest))
	if err != nil {
		return fmt.Errorf("data set %s: %w", newest, err)
	}
	if err := s.d.Publisher.PublishPairs(ctx, ps); err != nil {
		return fmt.Errorf("publish the pairs of data set %s: %w", newest, err)
	}
	s.published = newest
	return nil
}

// announce stores the data set, tells the control log and publishes its pairs. False: the log has this very data set.
// Each step may be repeated: the store and the event are named by content.
func (s *Service) announce(
	ctx context.Context, log control.Log, ps []schemas.Pair, rows []dataset.CreativeRow, span pairs.Span, reason string,
) (fresh bool, err error) {
	dir, err := os.MkdirTemp("", "ctrloop-dataset-*")
	if err != nil {
		return false, fmt.Errorf("build data set: %w", err)
	}
	defer os.RemoveAll(dir)
	m, err := dataset.Write(
		dir,
		ps,
		rows,
		dataset.Manifest{FromMS: span.FromMS, ToMS: span.ToMS, Policy: string(s.cfg.Policy), Seed: s.cfg.Seed},
	)
	if err != nil {
		return false, err
	}
	if err := dataset.WriteRecords(dir, ps); err != nil {
		return false, err
	}
	digest, err := s.d.Store.PutDir(dir)
	if err != nil {
		return false, err
	}
	if _, known := log.State().Datasets[digest]; known {
		return false, nil
	}
	built := time.Now()
	e, err := control.NewEvent(
		"dataset-"+digest,
		control.DatasetBuilt,
		control.DatasetEntity(digest),
		-1,
		"pairer",
		reason,
		built,
		control.Dataset{
			Digest: digest, Pairs: int64(m.Pairs), Products: int64(m.Products), FromMS: m.FromMS, ToMS: m.ToMS, Policy: m.Policy, Seed: m.Seed,
			BuiltMS: built.UnixMilli(),
		},
	)
	if err != nil {
		return false, err
	}
	answer, err := log.Append(ctx, e)
	if err != nil {
		return false, fmt.Errorf("announce data set %s: %w", digest, err)
	}
	if answer != control.Repeated { // its first answer was lost
		s.m.datasets.Inc()
		s.d.Log.Info().Str("dataset", digest[:12]).Int("pairs", m.Pairs).Int("products", m.Products).Float64("effective", m.Effective).
			Msg(reason)
	}
	return true, s.publish(ctx, log.State())
}
