package warehouse

import (
	"encoding/binary"
	"math"
	"strings"
	"testing"
	"time"

	"ctrloop/internal/stats"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/schemas/eventpb"
)

// arrivals are users of an experiment that come to one variant while it has a share; 0: nothing says which.
type arrivals struct {
	variant string
	share   float64
	users   int
	again   string // the variant in which they are seen again later, at the last share of all
}

func both(why string) [2]string { return [2]string{why, why} }

// A6: the share that each arm was to have, and the sample-ratio p, of experiments that are not on the control log: whatever their arms are
// called, over a ramp, and unknown where neither the log nor the labels say the shares.
func TestHealthByTheSharesOfLabels(t *testing.T) {
	db := database(t)
	at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	cases := map[string]struct {
		come    []arrivals
		logged  control.Experiment // on the control log if it has an id
		planned map[string]float64 // by variant; none: not known
		phases  []stats.SharePhase // what the sample ratio is of; none: not known
		why     [2]string          // why nobody knows the plan, and the sample ratio
	}{
		"names": {
			come:    []arrivals{{"new", 0.25, 100, ""}, {"newest", 0.5, 210, ""}, {"old", 0.25, 90, ""}},
			planned: map[string]float64{"new": 0.25, "newest": 0.5, "old": 0.25},
			phases:  []stats.SharePhase{{Counts: []int64{100, 210, 90}, Shares: []float64{0.25, 0.5, 0.25}}},
		},
		"broken": {
			come:    []arrivals{{"a", 1 - 0.3, 500, ""}, {"b", 0.3, 300, ""}},
			planned: map[string]float64{"a": 0.7, "b": 0.3},
			phases:  []stats.SharePhase{{Counts: []int64{500, 300}, Shares: []float64{0.7, 0.3}}},
		},
		"ramp": { // all together 66 % of the users are in b at the end, as planned in each phase
			come: []arrivals{{"a", 1 - 0.1, 180, ""}, {"b", 0.1, 20, ""}, {"a", 1 - 0.1, 90, "b"}, {"b", 0.1, 10, ""}, {"b", 0.8, 320, ""},
				{"a", 1 - 0.8, 80, ""}},
			planned: map[string]float64{"a": 0.2, "b": 0.8},
			phases: []stats.SharePhase{{Counts: []int64{270, 30}, Shares: []float64{0.9, 0.1}},
				{Counts: []int64{80, 320}, Shares: []float64{0.2, 0.8}}},
		},
		"one arm of a phase": { // nobody was drawn into b at first: that is a finding, and no reason not to know
			come:    []arrivals{{"a", 1 - 0.1, 100, ""}, {"a", 0.5, 50, ""}, {"b", 0.5, 50, ""}},
			planned: map[string]float64{"a": 0.5, "b": 0.5},
			phases: []stats.SharePhase{{Counts: []int64{100, 0}, Shares: []float64{0.9, 0.1}},
				{Counts: []int64{50, 50}, Shares: []float64{0.5, 0.5}}},
		},
		"silent": {come: []arrivals{{"a", 0, 100, ""}, {"b", 0, 100, ""}}, why: both("carry no arm_share")},
		"partly silent": {come: []arrivals{{"a", 0.5, 100, ""}, {"b", 0.5, 100, ""}, {"b", 0, 1, ""}},
			why: both("1 of 201 users were first seen without arm_share")},
		"an arm is missing": {come: []arrivals{{"a", 0.25, 100, ""}, {"b", 0.25, 100, ""}},
			why: both("never add up to 1")},
		"missing in a ramp": {come: []arrivals{{"a", 0.1, 100, ""}, {"b", 0.1, 100, ""}, {"a", 0.3, 100, ""}, {"b", 0.3, 100, ""}},
			why: both("never add up to 1")},
		"one arm": {come: []arrivals{{"a", 0.5, 100, ""}}, why: both("one variant only")},
		"three that change": {come: []arrivals{{"a", 0.2, 50, ""}, {"b", 0.3, 75, ""}, {"c", 0.5, 125, ""}, {"a", 0.25, 50, ""},
			{"b", 0.25, 50, ""}}, why: both("the shares of its 3 variants changed")},
		"three of another sum": {come: []arrivals{{"a", 0.2, 50, ""}, {"b", 0.3, 75, ""}, {"c", 0.4, 125, ""}},
			why: both("add up to 0.9")},
		"logged": { // the log knows better, and no look has tested it
			come:    []arrivals{{"control", 0.5, 100, ""}, {"treatment", 0.5, 100, ""}, {"other", 0.5, 10, ""}},
			logged:  control.Experiment{ID: "logged", Unit: "user", Steps: []float64{0.05, 0.5}},
			planned: map[string]float64{"control": 0.95, "treatment": 0.05},
			why:     [2]string{"has no such variant", "nobody has looked"},
		},
		"logged by product": { // its shares are of products, and this view counts users
			come:   []arrivals{{"control", 0.5, 100, ""}, {"treatment", 0.5, 100, ""}},
			logged: control.Experiment{ID: "logged by product", Unit: "product", Steps: []float64{0.5}},
			why:    [2]string{"the shares are of products", "nobody has looked"},
		},
	}
	var rows []LabelRow
	var log []ControlRow
	show := func(experiment, variant string, share float64, user uint64, when time.Time) {
		var random [10]byte
		binary.BigEndian.PutUint64(random[2:], uint64(len(rows)))
		rows = append(rows, LabelRow{Impression: schemas.NewImpressionID(when, random), Version: 1, User: user, Product: "p", Creative: "c",
			Experiment: experiment, Variant: variant, ArmShare: share, Kind: eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, Weight: 1,
			WatermarkMS: at.Add(24 * time.Hour).UnixMilli()})
	}
	for name, c := range cases {
		user, last := uint64(0), c.come[len(c.come)-1].share
		for i, a := range c.come {
			for range a.users {
				user++
				show(name, a.variant, a.share, user, at.Add(time.Duration(i)*time.Hour))
				if a.again != "" {
					show(name, a.again, last, user, at.Add(12*time.Hour))
				}
			}
		}
		if last != 0 {
			show(name, "a", 0.123, 0, at) // nobody's
		}
		if c.logged.ID != "" {
			e, err := control.NewEvent("create "+name, control.ExperimentCreated, control.ExperimentEntity(name), 0, "test", "", at, c.logged)
			if err != nil {
				t.Fatal(err)
			}
			log = append(log, ControlRow{Event: e, Place: Place{TopicID: "t", Offset: int64(len(log))}})
		}
	}
	if err := db.InsertLabels(t.Context(), "a", rows); err != nil {
		t.Fatal(err)
	}
	if err := db.InsertControl(t.Context(), log); err != nil {
		t.Fatal(err)
	}
	var got []struct {
		Experiment string  `ch:"experiment"`
		Variant    string  `ch:"variant"`
		Users      uint64  `ch:"users"`
		Planned    float64 `ch:"planned"`
		P          float64 `ch:"srm_p"`
		By         string  `ch:"planned_by"`
		NotPlanned string  `ch:"not_planned"`
		Unknown    string  `ch:"srm_unknown"`
		Steps      uint64  `ch:"steps"`
	}
	if err := db.Select(t.Context(), &got, "SELECT experiment, variant, users, planned, srm_p, planned_by, not_planned, srm_unknown, "+
		"toUInt64(steps) AS steps FROM experiment_health WHERE users > 0"); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range got {
		c := cases[r.Experiment]
		seen[r.Experiment] = true
		planned, p := math.NaN(), math.NaN()
		if s, ok := c.planned[r.Variant]; ok {
			planned = s
		}
		if len(c.phases) > 0 {
			m, err := stats.SampleRatioRamp(c.phases, 0, 1)
			if err != nil {
				t.Fatal(err)
			}
			p = m.PNew
		}
		if !alike(r.Planned, planned) || !alike(r.P, p) {
			t.Errorf("%s, %s: planned %g, sample ratio p %g, want %g and %g", r.Experiment, r.Variant, r.Planned, r.P, planned, p)
		}
	}
	for _, r := range got {
		c := cases[r.Experiment]
		by, steps := "labels", len(c.phases)
		if c.logged.ID != "" {
			by, steps = "control log", 1
		}
		if math.IsNaN(r.Planned) {
			by = ""
		}
		if r.By != by || r.Steps != uint64(steps) {
			t.Errorf("%s, %s: planned by %q in %d steps, want %q and %d", r.Experiment, r.Variant, r.By, r.Steps, by, steps)
		}
		for i, figure := range []struct {
			v   float64
			why string
		}{{r.Planned, r.NotPlanned}, {r.P, r.Unknown}} {
			if unknown := math.IsNaN(figure.v); unknown != (figure.why != "") || unknown && !strings.Contains(figure.why, c.why[i]) {
				t.Errorf("%s, %s: %g because %q, want %q", r.Experiment, r.Variant, figure.v, figure.why, c.why[i])
			}
		}
	}
	const plans = "SELECT plan, since, variant, share, users, unknown FROM experiment_plans WHERE experiment = "
	if got, want := lines(t, db, plans+"'ramp' ORDER BY plan, variant"), "1\t2026-03-01 00:00:00.000\ta\t0.9\t270\t\n"+
		"1\t2026-03-01 00:00:00.000\tb\t0.1\t30\t\n"+
		"2\t2026-03-01 04:00:00.000\ta\t0.2\t80\t\n"+
		"2\t2026-03-01 04:00:00.000\tb\t0.8\t320\t\n"; got != want {
		t.Errorf("the plans of a ramp are\n%s, want\n%s", got, want)
	}
	if got, want := lines(t, db, plans+"'one arm'"),
		"0\t1970-01-01 00:00:00.000\t\tnan\t100\tusers were seen in one variant only\n"; got != want {
		t.Errorf("no plan is\n%s, want\n%s", got, want)
	}
	if len(seen) != len(cases) {
		t.Errorf("%d of %d experiments are there", len(seen), len(cases))
	}
	if m, err := stats.SampleRatioRamp(cases["broken"].phases, 0, 1); err != nil || m.PNew > 0.01 {
		t.Errorf("the broken one has p %g, %v: it is not broken", m.PNew, err)
	}
}

// alike says whether two figures are the same, or both not known.
func alike(a, b float64) bool {
	return math.IsNaN(a) && math.IsNaN(b) || math.Abs(a-b) <= 1e-9*math.Max(1, math.Abs(b))
}
