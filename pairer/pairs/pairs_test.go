package pairs

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gonum.org/v1/gonum/stat/distuv"
	"pgregory.net/rapid"

	"ctrloop/schemas"
)

// probGreaterInteger is the closed form for integer parameters (Cook, "Exact calculation of beta
// inequalities", 2005): P(X > Y) = sum_{i=0}^{aX-1} B(aY+i, bX+bY) / ((bX+i) B(1+i, bX) B(aY, bY)).
func probGreaterInteger(x, y distuv.Beta) float64 {
	lb := func(a, b float64) float64 {
		p, _ := math.Lgamma(a)
		q, _ := math.Lgamma(b)
		r, _ := math.Lgamma(a + b)
		return p + q - r
	}
	var sum float64
	for i := 0.0; i < x.Alpha; i++ {
		sum += math.Exp(lb(y.Alpha+i, x.Beta+y.Beta) - math.Log(x.Beta+i) - lb(1+i, x.Beta) - lb(y.Alpha, y.Beta))
	}
	return sum
}

func TestProbGreaterEqualsTheClosedForm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string, hi int) float64 { return float64(rapid.IntRange(1, hi).Draw(t, name)) }
		x := distuv.Beta{Alpha: draw("ax", 200), Beta: draw("bx", 5000)}
		y := distuv.Beta{Alpha: draw("ay", 200), Beta: draw("by", 5000)}
		if got, want := ProbGreater(x, y), probGreaterInteger(x, y); math.Abs(got-want) > 1e-4 {
			t.Fatalf("P(Beta(%v,%v) > Beta(%v,%v)) = %v, closed form %v", x.Alpha, x.Beta, y.Alpha, y.Beta, got, want)
		}
	})
}

func TestFitPriorFindsTheTruth(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	truth := distuv.Beta{Alpha: 36, Beta: 964, Src: r} // 3.6 %, strength 1000
	var all []Evidence
	for range 4000 {
		n := int64(200 + r.IntN(2000))
		k := int64(distuv.Binomial{N: float64(n), P: truth.Rand(), Src: r}.Rand())
		all = append(all, Evidence{Impressions: n, Clicks: k})
	}
	p := FitPrior(all)
	if mean := p.Alpha / (p.Alpha + p.Beta); math.Abs(mean-0.036) > 0.001 {
		t.Errorf("mean %v", mean)
	}
	if s := p.Alpha + p.Beta; s < 700 || s > 1400 {
		t.Errorf("strength %v, truth 1000", s)
	}
	if got := FitPrior(nil); got != (Prior{1, 1}) {
		t.Errorf("no evidence: %v", got)
	}
}

// ev is evidence of one creative.
func ev(product, category, placement, creative string, impressions, clicks int64) Evidence {
	return Evidence{Product: product, Category: category, Placement: placement, Creative: creative, Impressions: impressions, Clicks: clicks}
}

func cell() []Evidence {
	return []Evidence{
		ev("p-1", "kitchen/mugs", "home", "c-a", 2000, 100),
		ev("p-1", "kitchen/mugs", "home", "c-b", 2000, 60),
		ev("p-1", "kitchen/mugs", "home", "c-c", 2000, 60),
		ev("p-1", "kitchen/mugs", "search", "c-a", 2000, 200),
		ev("p-1", "kitchen/mugs", "search", "c-b", 10, 9),
	}
}

func TestBuildComparesWithinACellOnly(t *testing.T) {
	ps := Build(Config{Policy: PolicyPosterior, MinImpressions: 100}, cell(), Span{1, 2})
	if len(ps) != 2 {
		t.Fatalf("%d pairs: a-b and a-c of placement home are wanted (b-c is a tie, search has one creative above the floor): %+v", len(ps), ps)
	}
	for _, p := range ps {
		if p.Chosen.Creative != "c-a" || p.Placement != "home" {
			t.Errorf("pair %+v", p)
		}
		if p.Weight < 0.95 || p.Weight > 1 {
			t.Errorf("100 against 60 clicks of 2,000 is close to sure: weight %v", p.Weight)
		}
	}
}

func TestBuildDependsOnEvidenceAlone(t *testing.T) {
	all := cell()
	a := Build(Config{Policy: PolicyPosterior, HoldoutFraction: 0.5}, all, Span{1, 2})
	rand.New(rand.NewPCG(3, 4)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	b := Build(Config{Policy: PolicyPosterior, HoldoutFraction: 0.5}, all, Span{1, 2})
	if d := cmp.Diff(a, b); d != "" {
		t.Error(d)
	}
	ids := map[string]bool{}
	for _, p := range a {
		if ids[p.ID] {
			t.Errorf("id %s twice", p.ID)
		}
		ids[p.ID] = true
	}
}

func TestSidesAreBalanced(t *testing.T) {
	var all []Evidence
	for i := range 400 {
		id := string(rune('A'+i%26)) + string(rune('a'+i/26))
		all = append(all, ev(id, "x/y", "home", "c-1", 1000, 50), ev(id, "x/y", "home", "c-2", 1000, 30))
	}
	left := 0
	ps := Build(Config{Policy: PolicyPosterior}, all, Span{})
	for _, p := range ps {
		if p.Left {
			left++
		}
	}
	if len(ps) != 400 || left < 150 || left > 250 {
		t.Errorf("%d of %d chosen are on the left", left, len(ps))
	}
}

func TestCAIGRule(t *testing.T) {
	all := []Evidence{
		ev("p", "c", "s", "c-1", 2000, 100), ev("p", "c", "s", "c-2", 2000, 90), // ratio 1.11: kept
		ev("p", "c", "s", "c-3", 2000, 60), // 1.5 and 1.67: above the band
		ev("p", "c", "s", "c-4", 1000, 45), // too few impressions
	}
	ps := Build(Config{Policy: PolicyCAIG}, all, Span{})
	if len(ps) != 1 || ps[0].Chosen.Creative != "c-1" || ps[0].Rejected.Creative != "c-2" || ps[0].Weight != 1 {
		t.Errorf("%+v", ps)
	}
}

func TestSplitIsByProduct(t *testing.T) {
	var all []Evidence
	held := 0
	for i := range 200 {
		id := "p-" + string(rune('a'+i%26)) + string(rune('a'+i/26))
		if schemas.Holdout(id, 0.2) {
			held++
		}
		all = append(all, ev(id, "x/y", "home", "c-1", 1000, 50), ev(id, "x/y", "home", "c-2", 1000, 20))
	}
	test := 0
	for _, p := range Build(Config{Policy: PolicyPosterior, HoldoutFraction: 0.2}, all, Span{}) {
		if p.Split == "test" {
			test++
		}
	}
	if test != held || held == 0 {
		t.Errorf("%d test pairs, %d products held out", test, held)
	}
}

func TestLaterPairsRestOnLaterEvidence(t *testing.T) {
	held := func(p string) bool { return schemas.Holdout(p, 0.5) }
	var early, late []Evidence
	for i := range 40 {
		p := fmt.Sprintf("p-%d", i)
		for c := range 2 {
			id := fmt.Sprintf("c-%d-%d", i, c)
			early = append(early, ev(p, "x/y", "home", id, 800, int64(20+30*c)))
			late = append(late, ev(p, "x/y", "home", id, 200, int64(12-8*c))) // taste has turned
		}
	}
	cfg := Config{Policy: PolicyPosterior, MinImpressions: 500, HoldoutFraction: 0.5}
	count := map[string]int{}
	for _, p := range BuildLater(cfg, early, late, Span{0, 800}, Span{800, 1000}) {
		count[p.Split]++
		impressions := p.Chosen.Impressions
		switch {
		case p.Split == "test" && (!held(p.Product) || impressions != 1000 || p.FromMS != 0 || p.ToMS != 1000),
			p.Split == "train" && (held(p.Product) || impressions != 800 || p.ToMS != 800),
			p.Split == "later" && (held(p.Product) || impressions != 200 || p.FromMS != 800 || p.Chosen.Clicks != 12):
			t.Fatalf("pair %+v", p)
		}
	}
	if count["train"] == 0 || count["test"] == 0 || count["later"] != count["train"] || count["train"]+count["test"] != 40 {
		t.Errorf("pairs by split: %v", count)
	}
}

// S7: twenty orders of the same rows are one list of pairs, to the last bit.
func TestPairsDependOnNoOrderOfRows(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var all []Evidence
	for i := range 60 {
		for c := range 3 {
			all = append(all, ev(fmt.Sprintf("p-%d", i), "x/y", "home", fmt.Sprintf("c-%d-%d", i, c), 1000+r.Int64N(3000), 20+r.Int64N(90)))
		}
	}
	want := Build(Config{Policy: PolicyPosterior}, all, Span{1, 2})
	for range 20 {
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		if d := cmp.Diff(want, Build(Config{Policy: PolicyPosterior}, all, Span{1, 2})); d != "" {
			t.Fatal(d)
		}
	}
}

// S7: a pair carries the span of its own evidence, so what other products get neither renames nor redates it.
func TestAPairHasTheSpanOfItsOwnEvidence(t *testing.T) {
	side := func(product, creative string, clicks, from, to int64) Evidence {
		e := ev(product, "x/y", "home", creative, 2000, clicks)
		e.Span = Span{from, to}
		return e
	}
	mine := []Evidence{side("p", "c-a", 40, 10, 20), side("p", "c-b", 90, 12, 25)}
	cfg := Config{Policy: PolicyPosterior}
	alone := Build(cfg, mine, Span{10, 25})
	beside := Build(cfg, append(mine, side("q", "c-c", 70, 1, 99), side("q", "c-d", 20, 1, 99)), Span{1, 99})
	if len(alone) != 1 || len(beside) != 2 || alone[0].ID != beside[0].ID || beside[0].FromMS != 10 || beside[0].ToMS != 25 {
		t.Errorf("alone %+v, beside another product %+v", alone, beside)
	}
}

// The category is what the client says: a creative under two of them is one creative, not a pair with itself.
func TestACreativeIsNotComparedWithItself(t *testing.T) {
	all := []Evidence{ev("p", "x/y", "home", "c-a", 2000, 40), ev("p", "x/z", "home", "c-a", 2000, 90),
		ev("p", "x/z", "home", "c-b", 4000, 40)}
	ps := Build(Config{Policy: PolicyPosterior}, all, Span{})
	if len(ps) != 1 || ps[0].Chosen.Creative != "c-a" || ps[0].Chosen.Impressions != 4000 || ps[0].Rejected.Creative != "c-b" {
		t.Errorf("%+v", ps)
	}
}
