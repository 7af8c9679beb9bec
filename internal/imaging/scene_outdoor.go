package imaging

func beach(p *painter) {
	h := p.f(0.36, 0.42)
	skyTop, skyLow := mix(p.base, hex(0x6fb7e8), 0.35), mix(p.pale, white, 0.35)
	p.gradient(0, h, skyTop, skyLow)
	sx, sy := p.f(0.08, 0.16), p.f(0.1, 0.15)
	p.glow(sx, sy, 0.38, 0.38, rgb{0.4, 0.34, 0.16})
	p.ellipse(sx, sy, 0.06, 0.06, hex(0xfff6d8), 1, 0.006)
	for range 5 { // thin clouds
		x, y := p.f(0.2, 1), p.f(0.04, h-0.12)
		p.ellipse(x, y, p.f(0.1, 0.22), p.f(0.01, 0.022), white, 0.55, 0.02)
		p.ellipse(x+0.06, y-0.012, p.f(0.05, 0.1), 0.016, white, 0.5, 0.02)
	}
	// Sea: bands of waves that get wider towards the shore, glints under the sun.
	shore := h + p.f(0.17, 0.22)
	deep, shoal := mix(p.dark, hex(0x17698c), 0.4), mix(p.base, hex(0x5fc6c9), 0.4)
	ox := p.f(0, 1)
	p.shade(h, shore+0.06, func(x, y float32) rgb {
		t := (y - h) / (shore - h)
		z := 0.05 / (y - h + 0.02)
		w := noise(x*0.35*(0.5+z)+ox, z*1.3)
		c := mix(deep, shoal, clamp(t, 0, 1)).mul(1 + 0.2*w)
		return mix(c, white, 0.6*smooth(0.42, 0.75, w)*(0.3+0.5*t))
	})
	p.gradientOver(h, h+0.012, white, 0.4, 0)
	// Sand with wind ripples, and the foam's edge.
	sand := p.material(hex(0xe9cf9f), 0.5)
	edge := func(x float32) float32 { return shore + 0.018*sin(x*7+ox*6) + 0.012*noise(x*0.5+ox, 0.5) }
	top := shore - 0.03
	p.shade(top, 1, func(x, y float32) rgb {
		e := y - edge(x)
		if e < -0.012 {
			return p.at(x, y)
		}
		z := 0.5 / (y - h + 0.1)
		rip := noise((x-0.5)*z*0.35+ox, z*1.7+0.02*sin(x*9))
		c := sand.mul(1 + 0.11*rip + 0.06*noise((x-0.5)*z*1.5, z*1.5+ox))
		wet := smooth(0.09, 0, e)
		c = c.mul(1 - 0.25*wet)
		foam := smooth(0.016, 0.004, abs(e))
		return mix(mix(p.at(x, y), c, smooth(-0.012, 0.002, e)), white, 0.9*foam)
	})
	// A palm frond reaches in from the top right.
	green := mix(p.deep, hex(0x2c5f34), 0.6)
	for i := range 7 {
		a := 1.75 + 0.26*float32(i) + p.f(-0.05, 0.05)
		l := p.f(0.22, 0.32)
		x, y := float32(1.02), float32(-0.01)
		for k := range 6 {
			t := float32(k) / 6
			aa := a - 0.5*t*(a-1.57)
			nx, ny := x+cos(aa)*l/6, y+sin(aa)*l/6+0.012*t
			p.line(x, y, nx, ny, 0.016*(1-t)+0.002, green.mul(0.8+0.1*float32(i%3)), 1, 0)
			x, y = nx, ny
		}
	}
	p.starfish(p.f(0.86, 0.93), p.f(0.86, 0.93))
}

// at reads the pixel that holds (x, y).
func (c *canvas) at(x, y float32) rgb {
	i, j := min(int(x*float32(c.px)), c.px-1), min(int(y*float32(c.px)), c.px-1)
	return c.pix[j*c.px+i]
}

func (p *painter) starfish(x, y float32) {
	col := p.material(hex(0xe0764a), 0.3)
	turn := p.f(0, 6)
	for i := range 5 {
		a := turn + float32(i)*1.2566
		p.line(x, y+0.006, x+cos(a)*0.04, y+0.006+sin(a)*0.03, 0.012, black, 0.25, 0.008)
		p.line(x, y, x+cos(a)*0.04, y+sin(a)*0.03, 0.011, col, 1, 0)
	}
}

func forest(p *painter) {
	h := p.f(0.66, 0.72)
	mist := mix(p.pale, white, 0.2)
	p.gradient(0, h, mix(p.lite, p.pale, 0.3), mist)
	// Three depths of trunks, each darker and sharper than the one behind.
	for layer := range 3 {
		t := float32(layer) / 2
		col := mix(mix(mist, p.base, 0.55), mix(p.deep, hex(0x2b2018), 0.4), t)
		n := 9 - 2*layer
		for i := range n {
			x := (float32(i)+p.f(0.1, 0.9))/float32(n)*1.1 - 0.05
			w := (0.012 + 0.022*t) * p.f(0.8, 1.3)
			lean := p.f(-0.02, 0.02)
			base := h + 0.02 + 0.09*t
			p.poly(col, 1, 0.006-0.0025*t, x-w, base, x+w*1.1, base, x+w*0.7+lean, -0.05, x-w*0.7+lean, -0.05)
			if layer == 2 {
				p.line(x+w*0.45, base, x+w*0.35+lean, -0.05, w*0.22, mix(col, p.lite, 0.3), 0.6, w*0.25)
			}
		}
		// Undergrowth of this depth.
		bush := mix(mix(mist, p.base, 0.7), mix(p.dark, hex(0x29492b), 0.35), t)
		for range 12 {
			p.ellipse(
				p.f(-0.05, 1.05),
				h+0.04*t+p.f(0, 0.04),
				p.f(0.05, 0.11),
				p.f(0.03, 0.06)*(0.7+0.5*t),
				bush.mul(p.f(0.88, 1.1)),
				1,
				0.014-0.004*t,
			)
		}
	}
	// Light falls through the canopy.
	for i := range 4 {
		x := 0.15 + 0.22*float32(i) + p.f(-0.05, 0.05)
		p.poly(mix(p.pale, hex(0xfff3c4), 0.6), 0.26, 0.035, x, -0.05, x+0.07, -0.05, x-0.12, h+0.1, x-0.28, h+0.1)
	}
	// Canopy.
	leaf := mix(p.dark, hex(0x2f5d2d), 0.3)
	for i := range 60 {
		x := p.f(-0.05, 1.05)
		y := p.f(-0.04, 0.1) + 0.1*abs(x-0.5)*p.f(0, 2)
		s := p.f(0.025, 0.055)
		p.ellipseAt(x, y, s, s*0.6, p.f(0, 3.1), mix(leaf.mul(0.75), mix(p.base, p.lite, 0.25), p.f(0, 1)*float32(i)/60), 0.95, 0.005)
	}
	// Forest floor: grass and fallen leaves.
	ground := p.material(hex(0x5b6b34), 0.55).mul(0.72)
	ox := p.f(0, 1)
	p.shade(h+0.08, 1, func(x, y float32) rgb {
		z := 0.5 / (y - h + 0.15)
		g := noise((x-0.5)*z*1.3+ox, z*0.8)
		return ground.mul(0.92 + 0.35*g + 0.2*smooth(h, 1, y))
	})
	p.gradientOver(h+0.06, h+0.14, bushEdge(p), 0.6, 0)
	for range 90 {
		x, y := p.f(0, 1), p.f(h+0.1, 1.02)
		l := 0.03 + 0.06*(y-h)
		p.line(x, y, x+p.f(-0.02, 0.02), y-l, 0.0028, mix(ground.mul(1.5), p.lite, p.f(0, 0.5)), 0.8, 0.001)
	}
}

func bushEdge(p *painter) rgb { return mix(p.dark, hex(0x29492b), 0.35) }

func street(p *painter) {
	h := p.f(0.5, 0.54)
	p.gradient(0, h+0.05, mix(p.lite, hex(0xbcd6ea), 0.35), mix(p.pale, white, 0.4))
	// A far row of towers in haze.
	for x := float32(0.1); x < 0.9; {
		w := p.f(0.06, 0.11)
		p.rect(x, p.f(0.18, 0.34), x+w, h+0.04, mix(p.pale, p.base, 0.4), 1, 0.004)
		x += w
	}
	// Houses on both sides run to the vanishing point.
	p.facades(-1, h)
	p.facades(1, h)
	// Road, kerbs, pavement; dashes that shorten with distance.
	vx := float32(0.5)
	asphalt := p.material(hex(0x5d5f63), 0.35).mul(0.85)
	pave := mix(p.floor, hex(0xb9b4ac), 0.5)
	ox := p.f(0, 1)
	p.shade(h, 1, func(x, y float32) rgb {
		t := y - h
		z := 0.4 / (t + 0.02)
		half := 0.03 + t*0.98
		d := abs(x-vx) - half
		fw := p.unit * 1.2
		road := asphalt.mul(0.92 + 0.1*noise((x-vx)*z*0.8+ox, z*0.8) + 0.2*t)
		side := pave.mul(0.9 + 0.15*t - 0.22*band(z*1.4, 0.06, z*z*3.5*p.unit))
		c := mix(road, side, clamp(d/fw+0.5, 0, 1))
		kerb := clamp((0.012+0.03*t-abs(d-0.012))/fw, 0, 1)
		c = mix(c, mix(pave, white, 0.4), kerb)
		dash := clamp((0.006+0.028*t-abs(x-vx))/fw+0.5, 0, 1) * smooth(0.3, 0.36, abs(z*0.9+ox-floor(z*0.9+ox)-0.5))
		return mix(c, hex(0xf4efdc), 0.9*dash)
	})
	p.gradientOver(h, h+0.05, mix(p.pale, white, 0.2), 0.4, 0)
	// Zebra crossing at the front, street lamps.
	for i := range 7 {
		x := 0.04 + 0.15*float32(i)
		p.poly(hex(0xf2efe6), 0.8, 0.002, x, 0.93, x+0.075, 0.93, x+0.075+(x-0.46)*0.09, 1.02, x+(x-0.5)*0.09, 1.02)
	}
	for _, s := range []float32{-1, 1} {
		x := 0.5 + s*0.455
		p.line(x, 0.16, x, 0.86, 0.007, hex(0x2b2d30), 1, 0)
		p.line(x, 0.16, x-s*0.07, 0.15, 0.005, hex(0x2b2d30), 1, 0)
		p.glow(x-s*0.07, 0.165, 0.09, 0.09, rgb{0.4, 0.34, 0.18})
		p.ellipse(x-s*0.07, 0.163, 0.024, 0.011, hex(0xfff2c4), 1, 0.002)
	}
}

// facades draws one side of the street (side -1 left, 1 right) in one-point perspective.
func (p *painter) facades(side, h float32) {
	type house struct {
		z0, z1, top float32
		col         rgb
	}
	var row []house
	for z := float32(1); z < 6; {
		w := p.f(0.55, 0.9)
		row = append(row, house{z, z + w, p.f(0.5, 0.95), mix([]rgb{p.dark, p.floor, p.wall, p.deep}[p.r.IntN(4)], hex(0x8a6f5c), 0.2)})
		z += w
	}
	lit := mix(p.pale, hex(0xfff0bf), 0.6)
	ox := p.f(0, 1)
	p.over(func(x, y float32) (rgb, float32) {
		d := (x - 0.5) * side
		if d < 0.09 {
			return rgb{}, 0
		}
		z := 0.62 / d // 1.24 at the edge of the picture
		for i := range row {
			b := &row[i]
			if z < b.z0 || z >= b.z1 {
				continue
			}
			v := (h - y) * z // height above the horizon in street units
			fw := z * p.unit * 1.5
			a := clamp((b.top-v)/fw+0.5, 0, 1) * clamp((v+0.62)/fw+0.5, 0, 1)
			if a == 0 {
				return rgb{}, 0
			}
			c := b.col.mul(0.75 + 0.06*z)
			u := (z - b.z0) / (b.z1 - b.z0) * 3
			wu, wv := abs(u-floor(u)-0.5), abs(v*7-floor(v*7)-0.5)
			win := clamp((0.3-wu)/(z*z*8*p.unit)+0.5, 0, 1) * clamp((0.3-wv)/(7*fw)+0.5, 0, 1)
			if v < b.top-0.06 && v > -0.35 {
				glass := mix(mix(p.deep, hex(0x33485c), 0.5), lit, smooth(0.0, 0.25, noise(floor(u)*0.37+ox+b.z0, floor(v*7)*0.23)))
				c = mix(c, glass, win)
			}
			if v < -0.33 { // shop fronts
				c = mix(lit, b.col.mul(0.5), clamp((wu-0.36)/(z*z*8*p.unit)+0.5, 0, 1))
				if v > -0.4 {
					c = mix(hex(0xb5473c), p.base, 0.4)
				}
			}
			return mix(c, p.pale, clamp((z-2)*0.14, 0, 0.6)), a
		}
		return rgb{}, 0
	})
}

// over lays f's colour over every pixel with f's opacity.
func (c *canvas) over(f func(x, y float32) (rgb, float32)) {
	for j := range c.px {
		y := (float32(j) + 0.5) * c.unit
		row := c.pix[j*c.px : (j+1)*c.px]
		for i := range row {
			if col, a := f((float32(i)+0.5)*c.unit, y); a > 0 {
				row[i] = mix(row[i], col, a)
			}
		}
	}
}

func lake(p *painter) {
	h := p.f(0.54, 0.6)
	p.gradient(0, h, mix(p.lite, hex(0xa9cdea), 0.35), mix(p.pale, white, 0.5))
	for range 4 {
		x, y := p.f(0, 1), p.f(0.04, 0.2)
		for k := range 4 {
			p.ellipse(x+0.05*float32(k), y+p.f(-0.012, 0.012), p.f(0.04, 0.08), p.f(0.014, 0.028), white, 0.7, 0.018)
		}
	}
	// Ridges, far to near; the far ones carry snow.
	type ridge struct {
		x, y, slope, rough float32
		col                rgb
		snow               bool
	}
	var rs []ridge
	rs = append(rs, ridge{p.f(0.16, 0.26), p.f(0.1, 0.16), 0.95, 0.05, mix(p.dark, p.pale, 0.3), true},
		ridge{p.f(0.74, 0.84), p.f(0.08, 0.14), 1.05, 0.05, mix(p.dark, p.pale, 0.18), true},
		ridge{p.f(0.45, 0.55), p.f(0.34, 0.4), 0.42, 0.04, mix(p.dark, hex(0x35563f), 0.3), false})
	ox := p.f(0, 1)
	edge := func(r *ridge, x float32) float32 {
		return r.y + abs(x-r.x)*r.slope + r.rough*noise(x*0.8+ox+r.x, r.y)
	}
	for i := range rs {
		r := &rs[i]
		snow := mix(p.pale, white, 0.75)
		p.over(func(x, y float32) (rgb, float32) {
			if y > h+0.01 {
				return rgb{}, 0
			}
			e := y - edge(r, x)
			a := clamp(e/p.unit+0.5, 0, 1)
			if a == 0 {
				return rgb{}, 0
			}
			side := smooth(-0.02, 0.02, x-r.x+0.12*noise(x+ox, y*1.2))
			c := r.col.mul(1.12 - 0.35*side + 0.12*noise(x*1.3+ox, y*1.3))
			if r.snow {
				line := 0.15 + 0.07*noise(x*2+ox, 0.2)
				s := smooth(line+0.02, line-0.02, y-r.y-0.05*abs(sin(x*40)))
				c = mix(c, snow.mul(1-0.22*side), s)
			}
			return mix(c, p.pale, 0.25*smooth(h-0.22, h, y)), a
		})
	}
	// Pines on the far shore.
	pine := mix(p.deep, hex(0x1e3a2a), 0.45)
	for i := range 26 {
		x := float32(i)*0.04 + p.f(-0.015, 0.015)
		t := p.f(0.04, 0.075) * (0.6 + 1.1*abs(x-0.5))
		p.poly(pine.mul(p.f(0.85, 1.15)), 1, 0, x-0.018, h+0.004, x+0.018, h+0.004, x, h-t)
	}
	// The lake mirrors what is above it, in ripples.
	water := mix(p.base, hex(0x3f7f9c), 0.3)
	wx := p.f(0, 1)
	src := append([]rgb(nil), p.pix...)
	p.shade(h, 1, func(x, y float32) rgb {
		t := (y - h) / (1 - h)
		z := 0.12 / (y - h + 0.03)
		n := noise((x-0.5)*z*0.35+wx, z*1.6)
		my := clamp(h-(y-h)*1.15-0.03*n*t, 0, 1)
		mx := clamp(x+0.03*n*(0.4+t), 0, 0.999)
		m := src[min(int(my*float32(p.px)), p.px-1)*p.px+int(mx*float32(p.px))]
		c := mix(m, water.mul(0.85-0.2*t), 0.35+0.3*t)
		return mix(c, white, 0.28*smooth(0.3, 0.65, n))
	})
	p.gradientOver(h-0.004, h+0.012, white, 0.5, 0)
	// Pebbles of the near shore.
	stone := p.material(hex(0x8b8580), 0.35)
	for i := range 26 {
		x := float32(i)*0.042 + p.f(-0.02, 0.02)
		s := p.f(0.014, 0.034)
		y := 0.985 - 0.03*abs(x-0.5) + p.f(-0.012, 0.015)
		p.ellipse(x, y+s*0.3, s*1.1, s*0.6, black, 0.35, 0.008)
		p.ellipse(x, y, s, s*0.62, stone.mul(p.f(0.6, 1.15)), 1, 0)
	}
}
