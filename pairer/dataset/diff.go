package dataset

import (
	"cmp"
	"math"
	"slices"
)

// Difference is what a data set says otherwise than another one.
type Difference struct {
	NewPairs     int `json:"new_pairs"`     // only in the second
	GonePairs    int `json:"gone_pairs"`    // only in the first
	TurnedPairs  int `json:"turned_pairs"`  // in both, with another winner
	MovedPairs   int `json:"moved_pairs"`   // in both, same winner, another weight
	OtherSplit   int `json:"other_split"`   // in both, in another split
	NewCreatives int `json:"new_creatives"` // only in the second
	// GoneCreatives are only in the first; Redrawn have another picture or another description.
	GoneCreatives int `json:"gone_creatives"`
	Redrawn       int `json:"redrawn_creatives"`
	// Information is the sum over training pairs of the change of 2 P(a is better) - 1: what starts a training cycle.
	Information float64 `json:"information"`
	// Largest are the training pairs that have changed the most, at most 20.
	Largest []PairChange `json:"largest"`
}

// PairChange is a pair whose belief has changed: 2 P(A is better than B) - 1 before and after, 0 where there is no pair.
type PairChange struct {
	Product   string  `json:"product"`
	Placement string  `json:"placement"`
	A         string  `json:"a"`
	B         string  `json:"b"`
	Before    float64 `json:"before"`
	After     float64 `json:"after"`
}

func (c PairChange) size() float64 { return math.Abs(c.After - c.Before) }

// mostChanged bounds Difference.Largest.
const mostChanged = 20

type pairKey struct{ product, placement, a, b string }

// belief is a pair with its sides in the order of their names.
type belief struct {
	value float64
	split string
}

func beliefs(rows []PairRow) map[pairKey]belief {
	out := make(map[pairKey]belief, len(rows))
	for _, r := range rows {
		k, v := pairKey{r.Product, r.Placement, r.Left, r.Right}, r.Weight
		if !r.LeftWins {
			v = -v
		}
		if k.a > k.b {
			k.a, k.b, v = k.b, k.a, -v
		}
		out[k] = belief{v, r.Split}
	}
	return out
}

// Diff compares two data sets.
func Diff(before, after Set) (d Difference) {
	was, is := beliefs(before.Pairs), beliefs(after.Pairs)
	var changes []PairChange
	change := func(k pairKey, split string, from, to float64) {
		if split == splitTrain && from != to {
			changes = append(changes, PairChange{k.product, k.placement, k.a, k.b, from, to})
		}
	}
	for k, now := range is {
		old, there := was[k]
		change(k, now.split, old.value, now.value)
		switch {
		case !there:
			d.NewPairs++
			continue
		case old.value*now.value < 0:
			d.TurnedPairs++
		case old.value != now.value:
			d.MovedPairs++
		}
		if old.split != now.split {
			d.OtherSplit++
		}
	}
	for k, old := range was {
		if _, there := is[k]; !there {
			d.GonePairs++
			change(k, old.split, old.value, 0)
		}
	}
	slices.SortFunc(changes, func(a, b PairChange) int {
		return cmp.Or(cmp.Compare(b.size(), a.size()), cmp.Compare(a.Product, b.Product), cmp.Compare(a.Placement, b.Placement),
			cmp.Compare(a.A, b.A), cmp.Compare(a.B, b.B))
	})
	for _, c := range changes { // in one order, so that the sum is one
		d.Information += c.size()
	}
	d.Largest = changes[:min(len(changes), mostChanged)]
	seen := map[string]*CreativeRow{}
	for i := range before.Creatives {
		seen[before.Creatives[i].Creative] = &before.Creatives[i]
	}
	for _, c := range after.Creatives {
		old := seen[c.Creative]
		delete(seen, c.Creative)
		switch {
		case old == nil:
			d.NewCreatives++
		case old.Description != c.Description || string(old.ImagePNG) != string(c.ImagePNG):
			d.Redrawn++
		}
	}
	d.GoneCreatives = len(seen)
	return d
}
