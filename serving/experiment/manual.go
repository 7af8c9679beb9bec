package experiment

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/assign"
	"ctrloop/serving/experiment/ramp"
)

// ErrUnknown is returned for an experiment that does not exist.
var ErrUnknown = errors.New("no such experiment")

// Request is what a person asks for. Which fields count depends on the call.
type Request struct {
	Note string `json:"note"` // why; who reads the log later must see it
	// Expect is the version of the experiment that the request was decided on, as the API shows it; nil: any.
	Expect  *int64          `json:"expect,omitempty"`
	Outcome control.Outcome `json:"outcome,omitempty"` // of a stop
	Step    *int            `json:"step,omitempty"`    // of an override, from 1
	Unit    string          `json:"unit,omitempty"`    // of a forced variant
	Variant string          `json:"variant,omitempty"`
}

// badRequest is a request that can never be right, with what to do about it.
type badRequest struct {
	error
	hint string
}

func bad(hint, format string, args ...any) error {
	return badRequest{fmt.Errorf(format, args...), hint}
}

// command reads the experiment and the version that the request is decided on.
func (s *Service) command(id string, r Request, noted bool) (*control.State, control.ExperimentStatus, int64, error) {
	if noted && strings.TrimSpace(r.Note) == "" {
		return nil, control.ExperimentStatus{}, 0, bad("give a note: who reads the log later must see why", "no note")
	}
	if len(r.Note) > control.MaxText {
		return nil, control.ExperimentStatus{}, 0, bad("say it shorter, or name where the rest is", "a note of %d bytes, at most %d",
			len(r.Note), control.MaxText)
	}
	st := s.d.Control.State()
	x := st.Experiments[id]
	if x == nil {
		return nil, control.ExperimentStatus{}, 0, fmt.Errorf("%w: %q", ErrUnknown, id)
	}
	at := st.Versions[control.ExperimentEntity(id)]
	if r.Expect != nil && *r.Expect != at { // the fold would say so too, after the query
		return nil, control.ExperimentStatus{}, 0, fmt.Errorf(
			"experiment %s is at version %d, the request expects %d: %w",
			id,
			at,
			*r.Expect,
			control.ErrConflict,
		)
	}
	return st, *x, at, nil
}

// Start begins a draft.
func (s *Service) Start(ctx context.Context, id, who string, r Request) error {
	st, x, at, err := s.command(id, r, false)
	if err != nil {
		return err
	}
	if x.Draft {
		others := st.Clone()
		delete(others.Experiments, id)
		x.Draft = false // a draft may overlap with what runs, until it starts
		if err := Check(x.Experiment, others); err != nil {
			return bad("wait for what is in its way to end, or create another draft", "it cannot start: %w", err)
		}
	}
	start := control.Start{}
	if now := s.d.EventNow(); !now.IsZero() {
		start.AtMS = now.UnixMilli()
	}
	return s.append(ctx, control.ExperimentStarted, control.ExperimentEntity(id), at, who, r.Note, start)
}

// Pause holds the ramp where it is, or lets it go on (resume). Traffic stays as it is, and guards still roll back.
func (s *Service) Pause(ctx context.Context, id, who string, r Request, resume bool) error {
	_, _, at, err := s.command(id, r, true)
	if err != nil {
		return err
	}
	typ := control.ExperimentPaused
	if resume {
		typ = control.ExperimentResumed
	}
	return s.append(ctx, typ, control.ExperimentEntity(id), at, who, r.Note, control.Pause{})
}

// Override goes to a step by hand, up or down. Data of a step that was visited before count again. Share 1 ends the
// comparison, so it is entered by hand only once the deciding step was visited; if it lacks its smallest sample then, the
// next look ends the experiment as inconclusive.
func (s *Service) Override(ctx context.Context, id, who string, r Request) error {
	_, x, at, err := s.command(id, r, true)
	if err != nil {
		return err
	}
	if r.Step == nil || *r.Step < 1 || *r.Step > len(x.Steps) {
		return bad(fmt.Sprintf("steps count from 1: the shares are %v", x.Steps), "an override needs a step of 1 to %d", len(x.Steps))
	}
	next := control.Step{Index: *r.Step - 1, Share: x.Steps[*r.Step-1]}
	if next.Index == x.Step.Index {
		return bad("name another step", "experiment %s is at step %d already", id, next.Number())
	}
	decides := ramp.Decides(x.Steps)
	if next.Share >= 1 && !slices.ContainsFunc(x.History, func(s control.Step) bool { return s.Index == decides }) {
		return bad(
			"go to the deciding step first, or end it with promote",
			"at share 1 nothing can be compared, and the deciding step %d (share %g) has no data yet",
			decides+1,
			x.Steps[decides],
		)
	}
	if next, err = s.dated(x, next); err != nil {
		return err
	}
	return s.append(ctx, control.ExperimentStepped, control.ExperimentEntity(id), at, who, r.Note, next)
}

// Force gives a unit an arm for quality assurance, or takes that back with an empty variant.
func (s *Service) Force(ctx context.Context, id, who string, r Request) error {
	_, x, at, err := s.command(id, r, false)
	if err != nil {
		return err
	}
	if r.Unit == "" || !slices.Contains([]string{"", assign.Control, assign.Treatment}, r.Variant) {
		return bad(
			"unit is a user hash or a product, variant control or treatment (empty takes it back)",
			"force unit %q to variant %q",
			r.Unit,
			r.Variant,
		)
	}
	unit := r.Unit
	// A user whom an older version forced in clear is taken back in clear.
	if _, clear := x.Forced[unit]; x.Unit != "product" && (!clear || r.Variant != "") {
		unit = control.HideUnit(id, unit)
	}
	return s.append(ctx, control.ExperimentForced, control.ExperimentEntity(id), at, who, r.Note,
		control.Forced{Unit: unit, Variant: r.Variant})
}

// Stop ends an experiment by hand: promote, rollback or inconclusive.
func (s *Service) Stop(ctx context.Context, id, who string, r Request) (control.Decision, error) {
	d := control.Decision{LiftLow: -1, LiftHigh: 1, P: 1}
	if !slices.Contains([]control.Outcome{control.Promote, control.RollBack, control.Inconclusive}, r.Outcome) {
		return d, bad("a stop needs an outcome: promote, rollback or inconclusive", "outcome %q", r.Outcome)
	}
	st, x, at, err := s.command(id, r, true)
	if err != nil {
		return d, err
	}
	if x.Decision != nil {
		return d, fmt.Errorf("%w: experiment %s was decided: %s (%s)", control.ErrInvalid, id, x.Decision.Outcome, x.Decision.Rule)
	}
	if x.Draft && r.Outcome == control.Promote {
		return d, bad("start it, or promote the version itself", "experiment %s has not started: there is nothing to decide on", id)
	}
	if v, err := s.Analyse(ctx, x); err == nil { // the figures at the stop; without a warehouse it stops all the same
		d = v.Decision()
	}
	d.Outcome, d.Rule, d.Champion = r.Outcome, string(ramp.Manual), st.ChampionAfter(&x, r.Outcome)
	return d, s.append(ctx, control.ExperimentDecided, control.ExperimentEntity(x.ID), at, who, r.Note, d)
}

// SetHoldout makes, changes or (share 0) ends the holdout group of a logical model.
func (s *Service) SetHoldout(ctx context.Context, h control.Holdout, who, note string) error {
	st := s.d.Control.State()
	switch m := st.Models[h.Version]; {
	case st.Routes[h.Logical].Champion == "":
		return bad("GET /v1/models lists them", "no logical model %q with a champion", h.Logical)
	case !(h.Share >= 0 && h.Share < 1):
		return bad("share is a fraction of all units in [0,1)", "holdout share %g", h.Share)
	case h.Version != "" && (m == nil || m.Logical != h.Logical):
		return bad("leave version out to hold the group at the champion", "no %s version %q", h.Logical, h.Version)
	case strings.TrimSpace(note) == "":
		return bad("give a note: who reads the log later must see why", "no note")
	}
	h.Seed = cmp.Or(h.Seed, st.Holdouts[h.Logical].Seed, "holdout-"+h.Logical)
	entity := control.HoldoutEntity(h.Logical)
	return s.append(ctx, control.HoldoutSet, entity, st.Versions[entity], who, note, h)
}
