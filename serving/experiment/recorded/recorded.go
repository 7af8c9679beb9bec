package recorded

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"ctrloop/internal/stats"
	"ctrloop/internal/warehouse"
	"ctrloop/internal/warehouse/query"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment"
)

// Values of Question.Step beside numbers.
const (
	StepDeciding = "deciding"
	StepAll      = "all"
)

// Question says which experiment is asked about, and which part of its ramp.
type Question struct {
	Experiment string
	// Step is a number from 1, StepDeciding or StepAll; empty: the deciding one, where the control log has the steps.
	Step   string
	Settle time.Duration // left out after a step began: some replicas still assign by the old share
}

// Error is a refusal with what to do about it.
type Error struct {
	error
	hint    string
	mistake bool
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.error }

// Hint says what to do; it may be empty.
func (e *Error) Hint() string { return e.hint }

// Mistake says that the question itself is wrong: the record has no such step, or the numbers of arms differ.
func (e *Error) Mistake() bool { return e.mistake }

func hinted(err error, hint string) error { return &Error{err, hint, false} }

func mistaken(hint, format string, args ...any) error {
	return &Error{fmt.Errorf(format, args...), hint, true}
}

// Experiment is one experiment in a warehouse, and the spans of its ramp that are asked about.
type Experiment struct {
	db       *warehouse.DB
	asked    Question
	unit     query.Unit
	status   *control.ExperimentStatus // nil: the control log does not have it, and its steps and shares are not known
	spans    []query.Span
	started  time.Time // its first impression
	name     string
	warnings []string
}

// Open finds the experiment and the step that is asked for. A wrong question is an Error that says so.
func Open(ctx context.Context, db *warehouse.DB, q Question) (*Experiment, error) {
	e := &Experiment{db: db, asked: q, unit: query.User, name: "experiment " + q.Experiment}
	if err := e.readRamp(ctx); err != nil {
		return nil, err
	}
	var first []struct {
		N  uint64 `ch:"n"`
		At int64  `ch:"at"`
	}
	if err := db.Select(ctx, &first, query.Text("experiment_start"), q.Experiment); err != nil {
		return nil, err
	}
	if len(first) == 0 || first[0].N == 0 {
		return nil, e.unknown(ctx)
	}
	e.started = time.UnixMilli(first[0].At).UTC()
	if err := e.chooseStep(q.Step); err != nil {
		return nil, err
	}
	return e, e.countApart(ctx)
}

// countApart warns of impressions that no figure of units has: anybody at the edge can send them, and that must neither change a
// figure nor stop it.
func (e *Experiment) countApart(ctx context.Context) error {
	var anonymous, foreign int64
	q := query.ImpressionsApart(e.asked.Experiment, e.unit, e.spans)
	if err := e.db.QueryRow(ctx, q.Text, q.Args...).Scan(&anonymous, &foreign); err != nil {
		return fmt.Errorf("count impressions outside of the arms: %w", err)
	}
	if anonymous+foreign > 0 && e.status == nil { // its arms may have any names, and only the sample ratio takes them
		e.warnings = append(e.warnings, fmt.Sprintf("left out: %d impressions without a %s; and but for the sample ratio %d of another variant "+
			"than control and treatment", anonymous, e.unit, foreign))
	} else if anonymous+foreign > 0 {
		e.warnings = append(e.warnings, fmt.Sprintf(
			"left out of all figures of units: %d impressions without a %s, and %d of another variant than control and treatment",
			anonymous, e.unit, foreign))
	}
	return nil
}

// readRamp folds the commands that made the ramp.
func (e *Experiment) readRamp(ctx context.Context) error {
	var commands []struct {
		Type string `ch:"type"`
		Data string `ch:"data"`
	}
	entity := control.ExperimentEntity(e.asked.Experiment)
	err := e.db.Select(ctx, &commands, query.Text("experiment_commands"), entity,
		string(control.ExperimentCreated), string(control.ExperimentStarted), string(control.ExperimentStepped))
	if err != nil {
		return hinted(err, "is this the warehouse of an instance that has run? --dir names its folder, --dsn its ClickHouse")
	}
	log := control.NewState()
	for i, c := range commands {
		event := control.Event{ID: strconv.Itoa(i + 1), Type: control.Type(c.Type), Entity: entity, Data: json.RawMessage(c.Data)}
		if _, err := log.Apply(int64(i), event); err != nil {
			return fmt.Errorf("the history of experiment %s in control_log is not readable: %q: %w", e.asked.Experiment, c.Data, err)
		}
	}
	if e.status = log.Experiments[e.asked.Experiment]; e.status != nil {
		e.unit = query.UnitOf(e.status.Unit)
	}
	return nil
}

// unknown says which experiments there are.
func (e *Experiment) unknown(ctx context.Context) error {
	var known []struct {
		Experiment string `ch:"experiment"`
	}
	if err := e.db.Select(ctx, &known, query.Text("experiments_with_impressions")); err != nil {
		return err
	}
	names := make([]string, len(known))
	for i, k := range known {
		names[i] = k.Experiment
	}
	hint := "no experiment has mature impressions yet: they count when the window of their clicks has closed"
	if len(names) > 0 {
		hint = "those with mature impressions: " + strings.Join(names, ", ")
	}
	return hinted(fmt.Errorf("experiment %q has no mature impressions in the warehouse", e.asked.Experiment), hint)
}

// chooseStep sets the spans of the step.
func (e *Experiment) chooseStep(which string) error {
	x := e.status
	if x == nil || which == StepAll {
		e.spans = []query.Span{{}}
		switch {
		case x != nil && slices.ContainsFunc(x.History, func(s control.Step) bool { return s.Share != x.History[0].Share }):
			e.warnings = append(e.warnings, "the shares changed during the experiment: sums over all of it mix times with arms, and a lift can "+
				"come out wrong or reversed (Simpson); prefer one --step")
		case x == nil && which != "" && which != StepAll:
			return mistaken("", "--step %s: the control log does not have the steps of experiment %s; leave it out", which, e.asked.Experiment)
		}
		return nil
	}
	i := experiment.ShownStep(*x)
	if which != "" && which != StepDeciding {
		n, err := strconv.Atoi(which)
		if err != nil || n < 1 || n > len(x.Steps) {
			return mistaken("", "--step %s: want deciding, all, or a number from 1 to %d", which, len(x.Steps))
		}
		i = n - 1
	}
	if e.spans = experiment.Visits(x.History, i, e.asked.Settle); len(e.spans) == 0 {
		return e.notVisited(i)
	}
	e.name = fmt.Sprintf("%s, step %d of %d (%g %%)", e.name, i+1, len(x.Steps), 100*x.Steps[i])
	if n := len(e.spans); n > 1 {
		e.name += fmt.Sprintf(", %d visits", n)
	}
	return nil
}

func (e *Experiment) notVisited(step int) error {
	var seen []string
	for j := range e.status.Steps {
		if len(experiment.Visits(e.status.History, j, e.asked.Settle)) > 0 {
			seen = append(seen, strconv.Itoa(j+1))
		}
	}
	return mistaken("steps with data: "+strings.Join(seen, ", "),
		"step %d of experiment %s was never visited, or for less than the time to settle (%v)", step+1, e.asked.Experiment, e.asked.Settle)
}

// Name is the experiment with the step, for people.
func (e *Experiment) Name() string { return e.name }

// Warnings say what must be known to read the figures.
func (e *Experiment) Warnings() []string { return e.warnings }

// Sequence is the confidence sequence that the experiment was created with; where the record does not have one, q.
func (e *Experiment) Sequence(q stats.Sequence) stats.Sequence {
	if e.status == nil {
		return q
	}
	if e.status.Alpha > 0 {
		q.Alpha = e.status.Alpha
	}
	if e.status.NStar > 0 {
		q.NStar = e.status.NStar
	}
	return q
}
