package imaging

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"io"

	"golang.org/x/sync/errgroup"

	"ctrloop/internal/catalogue"
)

// Bounds on one request of the pipe.
const (
	maxPipeLineBytes = 64 << 20
	maxPipeItems     = 65536
	defaultViewPx    = 64
)

// PipeItem is one picture that the pipe is asked for.
type PipeItem struct {
	Product string `json:"product"`
	Text    string `json:"text"` // a description; empty for the plain view
	Seed    uint64 `json:"seed"`
	Px      int    `json:"px"`             // side of the picture in pixels, 64 if 0; the same for all items of a request
	View    string `json:"view,omitempty"` // empty: the picture; "alpha": the product's coverage as grey, for who paints behind it
}

// ViewAlpha asks for the product's coverage instead of a picture.
const ViewAlpha = "alpha"

// PipeHeader precedes the pixels of an answer.
type PipeHeader struct {
	N     int    `json:"n"`
	Px    int    `json:"px"`
	Valid []bool `json:"valid"`
}

// drawPx is the size at which a picture with a view of px pixels is drawn: at least twice the view, and
// a multiple of it, so that the view is a box filter of a larger picture as it is for served creatives.
func drawPx(px int) int { return px * max(2, (128+px-1)/px) }

// Pipe serves pictures over a pair of streams until r ends: one JSON array of PipeItem per line in; per
// line one JSON PipeHeader line and N*px*px*3 bytes of RGB out. workers bounds the goroutines that draw.
// A text that is not a well-formed description draws the plain view and is marked invalid. A request
// that cannot be served at all (bad JSON, unknown product) ends the pipe with an error.
func Pipe(r io.Reader, w io.Writer, c *catalogue.Catalogue, workers int) error {
	in := bufio.NewReaderSize(r, 1<<16)
	out := bufio.NewWriterSize(w, 1<<16)
	for n := 1; ; n++ {
		line, err := readLine(in)
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("render pipe: request %d: %w", n, err)
		}
		if len(line) == 0 {
			continue
		}
		if err := serve(line, out, c, workers); err != nil {
			return fmt.Errorf("render pipe: request %d: %w", n, err)
		}
	}
}

func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxPipeLineBytes {
			return nil, fmt.Errorf("line longer than %d MiB", maxPipeLineBytes>>20)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			for len(line) > 0 && (line[len(line)-1] == '\n' || line[len(line)-1] == '\r') {
				line = line[:len(line)-1]
			}
			return line, err
		}
	}
}

func drawItem(p *catalogue.Product, it PipeItem, px int) (*image.NRGBA, bool) {
	if it.View != ViewAlpha {
		return Render(p, it.Text, it.Seed, px)
	}
	im := image.NewNRGBA(image.Rect(0, 0, px, px))
	for i, a := range Alpha(p, px) {
		im.Pix[4*i], im.Pix[4*i+1], im.Pix[4*i+2], im.Pix[4*i+3] = a, a, a, 255
	}
	return im, true
}

func serve(line []byte, out *bufio.Writer, c *catalogue.Catalogue, workers int) error {
	var items []PipeItem
	if err := json.Unmarshal(line, &items); err != nil {
		return fmt.Errorf("want a JSON array of {product,text,seed,px}: %w", err)
	}
	if len(items) > maxPipeItems {
		return fmt.Errorf("%d pictures in one request, at most %d", len(items), maxPipeItems)
	}
	h := PipeHeader{N: len(items), Px: defaultViewPx, Valid: make([]bool, len(items))}
	products := make([]*catalogue.Product, len(items))
	for i := range items {
		if items[i].Px == 0 {
			items[i].Px = defaultViewPx
		}
		if i == 0 {
			h.Px = items[0].Px
		}
		if items[i].Px != h.Px || h.Px < 8 || h.Px > 512 {
			return fmt.Errorf("item %d: px %d: want one size from 8 to 512 for the whole request", i, items[i].Px)
		}
		if v := items[i].View; v != "" && v != ViewAlpha {
			return fmt.Errorf("item %d: view %q: want none or %q", i, v, ViewAlpha)
		}
		p, ok := c.Get(items[i].Product)
		if !ok {
			return fmt.Errorf("item %d: unknown product %q (see `ctrloop render catalogue`)", i, items[i].Product)
		}
		products[i] = p
	}
	pixels := make([]byte, h.N*h.Px*h.Px*3)
	var g errgroup.Group
	g.SetLimit(max(workers, 1))
	for i := range items {
		g.Go(func() error {
			im, valid := drawItem(products[i], items[i], drawPx(h.Px))
			h.Valid[i] = valid
			copy(pixels[i*h.Px*h.Px*3:], View(im, h.Px))
			return nil
		})
	}
	_ = g.Wait() // drawing cannot fail
	head, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if _, err := out.Write(append(head, '\n')); err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	if _, err := out.Write(pixels); err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	return out.Flush()
}
