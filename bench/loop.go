package bench

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/joiner"
	"ctrloop/joiner/window"
	"ctrloop/schemas"
)

// LoopResult is the join without a broker, in one goroutine.
type LoopResult struct {
	Cost Cost `json:"cost"`
	// OpenImpressions when memory was measured, and what the heap held for each of them then, everything included.
	OpenImpressions uint64  `json:"open_impressions"`
	BytesPerOpen    float64 `json:"bytes_per_open"`
	GC              Pauses  `json:"gc"`
	Wrong           Wrong   `json:"wrong"`
	Balanced        bool    `json:"balanced"`
}

const (
	chunk       = 50_000 // impressions that are made at a time, outside of what is measured
	transaction = 50_000 // records between two commits: joiner.Default().MaxPoll
	closeStep   = 10 * time.Second
	loopSeed    = 7 // any: it has no effect on results
)

// feeder runs a traffic through one partition's loop and measures the loop alone: the log is made beforehand, piece by
// piece, and the oracle looks at the labels between the measured stretches.
type feeder struct {
	cfg    joiner.Config
	window *window.Window
	shard  *joiner.Shard
	oracle *oracle
	cost   Cost
	next   [2]int64
	since  int   // records since the last commit
	done   int64 // commits
	out    []*stream.Record
}

func newFeeder(t Traffic) (*feeder, error) {
	cfg := loopConfig(t)
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("joiner configuration: %w", err)
	}
	w := window.New(cfg.WindowConfig(loopSeed))
	return &feeder{cfg: cfg, window: w, shard: joiner.NewShard(calm{}, 0, w, [2]int64{}, 0), oracle: newOracle(t)}, nil
}

// calm is a circuit breaker that watches and finds nothing.
type calm struct{}

func (calm) Suspect([]byte) bool { return false }

func loopConfig(t Traffic) joiner.Config {
	cfg := joiner.Default()
	cfg.Window, cfg.Lateness = t.Window, time.Second
	return cfg
}

// feed takes the next records of both inputs, of which so many are events.
func (f *feeder) feed(imps, clks []*stream.Record, events int) error {
	for in, rs := range [][]*stream.Record{imps, clks} {
		for _, r := range rs {
			r.Offset = f.next[in]
			f.next[in]++
		}
	}
	f.out = f.out[:0]
	w := startWatch(0)
	err := f.shard.Process(
		[]stream.PartitionBatch{{Topic: schemas.TopicImpressions, Records: imps}, {Topic: schemas.TopicClicks, Records: clks}},
		nil,
		func(r *stream.Record) { f.out = append(f.out, r) },
	)
	f.cost = f.cost.plus(w.read(int64(events)))
	if err != nil {
		return err
	}
	for _, r := range f.out { // their memory is used again after the commit
		f.oracle.output(r)
	}
	if f.since += len(imps) + len(clks); f.since >= transaction || events == 0 {
		w := startWatch(0)
		f.commit()
		f.cost = f.cost.plus(w.read(0))
		f.since = 0
	}
	return nil
}

// commit ends a transaction.
func (f *feeder) commit() {
	if _, ok := f.shard.Propose(f.cfg); ok {
		f.done++
	}
	f.shard.Commit()
}

// finish closes every window, in steps like those of a clock that goes on, and returns what is wrong.
func (f *feeder) finish(t Traffic) (Wrong, error) {
	end := t.timeMS(t.Impressions) + t.Window.Milliseconds() + time.Minute.Milliseconds()
	for ms := t.timeMS(t.Impressions); ; ms += closeStep.Milliseconds() {
		if ms >= end {
			ms = t.endMS()
		}
		if err := f.feed([]*stream.Record{punctuation(schemas.TopicImpressions, 0, ms)},
			[]*stream.Record{punctuation(schemas.TopicClicks, 0, ms)}, 0); err != nil {
			return Wrong{}, err
		}
		if ms == t.endMS() {
			return f.oracle.finish(), nil
		}
	}
}

// Loop runs the whole traffic through one partition's loop. file is for a CPU profile, the making of the log included.
func Loop(ctx context.Context, t Traffic, file string, progress func(share float64)) (LoopResult, error) {
	var res LoopResult
	stop, err := profile(file)
	if err != nil {
		return res, err
	}
	defer stop()
	f, err := newFeeder(t)
	if err != nil {
		return res, err
	}
	empty := heap()
	pauses := readPauses()
	done := 0
	err = t.chunks(chunk, func(imps, clks []*stream.Record) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if done += len(imps); progress != nil {
			progress(float64(done) / float64(t.Impressions))
		}
		runtime.GC() // the garbage of making the log is not the loop's
		return f.feed(imps, clks, len(imps)+len(clks))
	})
	if err != nil {
		return res, err
	}
	res.OpenImpressions, res.BytesPerOpen, res.GC = weigh(f, empty, pauses)
	res.Wrong, err = f.finish(t)
	res.Cost, res.Balanced = f.cost, f.window.Ledger().Check() == nil
	return res, err
}

// weigh measures what the open windows take, and a full collection over them.
func weigh(f *feeder, empty uint64, pauses pauseReading) (open uint64, bytesPerOpen float64, gc Pauses) {
	f.out = nil
	open = f.window.Ledger().Open
	held := heap()
	if held > empty {
		bytesPerOpen = ratio(float64(held-empty), float64(open))
	}
	gc = pausesSince(pauses)
	var full [9]time.Duration // one alone varies by a factor of three with what else the machine does
	for i := range full {
		began := time.Now()
		runtime.GC()
		full[i] = time.Since(began)
	}
	slices.Sort(full[:])
	gc.FullMS = full[len(full)/2].Seconds() * 1000
	return open, bytesPerOpen, gc
}
