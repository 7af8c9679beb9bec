package pairs

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/integrate/quad"
	"gonum.org/v1/gonum/stat/distuv"

	"ctrloop/schemas"
)

// Evidence is what one creative earned in one cell.
type Evidence struct {
	Product, Category, Placement, Creative string
	Impressions, Clicks                    int64
	// Span that this evidence covers; the zero Span: that of all evidence.
	Span Span
}

// Policy is a rule that decides which pairs are made and what they weigh.
type Policy string

// Policies.
const (
	PolicyPosterior Policy = "posterior" // every pair, weighed by how sure its order is
	PolicyCAIG      Policy = "caig"      // hard floor and ratio band, weight 1
)

// Config of pair building.
type Config struct {
	Policy          Policy
	MinImpressions  int64   // per creative and cell
	MinWeight       float64 // pairs below are ties: dropped
	MaxPerCell      int     // heaviest pairs kept per cell; 0: all
	HoldoutFraction float64
	HoldoutProducts map[string]bool // held out whatever the fraction says
	CAIGFloor       int64           // impressions that policy caig wants more of; 0: its own 1,000
}

// Span is the event time that evidence covers, Unix milliseconds, [From, To].
type Span struct{ FromMS, ToMS int64 }

// union is the least span that holds both; a zero span holds nothing.
func (s Span) union(o Span) Span {
	switch {
	case s == Span{}:
		return o
	case o == Span{}:
		return s
	}
	return Span{min(s.FromMS, o.FromMS), max(s.ToMS, o.ToMS)}
}

// Prior of click rates.
type Prior struct{ Alpha, Beta float64 }

// FitPrior fits a Beta prior by the method of moments: the variance of observed rates, less what binomial
// noise alone would give. Without spread beyond noise it returns a prior as strong as ten thousand impressions. The order
// of the evidence makes no difference, not in the last bit either: data sets are named by what is computed from it.
func FitPrior(evidence []Evidence) Prior {
	evidence = slices.SortedFunc(slices.Values(evidence), func(a, b Evidence) int {
		return cmp.Or(cmp.Compare(a.Impressions, b.Impressions), cmp.Compare(a.Clicks, b.Clicks))
	})
	var impressions, clicks int64 // whole numbers add up to the same in every order
	for _, e := range evidence {
		if e.Impressions > 0 {
			impressions, clicks = impressions+e.Impressions, clicks+e.Clicks
		}
	}
	if impressions == 0 || clicks == 0 {
		return Prior{1, 1}
	}
	imp := float64(impressions)
	m := float64(clicks) / imp
	// Weighted by impressions, so that a creative seen ten times does not pass for spread.
	var spread, noise float64
	for _, e := range evidence {
		if e.Impressions > 0 {
			w := float64(e.Impressions) / imp
			d := float64(e.Clicks)/float64(e.Impressions) - m
			spread += w * d * d
			noise += w * m * (1 - m) / float64(e.Impressions)
		}
	}
	const strongest = 10_000
	strength := float64(strongest)
	if v := spread - noise; v > 0 {
		strength = min(strongest, max(1, m*(1-m)/v-1))
	}
	return Prior{m * strength, (1 - m) * strength}
}

// Posterior of an evidence row.
func (p Prior) Posterior(e Evidence) distuv.Beta {
	return distuv.Beta{Alpha: p.Alpha + float64(e.Clicks), Beta: p.Beta + float64(e.Impressions-e.Clicks)}
}

// ProbGreater is P(X > Y) for independent Beta variables, by Gauss-Legendre quadrature of the density of X
// times the distribution function of Y over ten standard deviations around X's mean; X is the narrower of
// the two, so that the nodes lie where the density is. Error below 1e-4 (tested against the closed form for
// integer parameters).
func ProbGreater(x, y distuv.Beta) float64 {
	m, s := x.Mean(), x.StdDev()
	if y.StdDev() < s {
		return 1 - ProbGreater(y, x)
	}
	lo, hi := max(0, m-10*s), min(1, m+10*s)
	p := quad.Fixed(func(v float64) float64 {
		d := x.Prob(v)
		if d == 0 || math.IsInf(d, 0) {
			return 0
		}
		return d * y.CDF(v)
	}, lo, hi, 96, nil, 0)
	return min(1, max(0, p))
}

// Build makes the pairs of all cells, in an order that depends on the evidence alone. span is that of evidence which has
// none of its own. A pair is named by its own two sides, so that other products' traffic does not rename it.
func Build(cfg Config, evidence []Evidence, span Span) []schemas.Pair {
	evidence = Sum(evidence)
	prior := FitPrior(evidence)
	cells := map[[2]string][]Evidence{}
	for _, e := range evidence {
		if e.Impressions >= max(1, cfg.MinImpressions) {
			k := [2]string{e.Product, e.Placement}
			cells[k] = append(cells[k], e)
		}
	}
	keys := make([][2]string, 0, len(cells))
	for k := range cells {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b [2]string) int { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) })
	var out []schemas.Pair
	for _, k := range keys {
		out = append(out, buildCell(cfg, prior, cells[k], span)...)
	}
	return out
}

// BuildLater makes the pairs of a split by time besides the one by product: training products are paired on early
// evidence, and once more, as split "later", on evidence that came after it; products that are held out are paired
// on both. Nothing that a "later" pair rests on is in a training pair. Its floor of impressions is lower, as its span
// is shorter.
func BuildLater(cfg Config, early, late []Evidence, earlySpan, lateSpan Span) []schemas.Pair {
	whole := Span{earlySpan.FromMS, lateSpan.ToMS}
	train := slices.DeleteFunc(Build(cfg, early, earlySpan), func(p schemas.Pair) bool { return p.Split != "train" })
	test := slices.DeleteFunc(Build(cfg, Sum(early, late), whole), func(p schemas.Pair) bool { return p.Split != "test" })
	cfg.MinImpressions = int64(float64(cfg.MinImpressions) * float64(lateSpan.ToMS-lateSpan.FromMS) / float64(max(1, whole.ToMS-whole.FromMS)))
	later := slices.DeleteFunc(Build(cfg, late, lateSpan), func(p schemas.Pair) bool { return p.Split != "train" })
	for i := range later {
		later[i].Split = "later"
	}
	return slices.Concat(train, test, later)
}

// Sum adds up the evidence of each creative and cell, in the order of their names. Where a creative was reported under
// several categories, the last one by name is taken: a creative is never compared with itself.
func Sum(parts ...[]Evidence) []Evidence {
	all := slices.Concat(parts...)
	slices.SortFunc(all, func(a, b Evidence) int {
		return cmp.Or(cmp.Compare(a.Product, b.Product), cmp.Compare(a.Placement, b.Placement), cmp.Compare(a.Creative, b.Creative),
			cmp.Compare(a.Category, b.Category))
	})
	out := all[:0]
	for _, e := range all {
		if n := len(out); n > 0 && out[n-1].Product == e.Product && out[n-1].Placement == e.Placement && out[n-1].Creative == e.Creative {
			last := &out[n-1]
			last.Category = e.Category
			last.Impressions, last.Clicks, last.Span = last.Impressions+e.Impressions, last.Clicks+e.Clicks, last.Span.union(e.Span)
			continue
		}
		out = append(out, e)
	}
	return out
}

// Held says whether a product is held out of training.
func (c Config) Held(product string) bool {
	return c.HoldoutProducts[product] || schemas.Holdout(product, c.HoldoutFraction)
}

func buildCell(cfg Config, prior Prior, cell []Evidence, span Span) []schemas.Pair {
	slices.SortFunc(cell, func(a, b Evidence) int { return cmp.Compare(a.Creative, b.Creative) })
	var out []schemas.Pair
	for i, a := range cell {
		for _, b := range cell[i+1:] {
			if p, ok := makePair(cfg, prior, a, b, span); ok {
				out = append(out, p)
			}
		}
	}
	if cfg.MaxPerCell > 0 && len(out) > cfg.MaxPerCell {
		slices.SortStableFunc(out, func(a, b schemas.Pair) int { return cmp.Compare(b.Weight, a.Weight) })
		out = out[:cfg.MaxPerCell]
	}
	return out
}

// tie is the weight below which the order of a pair is noise of the quadrature.
const tie = 3e-4

func makePair(cfg Config, prior Prior, a, b Evidence, span Span) (schemas.Pair, bool) {
	pa, pb := prior.Posterior(a), prior.Posterior(b)
	if pa.Mean() < pb.Mean() {
		a, b, pa, pb = b, a, pb, pa
	}
	if own := a.Span.union(b.Span); own != (Span{}) {
		span = own
	}
	weight := 2*ProbGreater(pa, pb) - 1
	if cfg.Policy == PolicyCAIG {
		if !caigKeeps(a, b, cfg.CAIGFloor) {
			return schemas.Pair{}, false
		}
		weight = 1
	} else if weight < max(cfg.MinWeight, tie) {
		return schemas.Pair{}, false
	}
	p := schemas.Pair{
		Product: a.Product, Category: a.Category, Placement: a.Placement, FromMS: span.FromMS, ToMS: span.ToMS,
		Chosen:   schemas.PairSide{Creative: a.Creative, Impressions: a.Impressions, Clicks: a.Clicks, Mean: pa.Mean()},
		Rejected: schemas.PairSide{Creative: b.Creative, Impressions: b.Impressions, Clicks: b.Clicks, Mean: pb.Mean()},
		Weight:   weight, Split: "train", Policy: string(cfg.Policy),
	}
	if cfg.Held(p.Product) {
		p.Split = "test"
	}
	h := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s\x00%s\x00%d\x00%d\x00%d\x00%d\x00%d\x00%d\x00%s",
		p.Product, p.Placement, a.Creative, b.Creative, a.Impressions, a.Clicks, b.Impressions, b.Clicks, span.FromMS, span.ToMS, cfg.Policy))
	p.ID = "pair-" + hex.EncodeToString(h[:8])
	p.Left = binary.BigEndian.Uint64(h[8:16])&1 == 0 // the side is a hash: no position to learn from
	return p, true
}

// caigFloor is the floor of impressions in CAIG's published pre-processing.
const caigFloor = 1000

// caigKeeps is the rule of CAIG's published pre-processing.
func caigKeeps(hi, lo Evidence, floor int64) bool {
	floor = cmp.Or(floor, caigFloor)
	if hi.Impressions <= floor || lo.Impressions <= floor || hi.Clicks == 0 || lo.Clicks == 0 {
		return false
	}
	ratio := (float64(hi.Clicks) / float64(hi.Impressions)) / (float64(lo.Clicks) / float64(lo.Impressions))
	return ratio >= 1.05 && ratio <= 1.20
}
