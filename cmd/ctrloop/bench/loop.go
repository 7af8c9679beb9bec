package bench

import (
	"context"
	"runtime"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/joiner"
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
)

// Loop runs the whole traffic through one partition's loop. Only the loop is measured: the log is made beforehand,
// piece by piece. The oracle's look at each label is inside.
func Loop(ctx context.Context, t Traffic, progress func(share float64)) (LoopResult, error) {
	cfg := joiner.Default()
	cfg.Window, cfg.Lateness = t.Window, time.Second
	l, err := joiner.NewLoop(cfg)
	if err != nil {
		return LoopResult{}, err
	}
	var res LoopResult
	o := newOracle(t)
	empty := heap()
	pauses := readPauses()
	var next [2]int64
	var since int
	feed := func(imps, clks []*stream.Record) error {
		for in, rs := range [][]*stream.Record{imps, clks} {
			for _, r := range rs {
				r.Offset = next[in]
				next[in]++
			}
		}
		runtime.GC() // the garbage of making the log is not the loop's
		w := startWatch(0)
		err := l.Process([]stream.PartitionBatch{{Topic: schemas.TopicImpressions, Records: imps}, {Topic: schemas.TopicClicks, Records: clks}}, o.output)
		if err != nil {
			return err
		}
		if since += len(imps) + len(clks); since >= transaction {
			l.Commit()
			since = 0
		}
		c := w.read(int64(len(imps) + len(clks)))
		res.Cost.WallSeconds += c.WallSeconds
		res.Cost.CPUSeconds += c.CPUSeconds
		res.Cost.Events += c.Events
		return nil
	}
	done := 0
	err = t.chunks(chunk, func(imps, clks []*stream.Record) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if done += len(imps); progress != nil {
			progress(float64(done) / float64(t.Impressions))
		}
		return feed(imps, clks)
	})
	if err != nil {
		return res, err
	}
	res.OpenImpressions = l.Ledger().Open
	held := heap()
	began := time.Now()
	runtime.GC()
	full := time.Since(began)
	if held > empty && res.OpenImpressions > 0 {
		res.BytesPerOpen = float64(held-empty) / float64(res.OpenImpressions)
	}
	res.GC = pausesSince(pauses)
	res.GC.FullMS = full.Seconds() * 1000
	if err := feed([]*stream.Record{punctuation(schemas.TopicImpressions, 0, t.endMS())}, []*stream.Record{punctuation(schemas.TopicClicks, 0, t.endMS())}); err != nil {
		return res, err
	}
	res.Wrong = o.finish()
	res.Balanced = l.Ledger().Check() == nil
	return res, nil
}
