package overview

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"ctrloop/schemas/control"
	"ctrloop/serving/console"
)

func TestAlerts(t *testing.T) {
	job := func(typ control.Type, id string, data any) control.Event {
		return event(t, typ, control.JobEntity(id), "", data)
	}
	submit := func(id, kind string) control.Event {
		return job(control.JobSubmitted, id, control.Job{ID: id, Kind: kind})
	}
	failed := []control.Event{submit("rounds-1", "rounds"), job(control.JobFailed, "rounds-1", control.JobUpdate{Class: "bug", Error: "boom"})}
	trip := event(t, control.BreakerTripped, control.BreakerEntity("all"), "", control.Breaker{Slice: "all", Reason: "CTR halved"})
	o := &Page{}
	got := o.since(at(50), controlAlerts(folded(t, append(failed, trip)...)))
	want := []console.Alert{
		{Severity: page, Title: "The circuit breaker of all is open: CTR halved", Since: at(50)},
		{Severity: warn, Title: "Training job rounds-1 failed (bug): boom", Since: at(1)},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("alerts (-want +got):\n%s", diff)
	}
	if got := o.since(at(60), controlAlerts(folded(t, trip))); !got[0].Since.Equal(at(50)) {
		t.Errorf("the alert is dated %v, want when it was first seen", got[0].Since)
	}
	other := append(failed, submit("reward-2", "reward"), job(control.JobFinished, "reward-2", control.JobUpdate{}))
	if got := o.since(at(70), controlAlerts(folded(t, other...))); len(got) != 1 {
		t.Errorf("a job of another stage went well, and the alerts are: %v", got)
	}
	healed := append(failed, submit("rounds-2", "rounds"), job(control.JobFinished, "rounds-2", control.JobUpdate{}))
	if got := o.since(at(70), controlAlerts(folded(t, healed...))); len(got) != 0 {
		t.Errorf("a later job went well, and still: %v", got)
	}
	if got := o.since(at(80), controlAlerts(folded(t, trip))); !got[0].Since.Equal(at(80)) {
		t.Errorf("an alert that fires again is dated %v, want now", got[0].Since)
	}
}
