// Package eye is what the world sees with: it reads from the pixels of a finished creative which of the
// grammar's scenes is behind the product. It is a multinomial logistic regression over hand-made structure
// (gradient orientations on a grid, light and colour layout), trained on its own renders with its own
// seeds, and shares no code, data or weights with any model of the project: a model that learns must not
// be graded by itself.
package eye

//go:generate go run ./train -out weights.bin

import (
	_ "embed"
	"encoding/binary"
	"fmt"
	"math"
	"sync"

	"ctrloop/internal/imaging/grammar"
)

// Px is the side of the view that the eye looks at, in pixels.
const Px = 64

const (
	grid        = 8         // cells per side
	cell        = Px / grid // pixels per cell
	bins        = 8         // unsigned gradient orientations
	perCell     = bins + 4
	global      = 12 + 6
	numFeatures = grid*grid*perCell + global
	// covered is the product's opacity, 0..255, from which a pixel is not background.
	covered = 24
)

// Eye is a trained reader. It is immutable.
type Eye struct {
	w [grammar.NumScenes][numFeatures + 1]float32 // last: bias
}

//go:embed weights.bin
var weights []byte

// Default is the eye that ships with the program.
var Default = sync.OnceValue(func() *Eye {
	e, err := decode(weights)
	if err != nil {
		panic(err)
	}
	return e
})

func decode(b []byte) (*Eye, error) {
	e := new(Eye)
	if want := 4 * grammar.NumScenes * (numFeatures + 1); len(b) != want {
		return nil, fmt.Errorf("eye: weights.bin has %d bytes, want %d: run go generate ./internal/world/eye", len(b), want)
	}
	for s := range e.w {
		for k := range e.w[s] {
			e.w[s][k] = math.Float32frombits(binary.LittleEndian.Uint32(b))
			b = b[4:]
		}
	}
	return e, nil
}

// Encode is the form of weights.bin: float32, little-endian, scene by scene, the bias last.
func (e *Eye) Encode() []byte {
	b := make([]byte, 0, 4*grammar.NumScenes*(numFeatures+1))
	for s := range e.w {
		for _, v := range e.w[s] {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		}
	}
	return b
}

// Scenes is the probability of each scene. rgb is the 64 px view of the creative, three bytes a pixel;
// alpha is the product's coverage of the same pixels.
func (e *Eye) Scenes(rgb, alpha []uint8) [grammar.NumScenes]float64 {
	var f [numFeatures]float32
	features(rgb, alpha, &f)
	return e.softmax(&f)
}

func (e *Eye) softmax(f *[numFeatures]float32) [grammar.NumScenes]float64 {
	var p [grammar.NumScenes]float64
	top := math.Inf(-1)
	for s := range p {
		var v float32
		for k, x := range f {
			v += x * e.w[s][k]
		}
		p[s] = float64(v + e.w[s][numFeatures])
		top = max(top, p[s])
	}
	var sum float64
	for s := range p {
		p[s] = math.Exp(p[s] - top)
		sum += p[s]
	}
	for s := range p {
		p[s] /= sum
	}
	return p
}

// features describes the background pixels only. Everything is relative to the background's own mean
// and spread, so that palette and light matter little and structure much.
func features(rgb, alpha []uint8, out *[numFeatures]float32) {
	var lum, sat [Px * Px]float32
	var ca, cb [Px * Px]float32 // opponent colours
	var n, sl, sll, ss, sa, sb float32
	for i := range lum {
		r, g, b := float32(rgb[3*i])/255, float32(rgb[3*i+1])/255, float32(rgb[3*i+2])/255
		lum[i], sat[i] = 0.299*r+0.587*g+0.114*b, max(r, g, b)-min(r, g, b)
		ca[i], cb[i] = r-(g+b)/2, 0.866*(g-b)
		if alpha[i] < covered {
			n, sl, sll, ss, sa, sb = n+1, sl+lum[i], sll+lum[i]*lum[i], ss+sat[i], sa+ca[i], sb+cb[i]
		}
	}
	n = max(n, 1)
	mean, ms, ma, mb := sl/n, ss/n, sa/n, sb/n
	spread := float32(math.Sqrt(float64(max(sll/n-mean*mean, 1e-5))))
	var cells [grid * grid]struct{ n, l, s, c, hue float32 }
	var hue [12]float32
	for i := range lum {
		if alpha[i] >= covered {
			continue
		}
		c := &cells[i/Px/cell*grid+i%Px/cell]
		da, db := ca[i]-ma, cb[i]-mb
		dev := float32(math.Sqrt(float64(da*da + db*db)))
		c.n, c.l, c.s, c.c = c.n+1, c.l+lum[i], c.s+sat[i], c.c+dev
		if sat[i] > 0.05 {
			h := int((math.Atan2(float64(cb[i]), float64(ca[i]))/(2*math.Pi)+1)*12+0.5) % 12
			hue[h] += sat[i] / n
		}
	}
	energy := gradients(&lum, alpha, out)
	for k := range cells {
		c, o := &cells[k], out[k*perCell+bins:]
		if c.n < 4 {
			continue
		}
		o[0], o[1], o[2] = (c.l/c.n-mean)/(spread+0.02), (c.s/c.n-ms)/(ms+0.1), c.c/c.n*4
		o[3] = 1
	}
	g := out[grid*grid*perCell:]
	var most float32
	for k, h := range hue { // order by strength does not matter: how many hues and how strong
		g[k] = float32(math.Sqrt(float64(h)))
		most = max(most, h)
	}
	g[12], g[13], g[14], g[15], g[16], g[17] = energy*8, ms*2, spread*4, mean, (ss/n-most)*3, n/(Px*Px)
}

// gradients fills the orientation histograms and returns the mean gradient of the background.
func gradients(lum *[Px * Px]float32, alpha []uint8, out *[numFeatures]float32) float32 {
	var total, count float32
	var n [grid * grid]float32
	for y := 1; y < Px-1; y++ {
		for x := 1; x < Px-1; x++ {
			i := y*Px + x
			if alpha[i] >= covered || alpha[i-1] >= covered || alpha[i+1] >= covered || alpha[i-Px] >= covered || alpha[i+Px] >= covered {
				continue
			}
			dx, dy := lum[i+1]-lum[i-1], lum[i+Px]-lum[i-Px]
			m := float32(math.Sqrt(float64(dx*dx + dy*dy)))
			k := y/cell*grid + x/cell
			n[k]++
			count++
			total += m
			if m < 1e-3 {
				continue
			}
			t := float32(math.Atan2(float64(dy), float64(dx))/math.Pi+1) * bins
			lo := int(t)
			f := t - float32(lo)
			h := out[k*perCell : k*perCell+bins]
			h[lo%bins] += m * (1 - f)
			h[(lo+1)%bins] += m * f
		}
	}
	energy := total / max(count, 1)
	for k := range n {
		h := out[k*perCell : k*perCell+bins]
		for b := range h {
			if n[k] > 0 {
				h[b] = float32(math.Sqrt(float64(h[b] / n[k] / (energy + 0.01))))
			}
		}
	}
	return energy
}
