package control

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Format is the version of the commands that this release writes and of the rules by which it folds them. It is raised
// whenever a type or a rule is added. 0 and 1 are commands from before there was a format: they are folded by the rules of
// their time, until the first command of a newer format; from there on commands of an older format are rejected.
const Format = 4

// Type says what happened. The list is closed: the fold rejects an unknown type, unless it is of a newer Format.
type Type string

// Types of commands.
const (
	ModelRegistered   Type = "model.registered"   // Data: Model
	ModelStateChanged Type = "model.state"        // Data: ModelStateChange
	ModelPromoted     Type = "model.promoted"     // Data: Promotion; Entity: Route(logical)
	ModelRolledBack   Type = "model.rolled_back"  // Data: Promotion; Entity: Route(logical)
	ExperimentCreated Type = "experiment.created" // Data: Experiment
	ExperimentStepped Type = "experiment.step"    // Data: Step
	ExperimentStarted Type = "experiment.started" // Data: Start; of one that was created as a draft
	ExperimentPaused  Type = "experiment.paused"  // Data: Pause
	ExperimentResumed Type = "experiment.resumed" // Data: Pause
	ExperimentForced  Type = "experiment.forced"  // Data: Forced
	ExperimentDecided Type = "experiment.decided" // Data: Decision
	HoldoutSet        Type = "holdout.set"        // Data: Holdout; Entity: holdout/<logical>
	JobSubmitted      Type = "job.submitted"      // Data: Job
	JobStarted        Type = "job.started"        // Data: JobUpdate
	JobFinished       Type = "job.finished"       // Data: JobUpdate
	JobFailed         Type = "job.failed"         // Data: JobUpdate
	JobCancelled      Type = "job.cancelled"      // Data: none; of a job that is queued or running, by a person
	JobRetried        Type = "job.retried"        // Data: none; a job that failed queues again, by a person
	DatasetBuilt      Type = "dataset.built"      // Data: Dataset
	CreativeBlocked   Type = "creative.blocked"   // Data: CreativeBlock; Entity: creative/<id>
	CreativeUnblocked Type = "creative.unblocked" // Data: CreativeBlock; Entity: creative/<id>
	BreakerTripped    Type = "breaker.tripped"    // Data: Breaker
	BreakerReset      Type = "breaker.reset"      // Data: Breaker
	LeaseAcquired     Type = "lease.acquired"     // Data: Lease; Entity: lease/<role>; Expect is required
	LeaseReleased     Type = "lease.released"     // Data: Lease; by its holder
)

// Event is one command. It is stored as JSON.
type Event struct {
	ID     string          `json:"id"` // UUID; the fold applies an id once, so that a re-sent command changes nothing
	Type   Type            `json:"type"`
	Format int             `json:"format,omitempty"` // see Format
	Entity string          `json:"entity"`           // see the functions that end in Entity, such as ModelEntity
	Expect *int64          `json:"expect,omitempty"` // version of the entity that the command was decided on; nil: any
	Actor  string          `json:"actor"`            // who: a person's token name, or a service
	Role   Role            `json:"role,omitempty"`   // of a single writer, which must hold the role's lease
	Epoch  int64           `json:"epoch,omitempty"`  // of that lease
	Note   string          `json:"note,omitempty"`   // at most MaxText bytes
	Time   time.Time       `json:"time"`
	Data   json.RawMessage `json:"data"`
}

// Bounds of what a command may carry, so that the state stays small whoever writes.
const (
	MaxText   = 4 << 10   // bytes of a note, a reason or an error
	MaxData   = 256 << 10 // bytes of a command's data
	MaxSteps  = 64        // of a ramp
	MaxVisits = 1000      // to steps of one ramp
	MaxForced = 1000      // units of one experiment
	MaxTrail  = 1000      // changes that an experiment remembers; the log has them all
	MaxBlocks = 100_000   // creatives that are blocked at a time
)

// Clip cuts a text that a program made to MaxText bytes, at a character, and says so.
func Clip(text string) string {
	const more = " [cut]"
	if len(text) <= MaxText {
		return text
	}
	return strings.ToValidUTF8(text[:MaxText-len(more)], "") + more
}

// NewEvent builds a command; expect < 0 means that any version of the entity will do. A note that is too long is an error
// (ErrInvalid): programs cut theirs with Clip, people are told.
func NewEvent(id string, typ Type, entity string, expect int64, actor, note string, now time.Time, data any) (Event, error) {
	raw, err := json.Marshal(data)
	if err != nil {
		return Event{}, fmt.Errorf("encode %s for %s: %w", typ, entity, err)
	}
	if len(note) > MaxText {
		return Event{}, fmt.Errorf("%s on %s: %w: a note of %d bytes, at most %d", typ, entity, ErrInvalid, len(note), MaxText)
	}
	e := Event{ID: id, Type: typ, Format: Format, Entity: entity, Actor: actor, Note: note, Time: now.UTC(), Data: raw}
	if expect >= 0 {
		e.Expect = &expect
	}
	return e, nil
}

// ModelEntity is the entity of a version of a model.
func ModelEntity(version string) string { return "model/" + version }

// RouteEntity is the entity of the route of a logical model, such as "prompt".
func RouteEntity(logical string) string { return "route/" + logical }

// ExperimentEntity is the entity of an experiment.
func ExperimentEntity(id string) string { return "experiment/" + id }

// JobEntity is the entity of a training job.
func JobEntity(id string) string { return "job/" + id }

// DatasetEntity is the entity of a training set.
func DatasetEntity(digest string) string { return "dataset/" + digest }

// HoldoutEntity is the entity of the holdout group of a logical model.
func HoldoutEntity(logical string) string { return "holdout/" + logical }

// CreativeEntity is the entity of a creative.
func CreativeEntity(id string) string { return "creative/" + id }

// BreakerEntity is the entity of the circuit breaker of a slice of the traffic.
func BreakerEntity(slice string) string { return "breaker/" + slice }

// LeaseEntity is the entity of the lease of a single-writer role.
func LeaseEntity(role Role) string { return "lease/" + string(role) }

// ModelState is where a version is on its way into serving.
type ModelState string

// States of a version: Fetched -> Loaded -> Probed -> Shadow -> Ramp -> Champion -> Retained -> Drained
// -> Unloaded, and Failed from any of them with routing untouched.
const (
	ModelFetched  ModelState = "fetched"
	ModelLoaded   ModelState = "loaded"
	ModelProbed   ModelState = "probed"
	ModelShadow   ModelState = "shadow"
	ModelRamp     ModelState = "ramp"
	ModelChampion ModelState = "champion"
	ModelRetained ModelState = "retained"
	ModelDrained  ModelState = "drained"
	ModelUnloaded ModelState = "unloaded"
	ModelFailed   ModelState = "failed"
)

// Model is an immutable, content-addressed model version.
type Model struct {
	Version  string         `json:"version"`  // "<logical>-<digest12>", never reused
	Logical  string         `json:"logical"`  // "prompt", "reward"
	Artifact string         `json:"artifact"` // digest in the artifact store
	Base     string         `json:"base"`     // digest of the base model that an adapter belongs to; empty for a base
	Job      string         `json:"job,omitempty"`
	Dataset  string         `json:"dataset,omitempty"`
	Reward   string         `json:"reward,omitempty"` // version of the reward model that ranked its pairs
	Parents  []string       `json:"parents,omitempty"`
	LabelsTo int64          `json:"labels_to_ms,omitempty"` // newest click the version has learned from, event time
	Metrics  map[string]any `json:"metrics,omitempty"`
	Gates    []Gate         `json:"gates,omitempty"`
}

// Gate is one condition that a version had to meet before it might load, with what was measured.
type Gate struct {
	Name      string  `json:"name"`
	Value     float64 `json:"value"`
	Threshold float64 `json:"threshold"`
	Passed    bool    `json:"passed"`
	Why       string  `json:"why,omitempty"`
}

// FailedGates says which gates the version did not pass, in words; empty: it may load.
func (m Model) FailedGates() string {
	var failed []string
	for _, g := range m.Gates {
		if !g.Passed {
			text := fmt.Sprintf("gate %s: %.4g against %.4g (%s)", g.Name, g.Value, g.Threshold, g.Why)
			failed = append(failed, strings.TrimSuffix(text, " ()"))
		}
	}
	return strings.Join(failed, "; ")
}

// ModelStateChange moves a version on.
type ModelStateChange struct {
	State  ModelState `json:"state"`
	Reason string     `json:"reason,omitempty"`
}

// CreativeBlock takes a creative out of serving, or lets it serve again. Who and why are the command's actor and note.
type CreativeBlock struct {
	Creative string `json:"creative"`
}

// Promotion makes Version the champion of Logical; Previous is kept resident for the way back.
type Promotion struct {
	Logical  string `json:"logical"`
	Version  string `json:"version"`
	Previous string `json:"previous,omitempty"`
}

// Experiment is an A/B test of two model versions.
type Experiment struct {
	ID        string    `json:"id"`
	Logical   string    `json:"logical"`
	Unit      string    `json:"unit"` // "user" or "product"
	Seed      string    `json:"seed"` // of the assignment hash (GrowthBook v2)
	Control   string    `json:"control"`
	Treatment string    `json:"treatment"`
	Steps     []float64 `json:"steps"`  // treatment shares of the ramp, ascending, e.g. 0.01 .. 1
	Alpha     float64   `json:"alpha"`  // of the confidence sequence, two-sided
	NStar     float64   `json:"n_star"` // units at which the sequence is tightest
	Created   time.Time `json:"created"`
	// Draft: assigns no traffic until it is started.
	Draft bool `json:"draft,omitempty"`
	// Slot is the part of a layer that the experiment has to itself; nil: all of its logical model's layer.
	Slot *Slot `json:"slot,omitempty"`
	// Targeting: a unit must meet every condition to take part; the others get the champion.
	Targeting []Condition `json:"targeting,omitempty"`
}

// Slot is a part of a layer: Start <= n < End of the unit's hash in [0,1). A layer is a set of experiments that
// never share a unit: slots of running experiments in one layer are disjoint. Experiments on one logical model are
// in one layer, since a unit can get only one version of it.
type Slot struct {
	Layer string  `json:"layer"`
	Start float64 `json:"start"`
	End   float64 `json:"end"`
}

// Overlaps says whether the two slots can share a unit.
func (s Slot) Overlaps(o Slot) bool { return s.Layer != o.Layer || s.Start < o.End && o.Start < s.End }

// InSlot is the slot of the experiment, with the default filled in.
func (e *Experiment) InSlot() Slot {
	if e.Slot != nil {
		return *e.Slot
	}
	return Slot{Layer: e.Logical, Start: 0, End: 1}
}

// Op compares a unit's attribute with the values of a condition.
type Op string

// Operators. The list is closed. An attribute that the unit lacks meets OpNotIn and OpAbsent only.
const (
	OpIn      Op = "in"      // is one of the values
	OpNotIn   Op = "not_in"  // is none of the values
	OpPrefix  Op = "prefix"  // begins with one of the values, e.g. a department of categories
	OpAtLeast Op = "gte"     // as a number, at least the one value
	OpBelow   Op = "lt"      // as a number, below the one value
	OpPresent Op = "present" // has the attribute; no values
	OpAbsent  Op = "absent"  // lacks it; no values
)

// Condition of a unit's attribute.
type Condition struct {
	Attribute string   `json:"attribute"` // product, category, placement, or any that the caller gives: country, device
	Op        Op       `json:"op"`
	Values    []string `json:"values,omitempty"`
}

// Start begins a draft.
type Start struct {
	AtMS int64 `json:"at_ms,omitempty"` // event time of the first step, Unix milliseconds
}

// Pause holds the ramp or lets it go on; it carries nothing, the reason is the command's note.
type Pause struct{}

// Forced gives a unit an arm whatever its hash says, for quality assurance. It is no part of the analysis.
type Forced struct {
	Unit    string `json:"unit"`              // product, or HideUnit of a user; in older logs the user as it was given
	Variant string `json:"variant,omitempty"` // "control" or "treatment"; empty takes the entry back
}

// HideUnit is how a user is named on the control log, which nothing is ever deleted from: a hash under the experiment's id, so
// that the log names nobody and two experiments cannot be held against each other.
func HideUnit(experiment, user string) string {
	h := hideUnit(experiment, user)
	return string(h[:])
}

const hiddenPrefix = "sha256:"

func hideUnit(experiment, user string) (hidden [len(hiddenPrefix) + 32]byte) {
	var place [256]byte // on the stack: assignments ask for it
	text := append(place[:0], "ctrloop forced unit of "...)
	text = append(text, experiment...)
	text = append(text, 0)
	sum := sha256.Sum256(append(text, user...))
	copy(hidden[:], hiddenPrefix)
	hex.Encode(hidden[len(hiddenPrefix):], sum[:16])
	return hidden
}

// ForcedArm is the variant that a unit was given by hand; empty: none. Users in clear are of older logs.
func (x *ExperimentStatus) ForcedArm(unit string) string {
	if len(x.Forced) == 0 {
		return ""
	}
	if v := x.Forced[unit]; v != "" || unit == "" || x.Unit == "product" {
		return v
	}
	h := hideUnit(x.ID, unit)
	return x.Forced[string(h[:])]
}

// Holdout is the part of all units that takes part in no experiment on a logical model. With a Version they stay on
// it, so that they show what all promotions since are worth together; without one they get the champion.
type Holdout struct {
	Logical string  `json:"logical"`
	Share   float64 `json:"share"` // of units, [0,1); 0 ends the group
	Seed    string  `json:"seed"`
	Version string  `json:"version,omitempty"`
}

// Step is one step of the ramp. Its JSON has the number too, which is how people are told of it.
type Step struct {
	Index int     `json:"index"` // from 0
	Share float64 `json:"share"` // of the treatment, (0,1]
	// AtMS is the event time at which the step began, in Unix milliseconds: impressions before it belong to the
	// step before. 0 for the first step, which begins with the experiment.
	AtMS int64 `json:"at_ms,omitempty"`
	// Shown is the lift that made the step; nil where enough data was the reason.
	Shown *Shown `json:"shown,omitempty"`
}

// Number is the step's number, from 1.
func (s Step) Number() int { return s.Index + 1 }

// MarshalJSON implements json.Marshaler.
func (s Step) MarshalJSON() ([]byte, error) {
	type step Step // without this method
	return json.Marshal(struct {
		Number int `json:"number"`
		step
	}{s.Number(), step(s)})
}

// Shown is the interval of a lift when it was shown. Intervals of a confidence sequence hold together at all
// times, so a later one may be cut to it.
type Shown struct {
	Low          float64 `json:"low"` // difference of the rates
	High         float64 `json:"high"`
	RelativeLow  float64 `json:"relative_low"`
	RelativeHigh float64 `json:"relative_high"`
}

// Outcome of an experiment.
type Outcome string

// Outcomes.
const (
	Promote      Outcome = "promote"
	RollBack     Outcome = "rollback"
	Inconclusive Outcome = "inconclusive"
	Hold         Outcome = "hold" // not an end: stay on this step
)

// Decision ends an experiment, with the rule that fired and the figures that it fired on.
type Decision struct {
	Outcome     Outcome  `json:"outcome"`
	Rule        string   `json:"rule"`
	Lift        float64  `json:"lift"` // relative
	LiftLow     float64  `json:"lift_low"`
	LiftHigh    float64  `json:"lift_high"`
	P           float64  `json:"p"`
	SRMP        *float64 `json:"srm_p,omitempty"` // absent: the sample ratio was not tested, which is not "as planned"
	Impressions int64    `json:"impressions"`
	// Champion is the version that the decision brings to the route, empty: the route stays. The fold works it out itself
	// and rejects a decision that says another; it is here for those who read commands without folding them.
	Champion string `json:"champion,omitempty"`
	// Unknown says why the data bound the lift not at all; the figures of it are then 0 in [-1, 1], p 1, and mean nothing.
	Unknown string `json:"unknown,omitempty"`
}

// JobState is where a training job is.
type JobState string

// States of a job.
const (
	JobQueued    JobState = "queued"
	JobRunning   JobState = "running"
	JobSucceeded JobState = "succeeded"
	JobBroken    JobState = "failed"
)

// Job is one training run.
type Job struct {
	ID       string          `json:"id"`
	Kind     string          `json:"kind"` // "pretrain", "reward", "rounds"
	Reason   string          `json:"reason"`
	Datasets []string        `json:"datasets,omitempty"`
	Spec     json.RawMessage `json:"spec"`
}

// ClassCancelled is the failure class of a job that a person has ended.
const ClassCancelled = "cancelled"

// JobUpdate reports on a job.
type JobUpdate struct {
	Attempt int `json:"attempt,omitempty"`
	// Run counts from 1 and goes up after a failure only: a bridge that starts again makes another attempt at the same run, which
	// may be going on elsewhere.
	Run      int            `json:"run,omitempty"`
	Artifact string         `json:"artifact,omitempty"`
	Metrics  map[string]any `json:"metrics,omitempty"`
	Class    string         `json:"class,omitempty"` // failure class, see docs/jobs.md
	Error    string         `json:"error,omitempty"`
	// RetryAt: the attempt failed, the job has not: it queues again, and starts no sooner than this.
	RetryAt time.Time `json:"retry_at,omitzero"`
}

// Dataset is an immutable set of pairs.
type Dataset struct {
	Digest   string `json:"digest"`
	Pairs    int64  `json:"pairs"`
	Products int64  `json:"products"`
	FromMS   int64  `json:"from_ms"`
	ToMS     int64  `json:"to_ms"`
	Policy   string `json:"policy"`
	Seed     uint64 `json:"seed"`
	BuiltMS  int64  `json:"built_ms,omitempty"` // wall clock, Unix milliseconds: the newest is what evidence is held against
}

// Breaker reports on the guard of a slice of the traffic.
type Breaker struct {
	Slice  string  `json:"slice"`
	Reason string  `json:"reason"`
	Value  float64 `json:"value"`
	// Trailing are the counts of the healthy traffic that the slice is held against, so that a restart of the guard
	// does not take the outage for the norm (breaker.Counts, in their order).
	Trailing []uint64 `json:"trailing,omitempty"`
	// ToldMS is when its instance said so last, wall clock, Unix milliseconds: it says so again and again while it is open.
	ToldMS int64 `json:"told_ms,omitempty"`
}
