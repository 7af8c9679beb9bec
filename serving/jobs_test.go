package serving

import (
	"testing"

	"ctrloop/schemas/control"
)

// A person's word on a job is a command in that person's name; what the job's state does not allow is refused.
func TestJobsAreSteered(t *testing.T) {
	_, addresses := fakes(t, 1)
	i := start(t, promptingBase(t), addresses[0])
	entity := control.JobEntity("rounds-a")
	i.log.Put(t, control.JobSubmitted, entity, control.Job{ID: "rounds-a", Kind: "rounds", Reason: "enough pairs", Spec: []byte(`{"seed":1}`)})
	i.log.Put(t, control.JobStarted, entity, control.JobUpdate{Attempt: 1})
	var list struct{ Jobs []control.JobStatus }
	i.call("GET", "/v1/jobs", nil, 200, &list)
	if len(list.Jobs) != 1 || list.Jobs[0].ID != "rounds-a" || list.Jobs[0].State != control.JobRunning {
		t.Errorf("%+v", list)
	}
	var j control.JobStatus
	i.call("GET", "/v1/jobs/none", nil, 404, nil)
	i.call("POST", "/v1/jobs/none/cancel", map[string]any{"note": "n"}, 404, nil)
	i.call("POST", "/v1/jobs/rounds-a/cancel", map[string]any{}, 422, nil) // no note
	i.call("POST", "/v1/jobs/rounds-a/retry", map[string]any{"note": "n"}, 409, nil)
	i.call("POST", "/v1/jobs/rounds-a/cancel", map[string]any{"note": "n", "expect": 9}, 409, nil)
	i.call("POST", "/v1/jobs/rounds-a/cancel", map[string]any{"note": "a broken campaign"}, 200, &j)
	if j.State != control.JobBroken || j.Update.Class != control.ClassCancelled {
		t.Errorf("cancelled: %+v", j)
	}
	events := i.log.Applied()
	if e := events[len(events)-1]; e.Type != control.JobCancelled || e.Actor == "" || e.Note != "a broken campaign" {
		t.Errorf("on the log: %+v", e)
	}
	i.call("POST", "/v1/jobs/rounds-a/retry", map[string]any{"note": "it was sound"}, 200, &j)
	if i.call("GET", "/v1/jobs/rounds-a", nil, 200, &j); j.State != control.JobQueued {
		t.Errorf("retried: %+v", j)
	}
}

// A data set is listed with what became of it.
func TestDatasetsAreListed(t *testing.T) {
	_, addresses := fakes(t, 1)
	i := start(t, promptingBase(t), addresses[0])
	for n, digest := range []string{"d1", "d2"} {
		i.log.Put(t, control.DatasetBuilt, control.DatasetEntity(digest), control.Dataset{Digest: digest, Pairs: 3, BuiltMS: int64(n + 1)})
	}
	entity := control.JobEntity("reward-d1")
	i.log.Put(t, control.JobSubmitted, entity, control.Job{ID: "reward-d1", Kind: "reward", Datasets: []string{"d1"}})
	i.log.Put(t, control.JobCancelled, entity, nil)
	var list struct{ Datasets []DatasetRow }
	i.call("GET", "/v1/datasets", nil, 200, &list)
	if len(list.Datasets) != 2 || list.Datasets[0].Digest != "d2" || len(list.Datasets[0].Jobs) != 0 ||
		len(list.Datasets[1].Failed) != 1 || list.Datasets[1].Failed[0] != "reward-d1" || list.Datasets[1].Pairs != 3 {
		t.Errorf("%+v", list)
	}
}
