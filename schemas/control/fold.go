package control

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Apply folds one command in. The error is a *Rejection: then the state is as it was, except that Offset and Format have
// moved on.
func (s *State) Apply(offset int64, e Event) (Answer, error) {
	s.Offset = offset
	newest := s.Format
	s.Format = max(s.Format, e.Format)
	if e.ID != "" && s.seen.has(e.ID) {
		return Repeated, nil
	}
	if e.Format > Format {
		s.fallBehind(e)
	}
	if err := s.admit(e, newest); err != nil {
		return "", Reject(e, err)
	}
	if err := s.apply(e); err != nil {
		return "", Reject(e, err)
	}
	s.Versions[e.Entity]++
	s.seen.add(e.ID)
	return Applied, nil
}

// admit checks what is the same for all commands.
func (s *State) admit(e Event, newest int) error {
	v := s.Versions[e.Entity]
	switch {
	case e.ID == "": // the first such command would make every later one look like a repetition
		return fmt.Errorf("%w: no id", ErrInvalid)
	case e.Format < newest:
		return fmt.Errorf("%w (it writes format %d, the log has %d)", ErrOutdated, e.Format, newest)
	case e.Expect != nil && *e.Expect != v:
		return fmt.Errorf("expects version %d, it is at %d: %w", *e.Expect, v, ErrConflict)
	case s.strict() && len(e.Note) > MaxText:
		return fmt.Errorf("%w: a note of %d bytes, at most %d", ErrInvalid, len(e.Note), MaxText)
	case s.strict() && len(e.Data) > MaxData:
		return fmt.Errorf("%w: data of %d bytes, at most %d", ErrInvalid, len(e.Data), MaxData)
	}
	return s.fence(e)
}

// strict says whether the rules of today hold. What was written before there was a format is folded as it was then, so
// that an old log comes to the state that its writers saw.
func (s *State) strict() bool { return s.Format >= 2 }

func (s *State) fallBehind(e Event) {
	if s.Behind == nil {
		s.Behind = &Newer{Offset: s.Offset, Type: e.Type}
	}
	s.Behind.Commands++
	s.Behind.Format = max(s.Behind.Format, e.Format)
}

// also counts a change of an entity that the command does not name: who decided on its version must look again.
func (s *State) also(entity string) {
	if s.strict() { // before, commands were decided on counts without these
		s.Versions[entity]++
	}
}

func decode[T any](e Event) (T, error) {
	var v T
	if err := json.Unmarshal(e.Data, &v); err != nil {
		return v, fmt.Errorf("%w: %v", ErrInvalid, err)
	}
	return v, nil
}

func (s *State) apply(e Event) error {
	switch e.Type {
	case ModelRegistered:
		return s.register(e)
	case ModelStateChanged:
		return s.moveModel(e)
	case ModelPromoted, ModelRolledBack:
		return s.promote(e)
	case ExperimentCreated:
		return s.create(e)
	case ExperimentStarted, ExperimentStepped, ExperimentPaused, ExperimentResumed, ExperimentForced, ExperimentDecided:
		return s.experiment(e)
	case HoldoutSet:
		return s.setHoldout(e)
	case JobSubmitted:
		return s.submit(e)
	case JobStarted, JobFinished, JobFailed:
		return s.job(e)
	case JobCancelled, JobRetried:
		return s.steerJob(e)
	case DatasetBuilt:
		return s.dataset(e)
	case CreativeBlocked, CreativeUnblocked:
		return s.block(e)
	case BreakerTripped, BreakerReset:
		return s.breaker(e)
	case LeaseAcquired, LeaseReleased:
		return s.lease(e)
	default:
		if e.Format > Format {
			return s.unknown(e)
		}
		return fmt.Errorf("%w: unknown type", ErrInvalid)
	}
}

// unknown takes a command of a newer release for applied, so that versions and trails count as they do there.
func (s *State) unknown(e Event) error {
	if kind, id, _ := strings.Cut(e.Entity, "/"); kind == "experiment" && s.Experiments[id] != nil {
		s.Experiments[id].remember(e, s.Versions[e.Entity]+1)
	}
	return nil
}

func (s *State) setHoldout(e Event) error {
	h, err := decode[Holdout](e)
	if err == nil {
		err = names(e, HoldoutEntity(h.Logical))
	}
	m := s.Models[h.Version]
	switch {
	case err != nil:
		return err
	case !(h.Share >= 0 && h.Share < 1):
		return fmt.Errorf("%w: a holdout share of %g", ErrInvalid, h.Share)
	case h.Version != "" && m == nil:
		return fmt.Errorf("%w: no model version %s", ErrInvalid, h.Version)
	case s.strict() && m != nil && (m.Logical != h.Logical || m.State == ModelFailed):
		return fmt.Errorf("%w: version %s is a %s model and %s: it cannot answer for %s", ErrInvalid, h.Version, m.Logical, m.State, h.Logical)
	case h.Share == 0:
		delete(s.Holdouts, h.Logical)
	default:
		s.Holdouts[h.Logical] = h
	}
	return nil
}

func (s *State) dataset(e Event) error {
	d, err := decode[Dataset](e)
	if err == nil {
		err = names(e, DatasetEntity(d.Digest))
	}
	if err != nil {
		return err
	}
	if _, ok := s.Datasets[d.Digest]; ok && s.strict() {
		return fmt.Errorf("%w: data set %s exists", ErrInvalid, d.Digest)
	}
	s.Datasets[d.Digest] = d
	return nil
}

func (s *State) breaker(e Event) error {
	b, err := decode[Breaker](e)
	if err == nil {
		err = names(e, BreakerEntity(b.Slice))
	}
	switch {
	case err != nil:
		return err
	case s.strict() && len(b.Reason) > MaxText:
		return fmt.Errorf("%w: a reason of %d bytes, at most %d", ErrInvalid, len(b.Reason), MaxText)
	case e.Type == BreakerReset:
		delete(s.Breakers, b.Slice)
	default:
		s.Breakers[b.Slice] = b
	}
	return nil
}

func (s *State) block(e Event) error {
	b, err := decode[CreativeBlock](e)
	if err == nil {
		err = names(e, CreativeEntity(b.Creative))
	}
	_, blocked := s.Blocked[b.Creative]
	switch {
	case err != nil:
		return err
	case b.Creative == "":
		return fmt.Errorf("%w: no creative", ErrInvalid)
	case e.Type == CreativeUnblocked && !blocked:
		return fmt.Errorf("%w: creative %s is not blocked by a command", ErrInvalid, b.Creative)
	case e.Type == CreativeUnblocked:
		delete(s.Blocked, b.Creative)
	case blocked:
		return fmt.Errorf("%w: creative %s is blocked already", ErrInvalid, b.Creative)
	case len(s.Blocked) >= MaxBlocks:
		return fmt.Errorf("%w: %d creatives are blocked: stop serving their versions instead", ErrInvalid, len(s.Blocked))
	default:
		s.Blocked[b.Creative] = Blocked{Actor: e.Actor, Note: e.Note, Since: e.Time}
	}
	return nil
}

func (s *State) submit(e Event) error {
	j, err := decode[Job](e)
	if err == nil {
		err = names(e, JobEntity(j.ID))
	}
	if err != nil {
		return err
	}
	if s.Jobs[j.ID] != nil {
		return fmt.Errorf("%w: job %s exists", ErrInvalid, j.ID)
	}
	s.Jobs[j.ID] = &JobStatus{Job: j, State: JobQueued, Queued: e.Time}
	return nil
}

func (s *State) job(e Event) error {
	j := s.Jobs[id(e)]
	if j == nil {
		return fmt.Errorf("%w: no such job", ErrInvalid)
	}
	if err := names(e, JobEntity(j.ID)); err != nil {
		return err
	}
	if !s.mayMoveJob(j, e.Type) {
		return fmt.Errorf("%w: job %s is %s", ErrInvalid, j.ID, j.State)
	}
	u, err := decode[JobUpdate](e)
	if err != nil {
		return err
	}
	if s.strict() && len(u.Error) > MaxText {
		return fmt.Errorf("%w: an error of %d bytes, at most %d", ErrInvalid, len(u.Error), MaxText)
	}
	j.Update, j.NotBefore = u, time.Time{}
	switch {
	case e.Type == JobStarted:
		j.State, j.Started = JobRunning, e.Time
	case e.Type == JobFinished:
		j.State, j.Finished = JobSucceeded, e.Time
	case !u.RetryAt.IsZero():
		j.State, j.NotBefore = JobQueued, u.RetryAt
	default:
		j.State, j.Finished = JobBroken, e.Time
	}
	return nil
}

// steerJob is what a person does to a job. The counts of attempts and runs go on: what one that was cancelled leaves stays distinct.
func (s *State) steerJob(e Event) error {
	j := s.Jobs[id(e)]
	switch {
	case j == nil:
		return fmt.Errorf("%w: no such job", ErrInvalid)
	case !slices.Contains(jobMoves[e.Type], j.State):
		return fmt.Errorf("%w: job %s is %s", ErrInvalid, j.ID, j.State)
	}
	if e.Type == JobCancelled {
		j.Update = JobUpdate{Attempt: j.Update.Attempt, Run: j.Update.Run, Class: ClassCancelled, Error: Clip("by " + e.Actor + ": " + e.Note)}
		j.State, j.Finished, j.NotBefore = JobBroken, e.Time, time.Time{}
	} else {
		j.Update = JobUpdate{Attempt: j.Update.Attempt, Run: j.Update.Run}
		j.State, j.Queued, j.Finished, j.NotBefore = JobQueued, e.Time, time.Time{}, time.Time{}
	}
	return nil
}

// names refuses a command whose entity is not the one that it changes: its version would guard another.
func names(e Event, want string) error {
	if e.Entity != want {
		return fmt.Errorf("%w: the command changes %s but names %s", ErrInvalid, want, e.Entity)
	}
	return nil
}

// id is what follows the kind in an entity's name; a name without a kind has the empty id, which nothing owns.
func id(e Event) string {
	_, rest, _ := strings.Cut(e.Entity, "/")
	return rest
}
