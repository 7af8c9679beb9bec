package experiment

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"ctrloop/internal/controllog"
	"ctrloop/internal/telemetry"
	"ctrloop/internal/warehouse/query"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/exposure"
	"ctrloop/serving/experiment/ramp"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// Span is a part of event time: From <= t < To. Zero times leave that end open.
type Span = query.Span

// Source has the sums of an experiment's arms over the impressions in any of the spans that are mature: those whose
// click window has closed in every partition, since positives are known before negatives and a rate over younger
// impressions is too high. A unit is a user or a product, as the experiment says; one that came back in another span
// is the same unit. No spans: no impressions.
type Source interface {
	Sums(ctx context.Context, x control.Experiment, spans []Span) (ramp.Sums, error)
}

// Health counts how often a model version was asked for a creative and failed, since it was loaded.
type Health interface {
	Generation(ctx context.Context, version string) (ramp.Counts, error)
}

// Metrics measures what the guardrails look at, for the present step of an experiment, whose event time the spans are.
// A metric that is not measured is left out.
type Metrics interface {
	Metrics(ctx context.Context, x control.ExperimentStatus, spans []Span) ([]ramp.Metric, error)
}

// LookSink keeps the record of every look. A failure is logged and counted, and stops nothing.
type LookSink interface {
	RecordLook(ctx context.Context, l Look) error
}

// Look is one look at one experiment.
type Look struct {
	Time       time.Time    `json:"time"`       // wall clock
	EventTime  time.Time    `json:"event_time"` // of the stream
	Experiment string       `json:"experiment"`
	Step       control.Step `json:"step"`
	ramp.Verdict
}

// Deps are what the service works with. Health, Metrics, Looks, Reports, Hooks and Exposures may be nil.
type Deps struct {
	Control control.Log       // for the commands of people
	Lead    controllog.Leader // the claim on control.RoleExperiments: one process looks
	Source  Source
	Health  Health
	Metrics Metrics
	Looks   LookSink
	Reports Reports
	Hooks   Hooks
	// Exposures stores the exposures that other services send.
	Exposures exposure.Sink
	// Wall stamps commands. EventNow is the clock of the impressions that are being served now: the same clock in
	// production, the world's in a demo. A step is dated by it.
	Wall     func() time.Time
	EventNow func() time.Time
	Work     *telemetry.Work // whether decisions can be written; may be nil
}

// Service looks at experiments.
type Service struct {
	cfg     Config
	d       Deps
	log     zerolog.Logger
	metrics *metrics
	watch   watch
}

const actor = "experiment-controller"

// New checks the configuration and registers the metrics; reg may be nil.
func New(cfg Config, d Deps, log zerolog.Logger, reg prometheus.Registerer) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("experiment: %w", err)
	}
	if d.Control == nil || d.Lead == nil || d.Source == nil || d.Wall == nil || d.EventNow == nil {
		return nil, errors.New("experiment: Control, Lead, Source, Wall and EventNow must be given")
	}
	return &Service{cfg: cfg, d: d, log: log, metrics: newMetrics(reg)}, nil
}

// Run looks at the running experiments until ctx ends, while this process leads.
func (s *Service) Run(ctx context.Context) error { return s.d.Lead.Lead(ctx, s.run) }

func (s *Service) run(ctx context.Context, log control.Log) error {
	tick := time.NewTicker(s.cfg.Interval)
	defer tick.Stop()
	defer s.d.Work.Worked() // whoever leads now decides
	for {
		if err := s.lookAll(ctx, log); err != nil && ctx.Err() == nil {
			s.log.Error().Err(err).Msg("look at the experiments failed; trying again")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// errAppend is in the error of a command that was not written, for whatever reason.
var errAppend = errors.New("append")

// lookAll looks once at every running experiment and writes what follows from it.
func (s *Service) lookAll(ctx context.Context, log control.Log) error {
	var errs, unwritten []error
	running := s.running()
	s.metrics.running.Set(float64(len(running)))
	s.watch.retain(running)
	defer func() { s.metrics.failing.Set(float64(s.watch.alarms(s.cfg.Failed))) }()
	for _, x := range running {
		start := time.Now()
		err := s.look(ctx, log, x)
		s.metrics.seconds.Observe(time.Since(start).Seconds())
		switch {
		case errors.Is(err, control.ErrConflict), errors.Is(err, control.ErrFenced): // a person or another process was first
			s.log.Debug().Str("experiment", x.ID).Err(err).Msg("decided elsewhere")
		case err != nil:
			s.metrics.errors.Inc()
			err = fmt.Errorf("experiment %s: %w", x.ID, err)
			errs = append(errs, err)
			if _, rejected := control.Rejected(err); errors.Is(err, errAppend) && !rejected {
				unwritten = append(unwritten, err)
			}
		}
	}
	if ctx.Err() == nil { // what else fails in a look has alarms of its own
		s.d.Work.Tried(errors.Join(unwritten...))
	}
	return errors.Join(errs...)
}

func (s *Service) running() []control.ExperimentStatus {
	var out []control.ExperimentStatus
	for _, x := range s.d.Control.State().Experiments {
		if x.Running() {
			out = append(out, *x)
		}
	}
	slices.SortFunc(out, func(a, b control.ExperimentStatus) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

func (s *Service) look(parent context.Context, log control.Log, x control.ExperimentStatus) error {
	ctx, cancel := context.WithTimeout(parent, s.cfg.Timeout)
	defer cancel()
	st := s.d.Control.State()
	at := st.Versions[control.ExperimentEntity(x.ID)]
	cur := st.Experiments[x.ID]
	if cur == nil || !cur.Running() {
		return nil
	}
	x = *cur
	v, err := s.Analyse(ctx, x)
	switch {
	case parent.Err() != nil: // this process stops
		return err
	case err != nil:
		if acted, did := s.blind(parent, log, st, x, at, err); acted {
			return did
		}
		return err
	}
	if failed := s.watch.saw(x.ID, s.d.Wall(), v); failed != nil { // the look stands, but it has not seen everything
		s.metrics.errors.Inc()
		if acted, err := s.blind(parent, log, st, x, at, failed); acted {
			return err
		}
	}
	if st.Routes[x.Logical].Champion == x.Treatment && v.Action != ramp.Promote { // by hand, or before a crash
		v.Action, v.Rule, v.Why, v.Next = ramp.Promote, ramp.AlreadyPromoted, "the treatment is the champion already", nil
	}
	if m := st.Models[x.Treatment]; m != nil && m.State == control.ModelFailed {
		v.Action, v.Rule, v.Why, v.Next = ramp.RollBack, ramp.TreatmentFailed, "the treatment cannot answer any more: "+m.Reason, nil
	}
	if c := st.Routes[x.Logical].Champion; v.Action == ramp.Promote && c != x.Control && c != x.Treatment {
		v.Action, v.Rule = ramp.Inconclusive, ramp.ChampionChanged
		v.Why = fmt.Sprintf(
			"better than %s, but %s has become champion meanwhile, which it was not compared with: test it against that (%s)",
			x.Control,
			c,
			v.Why,
		)
	}
	s.metrics.looks.WithLabelValues(string(v.Action), string(v.Rule)).Inc()
	s.record(ctx, x, v)
	return s.act(ctx, log, st, x, at, v)
}

// Analyse is a look that changes nothing.
func (s *Service) Analyse(ctx context.Context, x control.ExperimentStatus) (ramp.Verdict, error) {
	var ev ramp.Evidence
	var err error
	now := s.spans(x, x.Step.Index)
	if x.Step.Share >= 1 && len(now) > 1 { // the wait for the deciding step's data to mature begins with this visit
		now = now[len(now)-1:]
	}
	if ev.Now, err = s.d.Source.Sums(ctx, x.Experiment, now); err != nil {
		return ramp.Verdict{}, fmt.Errorf("sums of step %d: %w", x.Step.Number(), err)
	}
	ev.Deciding = ev.Now
	if i := ramp.Decides(x.Steps); x.Step.Share >= 1 && i >= 0 {
		if ev.Deciding, err = s.d.Source.Sums(ctx, x.Experiment, s.spans(x, i)); err != nil {
			return ramp.Verdict{}, fmt.Errorf("sums of the deciding step: %w", err)
		}
	}
	// A figure that cannot be read stops no guard that needs it not.
	if s.d.Metrics != nil {
		if ev.Metrics, err = s.d.Metrics.Metrics(ctx, x, now); err != nil {
			ev.Unread = append(ev.Unread, fmt.Sprintf("metrics of the guardrails: %v", err))
		}
	}
	if s.d.Health != nil {
		if ev.Generation, err = s.d.Health.Generation(ctx, x.Treatment); err != nil {
			ev.Unread = append(ev.Unread, fmt.Sprintf("generation counts of %s: %v", x.Treatment, err))
		}
	}
	return ramp.Look(s.cfg.Ramp, x, ev), nil
}

func (s *Service) spans(x control.ExperimentStatus, index int) []Span {
	return Visits(x.History, index, s.cfg.Settle)
}

// Visits is the event time of all visits to a step, each without its settling time. A step that was left and entered
// again by hand has the same share each time, so its visits are one sample: nothing of the mix of the arms changes
// between them, and one confidence sequence goes on over all of them without costing alpha again.
func Visits(history []control.Step, index int, settle time.Duration) []Span {
	var out []Span
	for i, step := range history {
		if step.Index != index {
			continue
		}
		var span Span
		if step.AtMS > 0 {
			span.From = time.UnixMilli(step.AtMS).Add(settle).UTC()
		}
		if i+1 < len(history) {
			span.To = time.UnixMilli(history[i+1].AtMS).UTC()
			if !span.From.Before(span.To) && !span.From.IsZero() {
				continue // over before it had settled
			}
		}
		out = append(out, span)
	}
	return out
}

func (s *Service) record(ctx context.Context, x control.ExperimentStatus, v ramp.Verdict) {
	if s.d.Looks == nil {
		return
	}
	if err := s.d.Looks.RecordLook(ctx, Look{Time: s.d.Wall().UTC(), EventTime: s.d.EventNow().UTC(), Experiment: x.ID, Step: x.Step,
		Verdict: v}); err != nil {
		s.metrics.errors.Inc()
		s.log.Warn().Err(err).Str("experiment", x.ID).Msg("this look is not on record")
	}
}

// act writes what the verdict asks for. A decision is one command: the fold moves the route with it.
func (s *Service) act(
	ctx context.Context, log control.Log, st *control.State, x control.ExperimentStatus, at int64, v ramp.Verdict,
) error {
	switch v.Action {
	case ramp.Hold:
		return nil
	case ramp.Step:
		next, err := s.dated(x, *v.Next)
		if err != nil {
			return err
		}
		return s.write(ctx, log, control.ExperimentStepped, control.ExperimentEntity(x.ID), at, actor, control.Clip(v.Why), next)
	default: // Promote, RollBack, Inconclusive: each ends the experiment
		d := v.Decision()
		d.Champion = st.ChampionAfter(&x, d.Outcome)
		return s.write(ctx, log, control.ExperimentDecided, control.ExperimentEntity(x.ID), at, actor, control.Clip(v.Why), d)
	}
}

// dated gives a step the event time at which it begins.
func (s *Service) dated(x control.ExperimentStatus, next control.Step) (control.Step, error) {
	now := s.d.EventNow()
	if last := x.Step.AtMS; now.UnixMilli() <= max(last, 0) { // else the next step would count the last one's impressions
		return next, bad(
			"wait for impressions with a later event time; do they come in?",
			"step to share %g: the event clock says %v, which is not after the present step began (%v)",
			next.Share,
			now,
			time.UnixMilli(last).UTC(),
		)
	}
	next.AtMS = now.UnixMilli()
	return next, nil
}

// append writes the command of a person.
func (s *Service) append(ctx context.Context, typ control.Type, entity string, expect int64, who, note string, data any) error {
	return s.write(ctx, s.d.Control, typ, entity, expect, who, note, data)
}

func (s *Service) write(
	ctx context.Context, log control.Log, typ control.Type, entity string, expect int64, who, note string, data any,
) error {
	e, err := control.NewEvent(uuid.NewString(), typ, entity, expect, who, note, s.d.Wall(), data)
	if err != nil {
		return err
	}
	if _, err := log.Append(ctx, e); err != nil { // repeated: its answer was lost and it was sent again below us
		return fmt.Errorf("%w %s: %w", errAppend, typ, err)
	}
	s.log.Info().Str("type", string(typ)).Str("entity", entity).Str("note", note).Msg("control command written")
	return nil
}
