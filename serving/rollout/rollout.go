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

	"ctrloop/internal/controllog"
	"ctrloop/internal/telemetry"
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

// Service is the running rollout.
type Service struct {
	cfg       Config
	lead      controllog.Leader
	creatives Creatives
	log       zerolog.Logger
	work      *telemetry.Work

	mu      sync.Mutex
	ensured map[string]bool // versions whose creatives are known to be complete
}

// New checks the configuration. lead is the claim on control.RoleRollout.
func New(cfg Config, lead controllog.Leader, cr Creatives, log zerolog.Logger) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Service{cfg: cfg, lead: lead, creatives: cr, log: log, ensured: map[string]bool{}}, nil
}

// Reports has the service say whether it can write to the control log. That a version cannot draw is the version's trouble. Call it
// before Run.
func (s *Service) Reports(w *telemetry.Work) { s.work = w }

// Run works until ctx ends, while this process leads; what was interrupted goes on at the next start, or elsewhere.
func (s *Service) Run(ctx context.Context) error { return s.lead.Lead(ctx, s.run) }

func (s *Service) run(ctx context.Context, log control.Log) error {
	defer s.work.Worked() // whoever leads now rolls out
	for ctx.Err() == nil {
		changed := log.Changed()
		worked, err := s.step(ctx, log)
		if err == nil {
			s.work.Worked()
		}
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

// step does the next thing that the control state asks for; worked is false when there is none.
func (s *Service) step(ctx context.Context, log control.Log) (worked bool, err error) {
	st := log.State()
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
	return s.start(ctx, log, champion, candidate)
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

// start creates the candidate's experiment. A command that changes nothing is no work: it would be sent again and again.
func (s *Service) start(ctx context.Context, log control.Log, champion, candidate string) (worked bool, err error) {
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
		return false, err
	}
	answer, err := log.Append(ctx, e)
	if _, rejected := control.Rejected(err); rejected {
		s.work.Worked() // the log has answered
	} else if err != nil && ctx.Err() == nil {
		s.work.Failed(err)
	}
	if err != nil {
		return false, fmt.Errorf("start experiment %s: %w", id, err)
	}
	return answer == control.Applied, nil
}
