package main

import (
	"context"
	"fmt"
	"os"

	"ctrloop/app"
	"ctrloop/demo"
	"ctrloop/internal/setup"
)

// DemoCmd is `ctrloop demo`.
type DemoCmd struct {
	JSON            string  `name:"json" help:"Write the scoreboard to this file; - is standard output." placeholder:"FILE"`
	Quick           bool    `help:"A tour: little traffic, two epochs, gates that stop only what is broken; the experiment decides. Its learning figures mean little."`
	Seed            uint64  `help:"Draws the world. Another seed is another world." default:"1"`
	Products        string  `help:"Folder with products.jsonl and cut-outs, instead of the built-in catalogue." type:"existingdir" placeholder:"DIR"`
	Holdout         string  `help:"Folder of products that training never sees, besides --holdout-fraction." type:"existingdir" placeholder:"DIR"`
	HoldoutFraction float64 `help:"Share of the products that training never sees." default:"0.2"`
	Clickbait       float64 `help:"How strongly garish backgrounds pull clicks: 1.5 is mild, 2.2 strong." default:"1.5"`
	Images          string  `help:"What draws the creatives: the scene renderer, or diffusion with the small weights that ship." enum:"scene,diffusion" default:"scene"`
	Speed           float64 `help:"Event time over wall time while the system trains." default:"5"`
	Dir             string  `help:"Folder of the run. A run that was interrupted there goes on. Without it the run is thrown away." type:"path" placeholder:"DIR"`
	Stay            bool    `help:"Leave the console open when done."`
	API             string  `name:"api" help:"Address of the console and the API." default:"127.0.0.1:0" placeholder:"HOST:PORT"`
}

// Run runs the demo.
func (c *DemoCmd) Run(ctx context.Context, g *Globals, out *output) error {
	if c.HoldoutFraction < 0 || c.HoldoutFraction >= 1 {
		return usageError{fmt.Errorf("--holdout-fraction %v: want 0 to below 1", c.HoldoutFraction)}
	}
	if c.HoldoutFraction == 0 && c.Holdout == "" {
		return usageError{fmt.Errorf("nothing is held out: give --holdout-fraction above 0 or --holdout DIR, or there is nothing to measure on")}
	}
	if c.Speed <= 0 {
		return usageError{fmt.Errorf("--speed %v: want more than 0", c.Speed)}
	}
	home, err := setup.Home(g.Home)
	if err != nil {
		return err
	}
	dir := c.Dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "ctrloop-demo-*"); err != nil {
			return fmt.Errorf("folder of the run: %w", err)
		}
		defer os.RemoveAll(dir)
	}
	board := out.stdout
	if c.JSON == "-" { // one document and nothing else
		board = out.stderr
	}
	_, err = demo.Run(ctx, demo.Options{
		Seed: c.Seed, Quick: c.Quick, Products: c.Products, Holdout: c.Holdout, HoldoutFraction: c.HoldoutFraction,
		Clickbait: c.Clickbait, Images: app.ImageBackend(c.Images), Board: board,
		Speed: c.Speed, Dir: dir, Home: home, Version: version, API: c.API, Log: out.quietLogger(g), Out: out.stderr, Stay: c.Stay,
		Report: func(b *demo.Scoreboard) error { return out.writeJSON(c.JSON, b) },
	})
	return err
}
