package stats

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// Category is one of several comparisons made at the same look, as of the products of one category.
type Category struct {
	Name               string
	Control, Treatment RatioSums
}

// CategoryLift is a category's lift and what is left of it among the others.
type CategoryLift struct {
	Name string
	Lift // on its own: as if it were the only one
	// Q is the lowest false-discovery rate at which e-BH reports this category, at most 1: what an adjusted
	// p-value is to a p-value.
	Q float64
	// Discovered says that e-BH reports it at the rate asked for.
	Discovered bool
	// Selected and SelectedRelative are e-BY intervals, wide enough for having been picked out: among the
	// discovered categories the expected share whose interval misses is at most the rate. All of the range for
	// categories that were not discovered.
	Selected, SelectedRelative Interval
}

// ErrRate is returned for a false-discovery rate outside (0,1).
var ErrRate = errors.New("false-discovery rate must lie in (0,1)")

// CompareCategories gives each category's lift, and says which of them count among so many. Of K categories with
// e-values E_(1) >= E_(2) >= ..., e-BH ([WR], its procedure) reports the k* largest,
//
//	k* = max{k : k E_(k) / K >= 1/fdr},
//
// and keeps the expected share of false ones among the reported at fdr at most, whatever the dependence between
// the categories (one user shops in many) and at whatever moment one looks: e-values stopped at a common time are
// e-values. Benjamini-Hochberg on p-values promises this for independent or positively dependent ones only, which
// p-values stopped by looking at all of them are not; Holm's method holds, but bounds the chance of a single
// error, and with 44 categories finds less. A category's interval, once reported, is the one of level
// 1 - fdr |reported| / K of the same sequence ([XWR], e-BY).
//
// A category without impressions in one of the arms, with too little data for an asymptotic e-value ([TooFew]), or
// without variation, has e-value 1: it counts among the K and is never reported. The answer is in the order of the categories.
func CompareCategories(categories []Category, q Sequence, fdr float64) ([]CategoryLift, error) {
	if !(fdr > 0 && fdr < 1) {
		return nil, fmt.Errorf("%w: %g", ErrRate, fdr)
	}
	if err := q.Validate(); err != nil {
		return nil, err
	}
	out := make([]CategoryLift, len(categories))
	logE := make([]float64, len(categories))
	for i, c := range categories {
		everything := Interval{-1, math.Inf(1)}
		out[i] = CategoryLift{Name: c.Name, Selected: Interval{-1, 1}, SelectedRelative: everything}
		if c.Control.D == 0 || c.Treatment.D == 0 {
			for _, s := range []RatioSums{c.Control, c.Treatment} {
				if err := s.Validate(); err != nil {
					return nil, fmt.Errorf("category %q: %w", c.Name, err)
				}
			}
			out[i].Lift = Lift{
				Absolute:  math.NaN(),
				Relative:  math.NaN(),
				Interval:  Interval{-1, 1},
				RelativeI: everything,
				P:         1,
				Units:     float64(c.Control.N + c.Treatment.N),
				Unknown:   "one of the arms has no impressions",
			}
			continue
		}
		l, err := Compare(c.Control, c.Treatment, q)
		if err != nil {
			return nil, fmt.Errorf("category %q: %w", c.Name, err)
		}
		out[i].Lift, logE[i] = l, l.LogE
	}
	levels := eBH(logE)
	discovered := 0
	for i := range out {
		out[i].Q, out[i].Discovered = levels[i], levels[i] <= fdr
		if out[i].Discovered {
			discovered++
		}
	}
	for i := range out {
		if c := categories[i]; out[i].Discovered {
			x := plainContrast(c.Control, c.Treatment)
			z := q.zAt(out[i].Units, fdr*float64(discovered)/float64(len(out)))
			out[i].Selected = Interval{out[i].Absolute - z*out[i].SE, out[i].Absolute + z*out[i].SE}
			out[i].SelectedRelative = x.fieller(z)
		}
	}
	return out, nil
}

// eBH gives for each e-value the lowest rate at which e-BH reports it: min over j >= rank of K / (j E_(j)), cut at 1.
func eBH(logE []float64) []float64 {
	order := make([]int, len(logE))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case logE[a] > logE[b]:
			return -1
		case logE[a] < logE[b]:
			return 1
		}
		return 0
	})
	out := make([]float64, len(logE))
	least := 1.0
	for j, at := range slices.Backward(order) {
		least = min(least, float64(len(order))/float64(j+1)*math.Exp(-logE[at]))
		out[at] = least
	}
	return out
}
