package pairer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/artifact"
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

// ControlLog is the control plane.
type ControlLog interface {
	State() *control.State
	Append(ctx context.Context, e control.Event) error
}

// Publisher writes pairs to pairs.v1.
type Publisher interface {
	PublishPairs(ctx context.Context, ps []schemas.Pair) error
}

// Deps are what the pairer works with.
type Deps struct {
	Source    Source
	Creatives Creatives
	Control   ControlLog
	Publisher Publisher
	Store     *artifact.Store
	Log       zerolog.Logger
	Registry  prometheus.Registerer
}

// Status is the outcome of the last look.
type Status struct {
	At        time.Time `json:"at"`
	Pairs     int       `json:"pairs"`
	Effective float64   `json:"effective"` // what pairs have told since the newest data set
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
	// learned is what the newest data set believes of its pairs, and newest its digest.
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
	s := &Service{cfg: cfg, d: d, m: newMetrics(d.Registry)}
	s.status.Store(&Status{Needed: cfg.MinEffectivePairs, Reason: "no look yet"})
	return s, nil
}

// Status of the last look.
func (s *Service) Status() Status { return *s.status.Load() }

// Run looks at the evidence until ctx ends. A failed look is logged and tried again at the next interval:
// nothing is lost, the evidence stays where it is.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(s.cfg.Interval)
	defer tick.Stop()
	for {
		outcome, err := s.look(ctx)
		if ctx.Err() != nil {
			return nil
		}
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

func (s *Service) look(ctx context.Context) (outcome string, err error) {
	st := s.d.Control.State()
	if err := s.publish(ctx, st); err != nil {
		return "error", err
	}
	var span pairs.Span
	var evidence []pairs.Evidence
	var left LeftOut
	l := Look{Busy: Busy(st)}
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
	err = s.announce(ctx, st, ps, rows, span, reason)
	if errors.Is(err, errLearned) { // evidence has gone back to what it was, by an erasure perhaps
		s.show(l, span, left, "skip: "+err.Error())
		return "skip", nil
	}
	if err != nil {
		return "error", err
	}
	return "dataset", nil
}

var errLearned = errors.New("this evidence has been learned from")

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

// newestOf is the data set that was built last; empty: there is none.
func newestOf(st *control.State) (digest string) {
	for d, x := range st.Datasets {
		y := st.Datasets[digest]
		if digest == "" || cmp.Or(cmp.Compare(x.BuiltMS, y.BuiltMS), cmp.Compare(x.ToMS, y.ToMS), cmp.Compare(d, digest)) > 0 {
			digest = d
		}
	}
	return digest
}

// readNewest brings what is believed up to the newest data set.
func (s *Service) readNewest(st *control.State) error {
	newest := newestOf(st)
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
	newest := newestOf(st)
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

// announce stores the data set and tells the control log; its pairs are published by the next look. Each step may be
// repeated: the store and the event are named by content.
func (s *Service) announce(
	ctx context.Context, st *control.State, ps []schemas.Pair, rows []dataset.CreativeRow, span pairs.Span, reason string,
) error {
	dir, err := os.MkdirTemp("", "ctrloop-dataset-*")
	if err != nil {
		return fmt.Errorf("build data set: %w", err)
	}
	defer os.RemoveAll(dir)
	m, err := dataset.Write(
		dir,
		ps,
		rows,
		dataset.Manifest{FromMS: span.FromMS, ToMS: span.ToMS, Policy: string(s.cfg.Policy), Seed: s.cfg.Seed},
	)
	if err != nil {
		return err
	}
	if err := dataset.WriteRecords(dir, ps); err != nil {
		return err
	}
	digest, err := s.d.Store.PutDir(dir)
	if err != nil {
		return err
	}
	if _, known := st.Datasets[digest]; known {
		return fmt.Errorf("%w: data set %.12s", errLearned, digest)
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
		return err
	}
	if err := s.d.Control.Append(ctx, e); err != nil {
		return fmt.Errorf("announce data set %s: %w", digest, err)
	}
	s.m.datasets.Inc()
	s.d.Log.Info().Str("dataset", digest[:12]).Int("pairs", m.Pairs).Int("products", m.Products).Float64("effective", m.Effective).Msg(reason)
	return s.publish(ctx, s.d.Control.State())
}
