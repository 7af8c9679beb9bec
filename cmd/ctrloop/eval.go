package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/progress"
	"ctrloop/internal/setup"
	"ctrloop/lab"
	"ctrloop/pairer"
	"ctrloop/pairer/dataset"
	"ctrloop/pairer/pairs"
)

// EvalCmd is `ctrloop eval`: what learning is worth, measured on built-in worlds without the stream.
type EvalCmd struct {
	World    EvalWorldCmd    `cmd:"" help:"Write the data set of a world, and its true click-through rates."`
	Reward   EvalRewardCmd   `cmd:"" help:"All reward models on the same pairs, in one table."`
	Rounds   EvalRoundsCmd   `cmd:"" help:"Train by preference rounds in several worlds and have each judge the result."`
	Ablation EvalAblationCmd `cmd:"" help:"The method with one part taken out at a time, in one table."`
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
	bad(
		f.HoldoutFraction > 0 && f.HoldoutFraction < 1,
		"--holdout-fraction %v: want between 0 and 1, or there is nothing to measure on or to learn from",
		f.HoldoutFraction,
	)
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
	Policy string `help:"Rule of training pairs; test pairs always follow the first." enum:"posterior,caig" default:"posterior"`

	CAIGFloor int64 `name:"caig-floor" help:"Impressions that a creative must have more of under policy caig." default:"1000"`
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
	cat, err := openCatalogue(c.Products)
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
	m, err := w.WriteDataset(c.Out, lab.PairRule{Policy: pairs.Policy(c.Policy), CAIGFloor: c.CAIGFloor})
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
	t, err := f.trainer(g, out, cat, dir, "")
	if err != nil {
		return nil, err
	}
	bar := progress.Start(out.stderr, "describe", "")
	d, err := t.Describe(ctx, lab.DescribeSeed, f.PerProduct)
	if err == nil {
		bar.Done(0, fmt.Sprintf("%d products by base %.12s", len(d), t.BaseDigest))
	}
	return d, err
}

// jobPatience bounds a training job of the lab.
const jobPatience = 6 * time.Hour

func (f worldFlags) trainer(g *Globals, out *output, cat *catalogue.Catalogue, dir, base string) (*lab.Trainer, error) {
	home, err := setup.Home(g.Home)
	if err != nil {
		return nil, err
	}
	return lab.OpenTrainer(lab.TrainerOptions{
		Home: home, Dir: dir, Base: base, Products: f.Products, Catalogue: cat, HoldoutFraction: f.HoldoutFraction, Timeout: jobPatience,
		Log: out.quietLogger(g),
	})
}

// benchFlags say over which worlds something is evaluated, and where.
type benchFlags struct {
	worldFlags
	JSON   string            `name:"json" help:"Write the report to this file; - is standard output." placeholder:"FILE"`
	Seeds  []uint64          `help:"Worlds, by seed. Settings were chosen on 101 to 120; 21 to 30 are for reports." default:"21,22,23,24,25"`
	Dir    string            `help:"Folder of the run. What is finished there is not done again. Without it the run is thrown away." type:"path" placeholder:"DIR"`
	Jobs   int               `help:"Worlds at a time, each with a training process of its own." default:"1"`
	Base   string            `help:"Folder of the base prompt model, instead of the shipped one." type:"existingdir" placeholder:"DIR"`
	Reward map[string]string `help:"Hyper-parameters of reward jobs, as the trainer names them." placeholder:"NAME=VALUE"`
	Quick  bool              `help:"A smoke test: a small world, little training. Its figures mean little."`
}

func (f *benchFlags) check() error {
	if err := f.worldFlags.check(); err != nil {
		return err
	}
	if len(f.Seeds) == 0 {
		return usageError{errors.New("--seeds: want at least one")}
	}
	seen := map[uint64]bool{}
	for _, s := range f.Seeds {
		if seen[s] {
			return usageError{fmt.Errorf("--seeds: %d is there twice; a world counts once", s)}
		}
		seen[s] = true
	}
	if f.Jobs < 1 {
		return usageError{fmt.Errorf("--jobs %d: want at least 1", f.Jobs)}
	}
	return nil
}

// bench opens the folder and the trainer. The caller closes it.
func (f *benchFlags) bench(g *Globals, out *output) (b *lab.Bench, done func(), err error) {
	if err := f.check(); err != nil {
		return nil, nil, err
	}
	cat, err := openCatalogue(f.Products)
	if err != nil {
		return nil, nil, err
	}
	dir, done := f.Dir, func() {}
	if dir == "" {
		if dir, err = os.MkdirTemp("", "ctrloop-eval-*"); err != nil {
			return nil, nil, fmt.Errorf("folder of the run: %w", err)
		}
		done = func() { _ = os.RemoveAll(dir) }
	}
	defer func() {
		if err != nil {
			done()
		}
	}()
	b = &lab.Bench{
		Catalogue: cat,
		Dir:       dir,
		World:     f.options(0, nil),
		Reward:    hyper(f.Reward),
		Rounds:    map[string]any{},
		Jobs:      f.Jobs,
		Progress:  out.stderr,
	}
	if f.Quick {
		b.World.Impressions, b.World.PerProduct = min(b.World.Impressions, quickImpressions), min(b.World.PerProduct, quickPerProduct)
		b.Rounds = map[string]any{"products": 48, "held_samples": 2}
	}
	if f.Descriptions != "" {
		if b.Described, err = lab.ReadDescriptions(f.Descriptions); err != nil {
			return nil, nil, usageError{err}
		}
	}
	b.Trainer, err = f.trainer(g, out, cat, filepath.Join(dir, "jobs"), f.Base)
	return b, done, err
}

// Size of a world of --quick.
const (
	quickImpressions = 150_000
	quickPerProduct  = 4
)

// hyper reads hyper-parameters: a value that is JSON is what it says, any other is a text.
func hyper(given map[string]string) map[string]any {
	out := map[string]any{}
	for k, text := range given {
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		var v any
		if d.Decode(&v) != nil || d.More() {
			v = text
		}
		out[k] = v
	}
	return out
}

func merge(all ...map[string]any) map[string]any {
	out := map[string]any{}
	for _, m := range all {
		maps.Copy(out, m)
	}
	return out
}

// EvalRewardCmd is `ctrloop eval reward`.
type EvalRewardCmd struct {
	benchFlags
	Dataset         string            `help:"A data set folder instead of worlds." type:"existingdir" placeholder:"DIR"`
	Truth           string            `help:"True click-through rates of --dataset, as eval world writes them; truth.json in the folder if there." type:"existingfile" placeholder:"FILE"`
	CAIG            string            `name:"caig" help:"Pairs in CAIG's own file format instead of worlds; needs --images." type:"existingfile" placeholder:"FILE"`
	CreativeRanking string            `help:"Folder with the CreativeRanking lists instead of worlds." type:"existingdir" placeholder:"DIR"`
	Images          string            `help:"Folder of the pictures that --caig or --creative-ranking name." type:"existingdir" placeholder:"DIR"`
	Judge           []string          `help:"A zero-shot judge besides: openai:BASE_URL:MODEL or anthropic:BASE_URL:MODEL, or an object with \"judge\" and its settings (prices, max_cost_usd, key_env, ...). The key is read from the environment." placeholder:"SPEC" sep:"none"`
	MLLM            bool              `name:"mllm" help:"The two-image multimodal reward model besides; it takes long without a GPU."`
	Evaluate        map[string]string `help:"Hyper-parameters of the evaluate job, as the trainer names them." placeholder:"NAME=VALUE"`
}

func (c *EvalRewardCmd) sources() error {
	var given []string
	for name, v := range map[string]string{"--dataset": c.Dataset, "--caig": c.CAIG, "--creative-ranking": c.CreativeRanking} {
		if v != "" {
			given = append(given, name)
		}
	}
	slices.Sort(given)
	switch {
	case len(given) > 1:
		return usageError{fmt.Errorf("%s: one source of pairs at a time", strings.Join(given, " and "))}
	case c.CAIG != "" && c.Images == "":
		return usageError{errors.New("--caig needs --images, the folder of the pictures that the file names")}
	case c.Images != "" && c.CAIG == "" && c.CreativeRanking == "":
		return usageError{errors.New("--images goes with --caig or --creative-ranking")}
	case c.Truth != "" && c.Dataset == "":
		return usageError{errors.New("--truth goes with --dataset; worlds know theirs")}
	}
	return nil
}

// judges are the trainer's entries: texts, or objects where one begins with a brace.
func (c *EvalRewardCmd) judges() (out []any, err error) {
	for _, j := range c.Judge {
		var v any = j
		if strings.HasPrefix(strings.TrimSpace(j), "{") {
			if err := json.Unmarshal([]byte(j), &v); err != nil {
				return nil, usageError{fmt.Errorf("--judge %s: %w", j, err)}
			}
		}
		out = append(out, v)
	}
	return out, nil
}

// Run trains and scores the models and prints the table.
func (c *EvalRewardCmd) Run(ctx context.Context, g *Globals, out *output) error {
	if err := c.sources(); err != nil {
		return err
	}
	judges, err := c.judges()
	if err != nil {
		return err
	}
	b, done, err := c.bench(g, out)
	if err != nil {
		return err
	}
	defer done()
	opt := lab.RewardOptions{Seeds: c.Seeds, Judges: judges, MLLM: c.MLLM, Hyper: merge(b.Reward, hyper(c.Evaluate))}
	if opt.Data, opt.Truth, err = c.given(ctx, b); err != nil {
		return err
	}
	r, err := b.RunReward(ctx, opt)
	if err != nil {
		return err
	}
	return out.answer(c.JSON, r, r.Print)
}

// given is the data set that the options name, converted if need be, and its truth; empty for worlds.
func (c *EvalRewardCmd) given(ctx context.Context, b *lab.Bench) (data, truth string, err error) {
	form, from := lab.FormCAIG, c.CAIG
	switch {
	case c.Dataset != "":
		if truth = filepath.Join(c.Dataset, lab.TruthFile); c.Truth != "" {
			truth = c.Truth
		} else if _, err := os.Stat(truth); err != nil {
			truth = ""
		}
		return c.Dataset, truth, nil
	case c.CreativeRanking != "":
		form, from = lab.FormCreativeRanking, c.CreativeRanking
	case c.CAIG == "":
		return "", "", nil
	}
	data = filepath.Join(b.Dir, string(form), "set")
	return data, "", b.Trainer.Convert(ctx, form, from, c.Images, data)
}

// roundsFlags are what the commands share that run preference rounds.
type roundsFlags struct {
	benchFlags
	Epochs int               `help:"Epochs of every arm; 0 for as many as the trainer has by default." default:"0"`
	Best   int               `help:"Drawings per held-out product in the search for its best creative; 0 leaves that figure out." default:"400"`
	Rounds map[string]string `help:"Hyper-parameters of rounds jobs, as the trainer names them." placeholder:"NAME=VALUE"`
}

// bench is ready to run rounds; done must be called.
func (f *roundsFlags) bench(g *Globals, out *output) (b *lab.Bench, done func(), err error) {
	if f.Epochs < 0 {
		return nil, nil, usageError{fmt.Errorf("--epochs %d: want 0 (the trainer's own number) or more", f.Epochs)}
	}
	if f.Best < 0 {
		return nil, nil, usageError{fmt.Errorf("--best %d: want 0 (leave it out) or more", f.Best)}
	}
	if b, done, err = f.benchFlags.bench(g, out); err != nil {
		return nil, nil, err
	}
	b.Rounds = merge(b.Rounds, hyper(f.Rounds))
	if f.Quick {
		f.Epochs, f.Best = 1, min(f.Best, 60)
	}
	return b, done, nil
}

// EvalRoundsCmd is `ctrloop eval rounds`.
type EvalRoundsCmd struct {
	roundsFlags
	Arms []string `help:"Arms of the trainer; each is compared with dpo." default:"dpo,pcpo"`
}

// Run runs the rounds and prints what the worlds say of them.
func (c *EvalRoundsCmd) Run(ctx context.Context, g *Globals, out *output) error {
	b, done, err := c.bench(g, out)
	if err != nil {
		return err
	}
	defer done()
	r, err := b.RunRounds(ctx, lab.RoundsOptions{Seeds: c.Seeds, Epochs: c.Epochs, Arms: c.Arms, Budget: c.Best})
	if err != nil {
		return err
	}
	return out.answer(c.JSON, r, r.Print)
}

// EvalAblationCmd is `ctrloop eval ablation`.
type EvalAblationCmd struct {
	roundsFlags
	Only []string `help:"Variants beside the full method, by name; all without it." placeholder:"NAME"`
}

// Run runs the variants and prints the table.
func (c *EvalAblationCmd) Run(ctx context.Context, g *Globals, out *output) error {
	variants, err := only(lab.Variants(), c.Only)
	if err != nil {
		return err
	}
	b, done, err := c.bench(g, out)
	if err != nil {
		return err
	}
	defer done()
	r, err := b.RunAblation(ctx, lab.AblationOptions{Seeds: c.Seeds, Epochs: c.Epochs, Budget: c.Best, Variants: variants})
	if err != nil {
		return err
	}
	return out.answer(c.JSON, r, r.Print)
}

// only keeps the first variant and the named ones.
func only(all []lab.Variant, names []string) ([]lab.Variant, error) {
	if len(names) == 0 {
		return all, nil
	}
	known := make([]string, len(all))
	for i, v := range all {
		known[i] = v.Name
	}
	for _, n := range names {
		if !slices.Contains(known, n) {
			return nil, usageError{fmt.Errorf("--only %q: no such variant; there are %s", n, strings.Join(known, ", "))}
		}
	}
	return slices.DeleteFunc(all, func(v lab.Variant) bool { return v.Name != all[0].Name && !slices.Contains(names, v.Name) }), nil
}
