package imaging

import "ctrloop/internal/imaging/grammar"

// lights multiply the finished scene by a light field and a tint, then add what the source itself shows.
var lights = [grammar.NumLights]func(*canvas){
	grammar.SoftMorning: func(c *canvas) {
		c.relight(rgb{1.03, 1.0, 0.95}, func(x, y float32) float32 { return 1.14 - 0.3*x - 0.1*y })
		c.glow(0, 0, 0.8, 0.8, rgb{0.10, 0.09, 0.06})
	},
	grammar.BrightStudio: func(c *canvas) {
		c.relight(rgb{1, 1, 1}, func(x, y float32) float32 { return 1.19 - 0.08*y - 0.10*(x-0.5)*(x-0.5) })
		c.glow(0.5, -0.1, 0.7, 0.5, rgb{0.07, 0.07, 0.07})
	},
	grammar.GoldenHour: func(c *canvas) {
		c.relight(rgb{1.12, 1.0, 0.8}, func(x, y float32) float32 { return 0.84 + 0.3*x })
		c.glow(1.02, 0.12, 0.75, 0.75, rgb{0.26, 0.16, 0.03})
	},
	grammar.MoodyLow: func(c *canvas) {
		c.relight(rgb{1, 0.98, 1.02}, func(x, y float32) float32 {
			x, y = x-0.5, y-0.5
			return max(0.74-0.85*(x*x+y*y), 0.2)
		})
	},
	grammar.CoolWindow: func(c *canvas) {
		// Panes of a tall window fall slantwise over the scene, soft as through a curtain.
		c.relight(rgb{0.92, 1.0, 1.12}, func(x, y float32) float32 {
			u, v := x+0.45*y-0.28, y-0.15*x
			pane := smooth(0, 0.06, u) * smooth(0.74, 0.68, u) * (1 - 0.6*smooth(0.045, 0.015, abs(u-0.37)))
			pane *= 1 - 0.6*(smooth(0.045, 0.015, abs(v-0.2))+smooth(0.045, 0.015, abs(v-0.62)))
			return 0.83 + 0.16*(1-y) + 0.24*pane
		})
	},
}

// relight multiplies by field(x, y) and the tint. Light fields are smooth, so that they are evaluated at
// every fourth pixel of a row and interpolated.
func (c *canvas) relight(tint rgb, field func(x, y float32) float32) {
	const step = 4
	for j := range c.px {
		y := (float32(j) + 0.5) * c.unit
		row := c.pix[j*c.px : (j+1)*c.px]
		left := field(0.5*c.unit, y)
		for i := 0; i < c.px; i += step {
			right := field((float32(i+step)+0.5)*c.unit, y)
			d := (right - left) / step
			for k := i; k < min(i+step, c.px); k++ {
				row[k] = row[k].tint(tint).mul(left)
				left += d
			}
			left = right
		}
	}
}
