package imaging

import "math/rand/v2"

// noiseSize is the side of the noise tile in texels; a power of two.
const noiseSize = 256

// noiseTile is fractal value noise (five octaves, base period 64 texels), tileable, mean 0, about -1..1.
// One table that every scene samples with its own offset and scale is ten times cheaper than hashing
// octaves per pixel.
var noiseTile = func() *[noiseSize * noiseSize]float32 {
	r := rand.New(rand.NewPCG(0x5ce9e, 0x7e47))
	var t [noiseSize * noiseSize]float32
	amp, total := float32(1), float32(0)
	for period := 64; period >= 4; period /= 2 {
		n := noiseSize / period
		lattice := make([]float32, n*n)
		for i := range lattice {
			lattice[i] = r.Float32()*2 - 1
		}
		for y := range noiseSize {
			fy := smooth(0, 1, float32(y%period)/float32(period))
			y0, y1 := y/period, (y/period+1)%n
			for x := range noiseSize {
				fx := smooth(0, 1, float32(x%period)/float32(period))
				x0, x1 := x/period, (x/period+1)%n
				a := lattice[y0*n+x0] + (lattice[y0*n+x1]-lattice[y0*n+x0])*fx
				b := lattice[y1*n+x0] + (lattice[y1*n+x1]-lattice[y1*n+x0])*fx
				t[y*noiseSize+x] += amp * (a + (b-a)*fy)
			}
		}
		total += amp
		amp *= 0.55
	}
	for i := range t {
		t[i] *= 1.6 / total
	}
	return &t
}()

// noise samples the tile at (x, y) in tile periods (1 = the whole tile), bilinear. Its finest octave has a
// period of 1/64 tile, so a scene that spans k tiles over the canvas has nothing finer than 1/(64 k) of it.
func noise(x, y float32) float32 {
	x, y = x*noiseSize, y*noiseSize
	fx, fy := floor(x), floor(y)
	tx, ty := x-fx, y-fy
	x0, y0 := int(fx)&(noiseSize-1), int(fy)&(noiseSize-1)*noiseSize
	x1, y1 := (x0+1)&(noiseSize-1), (y0+noiseSize)&(noiseSize*noiseSize-1)
	a := noiseTile[y0+x0] + (noiseTile[y0+x1]-noiseTile[y0+x0])*tx
	b := noiseTile[y1+x0] + (noiseTile[y1+x1]-noiseTile[y1+x0])*tx
	return a + (b-a)*ty
}
