package imaging

import (
	"bufio"
	"bytes"
	"encoding/json"
	"hash/crc32"
	"image"
	"image/png"
	"io"
	"math"
	"strings"
	"testing"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging/grammar"
)

// sample walks through descriptions so that a few of them cover every scene, palette, light and prop.
func sample(n int) []Description {
	out := make([]Description, n)
	for i := range out {
		out[i] = Description{
			Scene:   grammar.Scene(i % 18),
			Palette: grammar.Palette(i * 7 % 10),
			Light:   grammar.Light(i / 3 % 5),
			Prop:    grammar.Prop((i + i/6) % 6),
		}
	}
	return out
}

func TestBackgroundIsDeterministic(t *testing.T) {
	for _, d := range sample(18) {
		a, b := Background(d, 5, 64), Background(d, 5, 64)
		if !bytes.Equal(a.Pix, b.Pix) {
			t.Errorf("%v: two drawings differ", d)
		}
		if c := Background(d, 6, 64); bytes.Equal(a.Pix, c.Pix) {
			t.Errorf("%v: another seed draws the same picture", d)
		}
	}
}

// meanAbs is the mean absolute difference of two views, in levels.
func meanAbs(a, b []byte) float64 {
	var s float64
	for i := range a {
		s += math.Abs(float64(a[i]) - float64(b[i]))
	}
	return s / float64(len(a))
}

// What models are trained on (drawn at 128) and what is served (drawn at 256) must look alike at 64.
func TestViewsOfDifferentSizesAgree(t *testing.T) {
	p := catalogue.Embedded().Products()[3]
	var worst float64
	for i, d := range sample(18) {
		a := View(RenderDescription(p, d, uint64(i), 128), 64)
		b := View(RenderDescription(p, d, uint64(i), 256), 64)
		other := View(RenderDescription(p, d, uint64(i)+1000, 256), 64)
		diff := meanAbs(a, b)
		worst = max(worst, diff)
		if diff > 2.5 {
			t.Errorf("%v: views of 128 and 256 px differ by %.2f levels", d, diff)
		}
		if again := meanAbs(b, other); diff > again {
			t.Errorf("%v: size changes the view more (%.2f) than the seed does (%.2f)", d, diff, again)
		}
	}
	t.Logf("worst mean difference %.2f levels", worst)
}

func TestPasteBackIsExactForEveryProduct(t *testing.T) {
	for i, d := range sample(18) {
		bg := Background(d, uint64(i), 256)
		before := crc32.ChecksumIEEE(bg.Pix)
		for k, p := range catalogue.Embedded().Products() {
			if k%18 != i {
				continue
			}
			im := Compose(p, bg)
			if e := MaxProductError(im, p); e != 0 {
				t.Errorf("%s on %v: product pixels differ by %d", p.ID, d, e)
			}
			covered := 0
			for _, a := range Alpha(p, 256) {
				if a == 255 {
					covered++
				}
			}
			if covered < 256*256/50 {
				t.Errorf("%s: only %d pixels are covered fully: the check above proves little", p.ID, covered)
			}
		}
		if crc32.ChecksumIEEE(bg.Pix) != before {
			t.Fatal("Compose changed its background")
		}
	}
}

func TestMaxProductErrorSeesOnePixel(t *testing.T) {
	p := catalogue.Embedded().Products()[0]
	im := Compose(p, Background(Description{}, 1, 128))
	for i, a := range Alpha(p, 128) {
		if a == 255 {
			im.Pix[4*i+1] ^= 4
			break
		}
	}
	if e := MaxProductError(im, p); e != 4 {
		t.Errorf("MaxProductError = %d after changing one product pixel by 4", e)
	}
}

func TestProductIsCentredAtItsScale(t *testing.T) {
	for _, p := range catalogue.Embedded().Products() {
		box := image.Rectangle{}
		for i, a := range Alpha(p, 256) {
			if a > 8 {
				box = box.Union(image.Rect(i%256, i/256, i%256+1, i/256+1))
			}
		}
		if side := max(box.Dx(), box.Dy()); side < 196 || side > 200 {
			t.Errorf("%s: longer side %d px, want %.0f", p.ID, side, ProductScale*256)
		}
		if c := box.Min.Add(box.Max); c.X < 252 || c.X > 260 || c.Y < 252 || c.Y > 260 {
			t.Errorf("%s: centre at %v/2, want 128,128", p.ID, c)
		}
	}
}

func TestRenderOfJunkIsThePlainView(t *testing.T) {
	p := catalogue.Embedded().Products()[0]
	im, valid := Render(p, "a cat on the moon", 1, 64)
	if valid || !bytes.Equal(im.Pix, Plain(p, 64).Pix) {
		t.Errorf("valid = %v, or not the plain view", valid)
	}
	if im.Pix[0] != 245 || im.Pix[3] != 255 {
		t.Errorf("corner is %v, want light grey 245", im.Pix[:4])
	}
}

func TestViewIsABoxFilter(t *testing.T) {
	im := image.NewNRGBA(image.Rect(0, 0, 4, 4))
	for i := range 16 {
		im.Pix[4*i], im.Pix[4*i+1], im.Pix[4*i+3] = uint8(i*10), uint8(i%4), 255
	}
	got := View(im, 2)
	want := []byte{25, 1, 0, 45, 3, 0, 105, 1, 0, 125, 3, 0}
	if !bytes.Equal(got, want) {
		t.Errorf("View = %v, want %v", got, want)
	}
}

func TestEncodePNGRoundTrips(t *testing.T) {
	im := Background(Description{Scene: grammar.Lake}, 3, 64)
	var b bytes.Buffer
	if err := EncodePNG(&b, im); err != nil {
		t.Fatal(err)
	}
	back, err := png.Decode(&b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 64 * 64 {
		r, g, bl, _ := back.At(i%64, i/64).RGBA()
		if q := im.Pix[4*i:]; uint8(r>>8) != q[0] || uint8(g>>8) != q[1] || uint8(bl>>8) != q[2] {
			t.Fatalf("pixel %d changed", i)
		}
	}
}

func TestPipe(t *testing.T) {
	c := catalogue.Embedded()
	id := c.Products()[0].ID
	text := "sunlit beach, deep teal tones, golden hour glow, silk ribbon"
	in := `[{"product":"` + id + `","text":"` + text + `","seed":7,"px":64},{"product":"` + id + `","text":"","seed":1,"px":64},{"product":"` +
		id + `~h25","text":"nonsense","seed":1,"px":64}]` + "\n\n[]\n"
	for _, workers := range []int{1, 2} {
		var out bytes.Buffer
		if err := Pipe(strings.NewReader(in), &out, c, workers); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(&out)
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if want := `{"n":3,"px":64,"valid":[true,false,false]}` + "\n"; line != want {
			t.Errorf("header %q, want %q", line, want)
		}
		pixels := make([]byte, 3*64*64*3)
		if _, err := io.ReadFull(r, pixels); err != nil {
			t.Fatal(err)
		}
		p := c.Products()[0]
		im, _ := Render(p, text, 7, 128)
		if !bytes.Equal(pixels[:64*64*3], View(im, 64)) {
			t.Error("first picture is not the 64 px view of the 128 px drawing")
		}
		if !bytes.Equal(pixels[64*64*3:2*64*64*3], View(Plain(p, 128), 64)) {
			t.Error("second picture is not the plain view")
		}
		rest, _ := io.ReadAll(r)
		if string(rest) != `{"n":0,"px":64,"valid":[]}`+"\n" {
			t.Errorf("answer to the empty request: %q", rest)
		}
	}
}

func TestPipeRefuses(t *testing.T) {
	for in, want := range map[string]string{
		`{"product":1}`:                  "JSON array",
		`[{"product":"nobody"}]`:         "unknown product",
		`[{"product":"p-1f4f1","px":4}]`: "px 4",
		`[{"product":"p-1f4f1","px":64},{"product":"p-1f4f1","px":32}]`: "one size",
	} {
		err := Pipe(strings.NewReader(in+"\n"), io.Discard, catalogue.Embedded(), 1)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Pipe(%s): %v, want an error with %q", in, err, want)
		}
	}
}

func TestGrammarMatchesTheDrawingTables(t *testing.T) {
	g := Grammar()
	raw, err := json.Marshal(g)
	if err != nil || len(raw) == 0 {
		t.Fatal(err)
	}
	if len(g.Scenes) != 14 || len(g.Clickbait) != 4 || len(g.Palettes) != 10 || len(g.Lights) != 5 || len(g.Props) != 6 {
		t.Errorf("vocabulary has the wrong size: %s", raw)
	}
	for i, f := range scenes {
		if f == nil {
			t.Errorf("scene %v cannot be drawn", grammar.Scene(i))
		}
	}
}

func TestAPictureThatWasPaintedElsewhereGetsItsProductBack(t *testing.T) {
	for _, p := range catalogue.Embedded().Products()[:8] {
		cut := Cutout(p, 96)
		alpha := Alpha(p, 96)
		for i, a := range alpha {
			if got := cut.Pix[4*i+3]; got != a {
				t.Fatalf("%s: coverage of pixel %d is %d in the cut-out, %d in Alpha", p.ID, i, got, a)
			}
		}
		if worst := MaxProductError(cut, p); worst != 0 {
			t.Errorf("%s: the cut-out's own pixels differ by %d", p.ID, worst)
		}
		im := image.NewNRGBA(cut.Rect)
		for i := range im.Pix {
			im.Pix[i] = 100
		}
		PasteProduct(im, p)
		if worst := MaxProductError(im, p); worst != 0 {
			t.Errorf("%s: product pixels differ by %d", p.ID, worst)
		}
		for i, a := range alpha {
			if a < 255 && im.Pix[4*i] != 100 {
				t.Fatalf("%s: pixel %d of coverage %d was touched", p.ID, i, a)
			}
		}
	}
}

func TestPipeGivesCoverage(t *testing.T) {
	p := catalogue.Embedded().Products()[0]
	ask := func(view string) (string, error) {
		var out bytes.Buffer
		err := Pipe(strings.NewReader(`[{"product":"`+p.ID+`","text":"","px":16,"view":"`+view+`"}]`+"\n"), &out, catalogue.Embedded(), 1)
		return out.String(), err
	}
	got, err := ask("alpha")
	if err != nil {
		t.Fatal(err)
	}
	head, pixels, _ := strings.Cut(got, "\n")
	if head != `{"n":1,"px":16,"valid":[true]}` || len(pixels) != 16*16*3 {
		t.Fatalf("header %s and %d bytes", head, len(pixels))
	}
	alpha := Alpha(p, drawPx(16))
	for i := range 16 * 16 {
		var sum int
		for y := range 8 {
			for x := range 8 {
				sum += int(alpha[(i/16*8+y)*128+i%16*8+x])
			}
		}
		for c := range 3 {
			if want := (sum + 32) / 64; int(pixels[3*i+c]) != want {
				t.Fatalf("pixel %d is %d, want the mean coverage %d", i, pixels[3*i+c], want)
			}
		}
	}
	if _, err := ask("depth"); err == nil || !strings.Contains(err.Error(), `view "depth"`) {
		t.Errorf("an unknown view: %v", err)
	}
}
