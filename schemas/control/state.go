package control

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// ModelStatus is a model version and where it stands.
type ModelStatus struct {
	Model
	State  ModelState `json:"state"`
	Reason string     `json:"reason,omitempty"`
	Since  time.Time  `json:"since"`
	// Proved: it has passed its probe at some time. Nothing else becomes champion, but for a base as the first one.
	Proved bool `json:"proved,omitempty"`
}

// CanServe says why the version may not become champion; empty: it may.
func (m *ModelStatus) CanServe() string {
	switch {
	case m.State == ModelFailed:
		return "it has failed: " + m.Reason
	case !m.Proved:
		return "it is " + string(m.State) + " and has not passed its probe"
	}
	return ""
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
	// Trail are the newest commands on the experiment that were applied, in order, at most MaxTrail.
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
	// NotBefore is when a job that failed and queues again may start.
	NotBefore time.Time `json:"not_before,omitzero"`
}

// Blocked says who took a creative out of serving, why, and when.
type Blocked struct {
	Actor string    `json:"actor"`
	Note  string    `json:"note"`
	Since time.Time `json:"since"`
}

// Why is the reason in words, as lists of creatives show it.
func (b Blocked) Why() string { return "by " + b.Actor + ": " + b.Note }

// WhyBlocked says why people have taken a creative out of serving; empty: nobody has.
func (s *State) WhyBlocked(creative string) string {
	b, blocked := s.Blocked[creative]
	if !blocked {
		return ""
	}
	return b.Why()
}

// Route says which version answers for a logical model.
type Route struct {
	Champion string    `json:"champion"`
	Previous string    `json:"previous,omitempty"` // still resident: rolling back is a flip
	Since    time.Time `json:"since"`
}

// State is the fold of the control log. The zero value is not ready; use NewState. It is not safe for
// concurrent use: its owner guards it, and hands out copies (View).
type State struct {
	Offset      int64                        `json:"offset"` // of the last record applied, -1 before the first
	Format      int                          `json:"format"` // the newest format of a command so far
	Models      map[string]*ModelStatus      `json:"models"`
	Routes      map[string]Route             `json:"routes"`
	Experiments map[string]*ExperimentStatus `json:"experiments"`
	Jobs        map[string]*JobStatus        `json:"jobs"`
	Datasets    map[string]Dataset           `json:"datasets"`
	Breakers    map[string]Breaker           `json:"breakers"` // tripped ones
	Holdouts    map[string]Holdout           `json:"holdouts"` // by logical model
	Blocked     map[string]Blocked           `json:"blocked"`  // creatives that must not serve, by id
	Leases      map[Role]Lease               `json:"leases"`   // the last holder of each role
	Versions    map[string]int64             `json:"versions"` // of each entity: commands that changed it
	// Behind is what this release does not understand; nil: it understands everything so far.
	Behind *Newer `json:"behind,omitempty"`

	seen seen // ids applied
}

// Newer is what a newer release has written that this one does not know. What follows from it is missing in this state.
type Newer struct {
	Format   int   `json:"format"` // the highest
	Commands int64 `json:"commands"`
	Offset   int64 `json:"offset"` // of the first
	Type     Type  `json:"type"`   // of the first
}

func (n *Newer) String() string {
	return fmt.Sprintf("%d commands of format %d, the first %s at offset %d; this release knows format %d: upgrade it",
		n.Commands, n.Format, n.Type, n.Offset, Format)
}

// NewState is the state before the first command.
func NewState() *State {
	return &State{
		Offset: -1, Models: map[string]*ModelStatus{}, Routes: map[string]Route{}, Experiments: map[string]*ExperimentStatus{},
		Jobs: map[string]*JobStatus{}, Datasets: map[string]Dataset{}, Breakers: map[string]Breaker{}, Holdouts: map[string]Holdout{},
		Blocked: map[string]Blocked{}, Leases: map[Role]Lease{}, Versions: map[string]int64{},
	}
}

// Clone is a copy that shares nothing that Apply changes.
func (s *State) Clone() *State {
	c := s.View()
	c.seen = s.seen.clone()
	return c
}

// View is a copy to read from: unlike a Clone it does not know which ids were applied, so nothing may be applied to it.
func (s *State) View() *State {
	c := *s
	c.seen = seen{}
	c.Models = cloneDeep(s.Models)
	c.Experiments = cloneDeep(s.Experiments)
	for _, x := range c.Experiments {
		// Shared up to here; whoever appends to the copy gets an array of its own.
		x.History, x.Trail, x.Forced = slices.Clip(x.History), slices.Clip(x.Trail), maps.Clone(x.Forced)
	}
	c.Jobs = cloneDeep(s.Jobs)
	c.Routes, c.Datasets, c.Breakers = maps.Clone(s.Routes), maps.Clone(s.Datasets), maps.Clone(s.Breakers)
	c.Holdouts, c.Leases, c.Versions = maps.Clone(s.Holdouts), maps.Clone(s.Leases), maps.Clone(s.Versions)
	c.Blocked = maps.Clone(s.Blocked)
	if s.Behind != nil {
		c.Behind = new(*s.Behind)
	}
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
