package lab

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"ctrloop/app"
	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging"
	"ctrloop/internal/world"
	"ctrloop/pairer"
	"ctrloop/pairer/dataset"
	"ctrloop/pairer/pairs"
	"ctrloop/schemas"
)

// TruthFile lies beside a data set: the true click-through rate of each creative, which no model may see.
const TruthFile = "truth.json"

// JoinWindow of the shop that the demo and the lab share. It is short against a shop's usual half hour, so that the
// steps of a ramp fit into a demo.
const JoinWindow = 5 * time.Minute

// StartMS is when the shop opens: 2026-01-01 00:00 UTC.
const StartMS = 1_767_225_600_000

// VisitRate of the shop, visits per second of event time.
const VisitRate = 60

// Traffic is the shop of the demo and the lab, watched in fast motion.
func Traffic(seed uint64) world.TrafficConfig {
	cfg := world.DefaultTraffic(seed)
	cfg.StartMS, cfg.RatePerSecond, cfg.Users, cfg.Window = StartMS, VisitRate, 60_000, JoinWindow
	return cfg
}

// creativePx is the side of a creative, as the serving side draws them by default.
const creativePx = 256

// WorldOptions say which world to draw and how much of it to see.
type WorldOptions struct {
	Seed        uint64
	Clickbait   float64 // strength of the clickbait direction, see world.Config
	Impressions int64
	PerProduct  int                 // creatives, at most
	Described   map[string][]string // descriptions by product; the first distinct well-formed ones are drawn
	Pairer      pairer.Config
	// LaterFraction of the event time, at its end, is kept from training: products that are learned from are paired on
	// it separately, as split "later". 0: no such split.
	LaterFraction float64
}

// ad is a creative of the lab.
type ad struct {
	schemas.Creative
	view []byte // PNG
	ctr  float64
}

// World is a world with its creatives and what its shoppers did.
type World struct {
	*world.World
	Catalogue *catalogue.Catalogue

	opt  WorldOptions
	ads  map[string]*ad
	by   map[string][]string // product -> creatives
	span pairs.Span
	cut  int64 // event time from which evidence counts as later, Unix milliseconds
	// Evidence before and from the cut.
	early, late []pairs.Evidence
}

var _ pairer.Creatives = (*World)(nil)

// OpenWorld draws the world and its creatives and lets its shoppers visit. tell, if not nil, hears how far it is, 0 to 1.
func OpenWorld(ctx context.Context, cat *catalogue.Catalogue, opt WorldOptions, tell func(share float64, what string)) (*World, error) {
	if tell == nil {
		tell = func(float64, string) {}
	}
	cfg := world.DefaultConfig(opt.Seed)
	cfg.Clickbait = opt.Clickbait
	w := &World{World: world.New(cfg, cat), Catalogue: cat, opt: opt, ads: map[string]*ad{}, by: map[string][]string{}}
	if err := w.draw(ctx, tell); err != nil {
		return nil, err
	}
	return w, w.visit(ctx, tell)
}

// draw makes the creatives. Of one product they share the seed of the drawing, as the serving side's do: they differ
// by what was described, not by how the dice fell.
func (w *World) draw(ctx context.Context, tell func(float64, string)) error {
	var todo []*ad
	for _, p := range w.Catalogue.Products() {
		texts := distinct(w.opt.Described[p.ID], w.opt.PerProduct)
		if len(texts) < 2 {
			return fmt.Errorf("product %s has %d distinct well-formed descriptions: a pair needs two; describe it more often", p.ID, len(texts))
		}
		seed := hash64("draw", w.opt.Seed, p.ID)
		for _, text := range texts {
			a := &ad{Creative: schemas.Creative{
				ID: fmt.Sprintf(
					"c-%016x",
					hash64("creative", seed, p.ID, text),
				), Product: p.ID, Category: p.Category, Description: text, Seed: seed, Valid: true,
			}}
			todo = append(todo, a)
			w.ads[a.ID] = a
			w.by[p.ID] = append(w.by[p.ID], a.ID)
		}
	}
	jobs, _ := errgroup.WithContext(ctx)
	jobs.SetLimit(min(runtime.GOMAXPROCS(0), 2))
	for i, a := range todo {
		if ctx.Err() != nil {
			break
		}
		tell(0.9*float64(i)/float64(len(todo)), "creatives")
		jobs.Go(func() (err error) {
			p, _ := w.Catalogue.Get(a.Product)
			im, _ := imaging.Render(p, a.Description, a.Seed, creativePx)
			a.ctr = w.TrueCTR(p, im)
			a.view, err = app.View(im, app.EmbeddedViewPx)
			return err
		})
	}
	return cmp.Or(jobs.Wait(), ctx.Err())
}

// distinct returns the first n different well-formed descriptions.
func distinct(texts []string, n int) (out []string) {
	for _, t := range texts {
		if _, _, ok := imaging.Parse(t); ok && !slices.Contains(out, t) && len(out) < n {
			out = append(out, t)
		}
	}
	return out
}

// hash64 is a number that depends on all parts.
func hash64(parts ...any) uint64 {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%v\x00", p)
	}
	return binary.BigEndian.Uint64(h.Sum(nil))
}

// cell is where a creative is compared.
type cell struct{ creative, placement string }

// counter is the other end of the world's traffic: it decides uniformly over a product's creatives and counts what
// labels would say. It is both world.Decider and world.Sender.
type counter struct {
	by    map[string][]string
	rng   *rand.Rand
	shown map[schemas.ImpressionID]cell
	hits  []schemas.ImpressionID
}

// Decide implements world.Decider.
func (c *counter) Decide(_ context.Context, visits []world.Visit) ([]world.Decision, error) {
	out := make([]world.Decision, len(visits))
	for i, v := range visits {
		all := c.by[v.Product]
		out[i] = world.Decision{Creative: all[c.rng.IntN(len(all))], Policy: "uniform", Propensity: 1 / float64(len(all))}
	}
	return out, nil
}

// Send implements world.Sender. Impressions that are sent twice count once, as in the join; bots do not count.
func (c *counter) Send(_ context.Context, batch []world.Event) error {
	for _, e := range batch {
		switch {
		case e.Click != nil:
			c.hits = append(c.hits, schemas.ImpressionID(e.Click.ImpressionId))
		case !e.Impression.Bot:
			c.shown[schemas.ImpressionID(e.Impression.Id)] = cell{e.Impression.Creative, e.Impression.Placement}
		}
	}
	return nil
}

// visit runs the world's own traffic: popularity, placements, positions, users, fatigue and all.
func (w *World) visit(ctx context.Context, tell func(float64, string)) error {
	c := &counter{
		by: w.by, rng: rand.New(rand.NewPCG(w.opt.Seed, 0xdec1de)), shown: make(map[schemas.ImpressionID]cell, w.opt.Impressions),
	}
	t, err := world.Open(Traffic(w.opt.Seed), w.Catalogue, c, c, func(id string) float64 { return w.ads[id].ctr }, "")
	if err != nil {
		return err
	}
	const steps = 10
	for i := int64(1); i <= steps; i++ {
		if err := t.Run(ctx, world.Until{Impressions: w.opt.Impressions * i / steps}); err != nil {
			return err
		}
		tell(0.9+0.1*float64(i)/steps, "visits")
	}
	end := t.Stats().NowMS
	if err := t.Drain(ctx); err != nil {
		return err
	}
	w.span = pairs.Span{FromMS: StartMS, ToMS: end}
	w.cut = end - int64(w.opt.LaterFraction*float64(end-StartMS))
	w.count(c)
	return nil
}

// count adds up impressions and clicked impressions of each cell, early and late ones apart.
func (w *World) count(c *counter) {
	clicked := make(map[schemas.ImpressionID]bool, len(c.hits))
	for _, id := range c.hits {
		clicked[id] = true
	}
	early, late := map[cell]*pairs.Evidence{}, map[cell]*pairs.Evidence{}
	for id, k := range c.shown {
		part := early
		if w.opt.LaterFraction > 0 && id.UnixMilli() >= w.cut {
			part = late
		}
		e := part[k]
		if e == nil {
			a := w.ads[k.creative]
			e = &pairs.Evidence{Product: a.Product, Category: a.Category, Placement: k.placement, Creative: k.creative}
			part[k] = e
		}
		e.Impressions++
		if clicked[id] {
			e.Clicks++
		}
	}
	w.early, w.late = sorted(early), sorted(late)
}

func sorted(m map[cell]*pairs.Evidence) []pairs.Evidence {
	out := make([]pairs.Evidence, 0, len(m))
	for _, e := range m {
		out = append(out, *e)
	}
	slices.SortFunc(out, func(a, b pairs.Evidence) int {
		return cmp.Or(cmp.Compare(a.Creative, b.Creative), cmp.Compare(a.Placement, b.Placement))
	})
	return out
}

// Creative implements pairer.Creatives.
func (w *World) Creative(id string) (schemas.Creative, bool) {
	a, ok := w.ads[id]
	if !ok {
		return schemas.Creative{}, false
	}
	return a.Creative, true
}

// View implements pairer.Creatives.
func (w *World) View(c schemas.Creative) ([]byte, error) { return w.ads[c.ID].view, nil }

// Caption implements pairer.Creatives.
func (w *World) Caption(product string) (string, bool) {
	p, ok := w.Catalogue.Get(product)
	if !ok {
		return "", false
	}
	return p.Caption(), true
}

// PairRule says how training pairs are made. Test pairs are always made by the pairer's usual rule, so that models
// that learned from other pairs are measured on the same ones.
type PairRule struct {
	Policy    pairs.Policy // empty: the usual one
	CAIGFloor int64        // see pairs.Config
}

// WriteDataset writes the data set and, beside its tables, the truth. The folder must not exist, or be empty.
func (w *World) WriteDataset(dir string, rule PairRule) (dataset.Manifest, error) {
	policy := cmp.Or(rule.Policy, w.opt.Pairer.Policy)
	ps, trained := w.pairs(rule)
	if !slices.ContainsFunc(ps, func(p schemas.Pair) bool { return p.Split == "train" }) {
		return dataset.Manifest{}, fmt.Errorf(
			"the evidence of %d impressions gives no training pair under policy %s: draw more impressions, or fewer creatives per product",
			w.opt.Impressions,
			policy,
		)
	}
	rows, left := pairer.CreativeRows(ps, trained, w)
	if len(left) > 0 {
		return dataset.Manifest{}, fmt.Errorf("the world does not know its own creatives: %v", left)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return dataset.Manifest{}, fmt.Errorf("write data set: %w", err)
	}
	truth := make(map[string]float64, len(rows))
	for _, r := range rows {
		truth[r.Creative] = w.ads[r.Creative].ctr
	}
	raw, err := json.MarshalIndent(truth, "", " ")
	if err != nil {
		return dataset.Manifest{}, fmt.Errorf("write data set: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, TruthFile), append(raw, '\n'), 0o644); err != nil {
		return dataset.Manifest{}, fmt.Errorf("write data set: %w", err)
	}
	return dataset.Write(dir, ps, rows, dataset.Manifest{FromMS: w.span.FromMS, ToMS: w.span.ToMS, Policy: string(policy), Seed: w.opt.Seed})
}

// pairs builds the pairs, and returns the evidence that creatives of the data set are described by: of products that
// are learned from, what came before the cut.
func (w *World) pairs(rule PairRule) ([]schemas.Pair, []pairs.Evidence) {
	usual := w.opt.Pairer.Pairs()
	all, trained := w.split(usual)
	if rule == (PairRule{}) || rule.Policy == usual.Policy {
		return all, trained
	}
	other := usual
	other.Policy, other.CAIGFloor = rule.Policy, rule.CAIGFloor
	theirs, _ := w.split(other)
	train := func(p schemas.Pair) bool { return p.Split == "train" }
	return append(slices.DeleteFunc(theirs, func(p schemas.Pair) bool { return !train(p) }), slices.DeleteFunc(all, train)...), trained
}

func (w *World) split(cfg pairs.Config) ([]schemas.Pair, []pairs.Evidence) {
	if w.opt.LaterFraction <= 0 {
		return pairs.Build(cfg, w.early, w.span), w.early
	}
	trained := pairs.Sum(w.early, slices.DeleteFunc(slices.Clone(w.late), func(e pairs.Evidence) bool { return !cfg.Held(e.Product) }))
	early, late := pairs.Span{FromMS: w.span.FromMS, ToMS: w.cut}, pairs.Span{FromMS: w.cut, ToMS: w.span.ToMS}
	return pairs.BuildLater(cfg, w.early, w.late, early, late), trained
}
