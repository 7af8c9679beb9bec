package overview

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"ctrloop/schemas/control"
)

var t0 = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)

func at(seconds float64) time.Time { return t0.Add(time.Duration(seconds * float64(time.Second))) }

func ms(seconds float64) int64 { return at(seconds).UnixMilli() }

// folded is the state after commands, one second apart, each behind those that must come before it.
func folded(t *testing.T, commands ...control.Event) *control.State {
	t.Helper()
	st := control.NewState()
	for i, e := range commands {
		for _, e := range append(before(t, st, e), e) {
			e.ID, e.Time = fmt.Sprint("e", st.Offset+1), at(float64(i))
			if _, err := st.Apply(st.Offset+1, e); err != nil {
				t.Fatal(err)
			}
		}
	}
	return st
}

// before are commands without which the log would reject e: versions that are probed, jobs that are started.
func before(t *testing.T, st *control.State, e control.Event) (out []control.Event) {
	t.Helper()
	var data struct {
		Version, Control, Treatment string
	}
	if err := json.Unmarshal(e.Data, &data); err != nil {
		t.Fatal(err)
	}
	probe := func(version string) {
		if st.Models[version] == nil {
			out = append(out, registered(t, control.Model{Version: version, Logical: "prompt", Base: "b"}))
		} else if st.Models[version].State != control.ModelFetched {
			return
		}
		for _, s := range []control.ModelState{control.ModelLoaded, control.ModelProbed, control.ModelShadow} {
			out = append(out, event(t, control.ModelStateChanged, control.ModelEntity(version), "", control.ModelStateChange{State: s}))
		}
	}
	switch e.Type {
	case control.ModelPromoted:
		probe(data.Version)
	case control.ExperimentCreated:
		probe(data.Control)
		probe(data.Treatment)
	case control.JobFinished, control.JobFailed:
		if j := st.Jobs[strings.TrimPrefix(e.Entity, control.JobEntity(""))]; j == nil || j.State != control.JobQueued {
			break
		}
		out = append(out, event(t, control.JobStarted, e.Entity, "", control.JobUpdate{Attempt: 1}))
	default: // needs nothing before it
	}
	return out
}

func event(t *testing.T, typ control.Type, entity, note string, data any) control.Event {
	t.Helper()
	e, err := control.NewEvent("x", typ, entity, -1, "test", note, t0, data)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func registered(t *testing.T, m control.Model) control.Event {
	return event(t, control.ModelRegistered, control.ModelEntity(m.Version), "", m)
}

func promoted(t *testing.T, version, note string) control.Event {
	return event(t, control.ModelPromoted, control.RouteEntity("prompt"), note, control.Promotion{Logical: "prompt", Version: version})
}
