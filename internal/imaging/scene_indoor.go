package imaging

// plank shades a wooden floor or table: boards that run away from the viewer towards a vanishing point
// above the horizon h, with grain along them. n boards fill the front edge.
func (p *painter) planks(h float32, n float32, wood rgb, gap float32) func(x, y float32) rgb {
	off, lift := p.f(0, 1), float32(0.22)
	seed := p.f(0, 1)
	span := 1 - h + lift
	return func(x, y float32) rgb {
		z := span / (y - h + lift) // 1 at the front edge, larger further away
		u := (x-0.5)*z*n + off + 16
		board := floor(u)
		tone := noise(board*0.381+seed, 0.3)
		grain := noise(u*0.11+board*0.37, z*0.42+board*0.173+seed)
		fine := noise(u*0.55+board*0.7, z*0.3+seed)
		c := wood.mul(1 + 0.16*tone + 0.17*grain + 0.07*fine)
		line := band(u, gap, n*z*p.unit)
		return c.mul(1 - 0.55*line)
	}
}

func oakTable(p *painter) {
	h := p.f(0.56, 0.62)
	wood := p.material(hex(0xb07a45), 0.45)
	// A kitchen wall out of focus: tiles, a shelf with jars, a window's glow.
	p.gradient(0, h, p.lite, p.wall)
	grout := mix(p.wall, white, 0.55)
	for i := range 8 {
		y := h - 0.085*float32(i+1)
		p.line(-0.1, y, 1.1, y, 0.004, grout, 0.7, 0.006)
		for k := range 9 {
			x := (float32(k)+0.5*float32(i%2))*0.14 - 0.06
			p.line(x, y, x, y+0.085, 0.004, grout, 0.7, 0.006)
		}
	}
	shelf := p.f(0.15, 0.19)
	p.rect(-0.1, shelf+0.012, 1.1, shelf+0.05, p.deep, 0.35, 0.02)
	p.rect(-0.1, shelf, 1.1, shelf+0.026, wood.mul(0.72), 1, 0.006)
	x := p.f(0.0, 0.04)
	for i := 0; x < 1; i++ {
		w, t := p.f(0.05, 0.085), p.f(0.07, 0.125)
		col := []rgb{p.dark, p.pale, p.floor, hex(0xd9b98c)}[i%4]
		p.rrect(x, shelf-t, x+w, shelf, 0.014, col, 1, 0.007)
		p.rect(x+0.008, shelf-t-0.012, x+w-0.008, shelf-t+0.006, wood.mul(0.6), 1, 0.005)
		p.rrect(x+0.008, shelf-t+0.02, x+0.018, shelf-0.02, 0.004, white, 0.35, 0.006)
		x += w + p.f(0.025, 0.07)
	}
	board := p.planks(h, 5, wood, 0.03)
	p.shade(h, 1, board)
	p.gradientOver(h, h+0.1, white, 0.22, 0)
	p.rect(-0.1, h-0.006, 1.1, h+0.006, wood.mul(0.6), 0.8, 0.005)
	p.floorShade(h)
}

// gradientOver lays colour col over the rows y0..y1 with opacity a0 at the top and a1 at the bottom.
func (c *canvas) gradientOver(y0, y1 float32, col rgb, a0, a1 float32) {
	j0, j1 := c.span(y0, y1)
	for j := j0; j < j1; j++ {
		t := clamp(((float32(j)+0.5)*c.unit-y0)/(y1-y0), 0, 1)
		a := a0 + (a1-a0)*t
		row := c.pix[j*c.px : (j+1)*c.px]
		for i := range row {
			row[i] = mix(row[i], col, a)
		}
	}
}

// floorShade darkens the corner where floor and wall meet and the front edge.
func (p *painter) floorShade(h float32) {
	p.gradientOver(h-0.05, h, black, 0, 0.16)
	p.gradientOver(0.88, 1, black, 0, 0.12)
}

func marble(p *painter) {
	h := p.f(0.64, 0.7)
	ox, oy := p.f(0, 1), p.f(0, 1)
	slab := mix(p.pale, white, 0.42)
	vein := mix(p.base, p.dark, 0.35)
	stone := func(u, v float32) rgb {
		w := noise(u*0.5+ox, v*0.5+oy)
		a := abs(noise(u*0.42+0.16*w+oy, v*0.42+0.2*w+ox))
		b := abs(noise(u*0.9+0.3*w+ox+0.3, v*0.6+oy+0.6))
		// Wide soft clouds with a fine dark line along their middle, and thinner side veins.
		m := 0.3*smooth(0.16, 0, a) + 0.42*smooth(0.03, 0, a) + 0.3*smooth(0.03, 0, b) + 0.22*smooth(-0.4, 0.7, w)
		return mix(slab, vein, min(m, 0.9))
	}
	p.shade(0, h, func(x, y float32) rgb { return stone(x+0.6*y, y-0.35*x).mul(0.96 + 0.05*(1-y)) })
	p.shade(h, 1, func(x, y float32) rgb {
		z := 0.55 / (y - h + 0.25)
		return stone((x-0.5)*z+0.4, z*0.8+0.1).mul(1.02)
	})
	// Polished: the wall mirrors in the counter, the rounded edge catches light.
	p.gradientOver(h, h+0.16, p.base, 0.3, 0)
	p.rect(-0.1, h-0.004, 1.1, h+0.004, p.dark, 0.5, 0.004)
	p.rect(-0.1, 0.955, 1.1, 0.968, white, 0.8, 0.008)
	p.rect(-0.1, 0.972, 1.1, 1.1, vein, 0.35, 0.008)
	p.gradientOver(h-0.06, h, black, 0, 0.1)
}

func studio(p *painter) {
	h := p.f(0.6, 0.68)
	ox, oy := p.f(0, 1), p.f(0, 1)
	wall, ground := p.material(hex(0xa9a8a6), 0.62), p.material(hex(0x8d8c8a), 0.62)
	joint := p.f(0.2, 0.4)
	p.shade(0, 1, func(x, y float32) rgb {
		n := noise(x*0.8+ox, y*0.8+oy)
		if y < h {
			s := 1.0 + 0.09*n
			dx, dy := x-0.5, y-0.3
			s += 0.24 * exp(-(dx*dx*3.5 + dy*dy*5))
			return wall.mul(s * (0.94 - 0.2*smooth(h-0.12, h, y)))
		}
		z := 0.5 / (y - h + 0.16)
		u, v := (x-0.5)*z, z
		g := noise(u*0.7+oy, v*0.7+ox)
		speck := noise(u*1.9+ox, v*1.9+oy)
		s := 0.9 + 0.1*g + 0.25*smooth(h, 1, y) + 0.07*speck
		return ground.mul(s)
	})
	// Formwork: panel joints with tie holes on the wall.
	for _, x := range []float32{joint, joint + 0.42} {
		p.line(x, -0.1, x, h, 0.0025, wall.mul(0.66), 0.8, 0.003)
		for _, y := range []float32{0.13, 0.42} {
			for _, dx := range []float32{-0.09, 0.09} {
				p.ellipse(x+dx, y, 0.012, 0.012, wall.mul(0.5), 0.9, 0.004)
			}
		}
	}
	p.line(-0.1, 0.27, 1.1, 0.27, 0.0025, wall.mul(0.66), 0.7, 0.003)
	// Saw-cut joints in the floor, in perspective.
	cut := ground.mul(0.55)
	for _, u := range []float32{-0.9, -0.3, 0.3, 0.9} {
		p.line(0.5+u*0.55, h, 0.5+u*1.5, 1.02, 0.0028, cut, 0.75, 0.003)
	}
	p.line(-0.1, h+0.075, 1.1, h+0.075, 0.0022, cut, 0.7, 0.003)
	p.gradientOver(h-0.03, h, black, 0, 0.2)
}

func velvet(p *painter) {
	ph, k := p.f(0, 6.3), p.f(2.6, 3.4)
	ox := p.f(0, 1)
	hi, lo := mix(p.base, white, 0.4), p.deep
	p.shade(0, 1, func(x, y float32) rgb {
		// Folds fan out a little towards the bottom and wander.
		w := noise(x*0.25+ox, y*0.22)
		u := (x-0.5)*(1.12-0.3*y)*k*6.283 + ph + 1.5*w
		f := 0.5 + 0.5*sin(u+0.7*sin(u*0.5+ph))
		f2 := 0.5 + 0.5*sin(u*2.3+2*w)
		s := 0.78*f + 0.22*f2
		sheen := smooth(0.72, 1, s)
		return mix(mix(lo, p.base, smooth(0.05, 0.75, s)), hi, 0.8*sheen*(1-0.35*y))
	})
	// The cloth breaks onto the floor.
	y0 := p.f(0.86, 0.9)
	p.shade(y0+0.03, 1, func(x, y float32) rgb {
		u := x*5 + ph
		w := noise(x*0.6+ox, y*1.2)
		f := 0.5 + 0.5*sin(u+(y-y0)*34+3*w)
		return mix(p.dark.mul(0.8), hi, 0.75*f*f)
	})
	p.gradientOver(y0-0.02, y0+0.03, black, 0, 0.5)
	p.gradientOver(y0+0.03, y0+0.08, black, 0.42, 0)
	p.gradientOver(0, 0.14, black, 0.35, 0)
}

func desk(p *painter) {
	h := p.f(0.7, 0.74)
	p.gradient(0, h, p.wall, mix(p.wall, p.floor, 0.4))
	// Window on the left with daylight outside.
	wx := p.f(0.02, 0.06)
	frame := mix(p.pale, white, 0.6)
	p.rect(wx-0.018, 0.05, wx+0.418, 0.6, frame, 1, 0.003)
	p.paint(wx, 0.068, wx+0.4, 0.582, 0.003, 1, boxSDF(wx, 0.068, wx+0.4, 0.582, 0), func(x, y float32) rgb {
		return mix(hex(0xdff1fb), mix(hex(0xbfe0c4), p.pale, 0.4), smooth(0.25, 0.55, y))
	})
	p.ellipse(wx+0.1, 0.5, 0.12, 0.1, hex(0x9cc9a0), 0.8, 0.04)
	p.ellipse(wx+0.32, 0.53, 0.1, 0.12, hex(0x86b98e), 0.8, 0.04)
	p.rect(wx+0.192, 0.06, wx+0.208, 0.59, frame, 1, 0.002)
	p.rect(wx, 0.31, wx+0.4, 0.326, frame, 1, 0.002)
	p.rect(wx-0.035, 0.6, wx+0.435, 0.628, frame.mul(0.93), 1, 0.003)
	// Wall shelf with books on the right.
	sy := p.f(0.3, 0.36)
	p.rect(0.6, sy+0.02, 1.1, sy+0.055, p.deep, 0.3, 0.02)
	for x := float32(0.625); x < 0.99; {
		w, t := p.f(0.02, 0.04), p.f(0.13, 0.2)
		col := []rgb{p.dark, p.pale, p.deep, mix(p.base, hex(0xc94f4f), 0.4), mix(p.base, hex(0x3f6fb0), 0.5)}[p.r.IntN(5)]
		p.rect(x, sy-t, x+w, sy, col, 1, 0.002)
		p.rect(x, sy-t*0.8, x+w, sy-t*0.74, mix(col, white, 0.5), 0.8, 0.002)
		x += w + 0.003
	}
	p.rect(0.6, sy, 1.1, sy+0.022, mix(p.deep, hex(0x4a3524), 0.5), 1, 0.003)
	// Desk: a smooth top, a monitor's corner, a cup of pens.
	p.rect(0.72, 0.46, 1.1, h-0.03, hex(0x23262b), 1, 0.003)
	p.rect(0.735, 0.475, 1.1, h-0.065, mix(p.dark, hex(0x2a3f55), 0.4), 1, 0.003)
	for i := range 5 {
		y := 0.51 + 0.034*float32(i)
		p.rect(0.755, y, 0.755+p.f(0.08, 0.22), y+0.012, p.pale, 0.55, 0.003)
	}
	p.rect(0.86, h-0.03, 0.94, h+0.01, hex(0x2c2f34), 1, 0.003)
	top := p.material(hex(0xe8ddcd), 0.35)
	p.shade(h, 1, func(x, y float32) rgb {
		return top.mul(0.86 + 0.2*smooth(h, 1, y) + 0.03*noise(x*0.2, y*1.6))
	})
	p.rect(-0.1, h-0.004, 1.1, h+0.006, top.mul(0.62), 1, 0.003)
	p.gradientOver(0.93, 1, black, 0, 0.1)
	cx := p.f(0.06, 0.09)
	for i := range 4 {
		x := cx - 0.03 + 0.022*float32(i)
		p.line(x, h+0.05, x+p.f(-0.03, 0.03), h-p.f(0.09, 0.14), 0.006, []rgb{hex(0xd84343), hex(0x2f6fc0), hex(0xe7b416), p.deep}[i], 1, 0)
	}
	p.ellipse(cx, h+0.105, 0.075, 0.02, black, 0.35, 0.02)
	p.rrect(cx-0.05, h-0.02, cx+0.05, h+0.1, 0.012, p.dark, 1, 0)
	p.rrect(cx-0.04, h-0.01, cx-0.02, h+0.09, 0.006, white, 0.25, 0.008)
	// A notepad in front.
	p.poly(black, 0.2, 0.012, 0.755, 0.925, 0.955, 0.895, 1.02, 0.985, 0.8, 1.02)
	p.poly(white, 0.95, 0, 0.75, 0.915, 0.95, 0.885, 1.015, 0.975, 0.795, 1.01)
}

func workshop(p *painter) {
	h := p.f(0.72, 0.76)
	boardCol := mix(p.wall, p.material(hex(0xc79a63), 0.7), 0.5)
	ox := p.f(0, 1)
	n := float32(15)
	p.shade(0, h, func(x, y float32) rgb {
		c := boardCol.mul(1.02 + 0.05*noise(x*0.7+ox, y*0.7) - 0.16*y)
		fw := n * p.unit
		dx, dy := x*n-floor(x*n)-0.5, y*n-floor(y*n)-0.5
		hole := clamp((0.19-sqrt(dx*dx+dy*dy))/fw+0.5, 0, 1)
		return mix(c, p.deep, 0.8*hole)
	})
	p.tools()
	// A thick bench: worn top, front edge with bolts, darkness below.
	wood := p.material(hex(0xa8763f), 0.4)
	top := p.planks(h, 3, wood, 0.02)
	p.shade(h, 0.93, top)
	for range 7 { // cuts and stains
		x, y := p.f(0, 1), p.f(h+0.03, 0.9)
		p.line(x, y, x+p.f(-0.1, 0.1), y+p.f(-0.01, 0.01), 0.0025, wood.mul(0.5), 0.6, 0.003)
	}
	p.shade(0.93, 1, func(x, y float32) rgb { return wood.mul(0.62 + 0.08*noise(x*0.35+ox, y*2.5)) })
	p.rect(-0.1, 0.922, 1.1, 0.934, mix(wood, white, 0.35), 0.9, 0.003)
	for _, x := range []float32{0.06, 0.36, 0.64, 0.94} {
		p.ellipse(x, 0.967, 0.014, 0.014, hex(0x3b3b3d), 1, 0)
		p.ellipse(x-0.004, 0.963, 0.005, 0.005, hex(0xb9bcc2), 1, 0.003)
	}
	p.gradientOver(h-0.09, h, black, 0, 0.3)
	p.rect(-0.1, h-0.003, 1.1, h+0.005, wood.mul(0.45), 0.9, 0.003)
}

// tools hang on the pegboard's sides, where the product leaves them visible.
func (p *painter) tools() {
	steel, grip := hex(0x8f969e), p.material(hex(0xb3392f), 0.25)
	shadow := func(f func(dx, dy float32, black bool)) { f(0.008, 0.012, true); f(0, 0, false) }
	pick := func(dark bool, c rgb) (rgb, float32, float32) {
		if dark {
			return black, 0.3, 0.008
		}
		return c, 1, 0
	}
	sx := p.f(-0.01, 0.01)
	shadow(func(dx, dy float32, d bool) { // hammer
		c, a, b := pick(d, mix(p.deep, hex(0x7a5230), 0.6))
		p.rrect(0.075+sx+dx, 0.12+dy, 0.099+sx+dx, 0.44+dy, 0.008, c, a, b)
		c, a, b = pick(d, steel)
		p.rrect(0.025+sx+dx, 0.08+dy, 0.15+sx+dx, 0.135+dy, 0.012, c, a, b)
	})
	shadow(func(dx, dy float32, d bool) { // screwdriver
		c, a, b := pick(d, grip)
		p.rrect(0.195+sx+dx, 0.08+dy, 0.228+sx+dx, 0.2+dy, 0.012, c, a, b)
		c, a, b = pick(d, steel)
		p.rect(0.207+sx+dx, 0.2+dy, 0.216+sx+dx, 0.34+dy, c, a, b)
	})
	shadow(func(dx, dy float32, d bool) { // saw
		c, a, b := pick(d, mix(steel, white, 0.25))
		p.poly(c, a, b, 0.83+sx+dx, 0.1+dy, 0.91+sx+dx, 0.1+dy, 0.885+sx+dx, 0.42+dy, 0.85+sx+dx, 0.42+dy)
		c, a, b = pick(d, grip)
		p.rrect(0.815+sx+dx, 0.05+dy, 0.925+sx+dx, 0.12+dy, 0.03, c, a, b)
	})
	shadow(func(dx, dy float32, d bool) { // wrench
		c, a, b := pick(d, steel)
		p.rrect(0.952+sx+dx, 0.14+dy, 0.976+sx+dx, 0.5+dy, 0.01, c, a, b)
		p.ellipse(0.964+sx+dx, 0.12+dy, 0.03, 0.035, c, a, b)
	})
	p.rect(0.956+sx, 0.08, 0.972+sx, 0.115, p.wall, 1, 0)
}

func livingRoom(p *painter) {
	h := p.f(0.72, 0.76)
	n := p.f(10, 12)
	off := p.f(0, 1)
	p.shade(0, h, func(x, y float32) rgb { // striped wallpaper
		s := band(x*n+off, 0.5, n*p.unit)
		return mix(p.wall, p.floor, 0.75*s).mul(1.05 - 0.16*y)
	})
	skirting := mix(p.pale, white, 0.5)
	wood := p.material(hex(0x8a5a34), 0.35)
	p.shade(h, 1, p.planks(h, 7, wood, 0.03))
	p.rect(-0.1, h-0.045, 1.1, h, skirting, 1, 0.002)
	p.gradientOver(h, h+0.05, black, 0.25, 0)
	// Pictures on the wall.
	p.frame(p.f(0.66, 0.7), 0.07, 0.25, 0.3, wood)
	p.frame(p.f(0.44, 0.47), 0.05, 0.13, 0.17, wood.mul(0.6))
	// Floor lamp with its light on the wall, right.
	lx := p.f(0.9, 0.93)
	p.glow(lx, 0.42, 0.36, 0.4, rgb{0.34, 0.27, 0.12})
	p.line(lx, 0.5, lx, 0.93, 0.007, hex(0x3a2c22), 1, 0)
	p.ellipse(lx, 0.94, 0.07, 0.018, hex(0x3a2c22), 1, 0)
	p.poly(hex(0xffe9b8), 1, 0.002, lx-0.055, 0.33, lx+0.055, 0.33, lx+0.1, 0.5, lx-0.1, 0.5)
	p.gradBox(lx-0.1, 0.33, lx+0.1, 0.5)
	// Sofa, left, with a cushion.
	sofa := mix(p.pale, p.base, 0.25)
	p.ellipse(0.14, 0.92, 0.36, 0.035, black, 0.4, 0.03)
	p.rrect(-0.2, 0.42, 0.36, 0.8, 0.06, sofa.mul(0.86), 1, 0.003)
	p.rrect(-0.2, 0.65, 0.4, 0.9, 0.04, sofa, 1, 0.003)
	p.rrect(0.31, 0.56, 0.43, 0.91, 0.05, sofa.mul(0.92), 1, 0.003)
	p.line(-0.1, 0.66, 0.33, 0.66, 0.004, sofa.mul(0.6), 0.8, 0.006)
	p.rrect(0.05, 0.5, 0.22, 0.67, 0.04, p.deep, 0.95, 0.004)
	p.line(0.09, 0.54, 0.18, 0.63, 0.006, p.pale, 0.6, 0.004)
	for _, x := range []float32{0.03, 0.37} {
		p.line(x, 0.9, x, 0.93, 0.01, hex(0x2d2119), 1, 0)
	}
	// A rug in front.
	p.ellipse(0.62, 0.97, 0.5, 0.06, mix(p.dark, p.base, 0.3), 0.9, 0.004)
	p.ellipse(0.62, 0.97, 0.44, 0.047, p.pale, 0.5, 0.004)
}

// gradBox brightens the middle of a lampshade.
func (c *canvas) gradBox(x0, y0, x1, y1 float32) {
	c.glow((x0+x1)/2, (y0+y1)/2, (x1-x0)/2, (y1-y0)/2, rgb{0.12, 0.12, 0.1})
}

func (p *painter) frame(x, y, w, h float32, wood rgb) {
	p.rect(x+0.012, y+0.016, x+w+0.012, y+h+0.016, black, 0.3, 0.014)
	p.rect(x, y, x+w, y+h, wood.mul(0.7), 1, 0.002)
	b := w * 0.08
	p.rect(x+b, y+b, x+w-b, y+h-b, hex(0xf6f1e6), 1, 0.002)
	b *= 2.4
	p.paint(x+b, y+b, x+w-b, y+h-b, 0.002, 1, boxSDF(x+b, y+b, x+w-b, y+h-b, 0), func(u, v float32) rgb {
		t := (v - y) / h
		if t > 0.55+0.1*sin((u-x)/w*7) {
			return p.dark
		}
		return mix(p.pale, p.base, t)
	})
}

func playroom(p *painter) {
	h := p.f(0.4, 0.45)
	// Wall with bunting.
	p.gradient(0, h, mix(p.pale, white, 0.2), p.lite)
	toy := []rgb{hex(0xef5350), hex(0xffca28), hex(0x42a5f5), hex(0x66bb6a), hex(0xab47bc)}
	k := p.r.IntN(5)
	for i := range 9 {
		x := float32(i)*0.125 - 0.03
		y := 0.07 + 0.05*sin(float32(i)/8*3.14159)
		y2 := 0.07 + 0.05*sin(float32(i+1)/8*3.14159)
		p.line(x, y, x+0.125, y2, 0.003, p.deep, 0.8, 0)
		p.poly(mix(toy[(i+k)%5], p.base, 0.25), 1, 0, x+0.012, y, x+0.112, y2, x+0.062, (y+y2)/2+0.13)
	}
	p.rect(-0.1, h-0.03, 1.1, h, white, 0.9, 0.002)
	// A rug of large dots in perspective.
	ground := mix(p.floor, p.base, 0.3)
	n := p.f(3.6, 4.2)
	ox, oy := p.f(0, 1), p.f(0, 1)
	cols := [3]rgb{p.deep, p.pale, mix(p.dark, hex(0xd0574b), 0.3)}
	p.shade(h, 1, func(x, y float32) rgb {
		z := 0.62 / (y - h + 0.2)
		u, v := (x-0.5)*z*n*0.8+ox, z*n*0.62+oy
		cu, cv := floor(u), floor(v)
		du, dv := u-cu-0.5, v-cv-0.5
		d := sqrt(du*du + dv*dv)
		fw := n * z * p.unit * 1.3
		c := cols[(int(cu)+int(cv)*2+300)%3]
		pile := 1 + 0.05*noise(u*0.9, v*0.9)
		cover := clamp((0.4-d)/fw+0.5, 0, 1)
		ring := clamp((0.2-d)/fw+0.5, 0, 1)
		return mix(mix(ground, c, cover), ground, 0.8*ring).mul(pile)
	})
	p.gradientOver(h, h+0.06, black, 0.2, 0)
	// Stacking rings, left; a ball, right.
	for i, w := range []float32{0.075, 0.062, 0.05, 0.037} {
		y := h + 0.13 - 0.04*float32(i)
		p.rrect(0.075-w, y-0.022, 0.075+w, y+0.022, 0.022, toy[(i+k)%5], 1, 0)
		p.ellipse(0.075-w*0.4, y-0.009, w*0.35, 0.005, white, 0.5, 0.004)
	}
	p.ellipse(0.93, h+0.175, 0.08, 0.02, black, 0.3, 0.02)
	p.ellipse(0.925, h+0.1, 0.072, 0.072, toy[(k+2)%5], 1, 0)
	p.line(0.86, h+0.09, 0.99, h+0.11, 0.012, white, 0.9, 0)
	p.ellipse(0.9, h+0.07, 0.022, 0.018, white, 0.55, 0.015)
}
