package lab

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging"
	"ctrloop/internal/world"
)

// judgePx is the size at which descriptions are drawn for the world: it stands for every larger one.
const judgePx = 128

// Sample is a description that some model wrote for a product.
type Sample struct {
	Arm     string `json:"arm"`
	Epoch   int    `json:"epoch"`
	Product string `json:"product"`
	Text    string `json:"text"`
}

// Tally is what the world says of one product's descriptions.
type Tally struct {
	Samples, Valid, Matching, Clickbait int
	CTR                                 float64 // sum of the true click-through rates of the valid ones
}

// Point is one model at one epoch, product by product.
type Point []Tally

// Figures of a model's descriptions. Rates are over all descriptions, except where the name says otherwise: one that
// is not well formed does not match. TrueCTR is the mean over the valid ones, each drawn and read by the world.
type Figures struct {
	Samples       int     `json:"samples"`
	Matching      float64 `json:"matching_rate"`
	MatchingValid float64 `json:"matching_among_valid"`
	Valid         float64 `json:"valid"`
	Clickbait     float64 `json:"clickbait"`
	TrueCTR       float64 `json:"true_ctr"`
}

// Figures over products; weights are how often each product counts, nil for once each.
func (p Point) Figures(weights []float64) Figures {
	var n, valid, match, bait, ctr float64
	for i, t := range p {
		w := 1.0
		if weights != nil {
			w = weights[i]
		}
		n, valid, match, bait, ctr = n+w*float64(
			t.Samples,
		), valid+w*float64(
			t.Valid,
		), match+w*float64(
			t.Matching,
		), bait+w*float64(
			t.Clickbait,
		), ctr+w*t.CTR
	}
	n, some := max(n, math.SmallestNonzeroFloat64), max(valid, math.SmallestNonzeroFloat64)
	return Figures{int(n), match / n, match / some, valid / n, bait / n, ctr / some}
}

// Judge has a world judge descriptions. It remembers the true rate of each drawing: models repeat themselves.
type Judge struct {
	world *world.World
	cat   *catalogue.Catalogue

	mu  sync.Mutex
	ctr map[string]float64
}

// NewJudge judges by one world.
func NewJudge(w *world.World, cat *catalogue.Catalogue) *Judge {
	return &Judge{world: w, cat: cat, ctr: map[string]float64{}}
}

// CTR is the true click-through rate of a well-formed description, drawn with seed 0.
func (j *Judge) CTR(p *catalogue.Product, d imaging.Description) float64 {
	key := p.ID + "\x00" + d.String()
	j.mu.Lock()
	v, ok := j.ctr[key]
	j.mu.Unlock()
	if !ok {
		v = j.world.CTROf(p, d, 0, judgePx)
		j.mu.Lock()
		j.ctr[key] = v
		j.mu.Unlock()
	}
	return v
}

// Curve is an arm's way: the point at position e is its model after e epochs, position 0 the base.
type Curve []Point

// Judged is what the world says of a rounds job's samples.
type Judged struct {
	Products []string // of every point, in order
	Arms     map[string]Curve
}

// Judge tallies samples. Each arm must have all epochs from 0 on, over the same products; the arm "base", if there,
// is epoch 0 of every other.
func (j *Judge) Judge(samples []Sample) (*Judged, error) {
	out := &Judged{Arms: map[string]Curve{}}
	at := map[string]int{}
	for _, s := range samples {
		if _, ok := at[s.Product]; !ok {
			at[s.Product] = -1
			out.Products = append(out.Products, s.Product)
		}
	}
	slices.Sort(out.Products)
	for i, p := range out.Products {
		at[p] = i
	}
	for _, s := range samples {
		if s.Epoch < 0 || s.Epoch > 1000 {
			return nil, fmt.Errorf("samples name epoch %d of arm %s", s.Epoch, s.Arm)
		}
		for len(out.Arms[s.Arm]) <= s.Epoch {
			out.Arms[s.Arm] = append(out.Arms[s.Arm], make(Point, len(out.Products)))
		}
	}
	if err := j.tally(samples, at, out); err != nil {
		return nil, err
	}
	if base, ok := out.Arms["base"]; ok {
		delete(out.Arms, "base")
		for _, c := range out.Arms {
			c[0] = base[0]
		}
	}
	for arm, c := range out.Arms {
		for e, p := range c {
			if p.Figures(nil).Samples == 0 {
				return nil, fmt.Errorf("samples of arm %s lack epoch %d", arm, e)
			}
		}
	}
	return out, nil
}

// tally looks at every sample, drawings in parallel.
func (j *Judge) tally(samples []Sample, at map[string]int, out *Judged) error {
	ctr := make([]float64, len(samples))
	valid := make([]bool, len(samples))
	var jobs errgroup.Group
	jobs.SetLimit(min(runtime.GOMAXPROCS(0), 2))
	for i, s := range samples {
		p, ok := j.cat.Get(s.Product)
		if !ok {
			_ = jobs.Wait()
			return fmt.Errorf("samples name product %s, which is not in the catalogue", s.Product)
		}
		d, _, ok := imaging.Parse(s.Text)
		if valid[i] = ok; ok {
			jobs.Go(func() error { ctr[i] = j.CTR(p, d); return nil })
		}
	}
	if err := jobs.Wait(); err != nil {
		return err
	}
	for i, s := range samples {
		t := &out.Arms[s.Arm][s.Epoch][at[s.Product]]
		t.Samples++
		if !valid[i] {
			continue
		}
		p, _ := j.cat.Get(s.Product)
		t.Valid++
		t.CTR += ctr[i]
		if j.world.Matches(p, s.Text) {
			t.Matching++
		}
		if j.world.IsClickbait(s.Text) {
			t.Clickbait++
		}
	}
	return nil
}

// Gain is the relative gain of a point's true click-through rate over the base's.
func gain(p, base Figures) float64 { return p.TrueCTR/base.TrueCTR - 1 }

// step is what matters of a model where arms are compared: what it gained and how well its backgrounds suit.
type step struct{ gain, matching float64 }

func (c Curve) steps(weights []float64) []step {
	base := c[0].Figures(weights)
	out := make([]step, len(c))
	for e, p := range c {
		f := p.Figures(weights)
		out[e] = step{gain(f, base), f.Matching}
	}
	return out
}

// matchingAt is the matching rate of an arm where it first reaches a lift, epochs joined by straight lines.
func matchingAt(path []step, lift float64) (float64, bool) {
	for e := 1; e < len(path); e++ {
		a, b := path[e-1], path[e]
		if lift >= a.gain && lift <= b.gain {
			share := 0.0
			if b.gain > a.gain {
				share = (lift - a.gain) / (b.gain - a.gain)
			}
			return a.matching + share*(b.matching-a.matching), true
		}
	}
	return 0, false
}

// highest gain of an arm.
func highest(path []step) float64 {
	return slices.MaxFunc(path, func(a, b step) int { return cmp.Compare(a.gain, b.gain) }).gain
}

// equalLift compares two arms at the largest lift that both reach: the matching rate of the first less that of the
// second, each where the arm first reaches that lift. Not ok: one of them never gained anything, so that there is
// nothing to compare.
func equalLift(first, second []step) (difference, lift float64, ok bool) {
	lift = min(highest(first), highest(second))
	if lift <= 0 {
		return 0, lift, false
	}
	a, okA := matchingAt(first, lift)
	b, okB := matchingAt(second, lift)
	return a - b, lift, okA && okB
}

// Draws of a bootstrap.
const draws = 1000

// resample calls f with the weights of each bootstrap sample of n products.
func resample(n int, seed uint64, f func(weights []float64)) {
	r := rand.New(rand.NewPCG(seed, 0xb007))
	w := make([]float64, n)
	for range draws {
		clear(w)
		for range n {
			w[r.IntN(n)]++
		}
		f(w)
	}
}

// Interval of 95 %.
type Interval struct {
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// interval95 is the percentile interval of bootstrap values; values that are not numbers do not count.
func interval95(values []float64) *Interval {
	v := slices.DeleteFunc(slices.Clone(values), math.IsNaN)
	if len(v) < draws/2 { // more than half of the draws have no value: an interval of the rest would mislead
		return nil
	}
	slices.Sort(v)
	at := func(q float64) float64 { return v[min(len(v)-1, int(q*float64(len(v))))] }
	return &Interval{at(0.025), at(0.975)}
}
