package pairer

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/artifact"
	"ctrloop/internal/controllog"
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
	Log       zerolog.Logger
	Registry  prometheus.Registerer
}

// Status is the outcome of the last look.
type Status struct {
	At        time.Time `json:"at"`
	Pairs     int       `json:"pairs"`
	Effective float64   `json:"effective"`
	Needed    float64   `json:"needed"`
	ToMS      int64     `json:"to_ms"`
	Reason    string    `json:"reason"`
}

// Service is the running pairer.
type Service struct {
	cfg    Config
	d      Deps
	m      *metrics
	status atomic.Pointer[Status]
	now    func() time.Time
	used   map[pairKey]bool // pairs of data sets that something was learned from
	read   map[string]bool  // data sets whose pairs are in used
}

type pairKey struct{ product, placement, a, b string }

func keyOf(product, placement, a, b string) pairKey {
	return pairKey{product, placement, min(a, b), max(a, b)}
}

// New checks the configuration.
func New(cfg Config, d Deps) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, d: d, m: newMetrics(d.Registry), now: time.Now, used: map[pairKey]bool{}, read: map[string]bool{}}
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
	for {
		outcome, err := s.look(ctx, log)
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

func (s *Service) look(ctx context.Context, log control.Log) (outcome string, err error) {
	st := log.State()
	busy := Busy(st)
	if until := Resting(st, s.cfg.FailedPause); busy == "" && s.now().Before(until) {
		busy = "training failed; the next cycle may start at " + until.UTC().Format(time.RFC3339)
	}
	var ps []schemas.Pair
	var evidence []pairs.Evidence
	var span pairs.Span
	if busy == "" { // evidence is a query over all labels: not worth it while nothing can start
		if evidence, span, err = s.d.Source.Evidence(ctx); err != nil {
			return "error", fmt.Errorf("read evidence: %w", err)
		}
		ps = pairs.Build(s.cfg.Pairs(), evidence, span)
		if err := s.readDatasets(st); err != nil {
			return "error", err
		}
		s.m.horizon.Set(float64(span.ToMS) / 1000)
	}
	fresh := s.fresh(ps)
	l := Look{Pairs: len(ps), Effective: pairs.Effective(fresh), Busy: busy}
	fire, reason := Trigger(s.cfg, l)
	if busy == "" {
		s.m.pairs.Set(float64(l.Pairs))
		s.m.effective.Set(l.Effective)
	}
	s.status.Store(
		&Status{At: time.Now().UTC(), Pairs: l.Pairs, Effective: l.Effective, Needed: s.cfg.MinEffectivePairs, ToMS: span.ToMS, Reason: reason},
	)
	if !fire {
		return "skip", nil
	}
	announced, err := s.announce(ctx, log, ps, evidence, span, reason)
	if err != nil {
		return "error", err
	}
	if !announced {
		st := s.Status()
		st.Reason = "skip: training on this very evidence has failed; waiting for more"
		s.status.Store(&st)
		return "skip", nil
	}
	return "dataset", nil
}

// readDatasets takes the pairs of data sets that something was learned from into used. Those of a cycle that failed are
// still to be learned from.
func (s *Service) readDatasets(st *control.State) error {
	for digest := range st.Datasets {
		if s.read[digest] || !cycleOf(st, digest).learned {
			continue
		}
		rows, err := dataset.Pairs(s.d.Store.Path(digest))
		if err != nil {
			return fmt.Errorf("read data set %s: %w", digest, err)
		}
		for _, r := range rows {
			s.used[keyOf(r.Product, r.Placement, r.Left, r.Right)] = true
		}
		s.read[digest] = true
	}
	return nil
}

func (s *Service) fresh(ps []schemas.Pair) []schemas.Pair {
	return slices.DeleteFunc(slices.Clone(ps), func(p schemas.Pair) bool {
		return s.used[keyOf(p.Product, p.Placement, p.Chosen.Creative, p.Rejected.Creative)]
	})
}

// announce stores the data set, publishes its pairs and tells the control log, unless the log has this very data set.
// Each step may be repeated: the store and the event are named by content, pairs by id.
func (s *Service) announce(
	ctx context.Context, log control.Log, ps []schemas.Pair, evidence []pairs.Evidence, span pairs.Span, reason string,
) (fresh bool, err error) {
	rows, err := CreativeRows(ps, evidence, s.d.Creatives)
	if err != nil {
		return false, err
	}
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
	digest, err := s.d.Store.PutDir(dir)
	if err != nil {
		return false, err
	}
	if _, ok := log.State().Datasets[digest]; ok { // its training failed, and the same again would too
		return false, nil
	}
	if err := s.d.Publisher.PublishPairs(ctx, ps); err != nil {
		return false, fmt.Errorf("publish pairs: %w", err)
	}
	e, err := control.NewEvent(
		"dataset-"+digest,
		control.DatasetBuilt,
		control.DatasetEntity(digest),
		-1,
		"pairer",
		reason,
		time.Now(),
		control.Dataset{
			Digest: digest, Pairs: int64(m.Pairs), Products: int64(m.Products), FromMS: m.FromMS, ToMS: m.ToMS, Policy: m.Policy, Seed: m.Seed,
		},
	)
	if err != nil {
		return false, err
	}
	answer, err := log.Append(ctx, e)
	if err != nil {
		return false, fmt.Errorf("announce data set %s: %w", digest, err)
	}
	if answer == control.Repeated { // its first answer was lost
		return true, nil
	}
	s.m.datasets.Inc()
	s.d.Log.Info().Str("dataset", digest[:12]).Int("pairs", m.Pairs).Int("products", m.Products).Float64("effective", m.Effective).Msg(reason)
	return true, nil
}
