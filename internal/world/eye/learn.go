package eye

import (
	"math"
	"math/rand/v2"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging"
	"ctrloop/internal/imaging/grammar"
)

// Sample is one labelled creative.
type Sample struct {
	Scene grammar.Scene
	f     [numFeatures]float32
}

// Draw renders n random creatives as the eye will meet them, all words uniform.
func Draw(products []*catalogue.Product, n int, seed uint64) []Sample {
	r := rand.New(rand.NewPCG(seed, 0xe7e))
	out := make([]Sample, n)
	for i := range out {
		p := products[r.IntN(len(products))]
		d := grammar.FromIndex(r.IntN(grammar.NumDescriptions))
		im := imaging.RenderDescription(p, d, r.Uint64(), 128)
		out[i].Scene = d.Scene
		features(imaging.View(im, Px), imaging.Alpha(p, Px), &out[i].f)
	}
	return out
}

// Accuracy is the share of samples whose scene the eye names.
func (e *Eye) Accuracy(samples []Sample) float64 {
	right := 0
	for i := range samples {
		p := e.softmax(&samples[i].f)
		best := 0
		for s := range p {
			if p[s] > p[best] {
				best = s
			}
		}
		if grammar.Scene(best) == samples[i].Scene {
			right++
		}
	}
	return float64(right) / float64(len(samples))
}

// Learn fits the regression by Adam (Kingma and Ba 2015) on mini-batches of 64 with weight decay, over
// features scaled to unit spread; the scale is folded into the weights.
func Learn(samples []Sample, epochs int, seed uint64) *Eye {
	r := rand.New(rand.NewPCG(seed, 0x1ea))
	scale := spreads(samples)
	type param struct{ w, m, v, g float32 }
	params := make([][numFeatures + 1]param, grammar.NumScenes)
	order := r.Perm(len(samples))
	step := 0
	const batch = 64
	for epoch := range epochs {
		r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		lr := 4e-3 * float32(0.5+0.5*math.Cos(math.Pi*float64(epoch)/float64(epochs)))
		for at := 0; at+batch <= len(order); at += batch {
			for _, k := range order[at : at+batch] {
				x := samples[k].f
				for j := range x {
					x[j] *= scale[j]
				}
				var z [grammar.NumScenes]float64
				top := math.Inf(-1)
				for s := range params {
					v := params[s][numFeatures].w
					for j, xj := range x {
						v += xj * params[s][j].w
					}
					z[s] = float64(v)
					top = max(top, z[s])
				}
				var sum float64
				for s := range z {
					z[s] = math.Exp(z[s] - top)
					sum += z[s]
				}
				for s := range params {
					d := float32(z[s] / sum)
					if grammar.Scene(s) == samples[k].Scene {
						d--
					}
					for j, xj := range x {
						params[s][j].g += d * xj
					}
					params[s][numFeatures].g += d
				}
			}
			step++
			c1, c2 := 1-float32(math.Pow(0.9, float64(step))), 1-float32(math.Pow(0.999, float64(step)))
			for s := range params {
				for j := range params[s] {
					p := &params[s][j]
					g := p.g / batch
					p.g = 0
					p.m += 0.1 * (g - p.m)
					p.v += 0.001 * (g*g - p.v)
					p.w -= lr * (p.m/c1/(float32(math.Sqrt(float64(p.v/c2)))+1e-8) + 0.01*p.w)
				}
			}
		}
	}
	e := new(Eye)
	for s := range params {
		for j := range numFeatures {
			e.w[s][j] = params[s][j].w * scale[j]
		}
		e.w[s][numFeatures] = params[s][numFeatures].w
	}
	return e
}

// spreads is one over the root mean square of each feature.
func spreads(samples []Sample) (scale [numFeatures]float32) {
	for i := range samples {
		for j, v := range samples[i].f {
			scale[j] += v * v
		}
	}
	for j := range scale {
		scale[j] = 1 / (float32(math.Sqrt(float64(scale[j]/float32(len(samples))))) + 0.05)
	}
	return scale
}
