package trainerbridge

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// curveFile is where a running job writes a line a step, in its folder out.
const curveFile = "metrics.jsonl"

// stopStalled calls stop when none of the files has grown for the limit. It returns when ctx ends.
func stopStalled(ctx context.Context, stop func(), limit time.Duration, files ...string) {
	look := time.NewTicker(max(limit/20, time.Millisecond))
	defer look.Stop()
	p := newProgress(limit, time.Now())
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-look.C:
			if p.stalled(now, sizes(files)) {
				stop()
				return
			}
		}
	}
}

// progress knows since when nothing has grown.
type progress struct {
	limit time.Duration
	size  int64
	since time.Time
}

func newProgress(limit time.Duration, now time.Time) *progress {
	return &progress{limit: limit, since: now}
}

// stalled gets the number of bytes written so far, and says whether it has not changed for the time limit.
func (p *progress) stalled(now time.Time, size int64) bool {
	if size != p.size {
		p.size, p.since = size, now
	}
	return now.Sub(p.since) >= p.limit
}

// sizes is the sum of the files' sizes; a file that is not there has none.
func sizes(files []string) (sum int64) {
	for _, f := range files {
		if info, err := os.Stat(f); err == nil {
			sum += info.Size()
		}
	}
	return sum
}

// watched are the fields of a training curve that fit a progress line, in its order.
var watched = []string{"stage", "model", "arm", "epoch", "step", "loss", "matching", "valid"}

// Progress is the last line of a job's metrics.jsonl, as "name value" pairs of what is watched; empty before there
// is one.
func (in Inputs) Progress(id string) string {
	b, err := os.ReadFile(filepath.Join(newestOut(in.JobDir(id)), curveFile))
	if err != nil {
		return ""
	}
	b = bytes.TrimRight(b, "\n")
	var m map[string]any
	if json.Unmarshal(b[bytes.LastIndexByte(b, '\n')+1:], &m) != nil {
		return "" // the line is still being written
	}
	var parts []string
	for _, k := range watched {
		switch v := m[k].(type) {
		case float64:
			parts = append(parts, fmt.Sprintf("%s %.3g", k, v))
		case string:
			parts = append(parts, k+" "+v)
		}
	}
	return strings.Join(parts, " ")
}

// outFolder is where a run leaves its results. Runs share a folder, so that a later one goes on from a checkpoint; after a run whose
// end nobody saw, and which may still write, comes another folder.
func outFolder(jobDir string, run int) string {
	for before := run - 1; before >= 1; before-- {
		if fileExists(filepath.Join(jobDir, lostFile(before))) {
			return filepath.Join(jobDir, fmt.Sprintf("out-%d", before+1))
		}
	}
	return filepath.Join(jobDir, "out")
}

// lostFile in a job's folder says that a run may still be writing.
func lostFile(run int) string { return fmt.Sprintf("lost-%d", run) }

// newestOut is the folder that a job's last run writes to.
func newestOut(jobDir string) string {
	lost, _ := filepath.Glob(filepath.Join(jobDir, "lost-*")) // fails on a bad pattern only
	last := 0
	for _, name := range lost {
		n, _ := strconv.Atoi(strings.TrimPrefix(filepath.Base(name), "lost-"))
		last = max(last, n)
	}
	return outFolder(jobDir, last+1)
}
