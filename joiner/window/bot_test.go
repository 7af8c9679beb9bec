package window

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// TestClicksOfRobots: a label says whose click it rests on, whichever side came first; a robot's late click corrects nothing.
func TestClicksOfRobots(t *testing.T) {
	click := func(id schemas.ImpressionID, at int64, bot bool) []byte {
		b, err := proto.Marshal(&eventpb.Click{ImpressionId: id[:], TimeMs: at, Bot: bot})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, c := range []struct {
		name      string
		bot       bool
		first     bool  // the click comes before its impression
		delay     int64 // ms; the window is 1000
		kind      eventpb.LabelKind
		corrected bool
	}{
		{"a person's", false, false, 10, eventpb.LabelKind_LABEL_KIND_POSITIVE, false},
		{"a robot's", true, false, 10, eventpb.LabelKind_LABEL_KIND_POSITIVE, false},
		{"a robot's, first", true, true, 10, eventpb.LabelKind_LABEL_KIND_POSITIVE, false},
		{"a person's, late", false, false, 1500, eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, true},
		{"a robot's, late", true, false, 1500, eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, false},
	} {
		w := New(Config{WindowMS: 1000, BucketMS: 1000})
		id := schemas.ImpressionID{15: 1}
		raw := click(id, c.delay, c.bot)
		show := func() error { return w.Impression([]byte("i"), id, 0) }
		hit := func() error { return w.Click(raw, id, c.delay, 0) }
		steps := []func() error{show, hit}
		if c.first {
			steps = []func() error{hit, show}
		}
		for _, step := range steps {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
		end := Promise{LowMS: 5000}
		if err := errors.Join(w.Punctuate(Impressions, end), w.Punctuate(Clicks, end), w.Advance(0), w.Check()); err != nil {
			t.Fatal(err)
		}
		if l := w.Labels[0]; l.Kind != c.kind || l.Bot != (c.bot && c.kind == eventpb.LabelKind_LABEL_KIND_POSITIVE) {
			t.Errorf("%s: label %v, bot %v", c.name, l.Kind, l.Bot)
		}
		if got := len(w.Labels) == 2; got != c.corrected {
			t.Errorf("%s: %d labels", c.name, len(w.Labels))
		}
		if w.Ledger().LateClicks != 0 == (c.delay <= 1000) {
			t.Errorf("%s: %d late clicks", c.name, w.Ledger().LateClicks)
		}
	}
}
