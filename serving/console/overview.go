package console

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	"ctrloop/internal/stats"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/ramp"
)

// Source gathers the overview. It is called at most once per Config.Refresh, whatever the number of viewers.
type Source interface {
	Overview(ctx context.Context) (Overview, error)
}

// Overview is everything the page shows. Rates are fractions of 1. A pointer that is nil and a slice that is empty
// mean "not known" and "none yet", and the page says so; a zero is a measured zero.
// "Event time" is the time of the shoppers' clicks, which a demo compresses; other times are wall clock.
type Overview struct {
	Time      time.Time  `json:"time"`       // wall clock at which this was gathered
	EventTime *time.Time `json:"event_time"` // newest event seen by ingest, event time
	Instance  Instance   `json:"instance"`
	Stages    []Stage    `json:"stages"` // in the order of the loop; missing ones are shown as stopped
	Freshness Freshness  `json:"freshness"`
	Champion  *Champion  `json:"champion"`  // nil: no model answers yet
	Rollout   *Rollout   `json:"rollout"`   // the running one, else the latest; nil: there was none
	CTR       []CTRPoint `json:"ctr"`       // mature impressions over event time, oldest first, at most 200
	Marks     []Mark     `json:"marks"`     // annotations on CTR, event time
	Creatives []Creative `json:"creatives"` // newest first, at most 24
	Ledger    Ledger     `json:"ledger"`
	Events    []Event    `json:"events"` // of the control log, newest first, at most 50
	Alerts    []Alert    `json:"alerts"` // firing ones, worst first
	Stale     []Stale    `json:"stale"`  // parts of this whose figures are old, oldest first; none: all are of now
}

// Stale names figures that could not be read for a while: they are those of an earlier reading.
type Stale struct {
	Part       string  `json:"part"` // what the figures are of, a few words
	AgeSeconds float64 `json:"age_seconds"`
	Why        string  `json:"why"` // why they are not read, where it is known
}

// Instance says what is being looked at.
type Instance struct {
	Name          string  `json:"name"` // data directory or cluster name
	Version       string  `json:"version"`
	Mode          string  `json:"mode"` // "embedded" or "production"
	UptimeSeconds float64 `json:"uptime_seconds"`
}

// StageName is a station of the loop. The list is closed.
type StageName string

// Stages in the order of the loop.
const (
	Ingest StageName = "ingest"
	Join   StageName = "join"
	Pair   StageName = "pair"
	Train  StageName = "train"
	Serve  StageName = "serve"
)

// StageState is how a stage is doing. The list is closed.
type StageState string

// States of a stage.
const (
	Starting StageState = "starting" // too short there to say whether it is at work
	Running  StageState = "running"  // at work
	Idle     StageState = "idle"     // nothing to do
	Degraded StageState = "degraded" // at work, with something wrong: Detail says what
	Stopped  StageState = "stopped"  // not there
)

// Stage is one station of the loop.
type Stage struct {
	Name       StageName  `json:"name"`
	State      StageState `json:"state"`
	Rate       *float64   `json:"rate_per_second"`
	RateOf     string     `json:"rate_of"` // what Rate and Total count, plural: "impressions", "labels", "pairs", "steps", "decisions"
	Total      int64      `json:"total"`   // of the same, since the data directory began
	LagSeconds *float64   `json:"lag_seconds"`
	LagOf      string     `json:"lag_of"`      // what lags behind what, a few words
	Dropped    int64      `json:"dropped"`     // events that took no further part, every reason counted
	Detail     string     `json:"detail"`      // one short line: what it is doing, or what is wrong
	AgeSeconds float64    `json:"age_seconds"` // of these figures when the overview was gathered
}

// Freshness is the headline: how old the newest click is that the live model has learned from.
type Freshness struct {
	NewestClick *time.Time `json:"newest_click"` // event time; nil: the live model has learned from no click
	AgeSeconds  *float64   `json:"age_seconds"`  // EventTime - NewestClick, event time; nil with NewestClick
	Why         string     `json:"why"`          // when nil: the reason, one sentence
}

// Champion is the model version that answers.
type Champion struct {
	Version     string    `json:"version"`
	Since       time.Time `json:"since"`
	Previous    string    `json:"previous"`    // still resident, the way back; empty: none
	Note        string    `json:"note"`        // of the promotion
	Pairs       int64     `json:"pairs"`       // preference pairs it was trained on; 0 for a base model
	Impressions int64     `json:"impressions"` // mature, since it became champion
	Clicks      int64     `json:"clicks"`
	Interval
}

// Interval is a click-through rate with its uncertainty. Left nil, the console fills it from the counts beside it
// with Wilson's 95 % interval (one look; the always-valid ones of a rollout come from the experiment).
type Interval struct {
	CTR  *float64 `json:"ctr"`
	Low  *float64 `json:"ctr_low"`
	High *float64 `json:"ctr_high"`
}

func (iv *Interval) fill(clicks, impressions int64) {
	if iv.CTR != nil || impressions <= 0 {
		return
	}
	w := stats.Wilson(clicks, impressions, 0.05)
	rate := float64(clicks) / float64(impressions)
	iv.CTR, iv.Low, iv.High = &rate, &w.Low, &w.High
}

// Rollout is an A/B test on its ramp. Relative lifts are fractions of the control's rate.
type Rollout struct {
	ID           string    `json:"id"`
	Running      bool      `json:"running"`
	Unit         string    `json:"unit"` // of randomisation: "user" or "product"
	ControlName  string    `json:"control_version"`
	TreatName    string    `json:"treatment_version"`
	Steps        []float64 `json:"steps"` // shares of the treatment
	Index        int       `json:"index"` // of the present step
	Stepped      time.Time `json:"stepped"`
	Action       string    `json:"action"` // what the last look concluded, or the outcome
	Rule         string    `json:"rule"`
	Why          string    `json:"why"`
	Stale        bool      `json:"stale"`        // the figures are of an older look: the last one failed
	FiguresStep  int       `json:"figures_step"` // the step whose data the figures below are
	Control      Arm       `json:"control"`
	Treatment    Arm       `json:"treatment"`
	Lift         *float64  `json:"lift_relative"`
	LiftLow      *float64  `json:"lift_relative_low"`
	LiftHigh     *float64  `json:"lift_relative_high"` // nil with a lift: no upper bound
	P            *float64  `json:"p_always_valid"`
	SRMP         *float64  `json:"srm_p"`
	Alpha        float64   `json:"alpha"`
	MDERelative  *float64  `json:"mde_relative"` // lift found with probability 0.8 at this size
	GuardMargin  float64   `json:"guard_margin"` // relative loss that the guard tolerates
	Generations  int64     `json:"generations"`
	GenerationsX int64     `json:"generations_failed"`
}

// Arm is one side of a rollout.
type Arm struct {
	Units       int64 `json:"units"`
	Impressions int64 `json:"impressions"`
	Clicks      int64 `json:"clicks"`
	Interval
}

// NewRollout is the rollout as a look saw it.
func NewRollout(x control.ExperimentStatus, v ramp.Verdict, guardMargin float64) Rollout {
	f := v.Figures
	r := Rollout{
		ID: x.ID, Running: x.Running(), Unit: x.Unit, ControlName: x.Control, TreatName: x.Treatment, Steps: x.Steps, Index: x.Step.Index,
		Stepped: x.Stepped, Action: string(v.Action), Rule: string(v.Rule), Why: v.Why, FiguresStep: f.Step.Index,
		Control: newArm(
			f.Control,
		), Treatment: newArm(f.Treatment), Lift: num(f.Relative), LiftLow: num(f.RelativeLow), LiftHigh: num(f.RelativeHigh),
		P: num(
			f.P,
		), SRMP: num(f.SRMP), Alpha: x.Alpha, GuardMargin: guardMargin, Generations: f.Generation.Total, GenerationsX: f.Generation.Failed,
	}
	if rate := float64(f.Control.CTR); rate > 0 {
		r.MDERelative = num(f.MDE / ramp.Num(rate))
	}
	if d := x.Decision; d != nil {
		r.Action, r.Rule = string(d.Outcome), d.Rule
	}
	return r
}

func newArm(a ramp.Arm) Arm {
	return Arm{a.Units, a.Impressions, a.Clicks, Interval{num(a.CTR), num(a.Low), num(a.High)}}
}

func num(n ramp.Num) *float64 {
	f := float64(n)
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return nil
	}
	return &f
}

// CTRPoint is one bucket of event time.
type CTRPoint struct {
	Time        time.Time `json:"time"` // start of the bucket, event time
	Impressions int64     `json:"impressions"`
	Clicks      int64     `json:"clicks"`
	Interval
}

// Mark is something that happened, drawn on the chart.
type Mark struct {
	Time  time.Time `json:"time"` // event time
	Kind  string    `json:"kind"` // "promoted", "rolled_back", "step", "config"
	Label string    `json:"label"`
}

// Creative is one ad image and how it did. Traffic between creatives is not randomised evenly, so these rates are
// no A/B result; the page says so.
type Creative struct {
	ID          string    `json:"id"`
	Product     string    `json:"product"`
	Title       string    `json:"title"`
	Category    string    `json:"category"`
	Version     string    `json:"model_version"`
	Variant     string    `json:"variant"` // "control", "treatment" or empty, in the running rollout
	Description string    `json:"description"`
	Image       string    `json:"image"`   // path on this server; empty: /v1/creatives/{id}.png
	Blocked     string    `json:"blocked"` // why people have blocked it; empty: it may serve. Its image is not answered then
	Created     time.Time `json:"created"`
	Impressions int64     `json:"impressions"` // mature
	Clicks      int64     `json:"clicks"`
	Interval
}

// Ledger holds every impression to account: received = positive + negative + open + duplicate + late.
type Ledger struct {
	Received   int64 `json:"received"`   // impressions that reached the join
	Positive   int64 `json:"positive"`   // labelled as clicked
	Negative   int64 `json:"negative"`   // window closed without a click
	Open       int64 `json:"open"`       // window still open
	Duplicate  int64 `json:"duplicate"`  // the same id again
	Late       int64 `json:"late"`       // after its window had closed
	Difference int64 `json:"difference"` // received less the rest, filled by the console: anything but 0 is a bug
}

// Event is a command on the control log.
type Event struct {
	Time   time.Time `json:"time"`
	Type   string    `json:"type"`
	Entity string    `json:"entity"`
	Actor  string    `json:"actor"`
	Note   string    `json:"note"`
}

// NewEvent is a command as the page shows it.
func NewEvent(e control.Event) Event {
	return Event{Time: e.Time, Type: string(e.Type), Entity: e.Entity, Actor: e.Actor, Note: e.Note}
}

// Alert is a rule that fires.
type Alert struct {
	Severity string    `json:"severity"` // "page" or "warn"
	Title    string    `json:"title"`
	Since    time.Time `json:"since"`
	Runbook  string    `json:"runbook"` // link or empty
}

// Bounds of the lists, so that a page stays a page.
const (
	maxPoints    = 200
	maxCreatives = 24
	maxEvents    = 50
)

// complete fills what follows from the rest, bounds the lists, and puts every stage in its place.
func (o *Overview) complete() {
	if o.Champion != nil {
		o.Champion.fill(o.Champion.Clicks, o.Champion.Impressions)
	}
	if len(o.CTR) > maxPoints {
		o.CTR = o.CTR[len(o.CTR)-maxPoints:]
	}
	for i := range o.CTR {
		o.CTR[i].fill(o.CTR[i].Clicks, o.CTR[i].Impressions)
	}
	o.Creatives = o.Creatives[:min(len(o.Creatives), maxCreatives)]
	for i := range o.Creatives {
		c := &o.Creatives[i]
		c.fill(c.Clicks, c.Impressions)
		c.Image = cmp.Or(c.Image, "/v1/creatives/"+c.ID+".png")
	}
	o.Events = o.Events[:min(len(o.Events), maxEvents)]
	l := &o.Ledger
	l.Difference = l.Received - l.Positive - l.Negative - l.Open - l.Duplicate - l.Late
	stages := make([]Stage, 0, 5)
	for _, name := range []StageName{Ingest, Join, Pair, Train, Serve} {
		i := slices.IndexFunc(o.Stages, func(s Stage) bool { return s.Name == name })
		if i < 0 {
			stages = append(stages, Stage{Name: name, State: Stopped})
			continue
		}
		stages = append(stages, o.Stages[i])
	}
	o.Stages = stages
}
