package imaging

import (
	"image"
	"math"
)

// rgb is a colour in gamma space, 0..1; values beyond are clipped at the end only.
type rgb struct{ r, g, b float32 }

func (c rgb) mul(f float32) rgb { return rgb{c.r * f, c.g * f, c.b * f} }
func (c rgb) tint(t rgb) rgb    { return rgb{c.r * t.r, c.g * t.g, c.b * t.b} }
func (c rgb) add(o rgb) rgb     { return rgb{c.r + o.r, c.g + o.g, c.b + o.b} }

// mix goes from a (t=0) to b (t=1).
func mix(a, b rgb, t float32) rgb {
	return rgb{a.r + (b.r-a.r)*t, a.g + (b.g-a.g)*t, a.b + (b.b-a.b)*t}
}

func hex(v uint32) rgb {
	return rgb{float32(v>>16&255) / 255, float32(v>>8&255) / 255, float32(v&255) / 255}
}

// hsv is a colour from hue (turns), saturation and value.
func hsv(h, s, v float32) rgb {
	f := func(shift float32) float32 {
		t := h + shift
		t -= floor(t)
		return v * (1 - s + s*clamp(abs(t*6-3)-1, 0, 1))
	}
	return rgb{f(1), f(2.0 / 3), f(1.0 / 3)}
}

var (
	white = rgb{1, 1, 1}
	black = rgb{}
)

func clamp(v, lo, hi float32) float32 { return min(max(v, lo), hi) }
func abs(v float32) float32           { return math.Float32frombits(math.Float32bits(v) &^ (1 << 31)) }
func sqrt(v float32) float32          { return float32(math.Sqrt(float64(v))) }
func sin(v float32) float32           { return float32(math.Sin(float64(v))) }
func cos(v float32) float32           { return float32(math.Cos(float64(v))) }
func exp(v float32) float32           { return float32(math.Exp(float64(v))) }
func atan2(y, x float32) float32      { return float32(math.Atan2(float64(y), float64(x))) }

func floor(v float32) float32 {
	i := float32(int32(v))
	if v < i {
		i--
	}
	return i
}

// smooth rises from 0 at a to 1 at b without corners; a may be larger than b.
func smooth(a, b, v float32) float32 {
	t := clamp((v-a)/(b-a), 0, 1)
	return t * t * (3 - 2*t)
}

// canvas is a square picture under construction. One unit is the whole side.
type canvas struct {
	px   int
	unit float32 // one pixel in canvas units
	pix  []rgb
}

func newCanvas(px int) *canvas {
	return &canvas{px: px, unit: 1 / float32(px), pix: make([]rgb, px*px)}
}

// span turns an interval of canvas units into pixel indices, both clipped.
func (c *canvas) span(lo, hi float32) (int, int) {
	return int(clamp(floor(lo*float32(c.px)), 0, float32(c.px))), int(clamp(floor(hi*float32(c.px))+1, 0, float32(c.px)))
}

// shade sets every pixel of the rows y0..y1 (canvas units) to f at its centre.
func (c *canvas) shade(y0, y1 float32, f func(x, y float32) rgb) {
	a, b := int(clamp(y0*float32(c.px)+0.5, 0, float32(c.px))), int(clamp(y1*float32(c.px)+0.5, 0, float32(c.px)))
	for j := a; j < b; j++ {
		y := (float32(j) + 0.5) * c.unit
		row := c.pix[j*c.px : (j+1)*c.px]
		for i := range row {
			row[i] = f((float32(i)+0.5)*c.unit, y)
		}
	}
}

// gradient fills the rows y0..y1 from colour a to colour b.
func (c *canvas) gradient(y0, y1 float32, a, b rgb) {
	lo, hi := int(clamp(y0*float32(c.px)+0.5, 0, float32(c.px))), int(clamp(y1*float32(c.px)+0.5, 0, float32(c.px)))
	for j := lo; j < hi; j++ {
		v := mix(a, b, clamp(((float32(j)+0.5)*c.unit-y0)/(y1-y0), 0, 1))
		row := c.pix[j*c.px : (j+1)*c.px]
		for i := range row {
			row[i] = v
		}
	}
}

// stamp lays colour col with opacity a over the inside (negative side) of a signed distance function,
// whose box is given. blur is the half width of the edge in canvas units; never less than half a pixel,
// which is the anti-aliasing.
func (c *canvas) stamp(x0, y0, x1, y1, blur, a float32, col rgb, sdf func(x, y float32) float32) {
	blur = max(blur, 0.6*c.unit)
	i0, i1 := c.span(x0-blur, x1+blur)
	j0, j1 := c.span(y0-blur, y1+blur)
	inv := 1 / (2 * blur)
	for j := j0; j < j1; j++ {
		y := (float32(j) + 0.5) * c.unit
		row := c.pix[j*c.px : (j+1)*c.px]
		for i := i0; i < i1; i++ {
			t := 0.5 - sdf((float32(i)+0.5)*c.unit, y)*inv
			if t <= 0 {
				continue
			}
			if t >= 1 {
				t = 1
			} else {
				t = t * t * (3 - 2*t)
			}
			row[i] = mix(row[i], col, t*a)
		}
	}
}

// paint is stamp with a colour that depends on the place.
func (c *canvas) paint(x0, y0, x1, y1, blur, a float32, sdf func(x, y float32) float32, col func(x, y float32) rgb) {
	blur = max(blur, 0.6*c.unit)
	i0, i1 := c.span(x0-blur, x1+blur)
	j0, j1 := c.span(y0-blur, y1+blur)
	inv := 1 / (2 * blur)
	for j := j0; j < j1; j++ {
		y := (float32(j) + 0.5) * c.unit
		row := c.pix[j*c.px : (j+1)*c.px]
		for i := i0; i < i1; i++ {
			x := (float32(i) + 0.5) * c.unit
			t := clamp(0.5-sdf(x, y)*inv, 0, 1)
			if t > 0 {
				row[i] = mix(row[i], col(x, y), t*t*(3-2*t)*a)
			}
		}
	}
}

func boxSDF(x0, y0, x1, y1, r float32) func(x, y float32) float32 {
	mx, my, hx, hy := (x0+x1)/2, (y0+y1)/2, (x1-x0)/2-r, (y1-y0)/2-r
	return func(x, y float32) float32 {
		dx, dy := abs(x-mx)-hx, abs(y-my)-hy
		if dx > 0 && dy > 0 {
			return sqrt(dx*dx+dy*dy) - r
		}
		return max(dx, dy) - r
	}
}

func (c *canvas) rect(x0, y0, x1, y1 float32, col rgb, a, blur float32) {
	c.stamp(x0, y0, x1, y1, blur, a, col, boxSDF(x0, y0, x1, y1, 0))
}

func (c *canvas) rrect(x0, y0, x1, y1, r float32, col rgb, a, blur float32) {
	c.stamp(x0, y0, x1, y1, blur, a, col, boxSDF(x0, y0, x1, y1, r))
}

func ellipseSDF(cx, cy, rx, ry float32) func(x, y float32) float32 {
	k := min(rx, ry)
	ix, iy := 1/rx, 1/ry
	return func(x, y float32) float32 {
		dx, dy := (x-cx)*ix, (y-cy)*iy
		return (sqrt(dx*dx+dy*dy) - 1) * k
	}
}

func (c *canvas) ellipse(cx, cy, rx, ry float32, col rgb, a, blur float32) {
	c.stamp(cx-rx, cy-ry, cx+rx, cy+ry, blur, a, col, ellipseSDF(cx, cy, rx, ry))
}

// ellipseAt is an ellipse turned by an angle in radians.
func (c *canvas) ellipseAt(cx, cy, rx, ry, angle float32, col rgb, a, blur float32) {
	s, k := sin(angle), cos(angle)
	f := ellipseSDF(0, 0, rx, ry)
	r := max(rx, ry)
	c.stamp(cx-r, cy-r, cx+r, cy+r, blur, a, col, func(x, y float32) float32 {
		x, y = x-cx, y-cy
		return f(x*k+y*s, y*k-x*s)
	})
}

// line is a capsule from one point to another of half width w.
func (c *canvas) line(ax, ay, bx, by, w float32, col rgb, a, blur float32) {
	dx, dy := bx-ax, by-ay
	inv := 1 / (dx*dx + dy*dy + 1e-12)
	c.stamp(min(ax, bx)-w, min(ay, by)-w, max(ax, bx)+w, max(ay, by)+w, blur, a, col, func(x, y float32) float32 {
		px, py := x-ax, y-ay
		t := clamp((px*dx+py*dy)*inv, 0, 1)
		px, py = px-t*dx, py-t*dy
		return sqrt(px*px+py*py) - w
	})
}

// convexSDF is the distance to a convex polygon (exact inside and along edges; rounded off outside its
// corners, which at anti-aliasing widths cannot be seen). Points go round in either direction.
func convexSDF(p []float32) func(x, y float32) float32 {
	n := len(p) / 2
	type edge struct{ nx, ny, d float32 }
	edges := make([]edge, n)
	var area float32
	for i := range n {
		j := (i + 1) % n
		area += p[2*i]*p[2*j+1] - p[2*j]*p[2*i+1]
	}
	for i := range n {
		j := (i + 1) % n
		nx, ny := p[2*j+1]-p[2*i+1], p[2*i]-p[2*j]
		l := sqrt(nx*nx+ny*ny) + 1e-9
		if area < 0 {
			l = -l
		}
		nx, ny = nx/l, ny/l
		edges[i] = edge{nx, ny, nx*p[2*i] + ny*p[2*i+1]}
	}
	return func(x, y float32) float32 {
		d := float32(-1e9)
		for _, e := range edges {
			d = max(d, e.nx*x+e.ny*y-e.d)
		}
		return d
	}
}

func bounds(p []float32) (x0, y0, x1, y1 float32) {
	x0, y0, x1, y1 = p[0], p[1], p[0], p[1]
	for i := 0; i < len(p); i += 2 {
		x0, x1, y0, y1 = min(x0, p[i]), max(x1, p[i]), min(y0, p[i+1]), max(y1, p[i+1])
	}
	return
}

// poly is a convex polygon; p holds x,y pairs.
func (c *canvas) poly(col rgb, a, blur float32, p ...float32) {
	x0, y0, x1, y1 := bounds(p)
	c.stamp(x0, y0, x1, y1, blur, a, col, convexSDF(p))
}

// glow adds light that falls off from a centre: col at the centre, nothing at distance r.
func (c *canvas) glow(cx, cy, rx, ry float32, col rgb) {
	i0, i1 := c.span(cx-rx, cx+rx)
	j0, j1 := c.span(cy-ry, cy+ry)
	ix, iy := 1/rx, 1/ry
	for j := j0; j < j1; j++ {
		dy := ((float32(j)+0.5)*c.unit - cy) * iy
		row := c.pix[j*c.px : (j+1)*c.px]
		for i := i0; i < i1; i++ {
			dx := ((float32(i)+0.5)*c.unit - cx) * ix
			if t := 1 - dx*dx - dy*dy; t > 0 {
				row[i] = row[i].add(col.mul(t * t * t))
			}
		}
	}
}

// band is the share of a pixel of width fw (in the units of u) at u that lies in stripes of width w
// around every integer: an anti-aliased periodic line that fades to its mean where lines get too dense.
func band(u, w, fw float32) float32 {
	fw = max(fw, 1e-6)
	d := abs(u - floor(u+0.5))
	cov := clamp((w/2-d)/fw+0.5, 0, 1) * min(1, w/fw)
	return cov + (w-cov)*clamp(2*fw-0.6, 0, 1)
}

// image quantises to 8 bits, opaque.
func (c *canvas) image() *image.NRGBA {
	im := image.NewNRGBA(image.Rect(0, 0, c.px, c.px))
	for i, v := range c.pix {
		o := im.Pix[4*i : 4*i+4 : 4*i+4]
		o[0], o[1], o[2], o[3] = quantise(v.r), quantise(v.g), quantise(v.b), 255
	}
	return im
}

func quantise(v float32) uint8 { return uint8(clamp(v*255+0.5, 0, 255)) }
