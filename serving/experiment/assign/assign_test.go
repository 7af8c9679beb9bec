package assign

import (
	"encoding/json"
	"math"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"ctrloop/schemas/control"

	"pgregory.net/rapid"
)

type vectors struct {
	Hash         [][4]json.RawMessage `json:"hash"`
	BucketRange  [][3]json.RawMessage `json:"getBucketRange"`
	Choose       [][4]json.RawMessage `json:"chooseVariation"`
	EqualWeights [][2]json.RawMessage `json:"getEqualWeights"`
	InNamespace  [][4]json.RawMessage `json:"inNamespace"`
}

func as[T any](t *testing.T, raw json.RawMessage) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return v
}

func ranges(pairs [][2]float64) []Range {
	var out []Range
	for _, p := range pairs {
		out = append(out, Range{p[0], p[1]})
	}
	return out
}

func TestGrowthBookVectors(t *testing.T) {
	raw, err := os.ReadFile("testdata/growthbook-hash.json")
	if err != nil {
		t.Fatal(err)
	}
	v := as[vectors](t, raw)
	if len(v.Hash) != 15 || len(v.BucketRange) != 13 || len(v.Choose) != 13 || len(v.EqualWeights) != 6 || len(v.InNamespace) != 16 {
		t.Fatalf(
			"the vectors are incomplete: %d %d %d %d %d",
			len(v.Hash),
			len(v.BucketRange),
			len(v.Choose),
			len(v.EqualWeights),
			len(v.InNamespace),
		)
	}
	for _, c := range v.Hash {
		seed, value, version, want := as[string](t, c[0]), as[string](t, c[1]), as[int](t, c[2]), as[*float64](t, c[3])
		n, ok := Hash(seed, value, version)
		if ok != (want != nil) || ok && n != *want {
			t.Errorf("Hash(%q, %q, %d) = %v, %v; want %s", seed, value, version, n, ok, c[3])
		}
	}
	for _, c := range v.BucketRange {
		args := as[[3]json.RawMessage](t, c[1])
		got := BucketRanges(as[int](t, args[0]), as[float64](t, args[1]), as[[]float64](t, args[2]))
		want := ranges(as[[][2]float64](t, c[2]))
		if !slices.EqualFunc(got, want, func(a, b Range) bool { return math.Abs(a.Start-b.Start) < 1e-9 && math.Abs(a.End-b.End) < 1e-9 }) {
			t.Errorf("BucketRanges %s: %v, want %v", c[0], got, want)
		}
	}
	for _, c := range v.Choose {
		if got, want := Choose(as[float64](t, c[1]), ranges(as[[][2]float64](t, c[2]))), as[int](t, c[3]); got != want {
			t.Errorf("Choose %s: %d, want %d", c[0], got, want)
		}
	}
	for _, c := range v.EqualWeights {
		got, want := EqualWeights(as[int](t, c[0])), as[[]float64](t, c[1])
		if !slices.EqualFunc(got, want, func(a, b float64) bool { return math.Abs(a-b) < 1e-8 }) {
			t.Errorf("EqualWeights(%s) = %v, want %v", c[0], got, want)
		}
	}
	for _, c := range v.InNamespace {
		ns := as[[3]json.RawMessage](t, c[2])
		n := Namespace{as[string](t, ns[0]), Range{as[float64](t, ns[1]), as[float64](t, ns[2])}}
		if got, want := n.Contains(as[string](t, c[1])), as[bool](t, c[3]); got != want {
			t.Errorf("inNamespace %s: %v, want %v", c[0], got, want)
		}
	}
}

// state has a champion "prompt-a" and, unless share is 0, an experiment on unit that gives "prompt-b" share.
func state(unit string, share float64) *control.State {
	st := control.NewState()
	st.Routes["prompt"] = control.Route{Champion: "prompt-a"}
	if share > 0 {
		x := control.Experiment{
			ID:        "e1",
			Logical:   "prompt",
			Unit:      unit,
			Seed:      "s1",
			Control:   "prompt-a",
			Treatment: "prompt-b",
			Steps:     []float64{share},
			Created:   time.Unix(1, 0),
		}
		st.Experiments["e1"] = &control.ExperimentStatus{Experiment: x, Step: control.Step{Share: share}}
	}
	return st
}

func TestGrowingTheShareMovesNobodyOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		user := rapid.String().Filter(func(s string) bool { return s != "" }).Draw(t, "user")
		shares := rapid.SliceOfN(rapid.Float64Range(0.0001, 1), 2, 6).Draw(t, "shares")
		slices.Sort(shares)
		was := false
		for _, s := range shares {
			st := state("user", s)
			a, ok := New(st).Assign("prompt", Unit{User: user})
			b, _ := New(st.Clone()).Assign("prompt", Unit{User: user, Product: "p"})
			if !ok || a != b {
				t.Fatalf("two replicas disagree: %+v and %+v", a, b)
			}
			is := a.Variant == Treatment
			if was && !is {
				t.Fatalf("user %q left the treatment when the share grew to %g", user, s)
			}
			if want := map[bool]float64{true: s, false: 1 - s}[is]; a.ArmShare != want {
				t.Fatalf("arm share %g of %s at share %g", a.ArmShare, a.Variant, s)
			}
			was = is
		}
	})
}

func TestSharesAreWhatWasAsked(t *testing.T) {
	const n = 200_000
	for _, share := range []float64{0.01, 0.05, 0.5, 1} {
		a, in := New(state("user", share)), 0
		for i := range n {
			if x, _ := a.Assign("prompt", Unit{User: strconv.Itoa(i)}); x.Variant == Treatment {
				in++
			}
		}
		got, sd := float64(in)/n, math.Sqrt(share*(1-share)/n)
		if math.Abs(got-share) > 4*sd {
			t.Errorf("share %g gave %g", share, got)
		}
	}
}

func TestWhoIsNotInTheExperiment(t *testing.T) {
	if _, ok := New(control.NewState()).Assign("prompt", Unit{User: "u"}); ok {
		t.Error("an assignment without a champion")
	}
	champion := func(why Reason) Assignment { return Assignment{Version: "prompt-a", ArmShare: 1, Reason: why} }
	if a, _ := New(state("user", 0)).Assign("prompt", Unit{User: "u"}); a != champion(ByChampion) {
		t.Errorf("without an experiment: %+v", a)
	}
	if a, _ := New(state("user", 0.5)).Assign("prompt", Unit{Product: "p"}); a != champion(NoUnit) {
		t.Errorf("an anonymous request in a test on users: %+v", a)
	}
	st := state("user", 1)
	st.Experiments["e1"].Decision = &control.Decision{Outcome: control.RollBack}
	if a, _ := New(st).Assign("prompt", Unit{User: "u"}); a != champion(ByChampion) {
		t.Errorf("after the decision: %+v", a)
	}
	a := New(state("product", 0.5))
	x, _ := a.Assign("prompt", Unit{User: "u1", Product: "p"})
	y, _ := a.Assign("prompt", Unit{User: "u2", Product: "p"})
	if x.Experiment == "" || x != y {
		t.Errorf("a test on products depends on the user: %+v and %+v", x, y)
	}
}

func TestAssignDoesNotAllocate(t *testing.T) {
	a := New(state("user", 0.5))
	if n := testing.AllocsPerRun(100, func() { a.Assign("prompt", Unit{User: "1234567890123456789"}) }); n != 0 {
		t.Errorf("%g allocations", n)
	}
}

func BenchmarkAssign(b *testing.B) {
	a := New(state("user", 0.5))
	for b.Loop() {
		a.Assign("prompt", Unit{User: "1234567890123456789"})
	}
}
