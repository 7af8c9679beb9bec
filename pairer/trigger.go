package pairer

import (
	"fmt"
	"slices"

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
		if why := openCycle(s, digest); why != "" {
			return why
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

// openCycle says what the training cycle of a data set waits for; empty: it has ended. It has ended when one
// of its jobs failed, or when its last job's model is registered: between two commands of a cycle no job is
// open, and yet nothing has ended.
func openCycle(s *control.State, digest string) string {
	for id, j := range s.Jobs {
		if !slices.Contains(j.Datasets, digest) {
			continue
		}
		if j.State == control.JobBroken {
			return ""
		}
		if j.Kind == lastKind && j.State == control.JobSucceeded {
			for _, m := range s.Models {
				if m.Job == id {
					return ""
				}
			}
		}
	}
	return "data set " + digest[:min(12, len(digest))] + " is in training"
}
