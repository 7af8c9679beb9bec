package world

import (
	"math"
	"math/rand/v2"
	"testing"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging"
	"ctrloop/internal/imaging/grammar"
)

// drawn is one creative of an untrained writer, measured once and judged by many worlds.
type drawn struct {
	p *catalogue.Product
	d imaging.Description
	l looks
}

func drawUntrained(w *World, perProduct, products int) []drawn {
	r := rand.New(rand.NewPCG(99, 1))
	var out []drawn
	all := w.cat.Products()
	for i := range products {
		p := all[i*len(all)/products]
		for range perProduct {
			d := Untrained(p, r)
			im := imaging.RenderDescription(p, d, r.Uint64(), 128)
			out = append(out, drawn{p, d, look(w.eye, p, imaging.View(im, 64))})
		}
	}
	return out
}

type mean struct{ s, n float64 }

func (m *mean) add(v float64) { m.s, m.n = m.s+v, m.n+1 }
func (m *mean) v() float64    { return m.s / m.n }

func TestTrueCTRMomentsOverSeeds(t *testing.T) {
	const perProduct = 16
	cat := catalogue.Embedded()
	sample := drawUntrained(New(DefaultConfig(0), cat), perProduct, 30)
	for seed := uint64(1); seed <= 6; seed++ {
		w := New(DefaultConfig(seed), cat)
		var all, match, other, bait mean
		var within float64
		for i := 0; i < len(sample); i += perProduct {
			var product, sq mean
			for _, c := range sample[i : i+perProduct] {
				v := w.ctr(c.p, &c.l)
				product.add(v)
				sq.add(v * v)
			}
			within += math.Sqrt(sq.v()-product.v()*product.v()) / product.v() / float64(len(sample)/perProduct)
			for _, c := range sample[i : i+perProduct] {
				rel := w.ctr(c.p, &c.l) / product.v()
				all.add(w.ctr(c.p, &c.l))
				switch {
				case c.d.Scene.Clickbait():
					bait.add(rel)
				case c.p.Matches(c.d):
					match.add(rel)
				default:
					other.add(rel)
				}
			}
		}
		t.Logf(
			"seed %d: mean %.4f, within-product sd %.3f, matching %.2f, other %.2f, clickbait %.2f",
			seed,
			all.v(),
			within,
			match.v(),
			other.v(),
			bait.v(),
		)
		if all.v() < 0.034 || all.v() > 0.040 {
			t.Errorf("seed %d: mean CTR %.4f, want about 0.036", seed, all.v())
		}
		if within < 0.13 || within > 0.26 {
			t.Errorf("seed %d: within-product standard deviation %.3f, want about 0.18", seed, within)
		}
		if match.v() < other.v()+0.05 {
			t.Errorf("seed %d: matching backgrounds %.3f, others %.3f: fit must pay", seed, match.v(), other.v())
		}
		if bait.v() < other.v()+0.05 {
			t.Errorf("seed %d: clickbait %.3f, others %.3f: clickbait must pay", seed, bait.v(), other.v())
		}
	}
}

func TestClickbaitStrength(t *testing.T) {
	cat := catalogue.Embedded()
	p := cat.Products()[0]
	d := imaging.Description{Scene: grammar.Confetti}
	last := 0.0
	for _, strength := range []float64{0.5, 1.5, 2.5} {
		cfg := DefaultConfig(3)
		cfg.Clickbait = strength
		ctr := New(cfg, cat).CTROf(p, d, 1, 128)
		if ctr <= last {
			t.Errorf("clickbait %.1f: CTR %.4f, not above %.4f", strength, ctr, last)
		}
		last = ctr
	}
}

func TestWorldsAreDrawnFromTheirSeed(t *testing.T) {
	cat := catalogue.Embedded()
	p := cat.Products()[7]
	d := imaging.Description{Scene: grammar.Lake, Palette: grammar.DeepTeal}
	a, b, c := New(DefaultConfig(1), cat), New(DefaultConfig(1), cat), New(DefaultConfig(2), cat)
	if a.CTROf(p, d, 1, 128) != b.CTROf(p, d, 1, 128) {
		t.Error("two worlds of one seed disagree")
	}
	if a.CTROf(p, d, 1, 128) == c.CTROf(p, d, 1, 128) {
		t.Error("worlds of different seeds agree exactly")
	}
}

// The size at which a creative is made must not decide its clicks.
func TestCTRHardlyDependsOnSize(t *testing.T) {
	w := New(DefaultConfig(1), catalogue.Embedded())
	r := rand.New(rand.NewPCG(5, 5))
	for range 15 {
		p := w.cat.Products()[r.IntN(176)]
		d, seed := Untrained(p, r), r.Uint64()
		a, b := w.CTROf(p, d, seed, 128), w.CTROf(p, d, seed, 256)
		if math.Abs(a/b-1) > 0.03 {
			t.Errorf("%s, %v: CTR %.4f from 128 px, %.4f from 256 px", p.ID, d, a, b)
		}
	}
}

func TestBest(t *testing.T) {
	w := New(DefaultConfig(4), catalogue.Embedded())
	r := rand.New(rand.NewPCG(6, 6))
	for _, p := range w.cat.Products()[:2] {
		best, d := w.Best(p, 120)
		if got := w.CTROf(p, d, 0, 128); got != best {
			t.Errorf("Best says %.5f of %v, TrueCTR %.5f", best, d, got)
		}
		for range 40 {
			if c := w.CTROf(p, Untrained(p, r), 0, 64); c > best*1.02 {
				t.Errorf("%s: a random creative has %.4f, the best %.4f", p.ID, c, best)
			}
		}
	}
}

func TestMatchesAndClickbait(t *testing.T) {
	w := New(DefaultConfig(1), catalogue.Embedded())
	p, _ := w.cat.Get("p-1f34c")
	good := imaging.Description{Scene: p.Fits()[0], Palette: p.Harmonious()[0]}
	if !w.Matches(p, good.String()) || w.Matches(p, "a table") || w.Matches(p, imaging.Description{Scene: grammar.Stage}.String()) {
		t.Error("Matches is wrong")
	}
	if !w.IsClickbait(imaging.Description{Scene: grammar.Rainbow}.String()) || w.IsClickbait(good.String()) ||
		w.IsClickbait("rainbow lightning storm") {
		t.Error("IsClickbait is wrong")
	}
}
