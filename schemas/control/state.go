package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// ErrConflict is the rejection of a command whose entity has moved on since it was decided.
var ErrConflict = errors.New("the entity has changed since the command was decided: read it again and decide anew")

// ErrInvalid is the rejection of a command that makes no sense in this state.
var ErrInvalid = errors.New("command not valid in this state")

// ModelStatus is a model version and where it stands.
type ModelStatus struct {
	Model
	State  ModelState `json:"state"`
	Reason string     `json:"reason,omitempty"`
	Since  time.Time  `json:"since"`
}

// ExperimentStatus is an experiment and where it stands.
type ExperimentStatus struct {
	Experiment
	Step     Step      `json:"step"`
	History  []Step    `json:"history"` // every step taken, the present one last
	Stepped  time.Time `json:"stepped"`
	Decision *Decision `json:"decision,omitempty"`
	Decided  time.Time `json:"decided,omitzero"`
	// Paused: traffic stays as it is and guards still roll back, but the ramp neither steps nor ends.
	Paused bool `json:"paused,omitempty"`
	// Forced are the arms given by hand, by unit.
	Forced map[string]string `json:"forced,omitempty"`
	// Trail is every command on the experiment that was applied, in order.
	Trail []Change `json:"trail,omitempty"`
}

// Change is one applied command, for people and for webhooks: what, by whom, why, and what it came with.
type Change struct {
	Version int64           `json:"version"` // of the experiment after it: 1, 2, ...
	Type    Type            `json:"type"`
	Actor   string          `json:"actor"`
	Note    string          `json:"note,omitempty"`
	Time    time.Time       `json:"time"`
	Data    json.RawMessage `json:"data,omitempty"`
}

// Running says whether the experiment assigns traffic now.
func (x *ExperimentStatus) Running() bool { return x.Decision == nil && !x.Draft }

// Phase is where an experiment is in its life.
type Phase string

// Phases.
const (
	PhaseDraft   Phase = "draft"
	PhaseRunning Phase = "running"
	PhasePaused  Phase = "paused"
	PhaseDecided Phase = "decided"
)

// Phase of the experiment now.
func (x *ExperimentStatus) Phase() Phase {
	switch {
	case x.Decision != nil:
		return PhaseDecided
	case x.Draft:
		return PhaseDraft
	case x.Paused:
		return PhasePaused
	}
	return PhaseRunning
}

// JobStatus is a job and where it stands.
type JobStatus struct {
	Job
	State    JobState  `json:"state"`
	Update   JobUpdate `json:"update"`
	Queued   time.Time `json:"queued"`
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
}

// Route says which version answers for a logical model.
type Route struct {
	Champion string    `json:"champion"`
	Previous string    `json:"previous,omitempty"` // still resident: rolling back is a flip
	Since    time.Time `json:"since"`
}

// State is the fold of the control log. The zero value is not ready; use NewState. It is not safe for
// concurrent use: its owner guards it, and hands out copies (Clone).
type State struct {
	Offset      int64                        `json:"offset"` // of the last record applied, -1 before the first
	Models      map[string]*ModelStatus      `json:"models"`
	Routes      map[string]Route             `json:"routes"`
	Experiments map[string]*ExperimentStatus `json:"experiments"`
	Jobs        map[string]*JobStatus        `json:"jobs"`
	Datasets    map[string]Dataset           `json:"datasets"`
	Breakers    map[string]Breaker           `json:"breakers"` // tripped ones
	Holdouts    map[string]Holdout           `json:"holdouts"` // by logical model
	Versions    map[string]int64             `json:"versions"` // of each entity: commands applied to it
	seen        map[string]bool              // ids applied
}

// NewState is the state before the first command.
func NewState() *State {
	return &State{
		Offset: -1, Models: map[string]*ModelStatus{}, Routes: map[string]Route{}, Experiments: map[string]*ExperimentStatus{},
		Jobs: map[string]*JobStatus{}, Datasets: map[string]Dataset{}, Breakers: map[string]Breaker{}, Holdouts: map[string]Holdout{},
		Versions: map[string]int64{}, seen: map[string]bool{},
	}
}

// Clone is a copy that shares nothing that Apply changes.
func (s *State) Clone() *State {
	c := *s
	c.Models = cloneDeep(s.Models)
	c.Experiments = cloneDeep(s.Experiments)
	c.Jobs = cloneDeep(s.Jobs)
	c.Routes, c.Datasets, c.Breakers = maps.Clone(s.Routes), maps.Clone(s.Datasets), maps.Clone(s.Breakers)
	c.Holdouts = maps.Clone(s.Holdouts)
	c.Versions, c.seen = maps.Clone(s.Versions), maps.Clone(s.seen)
	return &c
}

func cloneDeep[T any](m map[string]*T) map[string]*T {
	c := make(map[string]*T, len(m))
	for k, v := range m {
		w := *v
		c[k] = &w
	}
	return c
}

// Running returns the experiments that still assign traffic to a logical model, oldest first.
func (s *State) Running(logical string) []*ExperimentStatus {
	var out []*ExperimentStatus
	for _, e := range s.Experiments {
		if e.Running() && e.Logical == logical {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *ExperimentStatus) int { return a.Created.Compare(b.Created) })
	return out
}

// Apply folds one command in. A non-nil error is a rejection (ErrConflict, ErrInvalid): the state is as
// it was, except that Offset has moved on. A command whose id was applied before is ignored without error.
func (s *State) Apply(offset int64, e Event) error {
	s.Offset = offset
	if e.ID == "" { // the first such command would make every later one look like a repetition
		return fmt.Errorf("%s on %s: %w: no id", e.Type, e.Entity, ErrInvalid)
	}
	if s.seen[e.ID] {
		return nil
	}
	if v := s.Versions[e.Entity]; e.Expect != nil && *e.Expect != v {
		return fmt.Errorf("%s on %s expects version %d, it is at %d: %w", e.Type, e.Entity, *e.Expect, v, ErrConflict)
	}
	if err := s.apply(e); err != nil {
		return fmt.Errorf("%s on %s: %w", e.Type, e.Entity, err)
	}
	s.Versions[e.Entity]++
	s.seen[e.ID] = true
	return nil
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
		m, err := decode[Model](e)
		if err == nil {
			err = names(e, ModelEntity(m.Version))
		}
		if err != nil {
			return err
		}
		if s.Models[m.Version] != nil {
			return fmt.Errorf("%w: version %s is registered already and names are never reused", ErrInvalid, m.Version)
		}
		st := &ModelStatus{Model: m, State: ModelFetched, Since: e.Time}
		if why := m.FailedGates(); why != "" { // in one command: no reader sees the version loadable in between
			st.State, st.Reason = ModelFailed, why
		}
		s.Models[m.Version] = st
	case ModelStateChanged:
		c, err := decode[ModelStateChange](e)
		if err == nil {
			err = names(e, ModelEntity(id(e)))
		}
		if err != nil {
			return err
		}
		return s.setModel(id(e), c.State, c.Reason, e.Time)
	case ModelPromoted, ModelRolledBack:
		return s.promote(e)
	case ExperimentCreated:
		x, err := decode[Experiment](e)
		if err == nil {
			err = names(e, ExperimentEntity(x.ID))
		}
		if err != nil {
			return err
		}
		if s.Experiments[x.ID] != nil {
			return fmt.Errorf("%w: experiment %s exists", ErrInvalid, x.ID)
		}
		if len(x.Steps) == 0 {
			return fmt.Errorf("%w: experiment %s has no steps", ErrInvalid, x.ID)
		}
		first := Step{Index: 0, Share: x.Steps[0]}
		s.Experiments[x.ID] = &ExperimentStatus{
			Experiment: x,
			Step:       first,
			History:    []Step{first},
			Stepped:    e.Time,
			Trail:      []Change{change(e, 1)},
		}
		if !x.Draft {
			s.ramp(x.Treatment, x.ID, e.Time)
		}
	case ExperimentStarted, ExperimentStepped, ExperimentPaused, ExperimentResumed, ExperimentForced, ExperimentDecided:
		return s.experiment(e)
	case HoldoutSet:
		h, err := decode[Holdout](e)
		if err == nil {
			err = names(e, HoldoutEntity(h.Logical))
		}
		switch {
		case err != nil:
			return err
		case !(h.Share >= 0 && h.Share < 1):
			return fmt.Errorf("%w: a holdout share of %g", ErrInvalid, h.Share)
		case h.Version != "" && s.Models[h.Version] == nil:
			return fmt.Errorf("%w: no model version %s", ErrInvalid, h.Version)
		case h.Share == 0:
			delete(s.Holdouts, h.Logical)
		default:
			s.Holdouts[h.Logical] = h
		}
	case JobSubmitted:
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
	case JobStarted, JobFinished, JobFailed:
		return s.job(e)
	case DatasetBuilt:
		d, err := decode[Dataset](e)
		if err == nil {
			err = names(e, DatasetEntity(d.Digest))
		}
		if err != nil {
			return err
		}
		s.Datasets[d.Digest] = d
	case BreakerTripped, BreakerReset:
		b, err := decode[Breaker](e)
		if err == nil {
			err = names(e, BreakerEntity(b.Slice))
		}
		if err != nil {
			return err
		}
		if e.Type == BreakerReset {
			delete(s.Breakers, b.Slice)
		} else {
			s.Breakers[b.Slice] = b
		}
	default:
		return fmt.Errorf("%w: unknown type", ErrInvalid)
	}
	return nil
}

func (s *State) setModel(version string, st ModelState, reason string, at time.Time) error {
	m := s.Models[version]
	if m == nil {
		return fmt.Errorf("%w: no model version %s", ErrInvalid, version)
	}
	m.State, m.Reason, m.Since = st, reason, at
	return nil
}

func (s *State) promote(e Event) error {
	p, err := decode[Promotion](e)
	if err == nil {
		err = names(e, RouteEntity(p.Logical))
	}
	if err != nil {
		return err
	}
	if s.Models[p.Version] == nil {
		return fmt.Errorf("%w: no model version %s", ErrInvalid, p.Version)
	}
	old := s.Routes[p.Logical]
	if old.Champion != "" && old.Champion != p.Version {
		if err := s.setModel(old.Champion, ModelRetained, "replaced by "+p.Version, e.Time); err != nil {
			return err
		}
	}
	previous := old.Champion
	if previous == p.Version { // promoted again: the way back stays
		previous = old.Previous
	}
	s.Routes[p.Logical] = Route{Champion: p.Version, Previous: previous, Since: e.Time}
	return s.setModel(p.Version, ModelChampion, e.Note, e.Time)
}

func (s *State) experiment(e Event) error {
	x := s.Experiments[id(e)]
	if x == nil {
		return fmt.Errorf("%w: no such experiment", ErrInvalid)
	}
	if err := names(e, ExperimentEntity(x.ID)); err != nil {
		return err
	}
	if x.Decision != nil {
		return fmt.Errorf("%w: experiment %s was decided (%s)", ErrInvalid, x.ID, x.Decision.Outcome)
	}
	if x.Draft && e.Type != ExperimentStarted && e.Type != ExperimentForced && e.Type != ExperimentDecided {
		return fmt.Errorf("%w: experiment %s has not started", ErrInvalid, x.ID)
	}
	var err error
	switch e.Type {
	case ExperimentStarted:
		err = s.start(x, e)
	case ExperimentPaused, ExperimentResumed:
		if pause := e.Type == ExperimentPaused; pause == x.Paused {
			err = fmt.Errorf("%w: experiment %s is %s already", ErrInvalid, x.ID, x.Phase())
		} else {
			x.Paused = pause
		}
	case ExperimentForced:
		err = x.force(e)
	case ExperimentDecided:
		err = s.decide(x, e)
	default:
		err = x.step(e)
	}
	if err == nil {
		x.Trail = append(slices.Clip(x.Trail), change(e, s.Versions[e.Entity]+1)) // clipped: copies of the state share the array
	}
	return err
}

func change(e Event, version int64) Change {
	return Change{Version: version, Type: e.Type, Actor: e.Actor, Note: e.Note, Time: e.Time, Data: e.Data}
}

// ramp marks a version as the treatment of a running experiment, in the command that starts it, so that no reader
// sees one without the other.
func (s *State) ramp(version, experiment string, at time.Time) {
	if m := s.Models[version]; m != nil {
		m.State, m.Reason, m.Since = ModelRamp, "in experiment "+experiment, at
	}
}

func (s *State) start(x *ExperimentStatus, e Event) error {
	st, err := decode[Start](e)
	if err != nil {
		return err
	}
	if !x.Draft {
		return fmt.Errorf("%w: experiment %s has started already", ErrInvalid, x.ID)
	}
	x.Draft, x.Stepped = false, e.Time
	x.Step.AtMS = st.AtMS
	x.History = []Step{x.Step}
	s.ramp(x.Treatment, x.ID, e.Time)
	return nil
}

func (s *State) decide(x *ExperimentStatus, e Event) error {
	d, err := decode[Decision](e)
	if err != nil {
		return err
	}
	x.Decision, x.Decided = &d, e.Time
	if m := s.Models[x.Treatment]; m != nil && d.Outcome != Promote && m.State != ModelChampion { // a promotion is a command of its own
		m.State, m.Reason, m.Since = ModelRetained, fmt.Sprintf("%s: %s", d.Outcome, d.Rule), e.Time
	}
	return nil
}

func (x *ExperimentStatus) step(e Event) error {
	st, err := decode[Step](e)
	if err != nil {
		return err
	}
	if st.Index < 0 || st.Index >= len(x.Steps) {
		return fmt.Errorf("%w: step %d of %d", ErrInvalid, st.Index, len(x.Steps))
	}
	x.Step, x.Stepped = st, e.Time
	x.History = append(slices.Clip(x.History), st) // clipped: copies of the state share the array
	return nil
}

// maxForced bounds the units forced in one experiment: it is a list for testers, not a way to assign.
const maxForced = 1000

func (x *ExperimentStatus) force(e Event) error {
	f, err := decode[Forced](e)
	switch {
	case err != nil:
		return err
	case f.Unit == "" || f.Variant != "" && f.Variant != "control" && f.Variant != "treatment":
		return fmt.Errorf("%w: force unit %q to variant %q", ErrInvalid, f.Unit, f.Variant)
	case f.Variant != "" && len(x.Forced) >= maxForced:
		return fmt.Errorf("%w: %d units are forced already", ErrInvalid, maxForced)
	}
	x.Forced = maps.Clone(x.Forced) // copies of the state share the old one
	if f.Variant == "" {
		delete(x.Forced, f.Unit)
		return nil
	}
	if x.Forced == nil {
		x.Forced = map[string]string{}
	}
	x.Forced[f.Unit] = f.Variant
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
	if j.State == JobSucceeded || j.State == JobBroken {
		return fmt.Errorf("%w: job %s has ended (%s)", ErrInvalid, j.ID, j.State)
	}
	u, err := decode[JobUpdate](e)
	if err != nil {
		return err
	}
	j.Update = u
	switch e.Type {
	case JobStarted:
		j.State, j.Started = JobRunning, e.Time
	case JobFinished:
		j.State, j.Finished = JobSucceeded, e.Time
	case JobFailed:
		j.State, j.Finished = JobBroken, e.Time
	default: // Apply hands on the three above only
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
