package imaging

import (
	"image"
	"image/draw"
	"os"
	"strconv"
	"testing"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging/grammar"
)

// TestContactSheet writes a PNG of many creatives to the file named by CTRLOOP_SHEET, for looking at.
func TestContactSheet(t *testing.T) {
	file := os.Getenv("CTRLOOP_SHEET")
	if file == "" {
		t.Skip("CTRLOOP_SHEET names no file")
	}
	px, _ := strconv.Atoi(os.Getenv("CTRLOOP_SHEET_PX"))
	if px == 0 {
		px = 256
	}
	bare := os.Getenv("CTRLOOP_SHEET_BARE") != ""
	cols, rows := 6, 3
	products := catalogue.Embedded().Products()
	sheet := image.NewNRGBA(image.Rect(0, 0, cols*(px+4), rows*(px+4)))
	off, _ := strconv.Atoi(os.Getenv("CTRLOOP_SHEET_SEED"))
	for s := range grammar.NumScenes {
		d := Description{
			Scene:   grammar.Scene(s),
			Palette: grammar.Palette((s*7 + off*3) % 10),
			Light:   grammar.Light((s + off) % 5),
			Prop:    grammar.Prop((s + 2*off + 5) % 6),
		}
		im := Background(d, uint64(off), px)
		if !bare {
			im = Compose(products[(s*29+off*11)%len(products)], im)
		}
		at := image.Pt(s%cols*(px+4), s/cols*(px+4))
		draw.Draw(sheet, im.Rect.Add(at), im, image.Point{}, draw.Src)
	}
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := EncodePNG(f, sheet); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
