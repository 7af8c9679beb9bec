package assign

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ctrloop/schemas/control"

	"pgregory.net/rapid"
)

// add puts another running experiment into a state.
func add(st *control.State, x control.Experiment) *control.ExperimentStatus {
	if x.Logical == "" {
		x.Logical = "prompt"
	}
	if x.Unit == "" {
		x.Unit = "user"
	}
	x.Seed, x.Control, x.Treatment = "seed-"+x.ID, "prompt-a", "prompt-"+x.ID
	x.Created = time.Unix(int64(len(st.Experiments)+2), 0)
	s := &control.ExperimentStatus{Experiment: x, Step: control.Step{Share: x.Steps[0]}}
	st.Experiments[x.ID] = s
	return s
}

// Experiments in disjoint slots of a layer never share a unit, and each gets its part; an experiment on another
// logical model in a layer of its own is independent of both.
func TestLayersExcludeAndCross(t *testing.T) {
	st := state("user", 0)
	st.Routes["image"] = control.Route{Champion: "prompt-a"}
	half := []float64{0.5}
	add(st, control.Experiment{ID: "x", Steps: half, Slot: &control.Slot{Layer: "shop", Start: 0, End: 0.3}})
	add(st, control.Experiment{ID: "y", Steps: half, Slot: &control.Slot{Layer: "shop", Start: 0.3, End: 0.8}})
	add(st, control.Experiment{ID: "z", Logical: "image", Steps: half})
	a := New(st)
	const n = 50_000
	in, cross := map[string]int{}, map[string]int{}
	for i := range n {
		u := Unit{User: strconv.Itoa(i)}
		p, _ := a.Assign("prompt", u)
		q, _ := a.Assign("image", u)
		if q.Experiment != "z" {
			t.Fatalf("user %d is not in the other layer: %+v", i, q)
		}
		if p.Experiment == "" && p.Reason != OtherSlot {
			t.Fatalf("user %d: %+v", i, p)
		}
		in[p.Experiment]++
		cross[p.Experiment+p.Variant+q.Variant]++
	}
	for id, want := range map[string]float64{"x": 0.3, "y": 0.5, "": 0.2} {
		if got := float64(in[id]) / n; math.Abs(got-want) > 4*math.Sqrt(want*(1-want)/n)+0.001 { // slots are cut to 1/1000
			t.Errorf("%q has %.4f of the units, want %.2f", id, got, want)
		}
	}
	for _, id := range []string{"x", "y"} { // arms of one layer are independent of those of the other
		both, row := float64(cross[id+Treatment+Treatment]), float64(cross[id+Treatment+Treatment]+cross[id+Treatment+Control])
		if got := both / row; math.Abs(got-0.5) > 4*math.Sqrt(0.25/row) {
			t.Errorf("of the treatment of %s %.3f are in the treatment of z", id, got)
		}
	}
}

// Whatever runs beside it, a unit that was in the treatment stays in it while the share grows.
func TestGrowingIsStickyInSlotsAndWithTargeting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cut := rapid.Float64Range(0.05, 0.95).Draw(t, "cut")
		shares := rapid.SliceOfN(rapid.Float64Range(0.001, 0.999), 2, 5).Draw(t, "shares")
		slices.Sort(shares)
		users := rapid.SliceOfN(rapid.StringMatching(`[a-z0-9]{1,12}`), 1, 30).Draw(t, "users")
		was := map[string]bool{}
		for _, share := range shares {
			st := state("user", 0)
			add(st, control.Experiment{ID: "x", Steps: []float64{share}, Slot: &control.Slot{Layer: "l", Start: 0, End: cut},
				Targeting: []control.Condition{{Attribute: "country", Op: control.OpIn, Values: []string{"de", "fr"}}}})
			add(st, control.Experiment{ID: "y", Steps: []float64{0.5}, Slot: &control.Slot{Layer: "l", Start: cut, End: 1}})
			a := New(st)
			for _, u := range users {
				got, _ := a.Assign("prompt", Unit{User: u, Attributes: map[string]string{"country": "de"}})
				is := got.Experiment == "x" && got.Variant == Treatment
				if was[u] && !is {
					t.Fatalf("%q left the treatment of x when the share grew to %g: %+v", u, share, got)
				}
				was[u] = is
			}
		}
	})
}

func TestHoldoutTakesPartInNothing(t *testing.T) {
	st := state("user", 0.5)
	st.Holdouts["prompt"] = control.Holdout{Logical: "prompt", Share: 0.1, Seed: "h", Version: "prompt-old"}
	a := New(st)
	const n = 50_000
	held := map[string]bool{}
	arms := map[string]int{}
	for i := range n {
		u := strconv.Itoa(i)
		got, _ := a.Assign("prompt", Unit{User: u})
		arms[got.Variant]++
		if held[u] = got.Variant == Holdout; held[u] && (got.Experiment != "" || got.Version != "prompt-old" || got.Reason != ByHoldout) {
			t.Fatalf("held out and %+v", got)
		}
	}
	if got := float64(arms[Holdout]) / n; math.Abs(got-0.1) > 4*math.Sqrt(0.09/n) {
		t.Errorf("held out %.4f", got)
	}
	if got := float64(arms[Treatment]) / float64(arms[Treatment]+arms[Control]); math.Abs(got-0.5) > 4*math.Sqrt(0.25/n) {
		t.Errorf("the share of those who take part is %.4f", got)
	}
	// The group is the same in the next experiment, and without a version it gets the champion.
	st.Experiments["e1"].Seed = "another"
	st.Holdouts["prompt"] = control.Holdout{Logical: "prompt", Share: 0.1, Seed: "h"}
	a = New(st)
	for u, was := range held {
		got, _ := a.Assign("prompt", Unit{User: u})
		if (got.Variant == Holdout) != was || was && got.Version != "prompt-a" {
			t.Fatalf("user %s: was held out: %v, now %+v", u, was, got)
		}
	}
}

// V9: the control log names no user: a forced one is known by its hash. Products are named, and so are users of older logs.
func TestForcedUsersAreHidden(t *testing.T) {
	for _, tc := range []struct {
		unit, listed string
		want         bool
	}{
		{"user", control.HideUnit("e1", "tester"), true},
		{"user", "tester", true},
		{"user", control.HideUnit("e2", "tester"), false},
		{"product", "p-1", true},
		{"product", control.HideUnit("e1", "p-1"), false},
	} {
		st := state(tc.unit, 0.0001)
		st.Experiments["e1"].Forced = map[string]string{tc.listed: Treatment}
		got, _ := New(st).Assign("prompt", Unit{User: "tester", Product: "p-1"})
		if (got.Reason == ByForce) != tc.want {
			t.Errorf("%+v: %+v", tc, got)
		}
	}
	if strings.Contains(control.HideUnit("e1", "tester"), "tester") || control.HideUnit("e1", "tester") == control.HideUnit("e2", "tester") {
		t.Error("the hash names the user, or is the same in two experiments")
	}
}

func TestForcedArmsAreNoPartOfTheExperiment(t *testing.T) {
	st := state("user", 0.0001)
	st.Holdouts["prompt"] = control.Holdout{Logical: "prompt", Share: 0.999, Seed: "h"}
	st.Experiments["e1"].Forced = map[string]string{"tester": Treatment}
	a := New(st)
	for u, version := range map[*Unit]string{
		{User: "tester"}:                      "prompt-b",
		{User: "u", Force: "e1:treatment"}:    "prompt-b",
		{User: "tester", Force: "e1:control"}: "prompt-a", // the request comes first
		{Force: "e1:treatment"}:               "prompt-b",
	} {
		if got, _ := a.Assign("prompt", *u); got.Experiment != "" || got.Variant != Forced || got.Version != version || got.Reason != ByForce {
			t.Errorf("%+v got %+v", *u, got)
		}
	}
	for _, force := range []string{"e2:treatment", "e1:best", "e1", "treatment", ":"} {
		if got, _ := a.Assign("prompt", Unit{User: "u", Force: force}); got.Reason == ByForce {
			t.Errorf("%q forced %+v", force, got)
		}
	}
	st.Experiments["e1"].Decision = &control.Decision{Outcome: control.RollBack}
	if got, _ := New(st).Assign("prompt", Unit{User: "tester"}); got.Variant == Forced {
		t.Errorf("forced into an experiment that has ended: %+v", got)
	}
}

func TestTargeting(t *testing.T) {
	u := Unit{
		User:       "u",
		Product:    "p1",
		Category:   "Garden/Chairs",
		Placement:  "top",
		Attributes: map[string]string{"country": "de", "age": "30", "odd": "x"},
	}
	for _, c := range []struct {
		attribute string
		op        control.Op
		values    string
		want      bool
	}{
		{"country", control.OpIn, "de fr", true}, {"country", control.OpIn, "fr", false}, {"device", control.OpIn, "phone", false},
		{"country", control.OpNotIn, "fr", true}, {"country", control.OpNotIn, "de", false}, {"device", control.OpNotIn, "phone", true},
		{"category", control.OpPrefix, "Garden/", true}, {"category", control.OpPrefix, "Books/ Toys/", false},
		{"device", control.OpPrefix, "p", false},
		{"placement", control.OpIn, "top", true}, {"product", control.OpIn, "p1", true},
		{"age", control.OpAtLeast, "30", true}, {"age", control.OpAtLeast, "30.5", false}, {"age", control.OpBelow, "31", true},
		{"age", control.OpBelow, "30", false},
		{"odd", control.OpAtLeast, "0", false}, {"odd", control.OpBelow, "0", false}, {"device", control.OpBelow, "9", false},
		{"country", control.OpPresent, "", true}, {"device", control.OpPresent, "", false}, {"device", control.OpAbsent, "", true},
		{"country", control.OpAbsent, "", false},
	} {
		conditions := []control.Condition{{Attribute: c.attribute, Op: c.op, Values: strings.Fields(c.values)}}
		if err := CheckTargeting(conditions); err != nil {
			t.Fatal(err)
		}
		st := state("user", 0.5)
		st.Experiments["e1"].Targeting = conditions
		got, _ := New(st).Assign("prompt", u)
		if (got.Experiment != "") != c.want || !c.want && got.Reason != NotTargeted {
			t.Errorf("%s %s %s: %+v, want in: %v", c.attribute, c.op, c.values, got, c.want)
		}
	}
}

func TestBadTargetingNamesEveryProblem(t *testing.T) {
	for _, c := range []struct {
		c    control.Condition
		want string
	}{
		{control.Condition{Attribute: "Country", Op: control.OpIn, Values: []string{"de"}}, `attribute "Country"`},
		{control.Condition{Attribute: "country", Op: "regex", Values: []string{"de"}}, `operator "regex"`},
		{control.Condition{Attribute: "country", Op: control.OpIn}, "wants 1 to 1000 values"},
		{control.Condition{Attribute: "country", Op: control.OpPrefix, Values: []string{""}}, "none of them empty"},
		{control.Condition{Attribute: "age", Op: control.OpBelow, Values: []string{"1", "2"}}, "wants one number"},
		{control.Condition{Attribute: "age", Op: control.OpAtLeast, Values: []string{"NaN"}}, "wants a number"},
		{control.Condition{Attribute: "age", Op: control.OpAbsent, Values: []string{"1"}}, "takes no values"},
	} {
		if err := CheckTargeting([]control.Condition{{Attribute: "ok", Op: control.OpPresent}, c.c}); err == nil ||
			!strings.Contains(err.Error(), c.want) ||
			!strings.Contains(err.Error(), "targeting[1]") {
			t.Errorf("%+v: %v, want %q", c.c, err, c.want)
		}
	}
	if err := CheckTargeting(make([]control.Condition, 21)); err == nil || !strings.Contains(err.Error(), "at most 20") {
		t.Errorf("21 conditions: %v", err)
	}
}

func TestTheRichAssignerDoesNotAllocate(t *testing.T) {
	st := state("user", 0)
	for i := range 5 {
		x := add(
			st,
			control.Experiment{
				ID:    fmt.Sprint("x", i),
				Steps: []float64{0.5},
				Slot:  &control.Slot{Layer: "l", Start: 0.1 * float64(i), End: 0.1 * float64(i+1)},
				Targeting: []control.Condition{
					{Attribute: "country", Op: control.OpIn, Values: []string{"de"}},
					{Attribute: "age", Op: control.OpAtLeast, Values: []string{"18"}},
				},
			},
		)
		x.Forced = map[string]string{"tester": Treatment}
	}
	st.Holdouts["prompt"] = control.Holdout{Logical: "prompt", Share: 0.01, Seed: "h"}
	a, u := New(st), Unit{User: "1234567890123456789", Force: "none:control", Attributes: map[string]string{"country": "de", "age": "33"}}
	if n := testing.AllocsPerRun(100, func() { a.Assign("prompt", u) }); n != 0 {
		t.Errorf("%g allocations", n)
	}
}
