package imaging

import (
	"image"
	"image/png"
	"io"
	"math"
	"sync"

	"golang.org/x/image/draw"

	"ctrloop/internal/catalogue"
)

const (
	// ProductScale is the longer side of a product as a share of the canvas.
	ProductScale = 0.78
	// plainGrey is the background of the plain view, which the prompt model sees.
	plainGrey = 245
	// layerCacheBytes bounds the cache of scaled products; when it is full it starts anew.
	layerCacheBytes = 128 << 20
	// shadowGrid is the resolution at which shadows are made; they are softer than its cells.
	shadowGrid = 64
)

// layer is a product scaled for one canvas size: premultiplied pixels, where they go, and the shadow
// that the product casts.
type layer struct {
	im     *image.RGBA
	at     image.Point
	shadow *[shadowGrid * shadowGrid]float32 // opacity of black
}

type layerKey struct {
	p  *catalogue.Product
	px int
}

var layers = struct {
	sync.Mutex
	m     map[layerKey]*layer
	bytes int
}{m: map[layerKey]*layer{}}

// layerOf returns the product scaled to ProductScale of px and centred, from the cache if it can.
func layerOf(p *catalogue.Product, px int) *layer {
	k := layerKey{p, px}
	layers.Lock()
	l, ok := layers.m[k]
	layers.Unlock()
	if ok {
		return l
	}
	l = makeLayer(p, px)
	layers.Lock()
	defer layers.Unlock()
	if layers.bytes += len(l.im.Pix) + 4*len(l.shadow); layers.bytes > layerCacheBytes {
		clear(layers.m)
		layers.bytes = 0
	}
	layers.m[k] = l
	return l
}

func makeLayer(p *catalogue.Product, px int) *layer {
	b := p.Cutout.Bounds()
	k := ProductScale * float64(px) / float64(max(b.Dx(), b.Dy()))
	w, h := max(1, int(float64(b.Dx())*k+0.5)), max(1, int(float64(b.Dy())*k+0.5))
	l := &layer{im: image.NewRGBA(image.Rect(0, 0, w, h)), at: image.Pt((px-w)/2, (px-h)/2)}
	draw.CatmullRom.Scale(l.im, l.im.Rect, p.Cutout, b, draw.Src, nil)
	l.shadow = makeShadow(p)
	return l
}

// makeShadow casts the silhouette: squashed onto the ground behind the product's foot, tight where it
// touches, and a faint halo that lifts the product off the wall. Size-independent, so that every size
// of a creative has the same shadow.
func makeShadow(p *catalogue.Product) *[shadowGrid * shadowGrid]float32 {
	const n = shadowGrid
	b := p.Cutout.Bounds()
	k := ProductScale * n / float64(max(b.Dx(), b.Dy()))
	ox, oy := (n-float64(b.Dx())*k)/2, (n-float64(b.Dy())*k)/2
	foot := oy + float64(b.Dy())*k
	alpha := func(x, y float64) float32 { // of the silhouette at grid coordinates
		i, j := int(math.Floor((x-ox)/k)), int(math.Floor((y-oy)/k))
		if !(image.Pt(i, j).In(b)) {
			return 0
		}
		return float32(p.Cutout.Pix[p.Cutout.PixOffset(i, j)+3]) / 255
	}
	var ground, contact, halo [n * n]float32
	for j := range n {
		for i := range n {
			x, y := float64(i)+0.5, float64(j)+0.5
			ground[j*n+i] = alpha(x-0.12*(foot-y)*4-1, foot+(y-foot-1)*4.5)
			contact[j*n+i] = alpha(x, foot+(y-foot-0.6)*10)
			halo[j*n+i] = alpha(x-0.5, y-1.2)
		}
	}
	blur(ground[:], 3)
	blur(contact[:], 1)
	blur(halo[:], 3)
	out := new([n * n]float32)
	for i := range out {
		g, c, h := 0.42*ground[i], 0.38*contact[i], 0.24*halo[i]
		out[i] = 1 - (1-g)*(1-c)*(1-h)
	}
	return out
}

// blur is three box blurs of radius r in both directions, close to a Gaussian.
func blur(v []float32, r int) {
	const n = shadowGrid
	line := make([]float32, n)
	for range 3 {
		for _, step := range [2]int{1, n} {
			for l := range n {
				o := l * (n + 1 - step) // rows start at l*n, columns at l
				if step == n {
					o = l
				}
				var sum float32
				for i := range n {
					line[i] = v[o+i*step]
				}
				for i := -r; i < n; i++ {
					if i+r < n {
						sum += line[i+r]
					}
					if i-r-1 >= 0 {
						sum -= line[i-r-1]
					}
					if i >= 0 {
						v[o+i*step] = sum / float32(2*r+1)
					}
				}
			}
		}
	}
}

// Compose puts the product into the middle of a background, ProductScale of the canvas large. The shadow
// belongs to the background; the product's pixels are copied, never drawn: inside alpha 255 they are the
// product's own to the bit (MaxProductError is 0). The background is not changed.
func Compose(p *catalogue.Product, background *image.NRGBA) *image.NRGBA {
	out := image.NewNRGBA(background.Rect)
	copy(out.Pix, background.Pix)
	l := layerOf(p, out.Rect.Dx())
	l.cast(out)
	l.paste(out)
	return out
}

// Plain is the product on light grey without a shadow: what the prompt model sees.
func Plain(p *catalogue.Product, px int) *image.NRGBA {
	out := image.NewNRGBA(image.Rect(0, 0, px, px))
	for i := range out.Pix {
		out.Pix[i] = plainGrey
		if i&3 == 3 {
			out.Pix[i] = 255
		}
	}
	layerOf(p, px).paste(out)
	return out
}

// Render is the whole creative: background, shadow, product. Text that is not a well-formed description
// gives the plain view and false.
func Render(p *catalogue.Product, text string, seed uint64, px int) (im *image.NRGBA, valid bool) {
	d, _, ok := Parse(text)
	if !ok {
		return Plain(p, px), false
	}
	return RenderDescription(p, d, seed, px), true
}

// RenderDescription is Render for a parsed description.
func RenderDescription(p *catalogue.Product, d Description, seed uint64, px int) *image.NRGBA {
	im := Background(d, seed, px)
	l := layerOf(p, px)
	l.cast(im)
	l.paste(im)
	return im
}

// cast darkens im by the shadow, sampled bilinearly.
func (l *layer) cast(im *image.NRGBA) {
	px := im.Rect.Dx()
	k := float32(shadowGrid) / float32(px)
	for j := range px {
		v := clamp((float32(j)+0.5)*k-0.5, 0, shadowGrid-1.001)
		y0 := int(v)
		ty := v - float32(y0)
		a, b := l.shadow[y0*shadowGrid:], l.shadow[(y0+1)*shadowGrid:]
		row := im.Pix[j*im.Stride : j*im.Stride+4*px]
		for i := range px {
			u := clamp((float32(i)+0.5)*k-0.5, 0, shadowGrid-1.001)
			x0 := int(u)
			tx := u - float32(x0)
			top := a[x0] + (a[x0+1]-a[x0])*tx
			s := top + (b[x0]+(b[x0+1]-b[x0])*tx-top)*ty
			if s < 0.004 {
				continue
			}
			q := row[4*i : 4*i+3]
			for c := range q {
				q[c] = uint8(float32(q[c])*(1-s) + 0.5)
			}
		}
	}
}

// paste is Porter-Duff over with premultiplied product pixels, rounded to nearest.
func (l *layer) paste(im *image.NRGBA) {
	w, h := l.im.Rect.Dx(), l.im.Rect.Dy()
	for y := range h {
		src := l.im.Pix[y*l.im.Stride : y*l.im.Stride+4*w]
		dst := im.Pix[im.PixOffset(l.at.X, l.at.Y+y):]
		for x := 0; x < 4*w; x += 4 {
			switch a := uint32(src[x+3]); a {
			case 0:
			case 255:
				copy(dst[x:x+3], src[x:x+3])
			default:
				for c := range 3 {
					dst[x+c] = uint8(min(uint32(src[x+c])+(uint32(dst[x+c])*(255-a)+127)/255, 255))
				}
			}
		}
	}
}

// Alpha is the product's coverage on a px canvas, row by row, 0..255: what a reader of finished creatives
// may know about where the product is.
func Alpha(p *catalogue.Product, px int) []uint8 {
	l := layerOf(p, px)
	out := make([]uint8, px*px)
	for y := range l.im.Rect.Dy() {
		for x := range l.im.Rect.Dx() {
			out[(l.at.Y+y)*px+l.at.X+x] = l.im.Pix[y*l.im.Stride+4*x+3]
		}
	}
	return out
}

// Cutout is the product in its place on an otherwise transparent canvas: what is sent to whoever paints behind it.
func Cutout(p *catalogue.Product, px int) *image.NRGBA {
	out := image.NewNRGBA(image.Rect(0, 0, px, px))
	l := layerOf(p, px)
	draw.Draw(out, l.im.Rect.Add(l.at), l.im, image.Point{}, draw.Src)
	return out
}

// PasteProduct copies the product's pixels into a picture that was painted around it elsewhere, wherever the product
// covers fully. Its blended rim stays as the painter left it: pasting that again would blend it twice.
func PasteProduct(im *image.NRGBA, p *catalogue.Product) {
	l := layerOf(p, im.Rect.Dx())
	for y := range l.im.Rect.Dy() {
		src := l.im.Pix[y*l.im.Stride:]
		dst := im.Pix[im.PixOffset(l.at.X, l.at.Y+y):]
		for x := 0; x < 4*l.im.Rect.Dx(); x += 4 {
			if src[x+3] == 255 {
				copy(dst[x:x+4], src[x:x+4])
			}
		}
	}
}

// MaxProductError is the largest difference of any channel, 0..255, between im and the product over the
// pixels that the product covers fully. For pictures made by Compose it is 0.
func MaxProductError(im *image.NRGBA, p *catalogue.Product) int {
	l := layerOf(p, im.Rect.Dx())
	worst := 0
	for y := range l.im.Rect.Dy() {
		for x := range l.im.Rect.Dx() {
			s := l.im.Pix[y*l.im.Stride+4*x:]
			if s[3] != 255 {
				continue
			}
			d := im.Pix[im.PixOffset(l.at.X+x, l.at.Y+y):]
			for c := range 3 {
				worst = max(worst, int(s[c])-int(d[c]), int(d[c])-int(s[c]))
			}
		}
	}
	return worst
}

// View is what models look at: im scaled to px pixels square by area averaging, as RGB rows. A px that
// divides the picture's side makes it a plain box filter.
func View(im *image.NRGBA, px int) []byte {
	n := im.Rect.Dx()
	out := make([]byte, px*px*3)
	if n%px != 0 {
		small := image.NewNRGBA(image.Rect(0, 0, px, px))
		draw.BiLinear.Scale(small, small.Rect, im, im.Rect, draw.Src, nil)
		im, n = small, px
	}
	k := n / px
	area := uint32(k * k)
	for y := range px {
		for x := range px {
			var s [3]uint32
			for j := range k {
				q := im.Pix[im.PixOffset(im.Rect.Min.X+x*k, im.Rect.Min.Y+y*k+j):]
				for i := 0; i < 4*k; i += 4 {
					s[0] += uint32(q[i])
					s[1] += uint32(q[i+1])
					s[2] += uint32(q[i+2])
				}
			}
			o := out[(y*px+x)*3:]
			for c := range 3 {
				o[c] = uint8((s[c] + area/2) / area)
			}
		}
	}
	return out
}

// buffers are png's working memory, kept between pictures.
type buffers struct{ sync.Pool }

func (b *buffers) Get() *png.EncoderBuffer {
	v, _ := b.Pool.Get().(*png.EncoderBuffer)
	return v
}
func (b *buffers) Put(v *png.EncoderBuffer) { b.Pool.Put(v) }

// encoder is tuned for speed: a creative is written once and read a few times.
var encoder = png.Encoder{CompressionLevel: png.BestSpeed, BufferPool: &buffers{}}

// EncodePNG writes im as PNG, fast rather than small.
func EncodePNG(w io.Writer, im image.Image) error { return encoder.Encode(w, im) }
