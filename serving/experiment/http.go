package experiment

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"regexp"
	"slices"

	"ctrloop/internal/access"
	"ctrloop/internal/httpapi"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/assign"
	"ctrloop/serving/experiment/ramp"
	"ctrloop/serving/experiment/webhook"
)

// maxBody bounds a request's body, in bytes: an experiment is a few hundred, a batch of exposures some ten thousand.
const maxBody = 1 << 20

var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

// Routes are what docs/experiments.md lists, with examples.
func (s *Service) Routes() []httpapi.Route {
	var routes []httpapi.Route
	add := func(method, path string, scope access.Scope, handle http.HandlerFunc) {
		routes = append(routes, httpapi.Route{Method: method, Path: "/v1/experiments" + path, Scope: scope, Handle: handle})
	}
	add(http.MethodGet, "", access.Read, s.list)
	add(http.MethodPost, "", access.ExperimentsWrite, s.create)
	add(http.MethodGet, "/{id}", access.Read, s.get)
	add(http.MethodGet, "/{id}/analysis", access.Read, s.analysis)
	add(http.MethodGet, "/{id}/results", access.Read, s.results)
	add(http.MethodGet, "/{id}/categories", access.Read, s.categories)
	add(http.MethodGet, "/{id}/exposures", access.Read, s.exposures)
	add(http.MethodGet, "/{id}/looks", access.Read, s.looks)
	add(http.MethodGet, "/{id}/export", access.Read, s.export)
	for name, call := range map[string]func(context.Context, string, string, Request) error{
		"start":    s.Start,
		"pause":    func(ctx context.Context, id, who string, r Request) error { return s.Pause(ctx, id, who, r, false) },
		"resume":   func(ctx context.Context, id, who string, r Request) error { return s.Pause(ctx, id, who, r, true) },
		"override": s.Override,
		"force":    s.Force,
		"stop":     s.stop,
		"promote":  s.stopAs(control.Promote),
		"rollback": s.stopAs(control.RollBack),
	} {
		add(http.MethodPost, "/{id}/"+name, access.ExperimentsWrite, s.manual(call))
	}
	add(http.MethodGet, "/webhooks", access.Read, s.hooks)
	add(http.MethodPost, "/{id}/webhooks/replay", access.ExperimentsWrite, s.replay)
	add(http.MethodGet, "/holdouts", access.Read, s.holdouts)
	add(http.MethodPut, "/holdouts/{logical}", access.ExperimentsWrite, s.setHoldout)
	add(http.MethodGet, "/assignments", access.Read, s.snapshot)
	add(http.MethodPost, "/exposures", access.EventsWrite, s.expose)
	return routes
}

// reserved are ids that would hide a path of the API.
var reserved = []string{"webhooks", "holdouts", "assignments", "exposures"}

// Status is an experiment as the API shows it.
type Status struct {
	control.ExperimentStatus
	Running bool          `json:"running"`
	Phase   control.Phase `json:"phase"`
	Version int64         `json:"version"`         // commands applied to it; "expect" of a request names it
	Decides int           `json:"decides"`         // number of the step that decides, from 1; 0: none
	Looks   *Seen         `json:"looks,omitempty"` // how the looks at it go, while it runs
}

func (s *Service) status(st *control.State, x control.ExperimentStatus) Status {
	out := Status{x, x.Running(), x.Phase(), st.Versions[control.ExperimentEntity(x.ID)], ramp.Decides(x.Steps) + 1, nil}
	if out.Running {
		seen := s.Seen(x.ID)
		out.Looks = &seen
	}
	return out
}

// Analysis is the answer of /analysis. Data is for Argo Rollouts' web metric, which reads it by a jsonPath.
type Analysis struct {
	Data Argo `json:"data"`
	OK   bool `json:"ok"` // nothing speaks against the treatment, and there are data enough to know
	// Inconclusive: neither ok nor ended against the treatment, because nothing is known yet or figures could not be read.
	Inconclusive bool         `json:"inconclusive"`
	Decision     ramp.Action  `json:"decision"` // what a look says now, or what ended it
	Rule         string       `json:"rule"`     // that fired
	Why          string       `json:"why"`
	Experiment   string       `json:"experiment"`
	Running      bool         `json:"running"`
	Step         control.Step `json:"step"`
	ramp.Figures
}

// Argo is the part of the analysis that conditions of a web metric name: with jsonPath "{$.data}",
// successCondition "result.ok && result.successPercent >= 0.90", failureCondition "result.failed".
type Argo struct {
	OK       bool `json:"ok"`       // nothing speaks against the treatment, and there are data enough to know
	Failed   bool `json:"failed"`   // rolled back or ended as inconclusive
	Promoted bool `json:"promoted"` // ended well: condition of a rollout that waits for the decision
	Decided  bool `json:"decided"`
	// Inconclusive: neither ok nor failed. Argo, whose two conditions are then both false, measures the same.
	Inconclusive bool `json:"inconclusive"`
	// SuccessPercent is the share (0 to 1, in spite of its name, as in Argo's documentation) of the treatment's
	// generations that succeeded; null before the first.
	SuccessPercent *float64 `json:"successPercent"`
	Share          float64  `json:"share"` // of the treatment in the traffic
	Lift           *float64 `json:"lift"`  // relative; null while it is not known
	LiftLow        *float64 `json:"liftLow"`
	LiftHigh       *float64 `json:"liftHigh"`
	Why            string   `json:"why"` // why what is null is not known, or the rule's reason
}

func (s *Service) list(w http.ResponseWriter, _ *http.Request) {
	out := []Status{}
	st := s.d.Control.State()
	for _, x := range st.Experiments {
		one := s.status(st, *x)
		one.Trail = nil // of one experiment only
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b Status) int { return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID)) })
	httpapi.Reply(w, http.StatusOK, map[string]any{"experiments": out})
}

func (s *Service) get(w http.ResponseWriter, r *http.Request) {
	st := s.d.Control.State()
	if x, ok := s.find(w, r, st); ok {
		httpapi.Reply(w, http.StatusOK, s.status(st, x))
	}
}

func (s *Service) find(w http.ResponseWriter, r *http.Request, st *control.State) (control.ExperimentStatus, bool) {
	x := st.Experiments[r.PathValue("id")]
	if x == nil {
		fail(w, fmt.Errorf("%w: %q", ErrUnknown, r.PathValue("id")))
		return control.ExperimentStatus{}, false
	}
	return *x, true
}

func (s *Service) analysis(w http.ResponseWriter, r *http.Request) {
	x, ok := s.find(w, r, s.d.Control.State())
	if !ok {
		return
	}
	a, err := s.analyse(r.Context(), x)
	if err != nil {
		httpapi.Fail(w, httpapi.Refuse(http.StatusServiceUnavailable, "the experiment goes on as it is; try again", "%v", err))
		return
	}
	httpapi.Reply(w, http.StatusOK, a)
}

// finite is nil for what is no finite number.
func finite(n ramp.Num) *float64 {
	if f := float64(n); !math.IsNaN(f) && !math.IsInf(f, 0) {
		return &f
	}
	return nil
}

func (s *Service) analyse(ctx context.Context, x control.ExperimentStatus) (Analysis, error) {
	v, err := s.Analyse(ctx, x)
	if err != nil {
		return Analysis{}, err
	}
	a := Analysis{
		OK:         v.Ok(),
		Decision:   v.Action,
		Rule:       string(v.Rule),
		Why:        v.Why,
		Experiment: x.ID,
		Running:    x.Running(),
		Step:       x.Step,
		Figures:    v.Figures,
	}
	if d := x.Decision; d != nil {
		a.Decision, a.Rule, a.OK = ramp.Action(d.Outcome), d.Rule, d.Outcome == control.Promote
		a.Why = "ended; the figures are those of its last steps as they are now"
	}
	failed := v.Failed()
	if x.Decision != nil {
		failed = !a.OK
	}
	a.Inconclusive = !a.OK && !failed
	a.Data = Argo{OK: a.OK, Failed: failed, Inconclusive: a.Inconclusive, Promoted: x.Decision != nil && a.OK, Decided: x.Decision != nil,
		Share: x.Step.Share, Why: a.Why}
	if v.Decision().Unknown == "" {
		a.Data.Lift, a.Data.LiftLow, a.Data.LiftHigh = finite(v.Figures.Relative), finite(v.Figures.RelativeLow), finite(v.Figures.RelativeHigh)
	}
	if g := v.Figures.Generation; g.Total > 0 {
		succeeded := ramp.Num(1 - float64(g.Failed)/float64(g.Total))
		a.Data.SuccessPercent = finite(succeeded)
	}
	return a, nil
}

// create takes a control.Experiment; what is left out is filled from the champion and the defaults.
func (s *Service) create(w http.ResponseWriter, r *http.Request) {
	req := struct {
		control.Experiment
		Note string `json:"note"`
	}{Experiment: control.Experiment{Unit: "user", Steps: []float64{0.01, 0.05, 0.2, 0.5, 1}, Alpha: 0.05, NStar: 5000, Logical: "prompt"}}
	if err := httpapi.ReadJSON(r, maxBody, &req); err != nil {
		httpapi.Fail(w, err)
		return
	}
	x := req.Experiment
	st := s.d.Control.State()
	if x.Control == "" {
		x.Control = st.Routes[x.Logical].Champion
	}
	if x.ID == "" {
		x.ID = "exp-" + x.Treatment
	}
	if x.Seed == "" {
		x.Seed = x.ID
	}
	x.Created = s.d.Wall().UTC()
	if err := Check(x, st); err != nil {
		httpapi.Fail(w, httpapi.Refuse(http.StatusUnprocessableEntity, "fields: id, logical, unit, seed, control, treatment, steps, alpha, "+
			"n_star, draft, slot, targeting, note; only treatment is needed", "%v", err))
		return
	}
	if err := s.append(r.Context(), control.ExperimentCreated, control.ExperimentEntity(x.ID), 0, caller(r), req.Note, x); err != nil {
		fail(w, err)
		return
	}
	httpapi.Reply(w, http.StatusCreated, x)
}

// Check returns every reason why the experiment may not start in this state.
func Check(x control.Experiment, st *control.State) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !idPattern.MatchString(x.ID) || slices.Contains(reserved, x.ID) {
		bad("id %q: want letters, digits, dots, dashes, underscores, at most 100, and none of %v", x.ID, reserved)
	}
	if st.Experiments[x.ID] != nil {
		bad("id %q: this experiment exists", x.ID)
	}
	if x.Unit != "user" && x.Unit != "product" {
		bad("unit %q: want user or product", x.Unit)
	}
	for name, version := range map[string]string{"control": x.Control, "treatment": x.Treatment} {
		if m := st.Models[version]; m == nil {
			bad("%s %q: no such model version", name, version)
		} else if m.Logical != x.Logical {
			bad("%s %q is a %s model, not %s", name, version, m.Logical, x.Logical)
		} else if slices.Contains([]control.ModelState{control.ModelFailed, control.ModelDrained, control.ModelUnloaded, control.ModelFetched},
			m.State) {
			bad("%s %q is %s: it cannot answer", name, version, m.State)
		}
	}
	if x.Control == x.Treatment {
		bad("control and treatment are both %q", x.Control)
	}
	if !slices.IsSorted(x.Steps) || len(x.Steps) == 0 || x.Steps[0] <= 0 || x.Steps[len(x.Steps)-1] > 1 || ramp.Decides(x.Steps) < 0 {
		bad("steps %v: want ascending shares in (0,1], at least one below 1", x.Steps)
	}
	if len(slices.Compact(slices.Clone(x.Steps))) != len(x.Steps) {
		bad("steps %v: the same share twice is one step", x.Steps)
	}
	if !(x.Alpha > 0 && x.Alpha < 1) || !(x.NStar > 0) {
		bad("alpha %g, n_star %g: want alpha in (0,1), n_star above 0", x.Alpha, x.NStar)
	}
	if err := assign.CheckTargeting(x.Targeting); err != nil {
		errs = append(errs, err)
	}
	slot := x.InSlot()
	if slot.Layer == "" || !(slot.Start >= 0 && slot.Start < slot.End && slot.End <= 1) {
		bad("slot %+v: want a layer and 0 <= start < end <= 1", slot)
	}
	for _, o := range st.Experiments {
		switch other := o.InSlot(); {
		case x.Draft || !o.Running():
		case o.Logical == x.Logical && slot.Overlaps(other):
			bad(
				"experiment %s runs on %s already, in slot %s %g to %g: one at a time in a slot, so that lifts are not mixed",
				o.ID,
				x.Logical,
				other.Layer,
				other.Start,
				other.End,
			)
		case slot.Layer == other.Layer && slot.Overlaps(other):
			bad("experiment %s has slot %g to %g of layer %s: slots of a layer share no unit", o.ID, other.Start, other.End, other.Layer)
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// manual answers a command of a person with the experiment as it is then.
func (s *Service) manual(call func(ctx context.Context, id, who string, r Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req Request
		if err := httpapi.ReadJSON(r, maxBody, &req); err != nil {
			httpapi.Fail(w, err)
			return
		}
		id := r.PathValue("id")
		if err := call(r.Context(), id, caller(r), req); err != nil {
			fail(w, err)
			return
		}
		st := s.d.Control.State()
		httpapi.Reply(w, http.StatusOK, s.status(st, *st.Experiments[id]))
	}
}

func (s *Service) stop(ctx context.Context, id, who string, r Request) error {
	_, err := s.Stop(ctx, id, who, r)
	return err
}

func (s *Service) stopAs(o control.Outcome) func(context.Context, string, string, Request) error {
	return func(ctx context.Context, id, who string, r Request) error {
		if r.Outcome != "" && r.Outcome != o {
			return bad("leave it out, or use stop", "outcome %q", r.Outcome)
		}
		r.Outcome = o
		return s.stop(ctx, id, who, r)
	}
}

// Hooks replays and shows deliveries of webhooks.
type Hooks interface {
	Status() []webhook.Status
	Replay(endpoint, experiment string, from int64) (int, error)
}

func (s *Service) hooks(w http.ResponseWriter, _ *http.Request) {
	out := []webhook.Status{}
	if s.d.Hooks != nil {
		out = s.d.Hooks.Status()
	}
	httpapi.Reply(w, http.StatusOK, map[string]any{"endpoints": out})
}

func (s *Service) replay(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Endpoint string `json:"endpoint"` // empty: all
		From     int64  `json:"from"`     // version of the experiment; 0: all
	}
	if err := httpapi.ReadJSON(r, maxBody, &req); err != nil {
		httpapi.Fail(w, err)
		return
	}
	if _, ok := s.find(w, r, s.d.Control.State()); !ok {
		return
	}
	if s.d.Hooks == nil {
		httpapi.Fail(w, httpapi.Refuse(http.StatusNotFound, "name endpoints under webhooks.endpoints in the configuration",
			"no webhooks are configured"))
		return
	}
	n, err := s.d.Hooks.Replay(req.Endpoint, r.PathValue("id"), req.From)
	switch {
	case errors.Is(err, webhook.ErrUnknownEndpoint):
		httpapi.Fail(w, httpapi.Refuse(http.StatusNotFound, "GET /v1/experiments/webhooks lists them", "%v", err))
	case err != nil:
		httpapi.Fail(w, httpapi.Refuse(http.StatusServiceUnavailable, "try again", "%v", err))
	default:
		httpapi.Reply(w, http.StatusAccepted, map[string]int{"deliveries": n})
	}
}

func (s *Service) holdouts(w http.ResponseWriter, _ *http.Request) {
	out := []control.Holdout{}
	for _, h := range s.d.Control.State().Holdouts {
		out = append(out, h)
	}
	slices.SortFunc(out, func(a, b control.Holdout) int { return cmp.Compare(a.Logical, b.Logical) })
	httpapi.Reply(w, http.StatusOK, map[string]any{"holdouts": out})
}

func (s *Service) setHoldout(w http.ResponseWriter, r *http.Request) {
	var req struct {
		control.Holdout
		Note string `json:"note"`
	}
	if err := httpapi.ReadJSON(r, maxBody, &req); err != nil {
		httpapi.Fail(w, err)
		return
	}
	req.Logical = r.PathValue("logical")
	if err := s.SetHoldout(r.Context(), req.Holdout, caller(r), req.Note); err != nil {
		fail(w, err)
		return
	}
	s.holdouts(w, r)
}

// caller is the actor of a command: who was authenticated.
func caller(r *http.Request) string { return httpapi.Who(r.Context()).Name }

// fail answers a command that was not carried out.
func fail(w http.ResponseWriter, err error) {
	status, hint := http.StatusServiceUnavailable, "the control log did not take the command; try again"
	var wrong badRequest
	switch {
	case errors.As(err, &wrong):
		status, hint = http.StatusUnprocessableEntity, wrong.hint
	case errors.Is(err, ErrUnknown):
		status, hint = http.StatusNotFound, "GET /v1/experiments lists them"
	case errors.Is(err, control.ErrConflict), errors.Is(err, control.ErrInvalid):
		status, hint = http.StatusConflict, "read the experiment again and decide anew; what was decided stands"
	}
	httpapi.Fail(w, httpapi.Refuse(status, hint, "%v", err))
}
