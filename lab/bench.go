package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"ctrloop/internal/artifact"
	"ctrloop/internal/catalogue"
	"ctrloop/internal/progress"
	trainerbridge "ctrloop/trainer-bridge"
)

// Bench evaluates over worlds. What it has finished stays in its folder: a run that was interrupted goes on, and
// another seed or another variant adds to what is there.
type Bench struct {
	Trainer   *Trainer
	Catalogue *catalogue.Catalogue
	Dir       string
	World     WorldOptions // of every world; Seed and Described are filled in
	// Described are the descriptions to draw; nil: the base model's own.
	Described map[string][]string
	Reward    map[string]any // hyper-parameters of reward jobs, on top of the defaults
	Rounds    map[string]any // of rounds jobs
	Jobs      int            // worlds at a time, each with a training process of its own
	Progress  io.Writer
}

// DescribeSeed draws what the base model says. Worlds share it: they differ by taste, not by what there is to like.
const DescribeSeed = 1

// each runs f for every seed, Jobs at a time. The first error stops the others.
func (b *Bench) each(ctx context.Context, name string, seeds []uint64, weight float64, f func(context.Context, int, *trial) error) error {
	if err := b.describe(ctx); err != nil {
		return err
	}
	t := newTracker(b.Progress, name, weight*float64(len(seeds)))
	defer t.stop()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(1, b.Jobs))
	for i, seed := range seeds {
		group.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			dir := filepath.Join(b.Dir, fmt.Sprintf("seed-%d", seed))
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("folder of a world: %w", err)
			}
			tr := &trial{Bench: b, seed: seed, dir: dir, tracker: t}
			if err := f(ctx, i, tr); err != nil {
				return fmt.Errorf("seed %d: %w", seed, err)
			}
			return nil
		})
	}
	return group.Wait()
}

func (b *Bench) describe(ctx context.Context) (err error) {
	if b.Described == nil {
		bar := progress.Start(b.Progress, "describe", "")
		bar.Set(0, -1, "")
		if b.Described, err = b.Trainer.Describe(ctx, DescribeSeed, b.World.PerProduct); err == nil {
			bar.Done(0, fmt.Sprintf("%d products by base %.12s", len(b.Described), b.Trainer.BaseDigest))
		}
	}
	return err
}

// trial is one world on the bench.
type trial struct {
	*Bench
	seed    uint64
	dir     string
	tracker *tracker

	once  sync.Once
	world *World
	err   error
}

// options of this trial's world.
func (t *trial) options() WorldOptions {
	opt := t.World
	opt.Seed, opt.Described = t.seed, t.Described
	opt.Pairer.Seed = t.seed
	return opt
}

// open draws the world, if a step needs it: finished steps do not.
func (t *trial) open(ctx context.Context) (*World, error) {
	t.once.Do(func() { t.world, t.err = OpenWorld(ctx, t.Catalogue, t.options(), nil) })
	return t.world, t.err
}

// dataset writes the world's data set under a rule of training pairs and returns its folder.
func (t *trial) dataset(ctx context.Context, rule PairRule) (string, error) {
	dir := filepath.Join(t.dir, "data-"+string(cmp.Or(rule.Policy, t.World.Pairer.Policy)))
	set := filepath.Join(dir, "set")
	return set, t.tracker.step(t.seed, "world", weightWorld, nil, func() error {
		return once(dir, []any{t.options(), rule}, func() error {
			w, err := t.open(ctx)
			if err != nil {
				return err
			}
			if err := os.RemoveAll(set); err != nil { // a crash may have left half of one
				return err
			}
			_, err = w.WriteDataset(set, rule)
			return err
		})
	})
}

// Weights of steps on the progress bar, about in seconds.
const (
	weightWorld    = 25
	weightReward   = 40
	weightEvaluate = 300
	weightArm      = 25 // an epoch of an arm
	weightBest     = 60
	weightJudge    = 15
)

// job runs a training job in the trial's folder, unless it has run on the same input, and returns the folder of its
// results. inputs are folders whose content is part of what the job is.
func (t *trial) job(ctx context.Context, spec trainerbridge.TrainerSpec, weight float64, inputs ...string) (string, error) {
	local := *t.Trainer.Local
	local.Dir = filepath.Join(t.dir, "jobs")
	key := []any{spec.Kind, spec.Seed, spec.Hyper, spec.BaseDigest, filepath.Base(local.Trainer)}
	for _, in := range inputs {
		d, err := artifact.DigestDir(in)
		if err != nil {
			return "", err
		}
		key = append(key, d)
	}
	dir := local.JobDir(spec.ID)
	out := filepath.Join(dir, "out")
	share := func() (float64, string) { return jobShare(spec, out), local.Progress(spec.ID) }
	return out, t.tracker.step(t.seed, spec.ID, weight, share, func() error {
		return once(dir, key, func() error {
			_, err := local.Execute(ctx, spec)
			var failed *trainerbridge.JobError
			if errors.As(err, &failed) && failed.Class == trainerbridge.FailInput {
				return badInput{fmt.Errorf("job %s (log: %s): %w", spec.ID, filepath.Join(dir, "job.log"), err)}
			}
			if err != nil {
				return fmt.Errorf("job %s (log: %s): %w", spec.ID, filepath.Join(dir, "job.log"), err)
			}
			return nil
		})
	})
}

// badInput is a job that refused its input: wrong usage, not a failure.
type badInput struct{ error }

func (e badInput) Unwrap() error { return e.error }

// ExitCode is that of wrong usage.
func (badInput) ExitCode() int { return 2 }

// tableModels is how many models an evaluate job trains; judging them takes about as long as training one.
const tableModels = 5

// jobShare is how far a job is, by the lines of its live curve that end a part; 0 for kinds that tell nothing.
func jobShare(spec trainerbridge.TrainerSpec, out string) float64 {
	var mark string
	var parts int
	switch spec.Kind {
	case trainerbridge.KindRounds:
		arms, _ := spec.Hyper["arms"].(string)
		epochs, _ := spec.Hyper["epochs"].(int)
		mark, parts = `"stage": "epoch"`, len(strings.Split(arms, ","))*max(epochs, 1)+1
	case trainerbridge.KindEvaluate:
		mark, parts = `"stage": "reward"`, tableModels+1
	default:
		return 0
	}
	raw, err := os.ReadFile(filepath.Join(out, "metrics.jsonl"))
	if err != nil {
		return 0
	}
	return min(1, float64(strings.Count(string(raw), mark))/float64(parts))
}

// tracker adds up what all worlds have done.
type tracker struct {
	bar   *progress.Bar
	total float64
	end   chan struct{}
	ended sync.WaitGroup

	mu      sync.Mutex
	done    float64
	running map[uint64]*running
}

type running struct {
	name   string
	weight float64
	share  func() (float64, string)
}

// lookEvery is how often the bar looks at running jobs.
const lookEvery = time.Second

func newTracker(w io.Writer, name string, total float64) *tracker {
	t := &tracker{bar: progress.Start(w, name, ""), total: total, end: make(chan struct{}), running: map[uint64]*running{}}
	t.ended.Go(func() {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			select {
			case <-t.end:
				return
			case <-tick.C:
				t.show()
			}
		}
	})
	return t
}

func (t *tracker) stop() {
	close(t.end)
	t.ended.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.total > 0 && t.done >= t.total*0.999 {
		t.bar.Done(0, "")
	}
}

func (t *tracker) show() {
	t.mu.Lock()
	done, notes := t.done, []string{}
	for seed, r := range t.running {
		note := fmt.Sprintf("seed %d: %s", seed, r.name)
		if r.share != nil {
			share, more := r.share()
			done += share * r.weight
			if more != "" && len(t.running) == 1 {
				note += ", " + clip(more, 60)
			}
		}
		notes = append(notes, note)
	}
	t.mu.Unlock()
	t.bar.Set(0, min(0.99, done/max(t.total, 1)), strings.Join(notes, "; "))
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "..."
}

// step runs a part of a world's work that weighs so much of the whole.
func (t *tracker) step(seed uint64, name string, weight float64, share func() (float64, string), f func() error) error {
	t.mu.Lock()
	t.running[seed] = &running{name, weight, share}
	t.mu.Unlock()
	err := f()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.running, seed)
	if err == nil {
		t.done += weight
	}
	return err
}

// readJSON reads a file that a job wrote.
func readJSON(path string, v any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
