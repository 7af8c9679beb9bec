package simulate

import (
	"fmt"
	"math"
	"math/rand/v2"

	"ctrloop/internal/stats"
)

// early is an A/A test that is looked at after every user, from the second on.
type early struct {
	ctr, share float64
	users      int
}

// lookedEarly is what the looks of one such test saw.
type lookedEarly struct {
	byStats, byViews bool // a difference was found, ever
	said             bool // some look had enough data to say anything
	exact            bool // the exact sequence of the control left out the true rate
}

func (e early) world() World {
	w := Ordinary()
	w.CTR = e.ctr
	return w
}

func (e early) run(l *lab) ([]lookedEarly, error) {
	w := e.world()
	c := newCrowd(w, 1)
	q := stats.DefaultSequence()
	return each(l, fmt.Sprintf("small %g %g", e.ctr, e.share), func(rng *rand.Rand) lookedEarly {
		var s lookedEarly
		var arms [2]stats.RatioSums
		exact := stats.NewBets(q.Alpha)
		for range e.users {
			m, d := c.draw(rng)
			k := 0
			if rng.Float64() < e.share {
				k = 1
			}
			arms[k].Observe(m, d)
			if k == 0 && !s.exact {
				most := float64(w.MaxImpressions)
				exact.See((m+w.CTR*(most-d))/most, w.CTR)
				s.exact = exact.LogE() >= -math.Log(q.Alpha)
			}
			if arms[0].D == 0 || arms[1].D == 0 {
				continue
			}
			got, err := stats.Compare(arms[0], arms[1], q)
			if err != nil {
				panic(err) // sums of users are possible sums
			}
			s.said = s.said || got.Unknown == ""
			s.byStats = s.byStats || got.P <= q.Alpha
			s.byViews = s.byViews || viewFinds(arms[0], arms[1])
		}
		return s
	})
}

// viewFinds is the formula of the warehouse's views, written down once more from their SQL: whether the interval of
// experiment_lift leaves out zero. internal/warehouse holds the views themselves against internal/stats.
func viewFinds(a, b stats.RatioSums) bool {
	const alpha, nStar = 0.05, 5000
	own := func(s stats.RatioSums) float64 {
		n, r := float64(s.N), s.M/s.D
		squares := s.MM - 2*r*s.MD + r*r*s.DD
		switch {
		case n < 2:
			return math.NaN()
		case squares <= stats.RoundingOfSquares*(s.MM+2*r*s.MD+r*r*s.DD):
			return 0
		}
		return squares / (n - 1) * n / s.D / s.D
	}
	ea, eb, va, vb := a.D/a.DD*a.D, b.D/b.DD*b.D, own(a), own(b)
	if ea >= eb {
		vb = max(vb, ea/eb*va)
	} else {
		va = max(va, eb/ea*vb)
	}
	pooled := (a.M + b.M) / (a.D + b.D)
	clicks := min(a.D, b.D) * pooled * (a.M + b.M) / (a.MM + b.MM)
	enough := min(ea, eb) >= stats.LeastUnits && clicks >= stats.LeastClicks && min(a.D, b.D)*(1-pooled) >= stats.LeastClicks
	if !enough || !(va+vb > 0) {
		return false
	}
	y := float64(a.N+b.N) * (-2*math.Log(alpha) + math.Log(1-2*math.Log(alpha))) / nStar
	z := math.Sqrt(2 * (y + 1) / y * (0.5*math.Log1p(y) - math.Log(alpha)))
	return math.Abs(b.M/b.D-a.M/a.D) > z*math.Sqrt(va+vb)
}

func runSmall(l *lab) (Table, error) {
	w := Ordinary()
	t := Table{Setup: []string{
		"no true difference; a look after every user, from the second on; " + describe(w) + ", the same with CTR 1 and 5 %",
		"the views' formula is that of experiment_lift; the warehouse's tests hold the views against internal/stats to 1e-9",
		"said something: runs in which some look had data enough (20 effective users, 10 expected clicks in the smaller arm)",
		"exact: the betting sequence of the control's rate leaves out the true one at some look",
		"categories: 40 of them, users of 10 impressions at 10 %, one look; a discovery at a false-discovery rate of 5 %",
	}}
	for _, e := range []early{
		{0.01, 0.5, 5000}, {0.01, 0.1, 5000}, {0.01, 0.05, 5000}, {0.01, 0.01, 20_000},
		{0.05, 0.5, 5000}, {0.05, 0.1, 5000}, {0.05, 0.05, 5000}, {0.05, 0.01, 20_000},
	} {
		s, err := e.run(l)
		if err != nil {
			return t, err
		}
		n := len(s)
		t.Rows = append(t.Rows, Row{fmt.Sprintf("CTR %g %%, treatment %g %%, %d users", 100*e.ctr, 100*e.share, e.users), []Cell{
			share("by stats", count(s, func(x lookedEarly) bool { return x.byStats }), n).that(AtMost, 0.05),
			share("by the views' formula", count(s, func(x lookedEarly) bool { return x.byViews }), n).that(AtMost, 0.05),
			share("said something", count(s, func(x lookedEarly) bool { return x.said }), n),
			share("exact", count(s, func(x lookedEarly) bool { return x.exact }), n).that(AtMost, 0.05),
		}})
	}
	for _, units := range []int{2, 10, 50} {
		found, err := fewUnits(l, units)
		if err != nil {
			return t, err
		}
		t.Rows = append(t.Rows, Row{fmt.Sprintf("40 categories, %d users an arm", units), []Cell{
			share("by stats", count(found, func(x bool) bool { return x }), len(found)).that(AtMost, 0.05),
		}})
	}
	return t, nil
}

// fewUnits says of each run whether e-BH reports one of 40 categories without a difference.
func fewUnits(l *lab, units int) ([]bool, error) {
	return each(l, fmt.Sprintf("small categories %d", units), func(rng *rand.Rand) bool {
		categories := make([]stats.Category, 40)
		for i := range categories {
			for range units {
				for _, arm := range []*stats.RatioSums{&categories[i].Control, &categories[i].Treatment} {
					m := 0.0
					for range 10 {
						if rng.Float64() < 0.1 {
							m++
						}
					}
					arm.Observe(m, 10)
				}
			}
		}
		got, err := stats.CompareCategories(categories, stats.DefaultSequence(), 0.05)
		if err != nil {
			panic(err)
		}
		for _, c := range got {
			if c.Discovered {
				return true
			}
		}
		return false
	})
}
