// Package demo runs the whole loop on the built-in world, from the first creative to a decided A/B test, and
// measures it against what only the world knows. The world is outside the system: it asks for decisions and
// delivers events over HTTP like any site, and the system finds out for itself when to train, what to load
// and whom to show it. The demo only waits and watches.
//
// A run can be killed at any moment and goes on when it is started again on the same folder: the system's
// state is in its stores, the world's in its journal, and which phase comes next follows from both.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/app"
	"ctrloop/ingest"
	"ctrloop/internal/catalogue"
	"ctrloop/internal/progress"
	"ctrloop/internal/warehouse/query"
	"ctrloop/internal/world"
	"ctrloop/lab"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving/rollout"
)

// Options of a demo.
type Options struct {
	Seed            uint64
	Quick           bool
	Products        string  // folder of another catalogue; empty: the built-in one
	Holdout         string  // folder of products that are held out besides; then HoldoutFraction should be 0
	HoldoutFraction float64 // of products that training never sees
	Clickbait       float64 // strength of the clickbait direction
	Speed           float64 // event time over wall time while the system trains
	Images          app.ImageBackend
	Dir             string
	Home            string
	Version         string
	API, Edge       string // addresses to listen on; empty: free ports
	Log             zerolog.Logger
	Out             io.Writer // progress
	Board           io.Writer // the scoreboard for people
	Stay            bool      // leave the system running when done, until ctx ends
	Report          func(*Scoreboard) error
}

// plan is how much of everything a demo does.
type plan struct {
	learn       int64 // impressions before the first training
	more        int64 // impressions added when they were not enough evidence
	moreTimes   int   // at most so often
	experiment  int64 // impressions of the experiment, at most
	chunk       int64 // impressions between two looks
	perProduct  int   // creatives
	config      func(*app.Config)
	jobPatience time.Duration // with a training job that stands still
}

// steps of the ramp: shares of the treatment.
var steps = []float64{0.1, 0.5, 1}

// tourGates are the gates of a quick run: they stop what is broken, and leave it to the A/B test to say what is better. The
// gates of a full run ask for more than this little evidence can show, in either direction, so most tours would end there.
var tourGates = map[string]any{
	"gate_valid":         0.9,
	"gate_referee_gain":  -10.0,
	"gate_referee_share": -1.0,
	"gate_matching_drop": 0.5,
	"gate_relevance":     0.2,
	"gate_chosen":        -20.0,
	"gate_kl":            20.0,
	"gate_diversity":     0.1,
}

func planOf(quick bool) plan {
	if quick {
		return plan{learn: 300_000, more: 60_000, moreTimes: 6, experiment: 350_000, chunk: 25_000, perProduct: 4, jobPatience: 10 * time.Minute,
			config: func(c *app.Config) {
				c.Pairer.MinEffectivePairs = 300
				c.Pairer.MinImpressions = 50
				// A reward model on this little evidence is sure of nothing: it may not abstain.
				c.Trainer.Reward = map[string]any{"tau": 0.0}
				c.Trainer.Rounds = map[string]any{"epochs": 2, "products": 160, "held_samples": 8}
				maps.Copy(c.Trainer.Rounds, tourGates)
				c.Experiment.Ramp.MinImpressions = 1500
				c.Experiment.Ramp.MaxImpressions = 60_000
			}}
	}
	return plan{learn: 1_200_000, more: 200_000, moreTimes: 3, experiment: 900_000, chunk: 30_000, perProduct: 8, jobPatience: time.Hour,
		config: func(c *app.Config) {
			c.Pairer.MinEffectivePairs = 2500
			c.Pairer.MinImpressions = 100
			c.Experiment.Ramp.MinImpressions = 5000
			c.Experiment.Ramp.MaxImpressions = 700_000
		}}
}

// demo is one attempt.
type demo struct {
	opt   Options
	plan  plan
	state *state
	board *Scoreboard
	cat   *catalogue.Catalogue
	world *world.World
	app   *app.App
	shop  *shop
	clock *clock
	truth *truth
	// people is the world's traffic. It is not safe for concurrent use: one phase at a time has it.
	people *world.Traffic
}

// Run runs or resumes a demo and returns its scoreboard. A model that was not good enough is a result, not an error.
func Run(ctx context.Context, opt Options) (*Scoreboard, error) {
	if err := os.MkdirAll(opt.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	st, err := openState(opt.Dir, settings{opt.Seed, opt.Quick, opt.Products, opt.Holdout, opt.HoldoutFraction, opt.Clickbait, opt.Images})
	if err != nil {
		return nil, err
	}
	d := &demo{opt: opt, plan: planOf(opt.Quick), state: st, clock: &clock{}}
	d.board = &Scoreboard{Seed: opt.Seed, Quick: opt.Quick, Resumed: st.Attempts - 1}
	if err := d.start(ctx); err != nil {
		return nil, err
	}
	defer d.app.Stop()
	if err := d.openTraffic(); err != nil {
		return nil, err
	}
	defer func() { _ = d.people.Close() }() // all it holds was synced with each batch
	if err := d.phases(ctx); err != nil {
		return nil, err
	}
	d.board.Print(opt.Board)
	if opt.Report != nil {
		if err := opt.Report(d.board); err != nil {
			return nil, err
		}
	}
	if opt.Stay {
		fmt.Fprintf(opt.Out, "The console stays at http://%s until you press Ctrl-C.\n", d.app.Addresses().API)
		return d.board, d.app.Wait(ctx)
	}
	return d.board, nil
}

func (d *demo) start(ctx context.Context) error {
	products, held, err := products(d.opt)
	if err != nil {
		return err
	}
	if d.cat, err = catalogue.Open(products); err != nil {
		return err
	}
	wc := world.DefaultConfig(d.opt.Seed)
	wc.Clickbait = d.opt.Clickbait
	d.world = world.New(wc, d.cat)

	cfg := app.Default()
	cfg.Products = products
	if d.opt.Images != "" {
		cfg.Images.Backend = d.opt.Images
	}
	cfg.Ingest.Clock = ingest.ClockEvent
	cfg.Kafka.Retention = -1 // event times are the world's
	cfg.Joiner.Window = lab.JoinWindow
	cfg.Pairer.HoldoutFraction = d.opt.HoldoutFraction
	cfg.Pairer.HoldoutProducts = held
	cfg.Pairer.Interval = 5 * time.Second // a look is a scan of all labels
	cfg.Pairer.Seed = d.opt.Seed
	cfg.Trainer.Seed = d.opt.Seed
	cfg.Rollout.CreativesPerProduct = d.plan.perProduct
	cfg.Rollout.Steps = steps
	cfg.Experiment.Interval = 2 * time.Second
	if d.opt.API != "" {
		cfg.Listen.API = d.opt.API
	}
	if d.opt.Edge != "" {
		cfg.Listen.Edge = d.opt.Edge
	}
	d.plan.config(&cfg)
	cfg.Pairer.MinEffectivePairs *= min(1, d.trainingShare(held))
	all, err := app.ParseTargets("all")
	if err != nil {
		return err
	}
	bar := progress.Start(d.opt.Out, "start", "")
	d.app, err = app.Start(ctx, app.Options{
		Config: cfg, Targets: all, Dir: d.opt.Dir, Home: d.opt.Home, Version: d.opt.Version, Log: d.opt.Log, EventNow: d.clock.Now,
	})
	if err != nil {
		return err
	}
	addr := d.app.Addresses()
	bar.Done(0, "console at http://"+addr.API)
	d.shop = &shop{api: addr.API, edge: addr.Edge, client: d.app.Client(time.Minute), seen: d.clock}
	d.truth = &truth{world: d.world, app: d.app, ctr: map[string]float64{}}
	d.board.Images = d.app.ImageBackend()
	return nil
}

// fullCatalogue is the number of training products that the plans are made for: the built-in catalogue's at
// the default holdout fraction.
const fullCatalogue = 144

// trainingShare is how many products may be learned from, as a share of fullCatalogue. Fewer products have
// fewer pairs, however much traffic they get.
func (d *demo) trainingShare(held []string) float64 {
	n := 0
	for _, p := range d.cat.Products() {
		if !schemas.Holdout(p.ID, d.opt.HoldoutFraction) && !slices.Contains(held, p.ID) {
			n++
		}
	}
	return float64(n) / fullCatalogue
}

// timed runs a phase and adds its time to the state.
func (d *demo) timed(ctx context.Context, name string, phase func(context.Context) error) error {
	start := time.Now()
	err := phase(ctx)
	d.state.Phases[name] += time.Since(start).Seconds()
	return errors.Join(err, d.save())
}

func (d *demo) save() error {
	live := d.swapped()
	s := d.state
	old := s.Swap
	s.Swap = add(old, live)
	err := s.save()
	s.Swap = old // what this attempt measured is added when it is asked for
	return err
}

// stop is why the loop ended before a decision. It is an outcome.
type stop struct{ why string }

func (s stop) Error() string { return s.why }

func (d *demo) phases(ctx context.Context) error {
	if d.state.Ending == "" {
		err := d.day(ctx)
		var why stop
		switch {
		case errors.As(err, &why):
			d.state.Ending = why.why
		case err != nil:
			return err
		default:
			d.state.Ending = decided
		}
		if err := d.save(); err != nil {
			return err
		}
	}
	if d.state.Ending != decided {
		d.board.Outcome = d.state.Ending
	}
	if err := d.timed(ctx, "settle", d.settle); err != nil {
		return err
	}
	return d.timed(ctx, "measure", d.measure)
}

// decided is the ending of a day whose experiment was decided.
const decided = "decided"

// day is everything up to the decision.
func (d *demo) day(ctx context.Context) error {
	for _, p := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"creatives", d.baseCreatives}, {"traffic", d.learn}, {"train", d.train}, {"swap", d.swap}, {"experiment", d.experiment},
	} {
		if err := d.timed(ctx, p.name, p.run); err != nil {
			return err
		}
	}
	return nil
}

// baseCreatives waits until the champion has its creatives.
func (d *demo) baseCreatives(ctx context.Context) error {
	bar := progress.Start(d.opt.Out, "creatives", "creatives")
	return d.until(ctx, func() (bool, error) {
		champion := d.app.Control().Routes[rollout.Logical].Champion
		n, products := d.app.Creatives(champion)
		if champion != "" && products == len(d.cat.Products()) && d.app.CreativesReady(champion) {
			bar.Done(n, "by "+champion)
			return true, nil
		}
		bar.Set(n, float64(n)/float64(d.plan.perProduct*len(d.cat.Products())), "")
		return false, nil
	})
}

// learn sends traffic until the pairer has found enough evidence.
func (d *demo) learn(ctx context.Context) error {
	for i := 0; ; i++ {
		target := d.plan.learn + int64(i)*d.plan.more
		if err := d.traffic(ctx, "traffic", target, 0, func() bool { return len(d.app.Control().Datasets) > 0 && i > 0 }); err != nil {
			return err
		}
		if err := d.caughtUp(ctx); err != nil {
			return err
		}
		looked := time.Now()
		err := d.until(ctx, func() (bool, error) {
			return len(d.app.Control().Datasets) > 0 || d.app.Pairing().At.After(looked.Add(time.Second)), nil
		})
		if err != nil || len(d.app.Control().Datasets) > 0 {
			return err
		}
		if i == d.plan.moreTimes {
			return stop{"no data set: " + d.app.Pairing().Reason}
		}
	}
}

// stillness knows since when a note has said the same.
type stillness struct {
	limit time.Duration
	since time.Time
	note  string
}

// over gets the present note, and says whether it has not changed for the time limit.
func (s *stillness) over(now time.Time, note string) bool {
	if note != s.note {
		s.note, s.since = note, now
	}
	return now.Sub(s.since) >= s.limit
}

// train waits for the candidate of the first cycle, with a trickle of traffic as on any quiet day.
func (d *demo) train(ctx context.Context) error {
	if v := d.candidate(); v != nil {
		return d.goodEnough(v)
	}
	trickle, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- d.traffic(trickle, "", 0, d.opt.Speed, func() bool { return d.candidate() != nil }) }()
	bar := progress.Start(d.opt.Out, "train", "")
	// A job that goes on learning may take as long as it takes: only one that stands still has failed.
	still := stillness{limit: d.plan.jobPatience, since: time.Now()}
	err := d.until(ctx, func() (bool, error) {
		for _, j := range d.app.Control().Jobs {
			if j.State == control.JobBroken {
				return false, stop{fmt.Sprintf("training job %s failed (%s): %s", j.ID, j.Update.Class, j.Update.Error)}
			}
		}
		note := d.app.TrainingNote()
		if still.over(time.Now(), note) {
			logs := filepath.Join(d.opt.Dir, "jobs")
			return false, fmt.Errorf("training has made no progress for %v; see the logs under %s", d.plan.jobPatience, logs)
		}
		bar.Set(0, -1, note)
		return d.candidate() != nil, nil
	})
	cancel()
	if terr := <-ended; err == nil && terr != nil && !errors.Is(terr, context.Canceled) {
		err = terr
	}
	if err != nil {
		return err
	}
	v := d.candidate()
	bar.Done(0, v.Version)
	return d.goodEnough(v)
}

// candidate is the prompt-model version that the first training cycle made, nil before there is one.
func (d *demo) candidate() (first *control.ModelStatus) {
	for _, m := range d.app.Control().Models {
		if m.Logical == rollout.Logical && m.Job != "" && (first == nil || m.LabelsTo < first.LabelsTo) {
			first = m
		}
	}
	return first
}

func (d *demo) goodEnough(v *control.ModelStatus) error {
	if v.State == control.ModelFailed {
		return stop{"no model was good enough: " + v.Reason}
	}
	return nil
}

// swap waits until the candidate is loaded, probed and rendered, and its experiment runs, under load.
func (d *demo) swap(ctx context.Context) error {
	bar := progress.Start(d.opt.Out, "swap", "creatives")
	load, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- d.chatLoad(load) }()
	err := d.until(ctx, func() (bool, error) {
		v := d.candidate()
		if err := d.goodEnough(v); err != nil {
			return false, err
		}
		n, _ := d.app.Creatives(v.Version)
		bar.Set(n, float64(n)/float64(d.plan.perProduct*len(d.cat.Products())), string(v.State))
		return d.app.Control().Experiments["exp-"+v.Version] != nil, nil
	})
	cancel()
	if lerr := <-ended; err == nil {
		err = lerr
	}
	if err == nil {
		n, _ := d.app.Creatives(d.candidate().Version)
		bar.Done(n, "by "+d.candidate().Version)
	}
	return err
}

// experiment sends traffic, a chunk at a time, until the experiment is decided or the traffic is spent.
func (d *demo) experiment(ctx context.Context) error {
	load, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- d.chatLoad(load) }()
	err := d.runExperiment(ctx)
	cancel()
	return errors.Join(err, <-ended)
}

func (d *demo) runExperiment(ctx context.Context) error {
	var x *control.ExperimentStatus
	for _, e := range d.app.Control().Experiments {
		if e.Treatment == d.candidate().Version {
			x = e
		}
	}
	bar := progress.Start(d.opt.Out, "experiment", "impressions")
	first, err := d.app.Warehouse().Count(ctx, query.Text("labels_in_experiments"))
	if err != nil {
		return err
	}
	sent := first
	for {
		now := d.app.Control().Experiments[x.ID]
		if !now.Running() {
			bar.Done(sent, fmt.Sprintf("%s (%s)", now.Decision.Outcome, now.Decision.Rule))
			return nil
		}
		bar.Set(sent, float64(sent)/float64(d.plan.experiment), fmt.Sprintf("at %.0f %%", 100*now.Step.Share))
		if sent >= d.plan.experiment {
			bar.Done(sent, "not decided")
			return stop{fmt.Sprintf("undecided after %d impressions of the experiment", sent)}
		}
		if err := d.traffic(ctx, "", d.impressions()+d.plan.chunk, 0, nil); err != nil {
			return err
		}
		sent += d.plan.chunk
		if err := d.caughtUp(ctx); err != nil {
			return err
		}
		looked := d.app.ExperimentLooks()
		err := d.until(ctx, func() (bool, error) { // a look that began before the labels were there does not count
			return d.app.ExperimentLooks() >= looked+2 || !d.app.Control().Experiments[x.ID].Running(), nil
		})
		if err != nil {
			return err
		}
	}
}

// settle ends the world's day: every event is sent, every window closed, every label in the warehouse.
func (d *demo) settle(ctx context.Context) error {
	bar := progress.Start(d.opt.Out, "settle", "labels")
	if err := d.orFailed(d.people.Drain(ctx)); err != nil {
		return err
	}
	// The newest impression's window, half a window more for late clicks, lateness, and a bucket or two.
	end := max(d.people.Stats().NowMS, d.clock.Now().UnixMilli()) + (2*lab.JoinWindow + 2*time.Minute).Milliseconds()
	if err := d.shop.EndOfDay(ctx, end); err != nil {
		return err
	}
	if err := d.caughtUp(ctx); err != nil { // the punctuation has been joined, so every window is closed
		return err
	}
	l := d.app.Ledger().Total
	bar.Done(int64(l.Positive+l.FinalNegative), "")
	return nil
}

// traffic runs the world until it has shown target impressions in all (0: without end), at the given speed of
// event time over wall time (0: as fast as it can), or until done says so.
func (d *demo) traffic(ctx context.Context, name string, target int64, speed float64, done func() bool) error {
	var bar *progress.Bar
	if name != "" {
		bar = progress.Start(d.opt.Out, name, "impressions")
	}
	start := d.impressions()
	step := int64(10_000)
	if speed > 0 {
		step = max(1, int64(lab.VisitRate*speed*pollEvery.Seconds()))
	}
	for ctx.Err() == nil {
		n := d.impressions()
		if target > 0 && n >= target || done != nil && done() {
			if bar != nil {
				bar.Done(n-start, "")
			}
			return nil
		}
		next := n + step
		if target > 0 {
			next = min(next, target)
		}
		if bar != nil {
			bar.Set(n-start, float64(n-start)/float64(target-start), "")
		}
		began := time.Now()
		if err := d.orFailed(d.people.Run(ctx, world.Until{Impressions: next})); err != nil {
			return err
		}
		if speed > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(pollEvery - time.Since(began)):
			}
		}
	}
	return ctx.Err()
}

// openTraffic opens the world's journal, which goes on where an interrupted run was.
func (d *demo) openTraffic() (err error) {
	if d.people, err = world.Open(d.trafficConfig(), d.cat, d.shop, d.shop, d.truth.CTR, d.journal()); err != nil {
		return fmt.Errorf("open the world's journal: %w", err)
	}
	d.clock.observe(d.people.Stats().NowMS)
	return nil
}

func (d *demo) trafficConfig() world.TrafficConfig {
	return lab.Traffic(d.opt.Seed)
}

func (d *demo) journal() string { return filepath.Join(d.opt.Dir, "world") }

// impressions that the world has shown so far.
func (d *demo) impressions() int64 { return d.people.Stats().Impressions }

// caughtUp waits until everything that was sent is joined and in the warehouse, as far as it is due.
func (d *demo) caughtUp(ctx context.Context) error {
	return d.every(ctx, drainEvery, func() (bool, error) { return d.app.Drained(ctx) })
}

// pollEvery is the pace at which the demo looks whether a phase has ended.
const pollEvery = 100 * time.Millisecond

// drainEvery is the pace of questions that go to the broker.
const drainEvery = 500 * time.Millisecond

// until polls a condition; a failed part of the system ends it.
func (d *demo) until(ctx context.Context, condition func() (bool, error)) error {
	return d.every(ctx, pollEvery, condition)
}

func (d *demo) every(ctx context.Context, pace time.Duration, condition func() (bool, error)) error {
	for {
		ok, err := condition()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-d.app.Failed():
			return err
		case <-time.After(pace):
		}
	}
}

// orFailed prefers the failure of a part of the system over what followed from it.
func (d *demo) orFailed(err error) error {
	if err == nil {
		return nil
	}
	select {
	case failed := <-d.app.Failed():
		return failed
	default:
		return err
	}
}
