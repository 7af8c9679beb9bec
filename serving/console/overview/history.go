package overview

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"ctrloop/internal/warehouse/query"
	"ctrloop/schemas/control"
	"ctrloop/serving/console"
)

// history is what has happened, by the mirror of the control log.
type history struct {
	events  []console.Event
	marks   []console.Mark
	decided map[string]string // why experiments ended, by entity
	pairs   int64             // made since the data began
}

// maxMarks on the chart: the newest.
const maxMarks = 40

// command is a row of the log's mirror.
type command struct {
	Type    string    `ch:"type"`
	Entity  string    `ch:"entity"`
	Actor   string    `ch:"actor"`
	Note    string    `ch:"note"`
	Time    time.Time `ch:"time"`
	Version string    `ch:"version"` // that became champion
	Outcome string    `ch:"outcome"` // of a decision
}

func (o *Page) readHistory(ctx context.Context, st *control.State) (history, error) {
	h := history{decided: map[string]string{}}
	var last, turns []command
	if err := o.p.Warehouse.Select(ctx, &last, query.Text("commands")+oneThread); err != nil {
		return h, err
	}
	for _, r := range last {
		h.events = append(h.events, console.Event{Time: r.Time, Type: r.Type, Entity: r.Entity, Actor: r.Actor, Note: r.Note})
	}
	if err := o.p.Warehouse.Select(ctx, &turns, query.Text("turns")+oneThread); err != nil {
		return h, err
	}
	marks := stepMarks(st)
	for _, r := range turns {
		if control.Type(r.Type) == control.ExperimentDecided {
			h.decided[r.Entity] = r.Note
			if r.Version == "" {
				continue
			}
			r.Type = map[bool]string{true: "promoted", false: "rolled_back"}[r.Outcome == string(control.Promote)]
		}
		marks = append(marks, undated{strings.TrimPrefix(r.Type, "model."), r.Version, r.Time, 0})
	}
	var err error
	if h.marks, err = o.date(ctx, marks); err != nil {
		return h, err
	}
	var pairs uint64
	err = o.p.Warehouse.QueryRow(ctx, query.Text("pairs")+oneThread).Scan(&pairs)
	h.pairs = int64(pairs)
	return h, err
}

// date finds the event times of marks, and gives the newest marks in their order. What was before the first event
// is left out: the chart does not go there.
func (o *Page) date(ctx context.Context, marks []undated) ([]console.Mark, error) {
	var out []console.Mark
	for _, m := range marks {
		ms, err := m.atMS, error(nil)
		if ms == 0 {
			ms, err = o.eventTimeAt(ctx, m.wall)
		}
		if err != nil {
			return nil, err
		}
		if ms > 0 {
			out = append(out, m.mark(ms))
		}
	}
	slices.SortStableFunc(out, func(a, b console.Mark) int { return a.Time.Compare(b.Time) })
	return out[max(0, len(out)-maxMarks):], nil
}

// undated is a mark whose event time may have to be looked up.
type undated struct {
	kind, what string
	wall       time.Time
	atMS       int64 // event time, 0: by wall
}

func (u undated) mark(ms int64) console.Mark {
	m := console.Mark{Time: time.UnixMilli(ms).UTC(), Kind: u.kind, Label: u.what}
	switch u.kind {
	case "promoted":
		m.Label = short(u.what) + " promoted"
	case "rolled_back":
		m.Label = "back to " + short(u.what)
	}
	return m
}

// stepMarks are the steps of all experiments. Only the first one does not know its event time.
func stepMarks(st *control.State) (out []undated) {
	for _, x := range st.Experiments {
		for i, s := range x.History {
			u := undated{"step", fmt.Sprintf("%g %%", math.Round(1000*s.Share)/10), x.Created, s.AtMS}
			if i == 0 {
				u.what = short(x.Treatment) + " at " + u.what
			}
			out = append(out, u)
		}
	}
	return out
}

// short is a version's digest as people say it: "prompt-71d0c3b9a44e" -> "71d0c3b9".
func short(version string) string {
	name := version[strings.LastIndexByte(version, '-')+1:]
	return name[:min(len(name), 8)]
}
