package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"ctrloop/cmd/ctrloop/lab"
	"ctrloop/cmd/ctrloop/progress"
	"ctrloop/internal/catalogue"
	"ctrloop/internal/setup"
	"ctrloop/pairer"
	"ctrloop/pairer/dataset"
	"ctrloop/pairer/pairs"
)

// EvalCmd is `ctrloop eval`: what learning is worth, measured on built-in worlds without the stream.
type EvalCmd struct {
	World EvalWorldCmd `cmd:"" help:"Write the data set of a world, and its true click-through rates."`
}

// worldFlags say which worlds are drawn and how much of them is seen.
type worldFlags struct {
	Products        string  `help:"Folder with products.jsonl and cut-outs, instead of the built-in catalogue." type:"existingdir" placeholder:"DIR"`
	Descriptions    string  `help:"What to draw: lines {\"product\",\"text\"}. Without it the base model describes the products, once per base." type:"existingfile" placeholder:"FILE"`
	Impressions     int64   `help:"How often the shop shows a creative." default:"800000"`
	PerProduct      int     `help:"Creatives per product, at most." default:"12"`
	HoldoutFraction float64 `help:"Share of the products that training never sees." default:"0.2"`
	LaterFraction   float64 `help:"Share of the time, at its end, that training never sees: the split \"later\"." default:"0"`
	Clickbait       float64 `help:"How strongly garish backgrounds pull clicks: 1.5 is mild, 2.2 strong." default:"1.5"`
}

func (f worldFlags) check() error {
	var errs []error
	bad := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(f.Impressions > 0, "--impressions %d: want more than 0", f.Impressions)
	bad(f.PerProduct >= 2, "--per-product %d: want at least 2, or there are no pairs", f.PerProduct)
	bad(f.HoldoutFraction > 0 && f.HoldoutFraction < 1, "--holdout-fraction %v: want between 0 and 1, or there is nothing to measure on or to learn from", f.HoldoutFraction)
	bad(f.LaterFraction >= 0 && f.LaterFraction < 1, "--later-fraction %v: want 0 to below 1", f.LaterFraction)
	bad(f.Clickbait >= 0, "--clickbait %v: want 0 or more", f.Clickbait)
	if err := errors.Join(errs...); err != nil {
		return usageError{err}
	}
	return nil
}

// options of a world over described products.
func (f worldFlags) options(seed uint64, described map[string][]string) lab.WorldOptions {
	cfg := pairer.Default()
	cfg.HoldoutFraction, cfg.Seed = f.HoldoutFraction, seed
	return lab.WorldOptions{
		Seed: seed, Clickbait: f.Clickbait, Impressions: f.Impressions, PerProduct: f.PerProduct, Described: described,
		Pairer: cfg, LaterFraction: f.LaterFraction,
	}
}

// EvalWorldCmd is `ctrloop eval world`.
type EvalWorldCmd struct {
	worldFlags
	Seed   uint64 `help:"Draws the world. Another seed is another world." default:"1"`
	Out    string `required:"" help:"Folder to write; it must not exist, or be empty." type:"path" placeholder:"DIR"`
	Policy string `help:"Rule of pair building." enum:"posterior,caig" default:"posterior"`
}

// evalWorld is what `eval world` prints.
type evalWorld struct {
	Out  string `json:"out"`
	Seed uint64 `json:"seed"`
	dataset.Manifest
}

// Run writes the data set.
func (c *EvalWorldCmd) Run(ctx context.Context, g *Globals, out *output) error {
	if err := c.check(); err != nil {
		return err
	}
	if err := vacant(c.Out); err != nil {
		return usageError{err}
	}
	cat, err := catalogue.Open(c.Products)
	if err != nil {
		return err
	}
	described, err := c.described(ctx, g, out, cat)
	if err != nil {
		return err
	}
	bar := progress.Start(out.stderr, fmt.Sprintf("world %d", c.Seed), "")
	w, err := lab.OpenWorld(ctx, cat, c.options(c.Seed, described), func(share float64, what string) { bar.Set(0, share, what) })
	if err != nil {
		return err
	}
	m, err := w.WriteDataset(c.Out, pairs.Policy(c.Policy))
	if err != nil {
		return err
	}
	bar.Done(0, fmt.Sprintf("%d pairs (%d train, %d later, %d test) of %d creatives, worth %.0f sure comparisons",
		m.Pairs, m.Train, m.Later, m.Test, m.Creatives, m.Effective))
	return out.printJSON(evalWorld{c.Out, c.Seed, m})
}

// vacant reports whether a folder may be written.
func vacant(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("%s is not empty: a data set is never changed; give another folder", dir)
	}
	return err
}

// described returns the descriptions of every product: the file's, or the base model's.
func (f worldFlags) described(ctx context.Context, g *Globals, out *output, cat *catalogue.Catalogue) (map[string][]string, error) {
	if f.Descriptions != "" {
		d, err := lab.ReadDescriptions(f.Descriptions)
		if err != nil {
			return nil, usageError{err}
		}
		return d, nil
	}
	dir, err := os.MkdirTemp("", "ctrloop-eval-*")
	if err != nil {
		return nil, fmt.Errorf("folder of the job: %w", err)
	}
	defer os.RemoveAll(dir)
	t, err := f.trainer(g, out, cat, filepath.Join(dir, "jobs"))
	if err != nil {
		return nil, err
	}
	bar := progress.Start(out.stderr, "describe", "")
	d, err := t.Describe(ctx, describeSeed, f.PerProduct)
	if err == nil {
		bar.Done(0, fmt.Sprintf("%d products by base %.12s", len(d), t.BaseDigest))
	}
	return d, err
}

// describeSeed draws what the base model says. Worlds share it: they differ by taste, not by what there is to like.
const describeSeed = 1

// jobPatience bounds a training job of the lab.
const jobPatience = 4 * time.Hour

func (f worldFlags) trainer(g *Globals, out *output, cat *catalogue.Catalogue, dir string) (*lab.Trainer, error) {
	home, err := setup.Home(g.Home)
	if err != nil {
		return nil, err
	}
	return lab.OpenTrainer(lab.TrainerOptions{
		Home: home, Dir: dir, Products: f.Products, Catalogue: cat, HoldoutFraction: f.HoldoutFraction, Timeout: jobPatience, Log: out.quietLogger(g),
	})
}
