package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"runtime"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging"
)

// RenderCmd is `ctrloop render`: pictures and their vocabulary for other processes, above all training.
type RenderCmd struct {
	Grammar   RenderGrammarCmd   `cmd:"" help:"Print the vocabulary of background descriptions as JSON."`
	Catalogue RenderCatalogueCmd `cmd:"" help:"Print the products as JSON lines."`
	Pipe      RenderPipeCmd      `cmd:"" help:"Draw pictures for a parent process: JSON lines in, raw RGB out."`
	Image     RenderImageCmd     `cmd:"" help:"Draw one creative as PNG."`
}

// openCatalogue reads the products that were named, or the built-in ones.
func openCatalogue(dir string) (*catalogue.Catalogue, error) {
	c, err := catalogue.Open(dir)
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

// RenderGrammarCmd is `ctrloop render grammar`.
type RenderGrammarCmd struct{}

// Run prints the grammar.
func (RenderGrammarCmd) Run(out *output) error {
	return json.NewEncoder(out.stdout).Encode(imaging.Grammar())
}

// RenderCatalogueCmd is `ctrloop render catalogue`.
type RenderCatalogueCmd struct {
	Products string `help:"Folder with products.jsonl and cut-outs; the built-in catalogue if empty." type:"existingdir" placeholder:"DIR"`
	Hues     int    `help:"Add this many hue-rotated variants of each product (training augmentation), ids with the suffix ~hNN." placeholder:"N"`
}

// Run prints one JSON object a line, each product followed by its variants.
func (c RenderCatalogueCmd) Run(out *output) error {
	if c.Hues < 0 || c.Hues > 99 {
		return usageError{fmt.Errorf("--hues %d: want 0 to 99", c.Hues)}
	}
	cat, err := openCatalogue(c.Products)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(out.stdout)
	enc := json.NewEncoder(w)
	for _, p := range cat.Products() {
		for _, v := range append([]*catalogue.Product{p}, cat.Variants(p, c.Hues)...) {
			if err := enc.Encode(v.Entry()); err != nil {
				return err
			}
		}
	}
	return w.Flush()
}

// RenderPipeCmd is `ctrloop render pipe`.
type RenderPipeCmd struct {
	Products string `help:"Folder with products.jsonl and cut-outs; the built-in catalogue if empty." type:"existingdir" placeholder:"DIR"`
	Workers  int    `help:"Pictures drawn at once; 0 takes the cores, at most 2." default:"0"`
}

// Run serves until standard input ends.
func (c RenderPipeCmd) Run(out *output) error {
	cat, err := openCatalogue(c.Products)
	if err != nil {
		return err
	}
	workers := c.Workers
	if workers <= 0 { // the parent trains beside us: leave it the machine
		workers = min(runtime.GOMAXPROCS(0), 2)
	}
	return imaging.Pipe(os.Stdin, out.stdout, cat, workers)
}

// RenderImageCmd is `ctrloop render image`.
type RenderImageCmd struct {
	Text     string `arg:"" help:"Background description: \"<scene>, <palette> tones, <light>, <prop>\"."`
	Product  string `help:"Product id; without one only the background is drawn." placeholder:"ID"`
	Products string `help:"Folder with products.jsonl and cut-outs; the built-in catalogue if empty." type:"existingdir" placeholder:"DIR"`
	Seed     uint64 `help:"Seed of the drawing."`
	Px       int    `help:"Side of the picture in pixels." default:"512"`
	Out      string `short:"o" required:"" help:"File to write." type:"path" placeholder:"FILE"`
}

// Run writes the picture. Parts of the description that the grammar does not know are an error that names them.
func (c RenderImageCmd) Run() error {
	d, unknown, ok := imaging.Parse(c.Text)
	if !ok {
		return usageError{withHint(fmt.Errorf("not a description; unknown parts: %q", unknown), "`ctrloop render grammar` prints the vocabulary")}
	}
	if c.Px < 8 || c.Px > imaging.MaxPx {
		return usageError{fmt.Errorf("--px %d: want 8 to %d", c.Px, imaging.MaxPx)}
	}
	im := imaging.Background(d, c.Seed, c.Px)
	if c.Product != "" {
		cat, err := openCatalogue(c.Products)
		if err != nil {
			return err
		}
		p, known := cat.Get(c.Product)
		if !known {
			return usageError{withHint(fmt.Errorf("unknown product %q", c.Product), "`ctrloop render catalogue` lists them")}
		}
		im = imaging.Compose(p, im)
	}
	f, err := os.Create(c.Out)
	if err != nil {
		return err
	}
	if err := imaging.EncodePNG(f, im); err != nil {
		_ = f.Close()
		return fmt.Errorf("%s: %w", c.Out, err)
	}
	return f.Close()
}
