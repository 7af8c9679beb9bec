package catalogue

import (
	"image"
	"math"
)

// RGB is a colour in sRGB, each channel 0..1.
type RGB [3]float64

// Chroma is the opponent-colour vector of c (red against cyan, green against blue; a hexagonal
// projection of the RGB cube along its grey axis) and its luma (ITU-R BT.601).
func Chroma(c RGB) (a, b, luma float64) {
	return c[0] - (c[1]+c[2])/2, 0.866 * (c[1] - c[2]), 0.299*c[0] + 0.587*c[1] + 0.114*c[2]
}

// Harmony says how well a background's mean colour goes with a product's mean colour: analogous hues
// best, complementary good, calm backgrounds for grey products, and some distance in luma. No unit;
// about -0.3..1.7.
func Harmony(product, background RGB) float64 {
	pa, pb, pl := Chroma(product)
	ba, bb, bl := Chroma(background)
	pn, bn := math.Hypot(pa, pb)+1e-4, math.Hypot(ba, bb)+1e-4
	cos := (pa*ba + pb*bb) / (pn * bn)
	coloured, strong := math.Min(pn/0.2, 1), math.Min(bn/0.15, 1)
	hue := cos
	if cos <= 0 {
		hue = 0.7 * cos * cos
	}
	return coloured*strong*hue + (1-coloured)*(0.3-0.6*strong) + 0.7*math.Abs(pl-bl)
}

var hueNames = [12]string{"red", "orange", "yellow", "lime", "green", "mint", "teal", "sky", "blue", "purple", "magenta", "pink"}

// ColourName names c in two words, such as "dark blue" or "pale grey".
func ColourName(c RGB) string {
	a, b, l := Chroma(c)
	shade := "mid"
	if l < 0.38 {
		shade = "dark"
	} else if l > 0.62 {
		shade = "pale"
	}
	if math.Hypot(a, b) < 0.1 {
		return shade + " grey"
	}
	turn := math.Atan2(b, a)/(2*math.Pi)*12 + 0.5
	return shade + " " + hueNames[(int(math.Floor(turn))%12+12)%12]
}

// meanColour is the alpha-weighted mean of a cut-out.
func meanColour(im *image.NRGBA) RGB {
	var s RGB
	var w float64
	for i := 0; i+3 < len(im.Pix); i += 4 {
		a := float64(im.Pix[i+3])
		for k := range s {
			s[k] += a * float64(im.Pix[i+k])
		}
		w += a
	}
	for k := range s {
		s[k] /= w * 255
	}
	return s
}

// rotateHue turns every pixel's hue by turns of the colour circle, keeping saturation, value and alpha.
func rotateHue(im *image.NRGBA, turns float64) *image.NRGBA {
	out := image.NewNRGBA(im.Rect)
	for i := 0; i+3 < len(im.Pix); i += 4 {
		r, g, b := float64(im.Pix[i])/255, float64(im.Pix[i+1])/255, float64(im.Pix[i+2])/255
		hi, lo := max(r, g, b), min(r, g, b)
		h := 0.0
		switch d := hi - lo; {
		case d == 0:
		case hi == r:
			h = (g - b) / d / 6
		case hi == g:
			h = (b-r)/d/6 + 1.0/3
		default:
			h = (r-g)/d/6 + 2.0/3
		}
		h += turns
		for k, shift := range [3]float64{1, 2.0 / 3, 1.0 / 3} {
			t := h + shift
			t = math.Abs((t-math.Floor(t))*6-3) - 1
			v := lo + (hi-lo)*min(max(t, 0), 1)
			out.Pix[i+k] = uint8(v*255 + 0.5)
		}
		out.Pix[i+3] = im.Pix[i+3]
	}
	return out
}
