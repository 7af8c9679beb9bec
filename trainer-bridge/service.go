package trainerbridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/artifact"
	"ctrloop/schemas/control"
)

// ControlLog is the control plane.
type ControlLog interface {
	State() *control.State
	Append(ctx context.Context, e control.Event) error
	// Changed is closed at the next change of the state.
	Changed() <-chan struct{}
}

// Deps are what the bridge works with.
type Deps struct {
	Control  ControlLog
	Runner   Runner
	Store    *artifact.Store
	Base     string // digest of the base prompt model
	Log      zerolog.Logger
	Registry prometheus.Registerer
}

// Service is the running bridge.
type Service struct {
	cfg Config
	d   Deps
	m   *metrics
}

// New checks the configuration.
func New(cfg Config, d Deps) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Service{cfg: cfg, d: d, m: newMetrics(d.Registry)}, nil
}

// Run works until ctx ends. A job that is running then is stopped with a checkpoint and goes on at the next start.
func (s *Service) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		changed := s.d.Control.Changed() // before the look: a change during it must wake us
		worked, err := s.step(ctx)
		if err != nil && ctx.Err() == nil {
			s.d.Log.Error().Err(err).Msg("training step failed; trying again")
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

// step does the next thing that the control state asks for; worked is false when there is none.
func (s *Service) step(ctx context.Context) (worked bool, err error) {
	st := s.d.Control.State()
	if done, err := s.registerFinished(ctx, st); done || err != nil {
		return done, err
	}
	if j := Next(st); j != nil {
		return true, s.runJob(ctx, *j)
	}
	job, err := Plan(s.cfg, st, s.d.Base)
	if job == nil || err != nil {
		return false, err
	}
	return true, s.append(ctx, "submit-"+job.ID, control.JobSubmitted, control.JobEntity(job.ID), job.Reason, job)
}

func (s *Service) runJob(ctx context.Context, j control.JobStatus) error {
	attempt := j.Update.Attempt + 1
	if err := s.append(ctx, fmt.Sprintf("start-%s-%d", j.ID, attempt), control.JobStarted, control.JobEntity(j.ID), "", control.JobUpdate{Attempt: attempt}); err != nil {
		return err
	}
	log := s.d.Log.With().Str("job", j.ID).Int("attempt", attempt).Logger()
	log.Info().Str("reason", j.Reason).Msg("job starts")
	s.m.running.Inc()
	start := time.Now()
	out, err := s.d.Runner.Run(ctx, j)
	s.m.running.Dec()
	if ctx.Err() != nil {
		return ctx.Err() // interrupted by our own stop: the log still says running, the next start goes on
	}
	u := control.JobUpdate{Attempt: attempt}
	if err == nil {
		err = s.finish(&u, out)
	}
	if err != nil {
		class := FailBug
		if je, ok := errors.AsType[*JobError](err); ok {
			class = je.Class
		}
		u.Class, u.Error = string(class), err.Error()
		s.m.jobs.WithLabelValues(j.Kind, string(class)).Inc()
		log.Error().Err(err).Str("class", u.Class).Msg("job failed")
		return s.append(ctx, fmt.Sprintf("fail-%s-%d", j.ID, attempt), control.JobFailed, control.JobEntity(j.ID), "", u)
	}
	s.m.jobs.WithLabelValues(j.Kind, "succeeded").Inc()
	s.m.seconds.WithLabelValues(j.Kind).Observe(time.Since(start).Seconds())
	log.Info().Dur("took", time.Since(start)).Str("artifact", short(u.Artifact)).Msg("job succeeded")
	return s.append(ctx, fmt.Sprintf("finish-%s-%d", j.ID, attempt), control.JobFinished, control.JobEntity(j.ID), "", u)
}

// finish stores what the job made.
func (s *Service) finish(u *control.JobUpdate, out string) error {
	m, err := readMetrics(out)
	if err != nil {
		return err
	}
	digest, err := s.d.Store.PutDir(out)
	if err != nil {
		return err
	}
	u.Artifact, u.Metrics = digest, m.rest
	return nil
}

// registerFinished registers the model versions of finished jobs that the log does not hold yet.
func (s *Service) registerFinished(ctx context.Context, st *control.State) (bool, error) {
	known := map[string]bool{} // jobs whose version is registered
	for _, m := range st.Models {
		known[m.Job] = true
	}
	for id, j := range st.Jobs {
		if j.State == control.JobSucceeded && !known[id] {
			return true, s.register(ctx, st, j)
		}
	}
	return false, nil
}

func (s *Service) register(ctx context.Context, st *control.State, j *control.JobStatus) error {
	var spec Spec
	if err := json.Unmarshal(j.Spec, &spec); err != nil {
		return fmt.Errorf("job %s: spec: %w", j.ID, err)
	}
	result := s.d.Store.Path(j.Update.Artifact)
	m, err := readMetrics(result)
	if err != nil {
		return err
	}
	model := control.Model{
		Logical: "reward", Artifact: j.Update.Artifact, Base: spec.Base, Job: j.ID, Dataset: spec.Dataset,
		LabelsTo: st.Datasets[spec.Dataset].ToMS, Metrics: m.rest, Gates: m.Gates,
	}
	if spec.Kind == KindRounds {
		model.Logical, model.Reward = "prompt", spec.Reward
		if model.Artifact, err = candidate(s.d.Store, result); err != nil {
			return err
		}
		if c := st.Routes["prompt"].Champion; c != "" {
			model.Parents = []string{c}
		}
	}
	model.Version = model.Logical + "-" + short(model.Artifact)
	if st.Models[model.Version] != nil {
		// Two cycles that learned the very same weights: the version exists, and names are never reused.
		s.d.Log.Warn().Str("version", model.Version).Str("job", j.ID).Msg("the job made a version that exists already")
		model.Version += "-" + short(spec.Dataset)
	}
	if err := s.append(ctx, "register-"+j.ID, control.ModelRegistered, control.ModelEntity(model.Version), j.Reason, model); err != nil {
		return err
	}
	if why := model.FailedGates(); why != "" {
		s.d.Log.Warn().Str("version", model.Version).Msg("registered as failed, it will not load: " + why)
		return nil
	}
	s.d.Log.Info().Str("version", model.Version).Str("job", j.ID).Msg("model version registered")
	return nil
}

// append writes a command under a fixed id, so that doing it again after a crash changes nothing.
func (s *Service) append(ctx context.Context, id string, typ control.Type, entity, note string, data any) error {
	e, err := control.NewEvent(id, typ, entity, -1, "trainer-bridge", note, time.Now(), data)
	if err != nil {
		return err
	}
	return s.d.Control.Append(ctx, e)
}
