package pairer

import (
	"fmt"
	"math"
	"slices"

	"ctrloop/pairer/dataset"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
)

// Look is what the trigger decides on.
type Look struct {
	Pairs     int     // pairs that the evidence gives now
	Effective float64 // what they tell that the newest data set did not, see information
	Busy      string  // why no cycle may start whatever the evidence; empty: one may
}

// Trigger says whether a training cycle starts, and why or why not, in words for the console.
func Trigger(cfg Config, l Look) (fire bool, reason string) {
	switch {
	case l.Busy != "":
		return false, "skip: " + l.Busy
	case l.Effective < cfg.MinEffectivePairs:
		return false, fmt.Sprintf("skip: what pairs have told since the newest data set is worth %.0f of %.0f sure comparisons",
			l.Effective, cfg.MinEffectivePairs)
	}
	return true, fmt.Sprintf(
		"start: what pairs have told since the newest data set is worth %.0f sure comparisons (needs %.0f), %d pairs in all",
		l.Effective,
		cfg.MinEffectivePairs,
		l.Pairs,
	)
}

// beliefs are what is believed of training pairs: 2 P(a is better than b) - 1 by product, placement, a and b with a < b,
// so -1 to 1. A pair that is missing is a tie or has not been seen: 0.
type beliefs map[pairKey]float64

type pairKey struct{ product, placement, a, b string }

func (b beliefs) add(product, placement, better, worse string, weight float64) {
	if better < worse {
		b[pairKey{product, placement, better, worse}] = weight
	} else {
		b[pairKey{product, placement, worse, better}] = -weight
	}
}

func beliefsOf(ps []schemas.Pair) beliefs {
	b := beliefs{}
	for _, p := range ps {
		if p.Split == trainSplit {
			b.add(p.Product, p.Placement, p.Chosen.Creative, p.Rejected.Creative, p.Weight)
		}
	}
	return b
}

func beliefsOfRows(rows []dataset.PairRow) beliefs {
	b := beliefs{}
	for _, r := range rows {
		if r.Split != trainSplit {
			continue
		}
		better, worse := r.Right, r.Left
		if r.LeftWins {
			better, worse = r.Left, r.Right
		}
		b.add(r.Product, r.Placement, better, worse, r.Weight)
	}
	return b
}

const trainSplit = "train"

// information is how much the belief in training pairs has changed: the sum of |now - before|. A pair that is new and sure
// counts 1, a sure one that has turned around 2, one of which no more is known than before 0. So the same evidence is never
// worth anything twice, and a shelf on which tastes change is worth learning from again. Of pairs that have become ties the
// change counts too, unless only the heaviest pairs of a cell are kept (capped): one that is missing then may as well have
// been crowded out.
func information(now, before beliefs, capped bool) float64 {
	var changes []float64
	for k, w := range now {
		changes = append(changes, math.Abs(w-before[k]))
	}
	if !capped {
		for k, w := range before {
			if _, there := now[k]; !there {
				changes = append(changes, math.Abs(w))
			}
		}
	}
	slices.Sort(changes) // one sum for one set of changes, whatever the order of a map
	sum := 0.0
	for _, c := range changes {
		sum += c
	}
	return sum
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
