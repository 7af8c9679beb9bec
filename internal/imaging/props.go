package imaging

import "ctrloop/internal/imaging/grammar"

// props lie along the edges, where the product leaves room.
var props = [grammar.NumProps]func(*painter){
	grammar.Leaves: leaves, grammar.Petals: petals, grammar.Blocks: blocks, grammar.Droplets: droplets,
	grammar.Ribbon: ribbon, grammar.NoProps: func(*painter) {},
}

func (p *painter) leaf(x, y, size, angle float32, col rgb) {
	dx, dy := cos(angle), sin(angle)
	p.ellipseAt(x+0.006, y+size*0.35, size, size*0.42, angle, black, 0.25, size*0.3)
	p.ellipseAt(x, y, size, size*0.4, angle, col, 1, 0)
	p.ellipseAt(x-dy*size*0.12, y+dx*size*-0.12, size*0.8, size*0.2, angle, mix(col, white, 0.25), 0.6, size*0.12)
	p.line(x-dx*size*0.9, y-dy*size*0.9, x+dx*size*0.9, y+dy*size*0.9, 0.0022, mix(col, white, 0.45), 0.9, 0)
}

func leaves(p *painter) {
	spots := [...][2]float32{{0.04, 0.96}, {0.13, 0.92}, {0.22, 0.98}, {0.96, 0.95}, {0.87, 0.91}, {0.79, 0.985}, {0.03, 0.86}, {0.975, 0.85}}
	for i, s := range spots {
		a := p.f(-0.9, 0.9)
		if i%2 == 1 {
			a += 1.7
		}
		p.leaf(s[0]+p.f(-0.02, 0.02), s[1]+p.f(-0.02, 0.02), p.f(0.065, 0.09), a, mix(hex(0x2f7d32), hex(0x7cb342), p.f(0, 1)))
	}
}

func petals(p *painter) {
	for i := range 22 {
		x, y := p.f(0, 1), p.f(0.82, 0.99)
		if i%4 == 0 {
			x, y = p.f(0, 0.14)+float32(i%8/4)*0.86, p.f(0.3, 0.85)
		}
		a, s := p.f(0, 6.3), p.f(0.018, 0.032)
		p.ellipseAt(x+0.004, y+0.008, s, s*0.6, a, black, 0.22, 0.01)
		p.ellipseAt(x, y, s, s*0.6, a, mix(hex(0xf06292), hex(0xfbc4d4), p.f(0, 0.7)), 1, 0)
		p.ellipseAt(x, y, s*0.5, s*0.25, a, white, 0.45, 0.006)
	}
}

func (p *painter) block(x, y, s float32, col rgb) {
	d := s * 0.32 // depth of the top face
	p.ellipse(x+s*0.5, y+s*0.98, s*0.75, s*0.16, black, 0.35, s*0.14)
	p.poly(mix(col, white, 0.35), 1, 0, x, y, x+d, y-d, x+s+d, y-d, x+s, y)
	p.poly(col.mul(0.62), 1, 0, x+s, y, x+s+d, y-d, x+s+d, y+s-d, x+s, y+s)
	p.rect(x, y, x+s, y+s, col, 1, 0)
	for k := range 3 {
		yy := y + s*(0.25+0.25*float32(k))
		p.line(x+s*0.06, yy, x+s*0.94, yy+p.f(-0.06, 0.06)*s, 0.0025, col.mul(0.82), 0.8, 0.002)
	}
}

func blocks(p *painter) {
	oak, pine := hex(0xc08a4e), hex(0xdcb27a)
	p.block(0.01, 0.83, 0.125, oak)
	p.block(0.03+p.f(0, 0.02), 0.715, 0.095, pine)
	p.block(0.845, 0.855, 0.115, pine)
	if p.r.IntN(2) == 0 {
		p.block(0.905, 0.745, 0.08, oak)
	} else {
		p.block(0.735, 0.905, 0.08, oak)
	}
}

func droplets(p *painter) {
	for i := range 34 {
		x, y, s := p.f(0, 1), p.f(0, 1), p.f(0.008, 0.026)
		if i%2 == 0 { // mostly where they can be seen
			x = p.f(0, 0.13) + float32(i/2%2)*0.87
		}
		p.ellipse(x+s*0.15, y+s*0.35, s, s, black, 0.3, s*0.5)
		p.ellipse(x, y, s, s*1.05, hex(0x9fd4f2), 0.75, 0)
		p.ellipse(x+s*0.18, y+s*0.28, s*0.62, s*0.6, hex(0xe8f7ff), 0.65, s*0.35)
		p.ellipse(x-s*0.35, y-s*0.38, s*0.22, s*0.2, white, 0.95, s*0.1)
	}
}

func ribbon(p *painter) {
	col := hex(0xc2185b)
	ph, n := p.f(0, 6.3), 56
	for pass := range 2 {
		for i := range n {
			t0, t1 := float32(i)/float32(n)*1.04-0.02, float32(i+1)/float32(n)*1.04-0.02
			y0, y1 := 0.93+0.032*sin(t0*9+ph), 0.93+0.032*sin(t1*9+ph)
			if pass == 0 {
				p.line(t0, y0+0.022, t1, y1+0.022, 0.02, black, 0.05, 0.02)
				continue
			}
			slope := cos((t0+t1)/2*9 + ph)
			p.line(t0, y0, t1, y1, 0.022, mix(col, mix(col, white, 0.55), 0.5+0.5*slope).mul(0.85+0.15*slope), 1, 0)
		}
	}
}
