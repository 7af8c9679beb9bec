package experiment

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/ramp"
)

// maxBody bounds a request's body, in bytes: an experiment is a few hundred.
const maxBody = 64 << 10

var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

// Handler serves
//
//	GET  /v1/experiments                 all, newest first
//	POST /v1/experiments                 start one
//	GET  /v1/experiments/{id}            one, with its steps and decision
//	GET  /v1/experiments/{id}/analysis   what a look says now; changes nothing. For Argo Rollouts' web metric:
//	                                     jsonPath "{$}", successCondition "result.ok", failureCondition "not result.ok"
//	POST /v1/experiments/{id}/stop       end it by hand: {"outcome": promote|rollback|inconclusive, "note": ...}
//
// Who may call is decided in front of it; the caller's name comes in the X-Ctrloop-Actor header.
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/experiments", s.list)
	mux.HandleFunc("POST /v1/experiments", s.create)
	mux.HandleFunc("GET /v1/experiments/{id}", s.get)
	mux.HandleFunc("GET /v1/experiments/{id}/analysis", s.analysis)
	mux.HandleFunc("POST /v1/experiments/{id}/stop", s.stop)
	return mux
}

// Status is an experiment as the API shows it.
type Status struct {
	control.ExperimentStatus
	Running bool `json:"running"`
}

// Analysis is the answer of /analysis.
type Analysis struct {
	OK         bool         `json:"ok"`       // false: rolled back or inconclusive, now or earlier
	Decision   ramp.Action  `json:"decision"` // what a look says now, or what ended it
	Rule       string       `json:"rule"`     // that fired
	Why        string       `json:"why"`
	Experiment string       `json:"experiment"`
	Running    bool         `json:"running"`
	Step       control.Step `json:"step"`
	ramp.Figures
}

func (s *Service) list(w http.ResponseWriter, _ *http.Request) {
	out := []Status{}
	for _, x := range s.d.Control.State().Experiments {
		out = append(out, Status{*x, x.Running()})
	}
	slices.SortFunc(out, func(a, b Status) int { return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID)) })
	reply(w, http.StatusOK, map[string]any{"experiments": out})
}

func (s *Service) get(w http.ResponseWriter, r *http.Request) {
	if x, ok := s.find(w, r, s.d.Control.State()); ok {
		reply(w, http.StatusOK, Status{x, x.Running()})
	}
}

func (s *Service) find(w http.ResponseWriter, r *http.Request, st *control.State) (control.ExperimentStatus, bool) {
	x := st.Experiments[r.PathValue("id")]
	if x == nil {
		fail(w, http.StatusNotFound, fmt.Sprintf("no experiment %q", r.PathValue("id")), "GET /v1/experiments lists them")
		return control.ExperimentStatus{}, false
	}
	return *x, true
}

func (s *Service) analysis(w http.ResponseWriter, r *http.Request) {
	x, ok := s.find(w, r, s.d.Control.State())
	if !ok {
		return
	}
	v, err := s.Analyse(r.Context(), x)
	if err != nil {
		fail(w, http.StatusServiceUnavailable, err.Error(), "the experiment goes on as it is; try again")
		return
	}
	a := Analysis{OK: v.Ok(), Decision: v.Action, Rule: string(v.Rule), Why: v.Why, Experiment: x.ID, Running: x.Running(), Step: x.Step, Figures: v.Figures}
	if d := x.Decision; d != nil {
		a.Decision, a.Rule, a.OK = ramp.Action(d.Outcome), d.Rule, d.Outcome == control.Promote
		a.Why = "ended; the figures are those of its last steps as they are now"
	}
	reply(w, http.StatusOK, a)
}

// create takes a control.Experiment; what is left out is filled from the champion and the defaults.
func (s *Service) create(w http.ResponseWriter, r *http.Request) {
	x := control.Experiment{Unit: "user", Steps: []float64{0.01, 0.05, 0.2, 0.5, 1}, Alpha: 0.05, NStar: 5000, Epsilon: 0.02, Logical: "prompt"}
	if !read(w, r, &x) {
		return
	}
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
		fail(w, http.StatusUnprocessableEntity, err.Error(), "fields: id, logical, unit, seed, control, treatment, steps, alpha, n_star, epsilon; only treatment is needed")
		return
	}
	if err := s.append(r.Context(), control.ExperimentCreated, control.ExperimentEntity(x.ID), 0, who(r), "", x); err != nil {
		refuse(w, err)
		return
	}
	reply(w, http.StatusCreated, x)
}

// Check returns every reason why the experiment may not start in this state.
func Check(x control.Experiment, st *control.State) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !idPattern.MatchString(x.ID) {
		bad("id %q: want letters, digits, dots, dashes, underscores, at most 100", x.ID)
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
		} else if slices.Contains([]control.ModelState{control.ModelFailed, control.ModelDrained, control.ModelUnloaded, control.ModelFetched}, m.State) {
			bad("%s %q is %s: it cannot answer", name, version, m.State)
		}
	}
	if x.Control == x.Treatment {
		bad("control and treatment are both %q", x.Control)
	}
	if !slices.IsSorted(x.Steps) || len(x.Steps) == 0 || x.Steps[0] <= 0 || x.Steps[len(x.Steps)-1] > 1 || ramp.Decides(x.Steps) < 0 {
		bad("steps %v: want ascending shares in (0,1], at least one below 1", x.Steps)
	}
	if !(x.Alpha > 0 && x.Alpha < 1) || !(x.NStar > 0) || !(x.Epsilon >= 0 && x.Epsilon < 1) {
		bad("alpha %g, n_star %g, epsilon %g: want alpha in (0,1), n_star above 0, epsilon in [0,1)", x.Alpha, x.NStar, x.Epsilon)
	}
	if r := st.Running(x.Logical); len(r) > 0 {
		bad("experiment %s runs on %s already: one at a time, so that lifts are not mixed", r[0].ID, x.Logical)
	}
	slices.SortFunc(errs, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// stopRequest ends an experiment by hand.
type stopRequest struct {
	Outcome control.Outcome `json:"outcome"`
	Note    string          `json:"note"`
}

func (s *Service) stop(w http.ResponseWriter, r *http.Request) {
	var req stopRequest
	if !read(w, r, &req) {
		return
	}
	if !slices.Contains([]control.Outcome{control.Promote, control.RollBack, control.Inconclusive}, req.Outcome) {
		fail(w, http.StatusUnprocessableEntity, fmt.Sprintf("outcome %q", req.Outcome), "a stop needs an outcome: promote, rollback or inconclusive")
		return
	}
	if strings.TrimSpace(req.Note) == "" {
		fail(w, http.StatusUnprocessableEntity, "no note", "a stop needs a note: who reads the log later must see why")
		return
	}
	st := s.d.Control.State()
	x, ok := s.find(w, r, st)
	if !ok {
		return
	}
	if !x.Running() {
		fail(w, http.StatusConflict, fmt.Sprintf("experiment %s was decided: %s (%s)", x.ID, x.Decision.Outcome, x.Decision.Rule), "its decision stands; start another experiment")
		return
	}
	d := control.Decision{LiftLow: -1, LiftHigh: 1, P: 1, SRMP: 1}
	if v, err := s.Analyse(r.Context(), x); err == nil { // the figures at the stop; without a warehouse it stops all the same
		d = v.Decision()
	}
	d.Outcome, d.Rule = req.Outcome, string(ramp.Manual)
	if err := s.end(r.Context(), st, x, st.Versions[control.ExperimentEntity(x.ID)], d, who(r), req.Note); err != nil {
		refuse(w, err)
		return
	}
	reply(w, http.StatusOK, d)
}

func who(r *http.Request) string { return cmp.Or(r.Header.Get("X-Ctrloop-Actor"), "api") }

func read(w http.ResponseWriter, r *http.Request, v any) bool {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		fail(w, http.StatusBadRequest, "body: "+err.Error(), "want one JSON object with known fields")
		return false
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		fail(w, http.StatusBadRequest, "body: something follows the JSON object", "send one object")
		return false
	}
	return true
}

func refuse(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, control.ErrConflict), errors.Is(err, control.ErrInvalid):
		fail(w, http.StatusConflict, err.Error(), "read the experiment again and decide anew")
	default:
		fail(w, http.StatusServiceUnavailable, err.Error(), "the control log did not take the command; try again")
	}
}

func reply(w http.ResponseWriter, code int, v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		fail(w, http.StatusInternalServerError, "encode the answer: "+err.Error(), "this is a bug")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(raw, '\n'))
}

func fail(w http.ResponseWriter, code int, what, hint string) {
	reply(w, code, map[string]string{"error": what, "hint": hint})
}
