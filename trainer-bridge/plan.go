package trainerbridge

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"ctrloop/schemas/control"
)

// Kind of a training job, as the trainer names it.
type Kind string

// Kinds of jobs. A cycle of the loop has reward and rounds jobs; the others are for evaluation.
const (
	KindReward   Kind = "reward"
	KindRounds   Kind = "rounds"
	KindDescribe Kind = "describe"
	KindEvaluate Kind = "evaluate"
)

// Spec is what a job is to do, in names that mean the same on every machine: digests, not paths. The runner
// turns it into the trainer's spec.json.
type Spec struct {
	Kind    Kind   `json:"kind"`
	Seed    uint64 `json:"seed"`
	Dataset string `json:"dataset"`           // digest
	Base    string `json:"base"`              // digest of the base prompt model
	Reward  string `json:"reward,omitempty"`  // digest of the reward job's artifact
	Referee string `json:"referee,omitempty"` // digest of the referee job's artifact
	// Previous is the digest of the artifact that the same stage of an earlier cycle made: a warm start, and whose drift
	// on the fresh pairs is reported.
	Previous string         `json:"previous,omitempty"`
	Hyper    map[string]any `json:"hyper,omitempty"`
}

// stage is one job of a cycle.
type stage struct {
	name string
	kind Kind
}

// stages of a cycle, in order. The referee is a reward model of another seed and another sample of products:
// it judges what the first one was used to optimise.
var stages = []stage{{"reward", KindReward}, {"referee", KindReward}, {"rounds", KindRounds}}

// JobID names the job of a stage ("reward", "referee", "rounds") for a data set.
func JobID(stage, dataset string) string { return stage + "-" + short(dataset) }

func short(digest string) string { return digest[:min(12, len(digest))] }

// Plan returns the job that must be submitted next, or nil. Data sets are worked off one after another,
// oldest evidence first; nothing is submitted while a circuit breaker is open; a cycle ends with its last stage or with
// the first one that failed.
func Plan(cfg Config, st *control.State, baseDigest string) (*control.Job, error) {
	if len(st.Breakers) > 0 {
		return nil, nil // what the newest evidence was made of is in doubt; jobs that run go on
	}
	sets := make([]control.Dataset, 0, len(st.Datasets))
	for _, d := range st.Datasets {
		sets = append(sets, d)
	}
	slices.SortFunc(sets, func(a, b control.Dataset) int {
		return cmp.Or(cmp.Compare(a.ToMS, b.ToMS), cmp.Compare(a.Digest, b.Digest))
	})
	previous := map[string]string{} // stage -> artifact of the newest cycle before that has one
	for _, d := range sets {
		results := map[string]string{}
		for _, s := range stages {
			j := st.Jobs[JobID(s.name, d.Digest)]
			if j == nil {
				return newJob(cfg, s, d, baseDigest, results, previous[s.name])
			}
			if j.State == control.JobBroken {
				break
			}
			if j.State != control.JobSucceeded {
				return nil, nil // in progress
			}
			results[s.name] = j.Update.Artifact
		}
		maps.Copy(previous, results)
	}
	return nil, nil
}

func newJob(cfg Config, s stage, d control.Dataset, base string, results map[string]string, previous string) (*control.Job, error) {
	spec := Spec{Kind: s.kind, Seed: cfg.Seed, Dataset: d.Digest, Base: base, Hyper: map[string]any{}}
	hyper := cfg.Reward
	if s.kind == KindRounds {
		hyper = cfg.Rounds
		spec.Reward, spec.Referee = results["reward"], results["referee"]
	} else {
		spec.Previous = previous
	}
	maps.Copy(spec.Hyper, hyper)
	if s.name == "referee" {
		spec.Hyper["referee"] = true
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("encode job: %w", err)
	}
	return &control.Job{
		ID: JobID(s.name, d.Digest), Kind: string(s.kind), Datasets: []string{d.Digest}, Spec: raw,
		Reason: fmt.Sprintf("data set %s: %d pairs of %d products", short(d.Digest), d.Pairs, d.Products),
	}, nil
}

// Next returns the job to run: one that is marked running first (an earlier process died with it), then the
// one that has queued longest, of those that need not wait after a failure.
func Next(st *control.State, now time.Time) *control.JobStatus {
	var open []*control.JobStatus
	for _, j := range st.Jobs {
		if j.State == control.JobRunning || j.State == control.JobQueued && !j.NotBefore.After(now) {
			open = append(open, j)
		}
	}
	if len(open) == 0 {
		return nil
	}
	slices.SortFunc(open, func(a, b *control.JobStatus) int {
		ra, rb := a.State == control.JobRunning, b.State == control.JobRunning
		switch {
		case ra != rb && ra:
			return -1
		case ra != rb:
			return 1
		}
		return cmp.Or(a.Queued.Compare(b.Queued), cmp.Compare(a.ID, b.ID))
	})
	return open[0]
}
