package two

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"ctrloop/app"
	"ctrloop/internal/stream"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
)

// checkLabels waits until there are as many labels as there were impressions, and holds every one against the truth.
func (c *cluster) checkLabels(tr *traffic) {
	c.t.Helper()
	ctx := c.t.Context()
	c.wait(5*time.Minute, "every label", func() string {
		var rows uint64
		if err := c.db.QueryRow(ctx, "SELECT count() FROM labels").Scan(&rows); err != nil {
			return err.Error()
		}
		if rows < uint64(len(tr.truth)) {
			return fmt.Sprintf("%d of %d", rows, len(tr.truth))
		}
		return ""
	})
	var labels []struct {
		ID      string `ch:"id"`
		Clicked uint8  `ch:"clicked"`
		Version uint32 `ch:"version"`
		Kind    string `ch:"kind"`
		Place   string `ch:"place"`
	}
	const all = "SELECT toString(impression_id) AS id, clicked, version, toString(kind) AS kind, concat(toString(partition), '/', " +
		"toString(offset), ' at ', toString(watermark), ', inserted ', toString(inserted_at)) AS place FROM labels"
	if err := c.db.Select(ctx, &labels, all); err != nil {
		c.t.Fatal(err)
	}
	seen := map[string]string{} // impression -> place of its label
	wrong := map[string]int{}
	for _, l := range labels {
		clicked, known := tr.truth[l.ID]
		switch {
		case !known:
			wrong["of an impression that nobody sent"]++
		case seen[l.ID] != "":
			if wrong["second of its impression"]++; wrong["second of its impression"] < 5 {
				c.t.Logf("labels of %s: %s, and %s; it was sent again: %v", l.ID, seen[l.ID], l.Place, tr.resent[l.ID])
			}
		case (l.Clicked == 1) != clicked:
			wrong[fmt.Sprintf("clicked %d, and the truth is %v", l.Clicked, clicked)]++
		case l.Version != 1 || l.Kind != map[bool]string{true: "positive", false: "final_negative"}[clicked]:
			wrong[fmt.Sprintf("%s of version %d, clicked: %v", l.Kind, l.Version, clicked)]++
		}
		seen[l.ID] = l.Place
	}
	if len(seen) != len(tr.truth) {
		wrong["missing"] = len(tr.truth) - len(seen)
	}
	if len(wrong) > 0 {
		c.t.Fatalf("labels of %d impressions: %v", len(tr.truth), wrong)
	}
}

// checkWarehouse: nothing was late but what its sender had sent before, nothing was refused, and the audit agrees.
func (c *cluster) checkWarehouse(tr *traffic) {
	c.t.Helper()
	ctx := c.t.Context()
	var late []struct {
		ID     string `ch:"id"`
		Reason string `ch:"reason"`
	}
	if err := c.db.Select(ctx, &late, "SELECT toString(impression_id) AS id, reason FROM late FINAL"); err != nil {
		c.t.Fatal(err)
	}
	again := 0
	for _, l := range late {
		if tr.resent[l.ID] {
			again++ // its first sending came to life with the edge that had been stopped over it
			continue
		}
		c.t.Errorf("%s of %s, and the stream alone was slow", l.Reason, l.ID)
	}
	if again > 0 {
		c.t.Logf("%d events were late, all of them second copies", again)
	}
	var dead uint64
	if err := c.db.QueryRow(ctx, "SELECT count() FROM dead_letters").Scan(&dead); err != nil || dead > 0 {
		c.t.Errorf("%d dead letters, %v", dead, err)
	}
	c.wait(2*time.Minute, "the audit to agree", func() string {
		differ, err := c.db.Audit(ctx, time.Time{})
		if err != nil {
			return err.Error()
		}
		if len(differ) > 0 {
			return fmt.Sprintf("%+v", differ)
		}
		return ""
	})
}

// record is a command of the log and what has become of it.
type record struct {
	control.Event
	answer   control.Answer
	err      error
	champion string // behind it
}

// readControl folds the control log from its start.
func (c *cluster) readControl() (*control.State, []record) {
	c.t.Helper()
	st := control.NewState()
	var all []record
	fold := func(r *stream.Record) error {
		var e control.Event
		if err := json.Unmarshal(r.Value, &e); err != nil {
			c.t.Errorf("offset %d of the control log: %v", r.Offset, err)
			return nil
		}
		answer, err := st.Apply(r.Offset, e)
		all = append(all, record{e, answer, err, st.Routes[logical].Champion})
		return nil
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	r, err := stream.OpenReplica(ctx, c.kafka, schemas.TopicControl, -1, fold, func(error) {})
	if err != nil {
		c.t.Fatal(err)
	}
	r.Close()
	return st, all
}

// checkControl: every process has the same state, every serving process the same champion, and every command of a person
// was applied once if it was acknowledged, never if it was refused, and at most once if its answer was lost.
func (c *cluster) checkControl(p *people, rounds int) *control.State {
	c.t.Helper()
	var st *control.State
	var all []record
	c.wait(3*time.Minute, "every reader to see the same", func() string {
		st, all = c.readControl()
		want, err := app.NewControlView(st)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, n := range c.nodes {
			if n.role == "ingest" {
				continue // reads no control log
			}
			var got app.ControlView
			if err := n.get("admin", app.ControlPath, &got); err != nil {
				return n.name + ": " + err.Error()
			}
			if got.Offset != want.Offset || got.Digest != want.Digest || got.Problem != "" {
				return fmt.Sprintf("%s is at %d with %.8s %s, the log at %d with %.8s", n.name, got.Offset, got.Digest, got.Problem,
					want.Offset, want.Digest)
			}
		}
		for _, n := range c.of("serving") {
			var list struct {
				Data []struct{ ID, Version string }
			}
			if err := n.get("api", "/v1/models", &list); err != nil {
				return n.name + ": " + err.Error()
			}
			if len(list.Data) == 0 || list.Data[0].Version != st.Routes[logical].Champion {
				return fmt.Sprintf("%s routes to %+v, the champion is %s", n.name, list.Data, st.Routes[logical].Champion)
			}
		}
		return ""
	})
	applied, ids, fenced := map[string]int{}, map[string]int{}, 0
	champions, last := 0, ""
	for _, r := range all {
		if r.champion != last {
			champions, last = champions+1, r.champion
		}
		if r.answer == control.Applied {
			ids[r.ID]++
			applied[r.Note]++
		}
		if rejection, ok := control.Rejected(r.err); ok && rejection.Reason == control.Fenced {
			fenced++
		}
	}
	for id, n := range ids {
		if n != 1 {
			c.t.Errorf("command %s was applied %d times", id, n)
		}
	}
	for _, x := range p.sent {
		n := applied[x.note]
		if n > 1 || x.fate == acknowledged && n != 1 || x.fate == refused && n != 0 {
			c.t.Errorf("%s (%q), %s: applied %d times", x.what, x.note, x.fate, n)
		}
	}
	terms, changes := map[control.Role]int64{}, int64(0)
	for role, l := range st.Leases {
		terms[role] = l.Epoch
		changes += l.Epoch - 1
	}
	c.t.Logf("%d commands on the control log, %d of a former holder rejected by the fold; champions one after another: %d; newest epochs: %v",
		len(all), fenced, champions, terms)
	if champions < 2 || rounds >= enough && changes == 0 {
		c.t.Errorf("%d champions and %d changes of leaders in %d rounds: nothing was tested", champions, changes, rounds)
	}
	return st
}

// enough are the rounds after which a leader must have been killed, or stopped for longer than its lease.
const enough = 10

// logical is the model that everything is about.
const logical = "prompt"

// checkJobs: every attempt of a job was started by one training process at most, every job has ended at most once, and
// made one version at most.
func (c *cluster) checkJobs(st *control.State) string {
	c.t.Helper()
	_, all := c.readControl()
	type history struct{ started, finished, ran int }
	jobs := map[string]*history{}
	of := func(id string) *history {
		if jobs[id] == nil {
			jobs[id] = &history{}
		}
		return jobs[id]
	}
	for _, r := range all {
		if r.answer != control.Applied {
			continue
		}
		id := strings.TrimPrefix(r.Entity, control.JobEntity(""))
		switch r.Type {
		case control.JobStarted:
			h := of(id)
			var u control.JobUpdate
			if err := json.Unmarshal(r.Data, &u); err != nil || u.Attempt != h.started+1 || h.finished > 0 {
				c.t.Errorf("job %s: attempt %d is started, after %d attempts and %d ends: %v", id, u.Attempt, h.started, h.finished, err)
			}
			h.started++
		case control.JobFinished:
			of(id).finished++
		default: // of something else
		}
	}
	ended := 0
	for _, e := range journal(c.t, c.journal) {
		if e.Event == "started" {
			of(e.Job).ran++
		} else {
			ended++
		}
	}
	made := map[string]int{}
	for _, m := range st.Models {
		made[m.Job]++
	}
	var total history
	for _, id := range slices.Sorted(maps.Keys(jobs)) {
		h := jobs[id]
		if h.ran > h.started || h.finished > 1 || made[id] > 1 {
			c.t.Errorf("job %s: %d attempts on the log, %d training processes, %d ends, %d versions", id, h.started, h.ran, h.finished, made[id])
		}
		total.started, total.finished, total.ran = total.started+h.started, total.finished+h.finished, total.ran+h.ran
	}
	return fmt.Sprintf("%d jobs, %d attempts, %d training processes, %d came to their end, %d ends are on the log", len(jobs), total.started,
		total.ran, ended, total.finished)
}
