package imaging

import (
	"image"
	"math/rand/v2"

	"ctrloop/internal/imaging/grammar"
)

// Description is a background in words; see package grammar.
type Description = grammar.Description

// Vocabulary is the grammar as data; see package grammar.
type Vocabulary = grammar.Vocabulary

// Parse reads a description; see grammar.Parse.
func Parse(text string) (d Description, unknown []string, ok bool) { return grammar.Parse(text) }

// Grammar returns the whole vocabulary.
func Grammar() Vocabulary { return grammar.Grammar() }

// MaxPx bounds the side of a picture in pixels: 2048 is 48 MiB while drawing.
const MaxPx = 2048

// tones are the colours that a palette gives to every scene.
type tones struct {
	base  rgb // the palette's key colour
	wall  rgb
	floor rgb
	dark  rgb
	deep  rgb
	lite  rgb
	pale  rgb
}

func tonesOf(p grammar.Palette) tones {
	v := p.RGB()
	c := rgb{float32(v[0]) / 255, float32(v[1]) / 255, float32(v[2]) / 255}
	return tones{
		base: c, wall: c, floor: c.mul(0.78), dark: c.mul(0.52), deep: c.mul(0.27),
		lite: mix(c, white, 0.5), pale: mix(c, white, 0.72),
	}
}

// material is a natural colour pulled towards the palette: pictures keep the palette's mood without
// painting wood blue outright.
func (t tones) material(natural rgb, pull float32) rgb { return mix(natural, t.base, pull) }

// painter is what a scene gets to work with.
type painter struct {
	*canvas
	tones
	r *rand.Rand // drawn in the same order at every size
}

// f draws uniformly from lo..hi.
func (p *painter) f(lo, hi float32) float32 { return lo + (hi-lo)*p.r.Float32() }

// Background draws a description, px pixels square. The same description and seed give the same picture
// at any size. px must be in 8..MaxPx.
func Background(d Description, seed uint64, px int) *image.NRGBA {
	px = min(max(px, 8), MaxPx)
	p := painter{canvas: newCanvas(px), tones: tonesOf(d.Palette), r: rand.New(rand.NewPCG(uint64(d.Index())*0x9e3779b97f4a7c15+1, seed))}
	scenes[d.Scene](&p)
	props[d.Prop](&p)
	lights[d.Light](p.canvas)
	return p.canvas.image()
}

// scenes is the table of drawing programs, in the order of the grammar.
var scenes = [grammar.NumScenes]func(*painter){
	grammar.OakTable: oakTable, grammar.Marble: marble, grammar.Studio: studio, grammar.Beach: beach, grammar.Forest: forest,
	grammar.Street: street, grammar.Velvet: velvet, grammar.Desk: desk, grammar.SportsHall: sportsHall, grammar.Workshop: workshop,
	grammar.LivingRoom: livingRoom, grammar.Lake: lake, grammar.Stage: stage, grammar.Playroom: playroom,
	grammar.Confetti: confetti, grammar.Sunburst: sunburst, grammar.Glitter: glitter, grammar.Rainbow: rainbow,
}
