package experiment

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"ctrloop/internal/httpapi"
	"ctrloop/internal/stats"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/ramp"
)

// Reports answers the questions of the experiment pages that the controller does not ask. All over mature impressions.
type Reports interface {
	// Categories has the sums of each category. A unit counts in every category that it met.
	Categories(ctx context.Context, x control.Experiment, spans []Span) ([]CategorySums, error)
	// Arrivals counts the units of each arm by the day on which they were first seen, days ascending.
	Arrivals(ctx context.Context, x control.Experiment) ([]Arrivals, error)
	// Multiple counts the units of the spans, and those of them that were seen in both arms.
	Multiple(ctx context.Context, x control.Experiment, spans []Span) (Multiple, error)
	// Weighted has the sums of all parts together, each impression weighted with 1 minus the probability of its arm in
	// its part, added up by unit and arm. A unit that came back in another part is the same unit.
	Weighted(ctx context.Context, x control.Experiment, parts []Part) (ramp.Sums, error)
	// Looks lists the looks on record, oldest first, at most limit of the newest.
	Looks(ctx context.Context, id string, limit int) ([]LookRow, error)
}

// CategorySums are the arms' sums in one category.
type CategorySums struct {
	Category string
	ramp.Sums
}

// Arrivals are the units first seen on a day (UTC).
type Arrivals struct {
	Day       time.Time
	Control   int64
	Treatment int64
}

// Multiple counts units that were seen in both arms while the share stood still. Assignment is sticky, so there
// should be none; a few come from events that were on their way when the step began.
type Multiple struct {
	Units int64 `json:"units"`
	Both  int64 `json:"both"`
}

// LookRow is a look on record. Figures that were not known are null.
type LookRow struct {
	Time        time.Time `json:"time"`
	Step        int       `json:"step"` // from 1
	Share       float64   `json:"share"`
	Action      string    `json:"action"`
	Rule        string    `json:"rule"`
	Lift        ramp.Num  `json:"lift"` // relative
	Low         ramp.Num  `json:"lift_low"`
	High        ramp.Num  `json:"lift_high"`
	P           ramp.Num  `json:"p"`
	SRMP        ramp.Num  `json:"srm_p"`
	Impressions int64     `json:"impressions"`
}

// Results is the answer of /results: what an experiment page shows.
type Results struct {
	Experiment Status         `json:"experiment"`
	Decision   Analysis       `json:"analysis"`
	Steps      []ramp.Figures `json:"steps"`                // every step visited, by index; visits to one step are one sample
	WholeRamp  *WholeRamp     `json:"whole_ramp,omitempty"` // absent: nothing to compare yet, or no warehouse
	Guardrails []GuardRow     `json:"guardrails"`
	Health     HealthRow      `json:"health"`
}

// GuardRow is a guardrail as people read it; the click-through rate, generation errors and the sample ratio are among them.
type GuardRow struct {
	Name      string   `json:"name"`
	State     string   `json:"state"` // passed, open, failed, no_data
	Control   ramp.Num `json:"control"`
	Treatment ramp.Num `json:"treatment"`
	Limit     string   `json:"limit"`
	Action    string   `json:"action"` // when it fails
	Why       string   `json:"why"`
}

// HealthRow says whether the figures can be trusted, and what they could show.
type HealthRow struct {
	SampleRatioP     ramp.Num  `json:"sample_ratio_p"`  // always valid; small is bad; null: not known
	SampleRatioOK    bool      `json:"sample_ratio_ok"` // it was tested, and the units fall into the arms as planned
	SampleRatioWhy   string    `json:"sample_ratio_null_because,omitempty"`
	Multiple         *Multiple `json:"multiple_exposures,omitempty"` // absent: not asked of a warehouse
	HalfWidth        ramp.Num  `json:"half_width_relative"`          // of the lift's interval now
	MDE              ramp.Num  `json:"mde_relative"`                 // relative difference found with probability 0.8 at this size
	UnitsForOnePct   ramp.Num  `json:"units_for_one_percent"`        // in both arms, for a half-width of 1 % of the control's rate
	UnitsPerDay      ramp.Num  `json:"units_per_day"`                // arriving, mean of the days seen
	DaysToOnePercent ramp.Num  `json:"days_to_one_percent"`
	// Of a true difference as large as the guard's margin: what the experiment is there to tell. Like the MDE these are
	// of one look, so that looking at every batch finds it sooner; null without a margin.
	PowerForMargin ramp.Num `json:"power_for_margin"` // probability that the interval leaves out zero at this size
	UnitsForMargin ramp.Num `json:"units_for_margin"` // in both arms, for a power of 0.8
	DaysForMargin  ramp.Num `json:"days_for_margin"`  // from now on
}

// Category is one line of the breakdown. Its lift and interval are the category's own, as if it were the only one; what
// may be reported out of so many is Discovered, with the interval Selected ([stats.CompareCategories]: e-BH and e-BY
// at a false-discovery rate of the experiment's alpha, whatever the categories share and however often one looks).
type Category struct {
	Category     string   `json:"category"`
	Control      ramp.Arm `json:"control"`
	Treatment    ramp.Arm `json:"treatment"`
	Relative     ramp.Num `json:"lift_relative"`
	RelativeLow  ramp.Num `json:"lift_relative_low"`
	RelativeHigh ramp.Num `json:"lift_relative_high"`
	P            ramp.Num `json:"p_adjusted"`    // least false-discovery rate at which it is reported, at most 1
	Discovered   bool     `json:"discovered"`    // p_adjusted is at most alpha
	SelectedLow  ramp.Num `json:"selected_low"`  // relative, wide enough for having been picked out; -1 where it was not discovered
	SelectedHigh ramp.Num `json:"selected_high"` // null: no bound
	Adjustment   string   `json:"adjustment"`

	Missing map[string]string `json:"null_because,omitempty"` // why figures are null, or bound nothing
}

// Exposure is a day of the cumulative exposure.
type Exposure struct {
	Day            string `json:"day"`
	NewControl     int64  `json:"new_control"`
	NewTreatment   int64  `json:"new_treatment"`
	ControlSoFar   int64  `json:"control"`
	TreatmentSoFar int64  `json:"treatment"`
	Units          int64  `json:"units"`
}

var errNoReports = errors.New("this instance has no warehouse to ask")

// ShownStep is the index of the step whose data the experiment's lift is shown of: the deciding one once it was visited.
func ShownStep(x control.ExperimentStatus) int {
	d := ramp.Decides(x.Steps)
	if slices.ContainsFunc(x.History, func(s control.Step) bool { return s.Index == d }) {
		return d
	}
	return x.Step.Index
}

// Results makes the page of an experiment.
func (s *Service) Results(ctx context.Context, st *control.State, x control.ExperimentStatus) (Results, error) {
	a, err := s.analyse(ctx, x)
	if err != nil {
		return Results{}, err
	}
	out := Results{Experiment: s.status(st, x), Decision: a, Steps: []ramp.Figures{}}
	var of ramp.Figures // that the lift is shown of
	for i, share := range x.Steps {
		if !slices.ContainsFunc(x.History, func(s control.Step) bool { return s.Index == i }) {
			continue
		}
		sums, err := s.d.Source.Sums(ctx, x.Experiment, s.spans(x, i))
		if err != nil {
			return Results{}, fmt.Errorf("sums of step %d: %w", i+1, err)
		}
		f := ramp.Describe(s.cfg.Ramp, x, control.Step{Index: i, Share: share}, ramp.Evidence{Now: sums, Generation: a.Generation})
		f.Guardrails = nil // of the present step only: in Guardrails
		out.Steps = append(out.Steps, f)
		if i == ShownStep(x) {
			of = f
		}
	}
	if out.WholeRamp, err = s.wholeRamp(ctx, x, out.Steps); err != nil {
		return Results{}, err
	}
	out.Guardrails = s.guardRows(x, a.Figures)
	out.Health, err = s.health(ctx, x, of)
	return out, err
}

func (s *Service) guardRows(x control.ExperimentStatus, f ramp.Figures) []GuardRow {
	c := s.cfg.Ramp
	state := func(failed, passed, known bool) string {
		switch {
		case !known:
			return string(ramp.GuardNoData)
		case failed:
			return string(ramp.GuardFailed)
		case passed:
			return string(ramp.GuardPassed)
		}
		return string(ramp.GuardOpen)
	}
	ratio := f.Missing["srm_p"]
	if ratio == "" {
		ratio = fmt.Sprintf("p %.3g", float64(f.SRMP))
	}
	rows := []GuardRow{
		{Name: "click_through", Control: f.Control.CTR, Treatment: f.Treatment.CTR, Action: string(ramp.RollBack),
			State: state(f.Guard < 0, f.GuardLow > 0, !math.IsNaN(float64(f.Lift))),
			Limit: fmt.Sprintf("not more than %g %% below the control, error %g", 100*c.Margin, c.GuardAlpha),
			Why:   fmt.Sprintf("treatment - %g x control lies in [%.3g, %.3g]", 1-c.Margin, float64(f.GuardLow), float64(f.Guard))},
		{Name: "sample_ratio", Control: ramp.Num(f.Control.Units), Treatment: ramp.Num(f.Treatment.Units), Action: string(ramp.RollBack),
			State: state(float64(f.SRMP) <= ramp.SRMLimit(c, x.Steps), false, !math.IsNaN(float64(f.SRMP))),
			Limit: fmt.Sprintf("p above %.3g at share %g", ramp.SRMLimit(c, x.Steps), f.Step.Share), Why: ratio},
		{
			Name:      "generation_errors",
			Control:   ramp.Num(math.NaN()),
			Treatment: ramp.Num(float64(f.Generation.Failed) / float64(f.Generation.Total)),
			Action:    string(ramp.RollBack),
			State:     state(float64(f.ErrorP) <= c.ErrorAlpha, false, f.Generation.Total > 0),
			Limit: fmt.Sprintf(
				"at most %g %% fail, error %g",
				100*c.ErrorLimit,
				c.ErrorAlpha,
			),
			Why: fmt.Sprintf("%d of %d failed, p %.3g", f.Generation.Failed, f.Generation.Total, float64(f.ErrorP)),
		},
	}
	for _, g := range f.Guardrails {
		rows = append(rows, GuardRow{Name: g.Metric, State: string(g.State), Control: g.Control, Treatment: g.Treatment, Action: string(g.Action),
			Limit: fmt.Sprintf("not more than %g %% worse than the control (%s is better), error %g", 100*g.Margin, g.Better, g.Alpha), Why: g.Why})
	}
	return rows
}

func (s *Service) health(ctx context.Context, x control.ExperimentStatus, f ramp.Figures) (HealthRow, error) {
	nan := ramp.Num(math.NaN())
	h := HealthRow{SampleRatioP: f.SRMP, SampleRatioOK: float64(f.SRMP) > ramp.SRMLimit(s.cfg.Ramp, x.Steps),
		SampleRatioWhy: f.Missing["srm_p"],
		HalfWidth:      nan, MDE: f.MDE / f.Control.CTR, UnitsForOnePct: nan, UnitsPerDay: nan, DaysToOnePercent: nan,
		PowerForMargin: nan, UnitsForMargin: nan, DaysForMargin: nan}
	n := float64(f.Control.Units + f.Treatment.Units)
	if half := float64(f.LiftHigh-f.LiftLow) / 2; n > 0 && !math.IsNaN(float64(f.Lift)) && half < 1 {
		q := stats.Sequence{Alpha: x.Alpha, NStar: x.NStar}
		h.HalfWidth = ramp.Num(half) / f.Control.CTR
		sigma := half / q.HalfWidth(n, 1) * math.Sqrt(n) // of the difference at one unit, for the same mix of the arms
		h.UnitsForOnePct = ramp.Num(stats.UnitsForHalfWidth(q, sigma, 0.01*float64(f.Control.CTR)))
		if effect := s.cfg.Ramp.Margin * float64(f.Control.CTR); effect > 0 {
			h.PowerForMargin = ramp.Num(stats.Power(q, n, sigma, effect))
			h.UnitsForMargin = ramp.Num(stats.UnitsToDetect(q, sigma, effect, 0.8))
		}
	}
	if s.d.Reports == nil {
		return h, nil
	}
	m, err := s.d.Reports.Multiple(ctx, x.Experiment, s.spans(x, ShownStep(x)))
	if err != nil {
		return h, fmt.Errorf("multiple exposures: %w", err)
	}
	h.Multiple = &m
	days, err := s.d.Reports.Arrivals(ctx, x.Experiment)
	if err != nil {
		return h, fmt.Errorf("arrivals: %w", err)
	}
	if len(days) > 0 {
		total := int64(0)
		for _, d := range days {
			total += d.Control + d.Treatment
		}
		span := days[len(days)-1].Day.Sub(days[0].Day).Hours()/24 + 1
		h.UnitsPerDay = ramp.Num(float64(total) / span)
		left := func(units ramp.Num) ramp.Num { return ramp.Num(max(0, float64(units)-n)) / h.UnitsPerDay }
		h.DaysToOnePercent, h.DaysForMargin = left(h.UnitsForOnePct), left(h.UnitsForMargin)
	}
	return h, nil
}

// Categories breaks the lift of the shown step down.
func (s *Service) Categories(ctx context.Context, x control.ExperimentStatus) ([]Category, error) {
	if s.d.Reports == nil {
		return nil, errNoReports
	}
	sums, err := s.d.Reports.Categories(ctx, x.Experiment, s.spans(x, ShownStep(x)))
	if err != nil {
		return nil, err
	}
	return adjust(sums, stats.Sequence{Alpha: x.Alpha, NStar: x.NStar})
}

// adjust compares the arms in each category: the one place where the multiplicity of categories is dealt with. The
// false-discovery rate is the alpha of the sequence.
func adjust(sums []CategorySums, q stats.Sequence) ([]Category, error) {
	in := make([]stats.Category, len(sums))
	for i, c := range sums {
		in[i] = stats.Category{Name: c.Category, Control: c.Control, Treatment: c.Treatment}
	}
	lifts, err := stats.CompareCategories(in, q, q.Alpha)
	if err != nil {
		return nil, fmt.Errorf("compare the categories: %w", err)
	}
	out := []Category{}
	for i, l := range lifts {
		out = append(
			out,
			Category{Category: l.Name, Control: ramp.DescribeArm(sums[i].Control, q), Treatment: ramp.DescribeArm(sums[i].Treatment, q),
				Relative: ramp.Num(
					l.Relative,
				), RelativeLow: ramp.Num(l.RelativeI.Low), RelativeHigh: ramp.Num(l.RelativeI.High), P: ramp.Num(l.Q), Discovered: l.Discovered,
				SelectedLow: ramp.Num(
					l.SelectedRelative.Low,
				), SelectedHigh: ramp.Num(l.SelectedRelative.High), Adjustment: fmt.Sprintf("e-BH over %d", len(sums)), Missing: l.Missing()},
		)
	}
	slices.SortFunc(out, func(a, b Category) int {
		return cmp.Or(
			cmp.Compare(b.Control.Impressions+b.Treatment.Impressions, a.Control.Impressions+a.Treatment.Impressions),
			cmp.Compare(a.Category, b.Category),
		)
	})
	return out, nil
}

// Exposures is the cumulative exposure over time.
func (s *Service) Exposures(ctx context.Context, x control.ExperimentStatus) ([]Exposure, error) {
	if s.d.Reports == nil {
		return nil, errNoReports
	}
	days, err := s.d.Reports.Arrivals(ctx, x.Experiment)
	if err != nil {
		return nil, err
	}
	out := []Exposure{}
	var c, t int64
	for _, d := range days {
		c, t = c+d.Control, t+d.Treatment
		out = append(out, Exposure{d.Day.UTC().Format(time.DateOnly), d.Control, d.Treatment, c, t, c + t})
	}
	return out, nil
}

// page answers with what get makes of an experiment.
func (s *Service) page(w http.ResponseWriter, r *http.Request, get func(*control.State, control.ExperimentStatus) (any, error)) {
	st := s.d.Control.State()
	x, ok := s.find(w, r, st)
	if !ok {
		return
	}
	v, err := get(st, x)
	switch {
	case errors.Is(err, errNoReports):
		httpapi.Fail(w, httpapi.Refuse(http.StatusNotFound, "start an instance with a warehouse", "%v", err))
	case err != nil:
		httpapi.Fail(w, httpapi.Refuse(http.StatusServiceUnavailable, "the experiment goes on as it is; try again", "%v", err))
	default:
		httpapi.Reply(w, http.StatusOK, v)
	}
}

func (s *Service) results(w http.ResponseWriter, r *http.Request) {
	s.page(w, r, func(st *control.State, x control.ExperimentStatus) (any, error) { return s.Results(r.Context(), st, x) })
}

func (s *Service) categories(w http.ResponseWriter, r *http.Request) {
	s.page(w, r, func(_ *control.State, x control.ExperimentStatus) (any, error) {
		rows, err := s.Categories(r.Context(), x)
		return map[string]any{"experiment": x.ID, "step": ShownStep(x) + 1, "categories": rows}, err
	})
}

func (s *Service) exposures(w http.ResponseWriter, r *http.Request) {
	s.page(w, r, func(_ *control.State, x control.ExperimentStatus) (any, error) {
		rows, err := s.Exposures(r.Context(), x)
		return map[string]any{"experiment": x.ID, "unit": x.Unit, "days": rows}, err
	})
}

// maxLooks bounds the looks of one answer: 14 hours of looks every five seconds.
const maxLooks = 10_000

func (s *Service) looks(w http.ResponseWriter, r *http.Request) {
	limit := 1000
	if text := r.URL.Query().Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxLooks {
			httpapi.Fail(w, httpapi.Refuse(http.StatusUnprocessableEntity, fmt.Sprintf("want 1 to %d", maxLooks), "limit %q", text))
			return
		}
		limit = n
	}
	s.page(w, r, func(_ *control.State, x control.ExperimentStatus) (any, error) {
		if s.d.Reports == nil {
			return nil, errNoReports
		}
		rows, err := s.d.Reports.Looks(r.Context(), x.ID, limit)
		if rows == nil {
			rows = []LookRow{}
		}
		return map[string]any{"experiment": x.ID, "looks": rows}, err
	})
}
