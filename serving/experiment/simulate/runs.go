package simulate

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
)

// Options of a simulation.
type Options struct {
	// Runs of each row of each table.
	Runs int `json:"runs"`
	// Seed draws everything.
	Seed uint64 `json:"seed"`
	// Workers share the runs; the results do not depend on it.
	Workers int `json:"-"`
	// Only these parts, by name; all of them where it is empty.
	Only []string `json:"only,omitempty"`
	// Progress is called with the share of the work that is done, 0 to 1, and the part; it may be nil. Calls do not overlap.
	Progress func(share float64, part string) `json:"-"`
}

// Validate checks the options.
func (o Options) Validate() error {
	switch {
	case o.Runs < 1 || o.Runs > 1_000_000:
		return fmt.Errorf("--runs %d: want 1 to 1,000,000", o.Runs)
	case o.Workers < 1:
		return fmt.Errorf("--workers %d: want 1 or more", o.Workers)
	}
	for _, name := range o.Only {
		if !slices.ContainsFunc(parts(), func(p part) bool { return p.name == name }) {
			return fmt.Errorf("there is no part %q: want some of %v", name, Parts())
		}
	}
	return nil
}

// lab runs rows.
type lab struct {
	ctx      context.Context
	o        Options
	progress func(done, of int)
}

// each runs f once for every run of a row, and returns the results in order.
func each[T any](l *lab, row string, f func(rng *rand.Rand) T) ([]T, error) {
	h := fnv.New64a()
	h.Write([]byte(row))
	key := h.Sum64()
	out := make([]T, l.o.Runs)
	var next, done atomic.Int64
	var wait sync.WaitGroup
	var mu sync.Mutex
	for range min(l.o.Workers, l.o.Runs) {
		wait.Go(func() {
			for l.ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(out) {
					return
				}
				// Two words of state: the seed, and the row with the number of the run in it.
				out[i] = f(rand.New(rand.NewPCG(l.o.Seed, key+uint64(i))))
				n := int(done.Add(1))
				mu.Lock()
				l.progress(n, len(out))
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	return out, l.ctx.Err()
}

// count is how many of xs it holds for.
func count[T any](xs []T, holds func(T) bool) int {
	n := 0
	for _, x := range xs {
		if holds(x) {
			n++
		}
	}
	return n
}

// pick are the values of those for which ok holds.
func pick[T any](xs []T, value func(T) (v float64, ok bool)) []float64 {
	var out []float64
	for _, x := range xs {
		if v, ok := value(x); ok {
			out = append(out, v)
		}
	}
	return out
}

// part is one table.
type part struct {
	name, title string
	run         func(*lab) (Table, error)
	// weight is the part's share of the time of a whole run, roughly: for the progress alone.
	weight float64
}

func parts() []part {
	return []part{
		{"aa", "A/A with a look at every batch", runAA, 10},
		{"small", "Few units, small arms and a look at every user", runSmall, 20},
		{"lift", "Planted lifts", runLift, 30},
		{"srm", "Sample ratio", runRatio, 10},
		{"guards", "Guards at their limits", runGuards, 10},
		{"matching", "Backgrounds that do not suit", runMatching, 5},
		{"bots", "Bots", runBots, 10},
		{"novelty", "A lift that fades", runNovelty, 8},
		{"simpson", "A ramp while the rate drifts", runSimpson, 10},
		{"rollout", "The whole rule of the controller", runRollout, 30},
	}
}

// Parts are the names of all parts, in order.
func Parts() []string {
	var names []string
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return names
}

// Run runs the parts and returns their tables.
func Run(ctx context.Context, o Options) ([]Table, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	var chosen []part
	var whole, before float64
	for _, p := range parts() {
		if len(o.Only) == 0 || slices.Contains(o.Only, p.name) {
			chosen = append(chosen, p)
			whole += p.weight
		}
	}
	var tables []Table
	for _, p := range chosen {
		rows := 0.0
		l := &lab{ctx: ctx, o: o, progress: func(done, of int) {
			share := rows + float64(done)/float64(of)
			if done == of {
				rows++
			}
			if o.Progress != nil { // rows of a part are not counted ahead: its share of the time fills up by halves
				o.Progress((before+p.weight*share/(share+2))/whole, p.name)
			}
		}}
		t, err := p.run(l)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		t.Name, t.Title = p.name, p.title
		tables = append(tables, t)
		before += p.weight
	}
	return tables, nil
}
