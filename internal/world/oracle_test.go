package world

import (
	"errors"
	"iter"
	"slices"
	"testing"
	"time"

	"ctrloop/internal/catalogue"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// join is an independent, naive joiner over everything that was sent: what a right system says in the end.
func join(events []Event, window time.Duration) []Label {
	first := map[schemas.ImpressionID]int64{} // delay of the first click inside the window
	late := map[schemas.ImpressionID]bool{}
	seen := map[schemas.ImpressionID]bool{}
	for _, e := range events {
		if e.Click == nil {
			continue
		}
		id := schemas.ImpressionID(e.Click.ImpressionId)
		d := e.Click.TimeMs - id.UnixMilli()
		if d > window.Milliseconds() {
			late[id] = true
		} else if old, ok := first[id]; !ok || d < old {
			first[id] = d
		}
	}
	var out []Label
	for _, e := range events {
		if e.Impression == nil {
			continue
		}
		id := schemas.ImpressionID(e.Impression.Id)
		if seen[id] {
			continue
		}
		seen[id] = true
		if _, ok := first[id]; ok {
			out = append(out, Label{id, eventpb.LabelKind_LABEL_KIND_POSITIVE, true, 1})
			continue
		}
		out = append(out, Label{id, eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, false, 1})
		if late[id] {
			out = append(out, Label{id, eventpb.LabelKind_LABEL_KIND_CORRECTED, true, 2})
		}
	}
	return out
}

func rowsOf(labels []Label) iter.Seq2[Label, error] {
	return func(yield func(Label, error) bool) {
		for _, l := range labels {
			if !yield(l, nil) {
				return
			}
		}
	}
}

// ran is a finished run with its oracle and the right labels.
func ran(t *testing.T, seed uint64, n int64) (*Oracle, []Label) {
	t.Helper()
	cfg, dir, r := smallTraffic(seed), t.TempDir(), new(recorder)
	cfg.LateShare = 0.05
	tr := open(t, cfg, r, dir)
	if err := tr.Run(t.Context(), Until{Impressions: n}); err != nil {
		t.Fatal(err)
	}
	if err := tr.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	o, err := OpenOracle(cfg, catalogue.Embedded(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return o, join(r.events(), cfg.Window)
}

const everything = int64(1) << 60

func compare(t *testing.T, o *Oracle, labels []Label, mature int64) Report {
	t.Helper()
	r, err := o.Compare(rowsOf(labels), mature)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestOracleAgreesWithANaiveJoin(t *testing.T) {
	o, labels := ran(t, 31, 20_000)
	r := compare(t, o, labels, everything)
	if !r.OK() || r.Expected != 20_000 || r.Labels != 20_000 || o.Impressions() != 20_000 {
		t.Errorf("right labels are judged %+v", r)
	}
	if r.Corrected == 0 {
		t.Error("no late click was corrected: the test proves less than it says")
	}
	slices.Reverse(labels)
	if again := compare(t, o, labels, everything); !again.OK() {
		t.Errorf("in another order: %+v", again)
	}
}

func TestOracleFindsPlantedFaults(t *testing.T) {
	o, right := ran(t, 32, 10_000)
	at := func(k eventpb.LabelKind, nth int) int {
		for i, l := range right {
			if l.Kind == k {
				if nth--; nth < 0 {
					return i
				}
			}
		}
		t.Fatal("too few labels of a kind")
		return 0
	}
	positive := at(eventpb.LabelKind_LABEL_KIND_POSITIVE, 3)
	negative := at(eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, 7)
	corrected := at(eventpb.LabelKind_LABEL_KIND_CORRECTED, 0)
	stranger := schemas.NewImpressionID(right[0].ID.Time(), [10]byte{1, 2, 3})
	tests := []struct {
		name  string
		alter func([]Label) []Label
		want  Report
	}{
		{"two lost", func(l []Label) []Label { return slices.Delete(l, negative, negative+2) }, Report{Lost: 2}},
		{"a duplicate", func(l []Label) []Label { return append(l, l[positive]) }, Report{Duplicate: 1}},
		{"a duplicate correction", func(l []Label) []Label { return append(l, l[corrected]) }, Report{Duplicate: 1, Corrected: 1}},
		{"a stranger", func(l []Label) []Label {
			return append(l, Label{stranger, eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, false, 1})
		}, Report{Spurious: 1}},
		{"a click forgotten", func(l []Label) []Label {
			l[positive].Kind, l[positive].Clicked = eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, false
			return l
		}, Report{Spurious: 1, Wrong: 1}},
		{"a click made up", func(l []Label) []Label {
			l[negative].Kind, l[negative].Clicked = eventpb.LabelKind_LABEL_KIND_POSITIVE, true
			return l
		}, Report{Spurious: 1, Wrong: 1}},
		{"kind without click", func(l []Label) []Label { l[positive].Clicked = false; return l }, Report{Spurious: 1, Wrong: 1}},
		{"a correction nobody asked for", func(l []Label) []Label {
			return append(l, Label{l[positive].ID, eventpb.LabelKind_LABEL_KIND_CORRECTED, true, 2})
		}, Report{Spurious: 1, Wrong: 1}},
		{"no corrections at all", func(l []Label) []Label {
			return slices.DeleteFunc(l, func(l Label) bool { return l.Kind == eventpb.LabelKind_LABEL_KIND_CORRECTED })
		}, Report{Corrected: -1}},
		{"a provisional negative", func(l []Label) []Label {
			return append(l, Label{l[positive].ID, eventpb.LabelKind_LABEL_KIND_PROVISIONAL_NEGATIVE, false, 1})
		}, Report{Provisional: 1}},
	}
	base := compare(t, o, right, everything)
	for _, tt := range tests {
		r := compare(t, o, tt.alter(slices.Clone(right)), everything)
		if r.Lost != tt.want.Lost || r.Duplicate != tt.want.Duplicate || r.Spurious != tt.want.Spurious || r.Wrong != tt.want.Wrong ||
			r.Provisional != tt.want.Provisional {
			t.Errorf("%s: %+v, want %+v", tt.name, r, tt.want)
		}
		if tt.want.Corrected == -1 && (r.Corrected != 0 || base.Corrected == 0) {
			t.Errorf("%s: %+v", tt.name, r)
		}
		if bad := tt.want.Lost+tt.want.Duplicate+tt.want.Spurious > 0; bad && (r.OK() || len(r.Examples) == 0) {
			t.Errorf("%s: judged well, or no example: %+v", tt.name, r)
		}
	}
}

func TestOracleAsksOnlyForMatureLabels(t *testing.T) {
	o, labels := ran(t, 33, 5_000)
	mid := labels[len(labels)/2].ID.UnixMilli()
	var young []Label
	for _, l := range labels {
		if l.ID.UnixMilli() <= mid {
			young = append(young, l)
		}
	}
	r := compare(t, o, young, mid)
	if !r.OK() || r.Expected >= 5_000 || r.Expected == 0 {
		t.Errorf("only mature labels: %+v", r)
	}
	r = compare(t, o, labels, mid)
	if !r.OK() || r.Early == 0 {
		t.Errorf("labels ahead of time are allowed: %+v", r)
	}
	if r = compare(t, o, young, everything); r.Lost == 0 {
		t.Errorf("everything is due, half is there: %+v", r)
	}
}

// A batch that is journaled but not acknowledged may or may not have arrived: both are right.
func TestOracleLeavesUnacknowledgedBatchesOpen(t *testing.T) {
	cfg, dir := smallTraffic(34), t.TempDir()
	r := &recorder{failAt: 8}
	tr := open(t, cfg, r, dir)
	if err := tr.Run(t.Context(), Until{Impressions: 5000}); !errors.Is(err, errSend) {
		t.Fatal(err)
	}
	o, err := OpenOracle(cfg, catalogue.Embedded(), dir)
	if err != nil {
		t.Fatal(err)
	}
	with := compare(t, o, join(r.events(), cfg.Window), everything)
	without := compare(t, o, join((&recorder{batches: r.batches[:7]}).events(), cfg.Window), everything)
	if !with.OK() || !without.OK() || with.Expected != without.Expected || with.Early == 0 {
		t.Errorf("arrived: %+v\nnot arrived: %+v", with, without)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOracleReportsReadErrors(t *testing.T) {
	o, _ := ran(t, 35, 500)
	away := errors.New("warehouse away")
	if _, err := o.Compare(func(yield func(Label, error) bool) { yield(Label{}, away) }, everything); !errors.Is(err, away) {
		t.Errorf("error %v", err)
	}
}

func TestVerdictIDRoundTrips(t *testing.T) {
	id := schemas.NewImpressionID(time.UnixMilli(1_772_000_000_123), [10]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
	v := verdict{hi: id.Hi(), lo: id.Lo()}
	if v.id() != id || v.ms() != id.UnixMilli() {
		t.Errorf("id %v, time %d; want %v, %d", v.id(), v.ms(), id, id.UnixMilli())
	}
}
