package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/stream"
	"ctrloop/joiner"
	"ctrloop/joiner/segment"
	"ctrloop/joiner/window"
)

// openWindow is the window of the state that is measured at scale.
const openWindow = 2 * time.Hour

// MemoryBound is what a two-hour window with 20 M open impressions must stay inside, resident, in bytes; openLimit is
// what the Go runtime is told so that it does (GOMEMLIMIT): nine tenths, the rest is for what it does not count.
const (
	MemoryBound = 2 << 30
	openLimit   = "1843MiB"
)

// OpenResult is one partition's state at scale: what it takes, what the garbage collector makes of it, and a restart
// from its segments.
type OpenResult struct {
	OpenImpressions uint64 `json:"open_impressions"`
	// Fill is the joining of the log that opened them.
	Fill         Cost    `json:"fill"`
	BytesPerOpen float64 `json:"bytes_per_open"`
	GC           Pauses  `json:"gc"`
	// PeakRSS of a process that did nothing else, under openLimit, before the restart.
	PeakRSS int64 `json:"peak_rss_bytes"`
	// Restart reads the segments, from the page cache, and checks the state.
	Restart Cost `json:"restart"`
	// Stored is their size.
	Stored   int64 `json:"stored_bytes"`
	Balanced bool  `json:"balanced"`
}

// OpenIn runs Open in a process of its own: `ctrloop bench open`, by this program.
func OpenIn(ctx context.Context, open int, seed uint64, dir string) (res OpenResult, err error) {
	self, err := os.Executable()
	if err != nil {
		return res, fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, "bench", "open", "--open", strconv.Itoa(open), "--seed", strconv.FormatUint(seed, 10), "--dir", dir)
	cmd.Env = append(os.Environ(), "GOMEMLIMIT="+openLimit)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return res, fmt.Errorf("%d open impressions in a process of their own: %w: %s", open, err, bytes.TrimSpace(stderr.Bytes()))
	}
	if err := json.Unmarshal(stdout.Bytes(), &res); err != nil {
		return res, fmt.Errorf("%d open impressions in a process of their own: %w: %q", open, err, stdout.String())
	}
	return res, nil
}

// Open opens so many impressions over two hours in one partition's loop, measures the state, writes its segments to dir
// and loads them.
func Open(ctx context.Context, open int, seed uint64, dir string) (res OpenResult, err error) {
	const clickRate = 0.05
	n := int(float64(open) / (1 - clickRate) * 1.01) // those with a click are kept and not open
	rate := max(1, n/int(openWindow.Seconds()))
	t := Traffic{Impressions: n, Rate: rate, ClickRate: clickRate, MeanDelay: 4 * time.Minute, Window: openWindow + time.Hour, Seed: seed}
	f, err := newFeeder(t)
	if err != nil {
		return res, err
	}
	empty, pauses := heap(), readPauses()
	const piece = chunk / 4 // the log that waits is in the resident set too
	err = t.chunks(piece, func(imps, clks []*stream.Record) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		// The last piece has the clicks that come after the end, too: they would go on with the time.
		end := imps[len(imps)-1].Timestamp
		clks = slices.DeleteFunc(clks, func(r *stream.Record) bool { return r.Timestamp.After(end) })
		return f.feed(imps, clks, len(imps)+len(clks))
	})
	if err != nil {
		return res, err
	}
	f.commit()
	res.PeakRSS = highWater()
	res.OpenImpressions, res.BytesPerOpen, res.GC = weigh(f, empty, pauses)
	res.Fill, res.Balanced = f.cost, f.window.Ledger().Check() == nil
	saved, err := f.save(dir)
	if err != nil {
		return res, err
	}
	if res.Stored, err = size(dir); err != nil {
		return res, err
	}
	cfg := f.cfg
	f.window, f.shard = nil, nil
	runtime.GC()
	w := startWatch(0)
	again, err := load(dir, cfg, saved)
	if err != nil {
		return res, fmt.Errorf("restart: %w", err)
	}
	res.Restart = w.read(int64(res.OpenImpressions))
	if l := again.Ledger(); l.Open != res.OpenImpressions {
		return res, fmt.Errorf("%d open impressions after the restart, %d before it", l.Open, res.OpenImpressions)
	}
	return res, nil
}

// saved is what a commit keeps of a state, beside its segments.
type saved struct {
	sequence int64
	snapshot window.Snapshot
}

// save writes the state to segments in a folder, as a stop in good order does. A disk that fails shows when they are loaded.
func (f *feeder) save(dir string) (saved, error) {
	k, err := openSegments(dir, f.cfg)
	if err != nil {
		return saved{}, err
	}
	k.Close(f.window, segment.Place{Sequence: f.done, Next: f.next, Epoch: [2]int32{-1, -1}})
	return saved{f.done, f.window.Snapshot(f.next)}, nil
}

func openSegments(dir string, cfg joiner.Config) (*segment.Keeper, error) {
	counts, err := segment.NewMetrics(prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	id := segment.Identity{WindowMS: cfg.Window.Milliseconds(), BucketMS: cfg.Bucket.Milliseconds()}
	return segment.Open(dir, id, segment.Options{Interval: time.Hour, Now: time.Now, Log: zerolog.Nop(), Count: counts}), nil
}

// load reads the state in a folder, as a restart does, and checks it against what was saved.
func load(dir string, cfg joiner.Config, s saved) (*window.Window, error) {
	k, err := openSegments(dir, cfg)
	if err != nil {
		return nil, err
	}
	defer k.Release()
	w, _, err := k.Load(cfg.WindowConfig(loopSeed), s.sequence, s.snapshot, func(segment.Place) error { return nil })
	if err != nil {
		return nil, err
	}
	if w == nil {
		return nil, fmt.Errorf("no segments in %s: they could not be written", dir)
	}
	return w, w.Restored(s.snapshot)
}

// size of the files in a folder.
func size(dir string) (n int64, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("segments: %w", err)
	}
	for _, e := range entries {
		info, ierr := e.Info()
		if err = errors.Join(err, ierr); ierr == nil {
			n += info.Size()
		}
	}
	return n, err
}
