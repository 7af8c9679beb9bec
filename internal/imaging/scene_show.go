package imaging

func sportsHall(p *painter) {
	h := p.f(0.4, 0.45)
	// Back wall: a lighter band of windows, a padded stripe below.
	p.gradient(0, h, mix(p.pale, p.base, 0.35), p.wall)
	p.rect(-0.1, -0.1, 1.1, 0.055, p.deep, 1, 0.003)
	for i := range 7 {
		x := 0.02 + float32(i)*0.142
		p.rect(x, 0.085, x+0.115, 0.19, mix(hex(0xf3f8fb), p.pale, 0.25), 1, 0.002)
		p.rect(x+0.054, 0.085, x+0.061, 0.19, p.floor, 1, 0.002)
		p.rect(x-0.005, 0.012, x+0.105, 0.026, hex(0xfffbe6), 1, 0.004) // lamps
	}
	p.rect(-0.1, h-0.12, 1.1, h, mix(p.dark, p.base, 0.25), 1, 0.002)
	for i := range 10 {
		x := float32(i)*0.105 + 0.02
		p.line(x, h-0.12, x, h, 0.002, p.deep, 0.6, 0.002)
	}
	// Basket, left or right.
	bx := p.f(0.13, 0.17)
	if p.r.IntN(2) == 0 {
		bx = 1 - bx
	}
	p.rect(bx-0.11, 0.1, bx+0.11, 0.265, white, 1, 0.002)
	p.rect(bx-0.045, 0.165, bx+0.045, 0.24, hex(0xd23c2f), 1, 0.002)
	p.rect(bx-0.034, 0.176, bx+0.034, 0.229, white, 1, 0.002)
	p.ellipse(bx, 0.275, 0.055, 0.013, hex(0xe8622c), 1, 0.002)
	for i := range 5 {
		x := bx - 0.046 + 0.023*float32(i)
		p.line(x, 0.285, bx+(x-bx)*0.55, 0.345, 0.0025, white, 0.9, 0.001)
	}
	// Polished floor with court lines; lamps mirror in it.
	wood := p.material(hex(0xcf9450), 0.55)
	board := p.planks(h, 13, wood, 0.02)
	p.shade(h, 1, func(x, y float32) rgb {
		c := board(x, y)
		t := (y - h) / (1 - h)
		gl := exp(-((x-0.5)*(x-0.5))*5) * (1 - t) * 0.3
		return mix(c, white, gl)
	})
	p.gradientOver(h, h+0.07, mix(p.dark, p.base, 0.3), 0.45, 0)
	ln := hex(0xfbfaf5)
	p.line(-0.1, h+0.05, 1.1, h+0.05, 0.004, ln, 0.95, 0.001)
	p.line(0.28, h+0.05, -0.08, 1.05, 0.007, ln, 0.95, 0.001)
	p.line(0.72, h+0.05, 1.08, 1.05, 0.007, ln, 0.95, 0.001)
	p.line(-0.1, 0.94, 1.1, 0.94, 0.008, ln, 0.95, 0.001)
	ring := ellipseSDF(0.5, 0.93, 0.44, 0.19)
	p.stamp(0, 0.7, 1, 1, 0.002, 0.95, mix(hex(0xc73a32), p.base, 0.25), func(x, y float32) float32 { return abs(ring(x, y)+0.008) - 0.0085 })
}

func stage(p *painter) {
	h := p.f(0.74, 0.78)
	p.gradient(0, h, p.base.mul(0.13), p.base.mul(0.3))
	// Haze lit from behind.
	ox := p.f(0, 1)
	p.over(func(x, y float32) (rgb, float32) {
		if y > h {
			return rgb{}, 0
		}
		n := noise(x*0.5+ox, y*0.5)
		return p.base, 0.13 + 0.16*n*smooth(0.1, 0.7, y)
	})
	// Truss with lamps.
	steel := p.base.mul(0.5).add(rgb{0.06, 0.06, 0.07})
	for i := range 15 {
		x := float32(i)*0.075 - 0.03
		p.line(x, 0.03, x+0.0375, 0.085, 0.004, steel, 1, 0)
		p.line(x+0.0375, 0.085, x+0.075, 0.03, 0.004, steel, 1, 0)
	}
	p.line(-0.1, 0.03, 1.1, 0.03, 0.006, steel, 1, 0)
	p.line(-0.1, 0.085, 1.1, 0.085, 0.006, steel, 1, 0)
	hot := mix(p.pale, white, 0.3)
	n := 5
	for i := range n {
		x := (float32(i) + 0.5) / float32(n)
		to := x + (0.5-x)*p.f(-0.25, 0.8) + p.f(-0.06, 0.06)
		w := p.f(0.07, 0.1)
		beam := mix(p.base, p.lite, p.f(0.2, 0.9))
		y1 := h + 0.1
		p.paint(min(x, to-w), 0.1, max(x, to+w), y1, 0.016, 0.6, convexSDF([]float32{x - 0.012, 0.1, x + 0.012, 0.1, to + w, y1, to - w, y1}),
			func(_, y float32) rgb { return mix(beam, p.base.mul(0.35), 0.85*(y-0.1)/(y1-0.1)) })
		p.glow(x, 0.11, 0.1, 0.1, hot.mul(0.8))
		p.ellipse(x, 0.108, 0.024, 0.018, white, 1, 0.006)
		p.glow(to, y1, w*1.7, 0.06, beam.mul(0.55))
	}
	// Boards of the stage mirror the light; loudspeakers at the sides.
	p.gradientOver(h, 1, p.base.mul(0.16), 0.85, 0.8)
	p.over(func(x, y float32) (rgb, float32) {
		if y < h {
			return rgb{}, 0
		}
		z := 0.3 / (y - h + 0.06)
		return black, 0.4 * band((x-0.5)*z*4+8, 0.08, 4*z*p.unit)
	})
	p.glow(0.5, 0.9, 0.5, 0.13, p.lite.mul(0.5))
	p.rect(-0.1, h-0.004, 1.1, h+0.004, p.lite, 0.5, 0.004)
	for _, s := range []float32{-1, 1} {
		x := 0.5 + s*0.445
		p.rrect(x-0.058, h-0.31, x+0.058, h+0.06, 0.008, p.base.mul(0.12).add(rgb{0.05, 0.05, 0.055}), 1, 0)
		for k, r := range []float32{0.028, 0.043, 0.043} {
			y := h - 0.26 + 0.105*float32(k)
			p.ellipse(x, y, r, r, p.base.mul(0.4).add(rgb{0.08, 0.08, 0.09}), 1, 0)
			p.ellipse(x, y, r*0.82, r*0.82, p.base.mul(0.1), 1, 0.002)
			p.ellipse(x, y, r*0.32, r*0.32, p.base.mul(0.5).add(rgb{0.1, 0.1, 0.1}), 1, 0.004)
		}
	}
}

func confetti(p *painter) {
	cx, cy := p.f(0.45, 0.55), p.f(0.45, 0.55)
	bg := p.base.mul(0.5)
	p.shade(0, 1, func(x, y float32) rgb {
		d := sqrt((x-cx)*(x-cx) + (y-cy)*(y-cy))
		return mix(mix(p.base, white, 0.15), bg, smooth(0, 0.75, d))
	})
	// Neon rings behind a burst of paper.
	for i, r := range []float32{0.3, 0.41, 0.53} {
		col := hsv(p.f(0, 1), 1, 1)
		p.stamp(cx-r-0.04, cy-r-0.04, cx+r+0.04, cy+r+0.04, 0.035, 0.55, col, func(x, y float32) float32 {
			return abs(sqrt((x-cx)*(x-cx)+(y-cy)*(y-cy))-r) - 0.012
		})
		p.stamp(cx-r-0.01, cy-r-0.01, cx+r+0.01, cy+r+0.01, 0.004, 0.9, mix(col, white, 0.55), func(x, y float32) float32 {
			return abs(sqrt((x-cx)*(x-cx)+(y-cy)*(y-cy))-r) - 0.005 + float32(i)*0.001
		})
	}
	for range 170 {
		a, d := p.f(0, 6.283), 0.16+0.62*sqrt(p.f(0, 1))
		x, y := cx+cos(a)*d, cy+sin(a)*d
		s, t := p.f(0.014, 0.03), a+p.f(-0.6, 0.6)
		ux, uy := cos(t)*s, sin(t)*s
		vx, vy := -uy*0.55, ux*0.55
		p.poly(hsv(p.f(0, 1), 0.95, 1), 1, 0, x-ux-vx, y-uy-vy, x+ux-vx, y+uy-vy, x+ux+vx, y+uy+vy, x-ux+vx, y-uy+vy)
	}
}

func sunburst(p *painter) {
	cx, cy := p.f(0.46, 0.54), p.f(0.46, 0.54)
	ph := p.f(0, 0.5)
	red, yellow := mix(hex(0xe6121f), p.base, 0.18), mix(hex(0xffe100), p.base, 0.18)
	n := float32(14)
	p.shade(0, 1, func(x, y float32) rgb {
		dx, dy := x-cx, y-cy
		d := sqrt(dx*dx+dy*dy) + 1e-4
		u := (atan2(dy, dx)/6.2832+1)*n + ph
		s := band(u, 0.5, n*p.unit/(6.2832*d))
		c := mix(yellow, red, s)
		// halftone dots grow outwards
		du, dv := x*26-floor(x*26)-0.5, y*26-floor(y*26)-0.5
		dot := clamp((0.08+0.3*d-sqrt(du*du+dv*dv))/(26*p.unit)+0.5, 0, 1)
		return mix(c, mix(c, hex(0xff8a00), 0.8), dot*smooth(0.25, 0.6, d))
	})
	p.glow(cx, cy, 0.4, 0.4, rgb{0.5, 0.45, 0.2})
	// Price badges in opposite corners.
	for i, b := range [...][2]float32{{0.12, 0.13}, {0.88, 0.87}} {
		r := p.f(0.1, 0.115)
		turn := p.f(0, 1)
		p.stamp(b[0]-r-0.02, b[1]-r-0.02, b[0]+r+0.02, b[1]+r+0.02, 0, 1, []rgb{hex(0xffffff), hex(0x111111)}[i], func(x, y float32) float32 {
			dx, dy := x-b[0], y-b[1]
			a := atan2(dy, dx)*14/6.2832 + turn
			return sqrt(dx*dx+dy*dy) - r + 0.026*abs(2*(a-floor(a))-1)
		})
		col := []rgb{hex(0xe6121f), hex(0xffe100)}[i]
		p.line(b[0]-0.035, b[1]+0.04, b[0]+0.035, b[1]-0.04, 0.008, col, 1, 0)
		for _, s := range []float32{-1, 1} {
			ring := ellipseSDF(b[0]+s*0.036, b[1]+s*0.026, 0.02, 0.02)
			p.stamp(
				b[0]+s*0.036-0.03,
				b[1]+s*0.026-0.03,
				b[0]+s*0.036+0.03,
				b[1]+s*0.026+0.03,
				0,
				1,
				col,
				func(x, y float32) float32 { return abs(ring(x, y)) - 0.007 },
			)
		}
	}
}

func (p *painter) sparkle(x, y, s float32, col rgb) {
	p.glow(x, y, s*1.3, s*1.3, col.mul(0.6))
	p.stamp(x-s, y-s, x+s, y+s, 0, 1, mix(col, white, 0.5), func(u, v float32) float32 {
		u, v = abs(u-x)/s, abs(v-y)/s
		// astroid: four thin arms
		return (sqrt(u) + sqrt(v) - 1) * s * 0.5
	})
}

func glitter(p *painter) {
	cx, cy := p.f(0.45, 0.55), p.f(0.45, 0.55)
	in, out := mix(p.base, white, 0.5), p.base.mul(0.38)
	p.shade(0, 1, func(x, y float32) rgb {
		d := sqrt((x-cx)*(x-cx) + (y-cy)*(y-cy))
		return mix(in, out, smooth(0.05, 0.6, d))
	})
	cols := [...]rgb{hex(0xff3cc8), hex(0xfff05a), white, hex(0x7df9ff)}
	for range 520 { // dust thrown outwards
		a, d := p.f(0, 6.283), 0.1+0.68*p.f(0, 1)
		x, y, s := cx+cos(a)*d, cy+sin(a)*d, p.f(0.003, 0.009)
		p.line(x, y, x+cos(a)*s*3, y+sin(a)*s*3, s*0.6, cols[p.r.IntN(4)], 0.9, 0.001)
	}
	for i := range 46 {
		a, d := p.f(0, 6.283), 0.25+0.45*p.f(0, 1)
		p.sparkle(cx+cos(a)*d, cy+sin(a)*d, p.f(0.035, 0.06)*(1+float32(i%5/4)), cols[p.r.IntN(4)])
	}
}

func rainbow(p *painter) {
	off, ox := p.f(0, 1), p.f(0, 1)
	p.shade(0, 1, func(x, y float32) rgb {
		w := noise(x*0.4+ox, y*0.4)
		h := y*1.25 + 0.18*x + off + 0.05*w
		return hsv(h, 0.88, 1).mul(0.92 + 0.14*w)
	})
	// Storm clouds at the top.
	for range 22 {
		p.ellipse(
			p.f(-0.05, 1.05),
			p.f(-0.05, 0.06),
			p.f(0.07, 0.14),
			p.f(0.04, 0.07),
			mix(p.deep, hex(0x30304a), 0.6).mul(p.f(0.7, 1.4)),
			0.95,
			0.012,
		)
	}
	for _, x0 := range []float32{0.1, 0.43, 0.86} {
		x, y := x0+p.f(-0.05, 0.05), float32(0.05)
		pts := []float32{x, y}
		dir := float32(1)
		for y < 1.05 {
			x += dir * p.f(0.04, 0.1)
			y += p.f(0.09, 0.17)
			dir = -dir
			pts = append(pts, x, y)
		}
		for pass := range 2 {
			for i := 0; i+3 < len(pts); i += 2 {
				if pass == 0 {
					p.line(pts[i], pts[i+1], pts[i+2], pts[i+3], 0.016, hex(0xe9f3ff), 0.5, 0.03)
					continue
				}
				p.line(pts[i], pts[i+1], pts[i+2], pts[i+3], 0.0115, white, 1, 0)
			}
		}
	}
}
