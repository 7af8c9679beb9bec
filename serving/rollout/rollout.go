// Package rollout brings a prompt-model version from "loaded and probed" to an experiment: it has the
// creatives of the version rendered for every product, ahead of traffic, and then starts the A/B test against
// the champion. It also sees to it that the champion has creatives, so that a new shop can serve at all.
// What happens in the experiment is decided by serving/experiment.
package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/schemas/control"
)

// Logical is the logical model that rollouts are about.
const Logical = "prompt"

// Config of rollouts.
type Config struct {
	// Interval between two looks at the control log, as a safety net: a change wakes it at once.
	Interval time.Duration `yaml:"interval"`
	// CreativesPerProduct to render for a version before it may serve.
	CreativesPerProduct int `yaml:"creatives_per_product"`
	// Steps of the ramp: the treatment's share of traffic, ascending, each in (0,1].
	Steps []float64 `yaml:"steps"`
	// Alpha of the confidence sequence, two-sided.
	Alpha float64 `yaml:"alpha"`
	// NStar is the number of units at which the confidence sequence is tightest.
	NStar float64 `yaml:"n_star"`
	// Unit of randomisation: user or product.
	Unit string `yaml:"unit"`
}

// Default is the configuration of an embedded run.
func Default() Config {
	return Config{
		Interval: 5 * time.Second, CreativesPerProduct: 8, Steps: []float64{0.01, 0.05, 0.2, 0.5, 1},
		Alpha: 0.05, NStar: 5000, Unit: "user",
	}
}

// Validate returns every problem of the section, each with its key.
func (c Config) Validate() error {
	var errs []error
	bad := func(path, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...)))
	}
	if c.Interval <= 0 {
		bad("interval", "%v: want more than 0", c.Interval)
	}
	if c.CreativesPerProduct < 1 {
		bad("creatives_per_product", "%d: want at least 1", c.CreativesPerProduct)
	}
	if len(c.Steps) == 0 || !slices.IsSorted(c.Steps) || c.Steps[0] <= 0 || c.Steps[len(c.Steps)-1] > 1 {
		bad("steps", "%v: want ascending shares in (0,1], at least one", c.Steps)
	}
	if c.Alpha <= 0 || c.Alpha >= 1 {
		bad("alpha", "%v: want between 0 and 1", c.Alpha)
	}
	if c.NStar < 1 {
		bad("n_star", "%v: want at least 1", c.NStar)
	}
	if c.Unit != "user" && c.Unit != "product" {
		bad("unit", "%q: want user or product", c.Unit)
	}
	return errors.Join(errs...)
}

// Creatives renders ahead.
type Creatives interface {
	// Ensure has n creatives of every product rendered with the version, and returns when they are
	// published. Work that was done before is not done again.
	Ensure(ctx context.Context, version string, n int) error
}

// ControlLog is the control plane.
type ControlLog interface {
	State() *control.State
	Append(ctx context.Context, e control.Event) error
	Changed() <-chan struct{}
}

// Service is the running rollout.
type Service struct {
	cfg       Config
	control   ControlLog
	creatives Creatives
	log       zerolog.Logger

	mu      sync.Mutex
	ensured map[string]bool // versions whose creatives are known to be complete
}

// New checks the configuration.
func New(cfg Config, cl ControlLog, cr Creatives, log zerolog.Logger) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Service{cfg: cfg, control: cl, creatives: cr, log: log, ensured: map[string]bool{}}, nil
}

// Run works until ctx ends; what was interrupted goes on at the next start.
func (s *Service) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		changed := s.control.Changed()
		worked, err := s.step(ctx)
		if err != nil && ctx.Err() == nil {
			s.log.Error().Err(err).Msg("rollout step failed; trying again")
		}
		if worked && err == nil {
			continue
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-time.After(s.cfg.Interval):
		}
	}
	return nil
}

// Ready says whether the creatives of a version are known to be complete.
func (s *Service) Ready(version string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ensured[version]
}

func (s *Service) step(ctx context.Context) (bool, error) {
	st := s.control.State()
	champion := st.Routes[Logical].Champion
	if champion == "" {
		return false, nil
	}
	if !s.Ready(champion) {
		return true, s.ensure(ctx, champion)
	}
	candidate := Candidate(st)
	if candidate == "" || len(st.Running(Logical)) > 0 {
		return false, nil
	}
	if !s.Ready(candidate) {
		return true, s.ensure(ctx, candidate)
	}
	return true, s.start(ctx, champion, candidate)
}

// Candidate is the version that waits for its experiment: in shadow, longest first. One that a person has drafted an
// experiment for is theirs to start. Empty: none.
func Candidate(st *control.State) string {
	var best *control.ModelStatus
	for _, m := range st.Models {
		if m.Logical == Logical && m.State == control.ModelShadow && !drafted(st, m.Version) && (best == nil || m.Since.Before(best.Since)) {
			best = m
		}
	}
	if best == nil {
		return ""
	}
	return best.Version
}

// drafted says whether a draft tests the version.
func drafted(st *control.State, version string) bool {
	for _, x := range st.Experiments {
		if x.Treatment == version && x.Phase() == control.PhaseDraft {
			return true
		}
	}
	return false
}

func (s *Service) ensure(ctx context.Context, version string) error {
	start := time.Now()
	if err := s.creatives.Ensure(ctx, version, s.cfg.CreativesPerProduct); err != nil {
		return fmt.Errorf("creatives of %s: %w", version, err)
	}
	s.mu.Lock()
	s.ensured[version] = true
	s.mu.Unlock()
	s.log.Info().Str("version", version).Dur("took", time.Since(start)).Msg("creatives are ready")
	return nil
}

func (s *Service) start(ctx context.Context, champion, candidate string) error {
	id := "exp-" + candidate
	now := time.Now()
	e, err := control.NewEvent(
		"create-"+id,
		control.ExperimentCreated,
		control.ExperimentEntity(id),
		0,
		"rollout",
		"",
		now,
		control.Experiment{
			ID: id, Logical: Logical, Unit: s.cfg.Unit, Seed: id, Control: champion, Treatment: candidate,
			Steps: s.cfg.Steps, Alpha: s.cfg.Alpha, NStar: s.cfg.NStar, Created: now.UTC(),
		},
	)
	if err != nil {
		return err
	}
	if err := s.control.Append(ctx, e); err != nil {
		return fmt.Errorf("start experiment %s: %w", id, err)
	}
	return nil
}
