package trainerbridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/internal/artifact"
	"ctrloop/internal/controllog"
	"ctrloop/internal/telemetry"
	"ctrloop/schemas/control"
)

// Deps are what the bridge works with.
type Deps struct {
	Lead    controllog.Leader // the claim on control.RoleTrainer
	Runner  Runner
	Store   *artifact.Store
	Base    string          // digest of the base prompt model
	Work    *telemetry.Work // whether steps succeed; may be nil
	Log     zerolog.Logger
	Metrics *Metrics
}

// Service is the running bridge.
type Service struct {
	cfg Config
	d   Deps
	m   *Metrics
	now func() time.Time
	// ended is the command about the end of a job that may not be on the log: it is sent again before anything else, so
	// that hours of training are not done twice.
	ended *control.Event
	// starting is the id of the start of an attempt whose answer is not known.
	starting string
	// calledOff has the attempts of cancelled jobs whose runner was told.
	calledOff map[string]int
}

// New checks the configuration.
func New(cfg Config, d Deps) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Service{cfg: cfg, d: d, m: d.Metrics, now: time.Now, calledOff: map[string]int{}}, nil
}

// Run works until ctx ends, while this process leads. A job that is running when either ends is stopped with a checkpoint
// and goes on at the next start.
func (s *Service) Run(ctx context.Context) error { return s.d.Lead.Lead(ctx, s.run) }

func (s *Service) run(ctx context.Context, log control.Log) error {
	defer s.d.Work.Worked() // whoever leads now trains
	for ctx.Err() == nil {
		changed := log.Changed() // before the look: a change during it must wake us
		worked, err := s.step(ctx, log)
		if ctx.Err() == nil {
			s.d.Work.Tried(err)
		}
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
func (s *Service) step(ctx context.Context, log control.Log) (worked bool, err error) {
	if s.ended != nil {
		return true, s.reportEnd(ctx, log)
	}
	st := log.State()
	s.callOff(ctx, st)
	if done, err := s.registerFinished(ctx, log, st); done || err != nil {
		return done, err
	}
	if j := Next(st, s.now()); j != nil {
		return true, s.runJob(ctx, log, *j)
	}
	job, err := Plan(s.cfg, st, s.d.Base)
	if job == nil || err != nil {
		return false, err
	}
	return s.append(ctx, log, "submit-"+job.ID, control.JobSubmitted, control.JobEntity(job.ID), job.Reason, job)
}

func (s *Service) runJob(ctx context.Context, clog control.Log, j control.JobStatus) error {
	u, err := s.start(ctx, clog, j)
	if u.Attempt == 0 || err != nil {
		return err
	}
	s.d.Work.Worked() // the job may take hours
	j.Update = u
	log := s.d.Log.With().Str("job", j.ID).Int("attempt", u.Attempt).Int("run", u.Run).Logger()
	log.Info().Str("reason", j.Reason).Msg("job starts")
	s.m.running.Inc()
	start := time.Now()
	running, stop := whileRunning(ctx, clog, j.ID, u.Attempt)
	out, err := s.d.Runner.Run(running, j)
	stop()
	s.m.running.Dec()
	switch {
	case ctx.Err() != nil:
		return ctx.Err() // interrupted by our own stop: the log still says running, the next start goes on
	case !runs(clog.State(), j.ID, u.Attempt):
		s.m.jobs.WithLabelValues(s.m.runner, j.Kind, control.ClassCancelled).Inc()
		log.Info().Msg("job was cancelled")
		return nil
	}
	if err == nil {
		err = s.finish(&u, j, out)
	}
	if err != nil {
		return s.fail(ctx, clog, &j, u, err)
	}
	s.m.jobs.WithLabelValues(s.m.runner, j.Kind, "succeeded").Inc()
	s.m.seconds.WithLabelValues(j.Kind).Observe(time.Since(start).Seconds())
	log.Info().Dur("took", time.Since(start)).Str("artifact", short(u.Artifact)).Msg("job succeeded")
	return s.end(ctx, clog, control.JobFinished, &j, u)
}

// callOff ends what may still go on elsewhere of jobs that somebody has cancelled: the log alone knows, if a bridge dies between.
func (s *Service) callOff(ctx context.Context, st *control.State) {
	for id, j := range st.Jobs {
		gone := j.State == control.JobBroken && j.Update.Class == control.ClassCancelled && j.Update.Attempt > 0
		if !gone || s.calledOff[id] == j.Update.Attempt {
			continue
		}
		if err := s.d.Runner.Cancel(ctx, *j); err != nil {
			s.d.Log.Warn().Err(err).Str("job", id).Msg("a job was cancelled and may still run; trying again")
			continue
		}
		s.calledOff[id] = j.Update.Attempt
	}
}

// runs says whether the log has this attempt of a job running.
func runs(st *control.State, job string, attempt int) bool {
	j := st.Jobs[job]
	return j != nil && j.State == control.JobRunning && j.Update.Attempt == attempt
}

// whileRunning returns a context that ends as soon as the log no longer has the attempt running: somebody has cancelled it. stop
// ends the watch, and the context.
func whileRunning(ctx context.Context, log control.Reader, job string, attempt int) (running context.Context, stop func()) {
	running, cancel := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			changed := log.Changed()
			if !runs(log.State(), job, attempt) {
				cancel()
				return
			}
			select {
			case <-running.Done():
				return
			case <-changed:
			}
		}
	}()
	return running, func() { cancel(); <-watched }
}

// start writes to the log that the job's next attempt begins, and returns it; attempt 0: the log has another one. An attempt whose
// answer was lost is sent again under the same number.
func (s *Service) start(ctx context.Context, log control.Log, j control.JobStatus) (control.JobUpdate, error) {
	startID := func(n int) string { return fmt.Sprintf("start-%s-%d", j.ID, n) }
	u := control.JobUpdate{Attempt: j.Update.Attempt + 1, Run: run(j)}
	switch {
	case j.State == control.JobRunning && s.starting == startID(j.Update.Attempt):
		u.Attempt--
	case j.State != control.JobRunning && j.Update.Attempt > 0: // its last run has failed
		u.Run++
	}
	id := startID(u.Attempt)
	sentBefore := s.starting == id
	s.starting = id
	applied, err := s.append(ctx, log, id, control.JobStarted, control.JobEntity(j.ID), "", u)
	if err != nil {
		return control.JobUpdate{}, err
	}
	s.starting = ""
	if !applied && !sentBefore {
		return control.JobUpdate{}, nil
	}
	return u, nil
}

// finish stores what the job made, if it is all there.
func (s *Service) finish(u *control.JobUpdate, j control.JobStatus, out string) error {
	m, err := readMetrics(out)
	if err == nil {
		err = complete(j, out)
	}
	if err != nil {
		return &JobError{FailIncomplete, err}
	}
	digest, err := s.d.Store.PutDir(out)
	if err != nil {
		return err
	}
	u.Artifact, u.Metrics = digest, m.rest
	return nil
}

// fail ends an attempt. The job queues again where its class gives hope and attempts are left.
func (s *Service) fail(ctx context.Context, clog control.Log, j *control.JobStatus, u control.JobUpdate, err error) error {
	class := FailBug
	if je, ok := errors.AsType[*JobError](err); ok {
		class = je.Class
	}
	u.Class, u.Error = string(class), control.Clip(err.Error())
	if wait, again := s.cfg.retry(class, u.Attempt); again {
		u.RetryAt = s.now().Add(wait).UTC()
	}
	s.m.jobs.WithLabelValues(s.m.runner, j.Kind, string(class)).Inc()
	s.d.Log.Error().Err(err).Str("job", j.ID).Int("attempt", u.Attempt).Str("class", u.Class).Time("retry_at", u.RetryAt).Msg("job failed")
	return s.end(ctx, clog, control.JobFailed, j, u)
}

// end tells the log how an attempt ended, now or at a later step.
func (s *Service) end(ctx context.Context, log control.Log, typ control.Type, j *control.JobStatus, u control.JobUpdate) error {
	verb := map[control.Type]string{control.JobFinished: "finish", control.JobFailed: "fail"}[typ]
	id := fmt.Sprintf("%s-%s-%d", verb, j.ID, u.Attempt)
	if j.State == control.JobSucceeded { // it had finished, and no version could be made of it
		id = fmt.Sprintf("discard-%s-%d", j.ID, u.Attempt)
	}
	e, err := control.NewEvent(id, typ, control.JobEntity(j.ID), -1, actor, "", s.now(), u)
	if err != nil {
		return err
	}
	s.ended = &e
	return s.reportEnd(ctx, log)
}

func (s *Service) reportEnd(ctx context.Context, log control.Log) error {
	_, err := log.Append(ctx, *s.ended) // repeated: the first answer was lost
	if _, rejected := control.Rejected(err); err == nil || rejected {
		s.ended = nil
	}
	return err
}

// registerFinished registers the model versions of finished jobs that the log does not hold yet.
func (s *Service) registerFinished(ctx context.Context, log control.Log, st *control.State) (bool, error) {
	known := map[string]bool{} // jobs whose version is registered
	for _, m := range st.Models {
		known[m.Job] = true
	}
	for _, id := range slices.Sorted(maps.Keys(st.Jobs)) {
		if j := st.Jobs[id]; j.State == control.JobSucceeded && !known[id] {
			return s.register(ctx, log, st, j)
		}
	}
	return false, nil
}

func (s *Service) register(ctx context.Context, log control.Log, st *control.State, j *control.JobStatus) (bool, error) {
	model, err := s.version(st, j)
	if je, ok := errors.AsType[*JobError](err); ok { // or it would stand in the way of every job after it
		return true, s.fail(ctx, log, j, control.JobUpdate{Attempt: j.Update.Attempt, Run: j.Update.Run}, je)
	}
	if err != nil {
		return false, err
	}
	applied, err := s.append(ctx, log, fmt.Sprintf("register-%s-%d", j.ID, j.Update.Attempt), control.ModelRegistered,
		control.ModelEntity(model.Version), j.Reason, model)
	if err != nil || !applied {
		return false, err
	}
	if why := model.FailedGates(); why != "" {
		s.d.Log.Warn().Str("version", model.Version).Msg("registered as failed, it will not load: " + why)
		return true, nil
	}
	s.d.Log.Info().Str("version", model.Version).Str("job", j.ID).Msg("model version registered")
	return true, nil
}

// version is what a finished job has made. The error is a *JobError when the job is to blame.
func (s *Service) version(st *control.State, j *control.JobStatus) (control.Model, error) {
	var spec Spec
	if err := json.Unmarshal(j.Spec, &spec); err != nil {
		return control.Model{}, &JobError{FailInput, fmt.Errorf("job %s: spec: %w", j.ID, err)}
	}
	result := s.d.Store.Path(j.Update.Artifact)
	m, err := readMetrics(result)
	if err == nil {
		err = complete(*j, result)
	}
	if err != nil {
		return control.Model{}, &JobError{FailIncomplete, err}
	}
	model := control.Model{
		Logical: "reward", Artifact: j.Update.Artifact, Base: spec.Base, Job: j.ID, Dataset: spec.Dataset,
		LabelsTo: st.Datasets[spec.Dataset].ToMS, Metrics: m.rest, Gates: m.Gates,
	}
	if spec.Kind == KindRounds {
		model.Logical, model.Reward = "prompt", spec.Reward
		if model.Artifact, err = candidate(s.d.Store, result); err != nil {
			return control.Model{}, err
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
	return model, nil
}

// actor signs this package's commands.
const actor = "trainer-bridge"

// append writes a command under a fixed id, so that doing it again after a crash changes nothing; applied is false then.
func (s *Service) append(
	ctx context.Context, log control.Log, id string, typ control.Type, entity, note string, data any,
) (applied bool, err error) {
	e, err := control.NewEvent(id, typ, entity, -1, actor, control.Clip(note), s.now(), data)
	if err != nil {
		return false, err
	}
	answer, err := log.Append(ctx, e)
	return answer == control.Applied, err
}
