package trainerbridge

import (
	"encoding/json"
	"testing"
	"time"

	"ctrloop/schemas/control"
)

func apply(t *testing.T, st *control.State, id string, typ control.Type, entity string, data any) {
	t.Helper()
	e, err := control.NewEvent(id, typ, entity, -1, "test", "", time.Unix(st.Offset+2, 0), data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Apply(st.Offset+1, e); err != nil {
		t.Fatal(err)
	}
}

const digestA, digestB = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"

func submit(t *testing.T, st *control.State, cfg Config) *control.Job {
	t.Helper()
	j, err := Plan(cfg, st, "base")
	if err != nil {
		t.Fatal(err)
	}
	if j != nil {
		apply(t, st, "submit-"+j.ID, control.JobSubmitted, control.JobEntity(j.ID), j)
	}
	return j
}

func TestACycleIsRewardRefereeRounds(t *testing.T) {
	st := control.NewState()
	cfg := Default()
	cfg.Rounds = map[string]any{"epochs": 2}
	if j := submit(t, st, cfg); j != nil {
		t.Fatalf("a job without a data set: %+v", j)
	}
	apply(t, st, "d", control.DatasetBuilt, control.DatasetEntity(digestA), control.Dataset{Digest: digestA, Pairs: 10, ToMS: 5})
	for _, want := range []string{"reward-aaaaaaaaaaaa", "referee-aaaaaaaaaaaa", "rounds-aaaaaaaaaaaa"} {
		j := submit(t, st, cfg)
		if j == nil || j.ID != want {
			t.Fatalf("next job is %+v, want %s", j, want)
		}
		if k := submit(t, st, cfg); k != nil {
			t.Fatalf("%s was submitted while %s is open", k.ID, want)
		}
		apply(t, st, "s"+j.ID, control.JobStarted, control.JobEntity(j.ID), control.JobUpdate{Attempt: 1})
		apply(t, st, "f"+j.ID, control.JobFinished, control.JobEntity(j.ID), control.JobUpdate{Artifact: "artifact-of-" + j.ID})
	}
	if j := submit(t, st, cfg); j != nil {
		t.Fatalf("after the cycle: %+v", j)
	}
	var s Spec
	if err := json.Unmarshal(st.Jobs["rounds-aaaaaaaaaaaa"].Spec, &s); err != nil {
		t.Fatal(err)
	}
	if s.Reward != "artifact-of-reward-aaaaaaaaaaaa" || s.Referee != "artifact-of-referee-aaaaaaaaaaaa" || s.Hyper["epochs"] != 2.0 {
		t.Errorf("rounds work with %+v", s)
	}
	if err := json.Unmarshal(st.Jobs["referee-aaaaaaaaaaaa"].Spec, &s); err != nil || s.Hyper["referee"] != true {
		t.Errorf("the referee is not told to be one: %+v %v", s, err)
	}
}

func TestTheNextCycleKnowsTheModelsBefore(t *testing.T) {
	st := control.NewState()
	for i, digest := range []string{digestA, digestB} {
		apply(t, st, "d"+digest, control.DatasetBuilt, control.DatasetEntity(digest), control.Dataset{Digest: digest, ToMS: int64(5 + i)})
		for _, stage := range []string{"reward", "referee", "rounds"} {
			j := submit(t, st, Default())
			var s Spec
			if err := json.Unmarshal(j.Spec, &s); err != nil {
				t.Fatal(err)
			}
			want := ""
			if i == 1 && stage != "rounds" {
				want = "artifact-of-" + JobID(stage, digestA)
			}
			if s.Previous != want {
				t.Errorf("%s works with previous %q, want %q", j.ID, s.Previous, want)
			}
			apply(t, st, "s"+j.ID, control.JobStarted, control.JobEntity(j.ID), control.JobUpdate{Attempt: 1})
			apply(t, st, "f"+j.ID, control.JobFinished, control.JobEntity(j.ID), control.JobUpdate{Artifact: "artifact-of-" + j.ID})
		}
	}
}

func TestAFailedStageEndsItsCycleOnly(t *testing.T) {
	st := control.NewState()
	apply(t, st, "d", control.DatasetBuilt, control.DatasetEntity(digestA), control.Dataset{Digest: digestA, ToMS: 5})
	j := submit(t, st, Default())
	apply(t, st, "x", control.JobFailed, control.JobEntity(j.ID), control.JobUpdate{Class: string(FailDiverged)})
	if k := submit(t, st, Default()); k != nil {
		t.Fatalf("%s follows a failed stage", k.ID)
	}
	apply(t, st, "e", control.DatasetBuilt, control.DatasetEntity(digestB), control.Dataset{Digest: digestB, ToMS: 9})
	if k := submit(t, st, Default()); k == nil || k.ID != "reward-bbbbbbbbbbbb" {
		t.Fatalf("the next data set gets its cycle, got %+v", k)
	}
}

func TestNextTakesTheInterruptedJobFirst(t *testing.T) {
	st := control.NewState()
	for _, id := range []string{"one", "two"} {
		apply(t, st, id, control.JobSubmitted, control.JobEntity(id), control.Job{ID: id})
	}
	if got := Next(st, time.Unix(1000, 0)).ID; got != "one" {
		t.Errorf("first in is %s", got)
	}
	apply(t, st, "s", control.JobStarted, control.JobEntity("two"), control.JobUpdate{Attempt: 1})
	if got := Next(st, time.Unix(1000, 0)).ID; got != "two" {
		t.Errorf("a job that was running when we died comes first, got %s", got)
	}
}
