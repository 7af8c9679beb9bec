package stats

import (
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// e-BH as its definition reads: the largest k whose k-th largest e-value is at least K/(k fdr).
func TestEBHIsItsDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		logE := rapid.SliceOfN(rapid.Float64Range(-5, 12), 1, 44).Draw(t, "log e")
		fdr := rapid.Float64Range(0.01, 0.5).Draw(t, "fdr")
		got := eBH(logE)
		k := 0
		for _, e := range logE { // try each e-value as the threshold
			above := 0
			for _, f := range logE {
				if f >= e {
					above++
				}
			}
			if math.Exp(e) >= float64(len(logE))/(float64(above)*fdr) {
				k = max(k, above)
			}
		}
		reported := 0
		for _, q := range got {
			if q <= fdr {
				reported++
			}
		}
		if reported != k {
			t.Fatalf("%d reported, the definition says %d of %v at %g: %v", reported, k, logE, fdr, got)
		}
	})
}

// 40 categories, 4 with a lift, all bought from by the same users and looked at until something is found: the
// share of false discoveries stays within the rate; taking each category's own p does not, or this test is idle.
func TestFalseDiscoveriesOfManyLooks(t *testing.T) {
	const (
		categories = 40
		planted    = 4
		n          = 200
		fdr        = 0.1
	)
	q := Sequence{Alpha: 0.1, NStar: 1000}
	share, naive, found, missed, selected := 0.0, 0.0, 0, 0, 0
	for run := range n {
		rng := rand.New(rand.NewPCG(41, uint64(run)))
		cs := make([]Category, categories)
		var last []CategoryLift
		for range 10 {
			for range 200 {
				mood := 2 * rng.Float64() // a user's, in all categories: dependence
				treated := rng.IntN(2) == 1
				for k := range cs {
					rate := 0.1 * mood
					if treated && k < planted {
						rate *= 1.6
					}
					m := 0.0
					for range 4 {
						if rng.Float64() < rate {
							m++
						}
					}
					if treated {
						cs[k].Treatment.Observe(m, 4)
					} else {
						cs[k].Control.Observe(m, 4)
					}
				}
			}
			var err error
			if last, err = CompareCategories(cs, q, fdr); err != nil {
				t.Fatal(err)
			}
			wrong := 0
			for k, c := range last {
				if c.Discovered && k >= planted {
					wrong++
				}
			}
			if wrong > 0 { // stop where it looks worst
				break
			}
		}
		reported, wrong, naively, naivelyWrong := 0, 0, 0, 0
		for k, c := range last {
			truth := 0.0
			if k < planted {
				truth = 0.06
			}
			if c.Discovered {
				reported++
				selected++
				if k >= planted {
					wrong++
				}
				if truth < c.Selected.Low || truth > c.Selected.High {
					missed++
				}
			}
			if c.P <= q.Alpha {
				naively++
				if k >= planted {
					naivelyWrong++
				}
			}
		}
		found += reported - wrong
		share += float64(wrong) / float64(max(1, reported)) / n
		naive += float64(naivelyWrong) / float64(max(1, naively)) / n
	}
	t.Logf(
		"false discovery share %.3f (each on its own %.3f), %.2f of %d found, %d of %d selected intervals miss",
		share,
		naive,
		float64(found)/n,
		planted,
		missed,
		selected,
	)
	if share > fdr {
		t.Errorf("share of false discoveries %.3f, want at most %g", share, fdr)
	}
	if naive <= share || found < n*planted/2 {
		t.Errorf("each on its own %.3f, %d found: the simulation shows nothing", naive, found)
	}
	if float64(missed) > fdr*float64(selected) {
		t.Errorf("%d of %d selected intervals miss, want at most the share %g", missed, selected, fdr)
	}
}

func TestCategoriesWithoutDataCountAmongTheRest(t *testing.T) {
	full := func(rate int) (s RatioSums) {
		for i := range 4000 {
			m := 0.0
			if i%100 < rate {
				m = 1
			}
			s.Observe(m, 1)
		}
		return s
	}
	got, err := CompareCategories(
		[]Category{{Name: "none"}, {"clear", full(10), full(20)}, {"one arm", full(10), RatioSums{}}},
		DefaultSequence(),
		0.05,
	)
	if err != nil {
		t.Fatal(err)
	}
	if got[0].Discovered || got[2].Discovered || !got[1].Discovered || got[0].Unknown == "" {
		t.Errorf("%+v", got)
	}
	if want := 3 * math.Exp(-got[1].LogE); math.Abs(got[1].Q-want) > 1e-12 {
		t.Errorf("q = %g, want %g: three categories were looked at", got[1].Q, want)
	}
	if !(got[1].Selected.Low < got[1].Interval.Low && got[1].Selected.High > got[1].Interval.High &&
		got[1].SelectedRelative.Low < got[1].RelativeI.Low) {
		t.Errorf("selected %+v is not wider than %+v", got[1].Selected, got[1].Interval)
	}
	if _, err := CompareCategories(nil, DefaultSequence(), 1); err == nil {
		t.Error("a rate of 1 was taken")
	}
	if _, err := CompareCategories([]Category{{Name: "bad", Control: RatioSums{N: -1}}}, DefaultSequence(), 0.1); err == nil {
		t.Error("impossible sums were taken")
	}
}
