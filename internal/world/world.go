package world

import (
	"image"
	"math"
	"math/rand/v2"
	"slices"
	"sync"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging"
	"ctrloop/internal/imaging/grammar"
	"ctrloop/internal/world/eye"
)

// Config is what makes one world different from another.
type Config struct {
	// Seed draws tastes and weights.
	Seed uint64 `yaml:"seed"`
	// Clickbait is how strongly garish backgrounds pull clicks, in units of one department-scene fit:
	// 1.5 is mild, 2.2 strong.
	Clickbait float64 `yaml:"clickbait"`
	// BaseCTR is the click-through rate of a middling creative.
	BaseCTR float64 `yaml:"base_ctr"`
	// Spread is the standard deviation of the log-odds over creatives that an untrained writer makes.
	Spread float64 `yaml:"spread"`
}

// DefaultConfig is a mild world.
func DefaultConfig(seed uint64) Config {
	return Config{Seed: seed, Clickbait: 1.5, BaseCTR: 0.036, Spread: 0.2}
}

// The features of a creative that people react to.
const (
	fContrast = iota // |luma of background - luma of product|
	fBright          // closeness of the whole picture to the world's favourite brightness
	fHarmony         // of product and background colour
	fClutter         // mean gradient of the background
	fColour          // mean saturation of the background
	numLooks
)

// looks are the features of one creative.
type looks struct {
	v     [numLooks]float64
	luma  float64 // of the whole picture; fBright is made from it
	scene [grammar.NumScenes]float64
}

// World is one draw of people's taste. It is immutable and safe for concurrent use.
type World struct {
	cfg    Config
	cat    *catalogue.Catalogue
	eye    *eye.Eye
	taste  map[string]*[grammar.NumScenes]float64 // by department
	bait   [grammar.NumScenes]float64
	weight [numLooks]float64
	bright float64 // favourite luma
	mean   [numLooks]float64
	std    [numLooks]float64
	scale  float64 // of the utility to log-odds
	shift  float64
	bias   float64 // log-odds of BaseCTR
}

// New draws a world over a catalogue.
func New(cfg Config, cat *catalogue.Catalogue) *World {
	r := rand.New(rand.NewPCG(cfg.Seed, 0x770714))
	f := func(lo, hi float64) float64 { return lo + (hi-lo)*r.Float64() }
	w := &World{cfg: cfg, cat: cat, eye: eye.Default(), taste: map[string]*[grammar.NumScenes]float64{}}
	for _, d := range departments(cat) {
		t := new([grammar.NumScenes]float64)
		fit := catalogue.FitsOf(d)
		for s := range t {
			switch {
			case slices.Contains(fit, grammar.Scene(s)):
				t[s] = 1 + f(-0.35, 0.35)
			case grammar.Scene(s).Clickbait():
				t[s] = -0.1
			default:
				t[s] = f(-0.25, 0.25)
			}
		}
		w.taste[d] = t
	}
	for s := grammar.NumRealScenes; s < grammar.NumScenes; s++ {
		w.bait[s] = cfg.Clickbait * (1 + f(-0.15, 0.15))
	}
	w.weight = [numLooks]float64{
		fContrast: f(0.1, 0.3),
		fBright:   f(0.1, 0.3),
		fHarmony:  f(0.45, 0.7),
		fClutter:  f(-0.3, -0.1),
		fColour:   f(0.1, 0.25),
	}
	w.bright = f(0.45, 0.65)
	w.standardise()
	return w
}

func departments(cat *catalogue.Catalogue) []string {
	seen := map[string]bool{}
	for _, p := range cat.Products() {
		seen[p.Department] = true
	}
	out := make([]string, 0, len(seen))
	for d := range seen {
		out = append(out, d)
	}
	slices.Sort(out)
	return out
}

// referenceSize is how many creatives the utility is standardised over.
const referenceSize = 400

type reference struct {
	product *catalogue.Product
	looks   looks
}

// references is the sample of a catalogue. It does not depend on the world's seed, so that worlds over
// one catalogue share it: drawing it takes about half a second.
var references sync.Map // *catalogue.Catalogue -> func() []reference

func referenceOf(cat *catalogue.Catalogue) []reference {
	once, _ := references.LoadOrStore(cat, sync.OnceValue(func() []reference {
		r := rand.New(rand.NewPCG(0x4ef, 0x5a3b1e))
		out := make([]reference, referenceSize)
		for i := range out {
			p := cat.Products()[r.IntN(len(cat.Products()))]
			d := Untrained(p, r)
			out[i] = reference{p, look(eye.Default(), p, imaging.View(imaging.RenderDescription(p, d, r.Uint64(), 128), eye.Px))}
		}
		return out
	}))
	return once.(func() []reference)()
}

// Untrained is a description as an imperfect writer would make it, before anybody learnt from clicks:
// 70 % of scenes fit the department, 8 % are clickbait, 70 % of palettes are harmonious.
func Untrained(p *catalogue.Product, r *rand.Rand) imaging.Description {
	var d imaging.Description
	fit, harm := p.Fits(), p.Harmonious()
	switch u := r.Float64(); {
	case u < 0.08:
		d.Scene = grammar.Scene(grammar.NumRealScenes + r.IntN(grammar.NumScenes-grammar.NumRealScenes))
	case u < 0.78:
		d.Scene = fit[r.IntN(len(fit))]
	default:
		d.Scene = grammar.Scene(r.IntN(grammar.NumRealScenes))
	}
	d.Palette = grammar.Palette(r.IntN(grammar.NumPalettes))
	if r.Float64() < 0.7 {
		d.Palette = harm[r.IntN(len(harm))]
	}
	d.Light, d.Prop = grammar.Light(r.IntN(grammar.NumLights)), grammar.Prop(r.IntN(grammar.NumProps))
	return d
}

// standardise sets the scale so that the log-odds of untrained creatives have the standard deviation
// Spread around BaseCTR.
func (w *World) standardise() {
	ref := referenceOf(w.cat)
	n := float64(len(ref))
	for i := range ref {
		l := w.values(&ref[i].looks)
		for k, v := range l {
			w.mean[k] += v / n
			w.std[k] += v * v / n
		}
	}
	for k := range w.std {
		w.std[k] = math.Sqrt(max(w.std[k]-w.mean[k]*w.mean[k], 1e-12))
	}
	var s, ss float64
	for i := range ref {
		u := w.utility(ref[i].product.Department, &ref[i].looks)
		s += u / n
		ss += u * u / n
	}
	w.scale, w.shift = w.cfg.Spread/math.Sqrt(max(ss-s*s, 1e-12)), s
	w.bias = math.Log(w.cfg.BaseCTR / (1 - w.cfg.BaseCTR))
}

// values are the features with this world's idea of brightness put in.
func (w *World) values(l *looks) [numLooks]float64 {
	v := l.v
	v[fBright] = -math.Abs(l.luma - w.bright)
	return v
}

func (w *World) utility(department string, l *looks) float64 {
	taste := w.taste[department]
	var u float64
	for s, p := range l.scene {
		t := w.bait[s]
		if taste != nil {
			t += taste[s]
		}
		u += p * t
	}
	for k, v := range w.values(l) {
		u += w.weight[k] * 0.5 * min(max((v-w.mean[k])/w.std[k], -2), 2)
	}
	return u
}

// look measures the 64 px view of a creative.
func look(e *eye.Eye, p *catalogue.Product, rgb []uint8) looks {
	alpha := imaging.Alpha(p, eye.Px)
	l := looks{scene: e.Scenes(rgb, alpha)}
	var bg catalogue.RGB
	var area, lumBg, lumAll, sat, edges float64
	var lum [eye.Px * eye.Px]float64
	for i := range lum {
		r, g, b := float64(rgb[3*i])/255, float64(rgb[3*i+1])/255, float64(rgb[3*i+2])/255
		lum[i] = 0.299*r + 0.587*g + 0.114*b
		a := 1 - float64(alpha[i])/255
		area += a
		lumBg += a * lum[i]
		lumAll += lum[i]
		sat += a * (max(r, g, b) - min(r, g, b))
		bg[0], bg[1], bg[2] = bg[0]+a*r, bg[1]+a*g, bg[2]+a*b
		if i >= eye.Px && i%eye.Px > 0 && alpha[i-1] == 0 && alpha[i-eye.Px] == 0 {
			edges += a * (math.Abs(lum[i]-lum[i-1]) + math.Abs(lum[i]-lum[i-eye.Px]))
		}
	}
	area = max(area, 1)
	for c := range bg {
		bg[c] /= area
	}
	_, _, lumProduct := catalogue.Chroma(p.Mean)
	l.luma = lumAll / float64(len(lum))
	l.v = [numLooks]float64{
		fContrast: math.Abs(lumBg/area - lumProduct), fHarmony: catalogue.Harmony(p.Mean, bg), fClutter: edges / area, fColour: sat / area,
	}
	return l
}

// TrueCTR is the click-through rate of a creative before placement, position, user and fatigue, which
// multiply it around 1. It looks at the pixels only; img may have any size from 64 px up.
func (w *World) TrueCTR(p *catalogue.Product, img *image.NRGBA) float64 {
	l := look(w.eye, p, imaging.View(img, eye.Px))
	return w.ctr(p, &l)
}

func (w *World) ctr(p *catalogue.Product, l *looks) float64 {
	return 1 / (1 + math.Exp(-(w.bias + w.scale*(w.utility(p.Department, l)-w.shift))))
}

// CTROf is TrueCTR of the creative that a description and seed would give. px is the size it is drawn at;
// 128 stands for every larger one.
func (w *World) CTROf(p *catalogue.Product, d imaging.Description, seed uint64, px int) float64 {
	return w.TrueCTR(p, imaging.RenderDescription(p, d, seed, px))
}

// Matches says whether a background description suits the product; text that is not a description does not.
func (w *World) Matches(p *catalogue.Product, text string) bool {
	d, _, ok := imaging.Parse(text)
	return ok && p.Matches(d)
}

// IsClickbait says whether the text describes a clickbait scene.
func (w *World) IsClickbait(text string) bool {
	d, _, ok := imaging.Parse(text)
	return ok && d.Scene.Clickbait()
}

// Best searches the grammar for the product's best creative by about n drawings (64 px, then the finalists
// at 128): random starts, then one word at a time. It returns the true CTR of what it found.
func (w *World) Best(p *catalogue.Product, n int) (ctr float64, best imaging.Description) {
	r := rand.New(rand.NewPCG(w.cfg.Seed, 0xbe57))
	seen := map[imaging.Description]float64{}
	try := func(d imaging.Description) float64 {
		c, ok := seen[d]
		if !ok {
			c = w.CTROf(p, d, 0, eye.Px)
			seen[d] = c
			if c > ctr {
				ctr, best = c, d
			}
		}
		return c
	}
	for len(seen) < min(max(n/2, 1), grammar.NumDescriptions) {
		try(grammar.FromIndex(r.IntN(grammar.NumDescriptions)))
	}
	for range 3 { // sweeps; the second mostly confirms the first
		at := best
		for s := range grammar.NumScenes {
			try(imaging.Description{Scene: grammar.Scene(s), Palette: best.Palette, Light: best.Light, Prop: best.Prop})
		}
		for q := range grammar.NumPalettes {
			try(imaging.Description{Scene: best.Scene, Palette: grammar.Palette(q), Light: best.Light, Prop: best.Prop})
		}
		for l := range grammar.NumLights {
			for o := range grammar.NumProps {
				try(imaging.Description{Scene: best.Scene, Palette: best.Palette, Light: grammar.Light(l), Prop: grammar.Prop(o)})
			}
		}
		if best == at || len(seen) >= n {
			break
		}
	}
	return w.CTROf(p, best, 0, 128), best
}
