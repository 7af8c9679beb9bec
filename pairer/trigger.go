package pairer

import (
	"fmt"
	"slices"
	"time"

	"ctrloop/schemas/control"
)

// Look is what the trigger decides on.
type Look struct {
	Pairs     int     // pairs that the evidence gives now
	Effective float64 // sum of the weights of training pairs that no data set has held yet
	Busy      string  // why no cycle may start whatever the evidence; empty: one may
}

// Trigger says whether a training cycle starts, and why or why not, in words for the console.
func Trigger(cfg Config, l Look) (fire bool, reason string) {
	switch {
	case l.Busy != "":
		return false, "skip: " + l.Busy
	case l.Effective < cfg.MinEffectivePairs:
		return false, fmt.Sprintf("skip: new pairs are worth %.0f of %.0f sure comparisons", l.Effective, cfg.MinEffectivePairs)
	}
	return true, fmt.Sprintf(
		"start: new pairs are worth %.0f sure comparisons (needs %.0f), %d pairs in all",
		l.Effective,
		cfg.MinEffectivePairs,
		l.Pairs,
	)
}

// lastKind is the kind of job that ends a training cycle.
const lastKind = "rounds"

// Busy says why the loop is not ready for another training cycle: one at a time, from data set to decision,
// so that each candidate is compared with the champion it was trained to beat.
func Busy(s *control.State) string {
	for digest := range s.Datasets {
		if cycleOf(s, digest).open() {
			return "data set " + digest[:min(12, len(digest))] + " is in training"
		}
	}
	for id, j := range s.Jobs {
		if j.State == control.JobQueued || j.State == control.JobRunning {
			return "job " + id + " is " + string(j.State)
		}
	}
	for id, x := range s.Experiments {
		if x.Running() {
			return "experiment " + id + " is running"
		}
	}
	for v, m := range s.Models {
		switch m.State {
		case control.ModelFetched, control.ModelLoaded, control.ModelProbed, control.ModelShadow, control.ModelRamp:
			if m.Logical == "prompt" && m.Base != "" {
				return "candidate " + v + " is " + string(m.State)
			}
		default: // it has been decided on, or serves
		}
	}
	if len(s.Breakers) > 0 {
		return "the circuit breaker is open"
	}
	return ""
}

// cycle is what has become of the training on a data set. It is open until one of its jobs has failed for good, or until
// its last job's model is registered: between two commands of a cycle no job is open, and yet nothing has ended.
type cycle struct {
	learned bool      // a model came of it, whatever its gates said
	failed  time.Time // when one of its jobs failed; zero: none did
}

func (c cycle) open() bool { return !c.learned && c.failed.IsZero() }

func cycleOf(s *control.State, digest string) (c cycle) {
	for id, j := range s.Jobs {
		if !slices.Contains(j.Datasets, digest) {
			continue
		}
		if j.State == control.JobBroken {
			return cycle{failed: j.Finished}
		}
		if j.Kind == lastKind && j.State == control.JobSucceeded {
			for _, m := range s.Models {
				c.learned = c.learned || m.Job == id
			}
		}
	}
	return c
}

// Resting says until when no cycle starts because the last ones failed: Pause after the first, doubled with each in a row.
// What they were to learn from is still unused, so without a pause the next one would start at once, on almost the same.
func Resting(s *control.State, pause time.Duration) (until time.Time) {
	const longest = 6 * time.Hour
	var learned time.Time // newest data that a cycle has learned from
	for digest, d := range s.Datasets {
		if to := time.UnixMilli(d.ToMS); cycleOf(s, digest).learned && to.After(learned) {
			learned = to
		}
	}
	for digest, d := range s.Datasets {
		c := cycleOf(s, digest)
		if c.failed.IsZero() || time.UnixMilli(d.ToMS).Before(learned) {
			continue
		}
		if c.failed.After(until) {
			until = c.failed
		}
		pause = min(2*pause, 2*longest)
	}
	if until.IsZero() {
		return until
	}
	return until.Add(pause / 2)
}
