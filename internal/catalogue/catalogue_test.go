package catalogue

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"image"
	"image/color"
	"image/png"
	"strings"
	"testing"
	"testing/fstest"

	"ctrloop/internal/imaging/grammar"
)

func TestEmbedded(t *testing.T) {
	c := Embedded()
	categories, held := map[string]int{}, 0
	for _, p := range c.Products() {
		categories[p.Category]++
		if p.Holdout() {
			held++
		}
		if _, ok := fits[p.Department]; !ok {
			t.Errorf("%s: department %q has no fitting scenes", p.ID, p.Department)
		}
		if n := len(p.Harmonious()); n != NumHarmonious {
			t.Errorf("%s: %d harmonious palettes", p.ID, n)
		}
	}
	if len(c.Products()) != 176 || len(categories) != 44 {
		t.Errorf("%d products in %d categories, want 176 in 44", len(c.Products()), len(categories))
	}
	if held < 25 || held > 45 {
		t.Errorf("%d of 176 products are held out, want about a fifth", held)
	}
	p, _ := c.Get("p-1f34c")
	if got, want := p.Caption(), "banana, pale orange. food and drink/fruit"; got != want {
		t.Errorf("caption %q, want %q", got, want)
	}
}

func TestVariants(t *testing.T) {
	c := Embedded()
	banana, _ := c.Get("p-1f34c")
	v, ok := c.Get("p-1f34c~h50")
	if !ok {
		t.Fatal("no variant ~h50")
	}
	if again, _ := c.Get("p-1f34c~h50"); again != v {
		t.Error("a variant is made twice")
	}
	if v.Colour() == banana.Colour() || v.Holdout() != banana.Holdout() || v.Base() != banana.ID {
		t.Errorf("variant: colour %s, holdout %v, base %s", v.Colour(), v.Holdout(), v.Base())
	}
	for i := 3; i < len(v.Cutout.Pix); i += 4 {
		if v.Cutout.Pix[i] != banana.Cutout.Pix[i] {
			t.Fatal("hue rotation changed alpha")
		}
	}
	for _, bad := range []string{"p-1f34c~h00", "p-1f34c~h5", "p-1f34c~hxx", "nobody~h50", "p-1f34c~h500"} {
		if _, ok := c.Get(bad); ok {
			t.Errorf("Get(%q) finds something", bad)
		}
	}
	if n := len(c.Variants(banana, 3)); n != 3 {
		t.Errorf("%d variants, want 3", n)
	}
}

func pngOf(t *testing.T, w, h int, at func(x, y int) color.NRGBA) []byte {
	t.Helper()
	im := image.NewNRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			im.SetNRGBA(x, y, at(x, y))
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, im); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// fixHeader makes the checksum of a PNG's header right again.
func fixHeader(b []byte) { binary.BigEndian.PutUint32(b[29:], crc32.ChecksumIEEE(b[12:29])) }

func TestLoadFSErrors(t *testing.T) {
	good := pngOf(t, 8, 8, func(x, _ int) color.NRGBA { return color.NRGBA{200, 0, 0, uint8(255 * (x / 4))} })
	solid := pngOf(t, 8, 8, func(int, int) color.NRGBA { return color.NRGBA{200, 0, 0, 255} })
	empty := pngOf(t, 8, 8, func(int, int) color.NRGBA { return color.NRGBA{} })
	huge := bytes.Clone(good)
	copy(huge[16:24], []byte{0, 1, 0, 0, 0, 1, 0, 0}) // 65536 x 65536
	fixHeader(huge)
	row := func(image string) string {
		return `{"id":"a","title":"b","category":"c/d","image":"` + image + `"}`
	}
	tests := []struct{ name, jsonl, want string }{
		{"no file", "", "products.jsonl"},
		{"no rows", "\n", "no products"},
		{"bad json", "{", "line 1"},
		{"no title", `{"id":"a","category":"c/d","image":"good.png"}`, `"title"`},
		{"no department", `{"id":"a","title":"b","category":"c","image":"good.png"}`, "department/category"},
		{"variant id", `{"id":"a~h10","title":"b","category":"c/d","image":"good.png"}`, "hue variants"},
		{"twice", row("good.png") + "\n" + row("good.png"), "line 1 already"},
		{"no image", row("none.png"), "none.png"},
		{"outside", row("../good.png"), "may not leave"},
		{"unreadable", row("broken.png"), "unreadable"},
		{"opaque", row("solid.png"), "no alpha"},
		{"empty", row("empty.png"), "fully transparent"},
		{"huge", row("huge.png"), "scale it down"},
	}
	for _, tt := range tests {
		fsys := fstest.MapFS{
			"good.png":   {Data: good},
			"solid.png":  {Data: solid},
			"empty.png":  {Data: empty},
			"huge.png":   {Data: huge},
			"broken.png": {Data: good[:30]},
		}
		if tt.name != "no file" {
			fsys["products.jsonl"] = &fstest.MapFile{Data: []byte(tt.jsonl)}
		}
		if _, err := LoadFS(fsys); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", tt.name, err, tt.want)
		}
	}
	c, err := LoadFS(fstest.MapFS{"good.png": {Data: good}, "products.jsonl": {Data: []byte(row("good.png"))}})
	if err != nil {
		t.Fatal(err)
	}
	if b := c.Products()[0].Cutout.Bounds(); b.Dx() != 4 || b.Dy() != 8 {
		t.Errorf("cut-out is %v, want cropped to its alpha box 4x8", b)
	}
}

func TestUnknownDepartmentGetsNeutralScenes(t *testing.T) {
	if s := FitsOf("spaceships"); len(s) == 0 || s[0] != grammar.Studio {
		t.Errorf("FitsOf = %v", s)
	}
}

func TestHarmony(t *testing.T) {
	red, cyan, grey, orange := RGB{0.9, 0.2, 0.2}, RGB{0.2, 0.8, 0.8}, RGB{0.5, 0.5, 0.5}, RGB{0.9, 0.5, 0.2}
	if !(Harmony(red, orange) > Harmony(red, RGB{0.3, 0.9, 0.2})) {
		t.Error("analogous hues must beat distant ones")
	}
	if !(Harmony(red, cyan) > 0.4) {
		t.Error("complementary hues must be good")
	}
	if !(Harmony(grey, RGB{0.6, 0.6, 0.58}) > Harmony(grey, RGB{0.9, 0.1, 0.6})-0.3) {
		t.Error("grey products want calm backgrounds")
	}
}
