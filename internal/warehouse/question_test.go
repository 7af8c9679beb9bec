package warehouse

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
	"ctrloop/schemas/question"
)

// Every question of the book runs for the read-only user, with its defaults and these values.
func TestBookOfQuestions(t *testing.T) {
	e := engine(t)
	db := connect(t, e.DSN()) // the read-only user sees this database only
	if err := db.Migrate(t.Context(), Options{Window: testWindow, Bucket: testBucket}); err != nil {
		t.Fatal(err)
	}
	rows := world(rand.New(rand.NewPCG(11, 12)), 3000)
	if err := db.InsertLabels(t.Context(), "book", rows); err != nil {
		t.Fatal(err)
	}
	dead := []DeadLetterRow{
		{DeadLetter: &eventpb.DeadLetter{Reason: string(schemas.DeadBadTime), Topic: schemas.TopicRawImpressions}, Place: Place{"dlq", 0, 1}},
		{DeadLetter: &eventpb.DeadLetter{Reason: string(schemas.DeadMalformed), Topic: schemas.TopicRawClicks}, Place: Place{"dlq", 0, 2}},
	}
	if err := db.InsertDeadLetters(t.Context(), dead); err != nil {
		t.Fatal(err)
	}
	given := map[string]string{"product": "p1", "experiment": "x1", "id": rows[0].Impression.String(), "least": "1"}
	// Nothing to show in this world.
	silent := map[string]bool{"experiment-steps": true, "late": true, "looks": true, "pairs": true, "exact": false}
	for _, q := range question.All() {
		values := map[string]string{}
		for _, p := range q.Params {
			if v, ok := given[p.Name]; ok {
				values[p.Name] = v
			}
		}
		params, err := q.Values(values)
		if err != nil {
			t.Errorf("%s: %v", q.Name, err)
			continue
		}
		var b bytes.Buffer
		if err := Ask(t.Context(), e.ReadOnlyDSN(), q.SQL, params, FormatTSV, &b, Limits{}); err != nil {
			t.Errorf("%s: %v", q.Name, err)
		} else if n := strings.Count(b.String(), "\n"); n < 2 && !silent[q.Name] {
			t.Errorf("%s: no rows:\n%s", q.Name, b.String())
		}
	}
}

// A parameter is a value, whatever is in it.
func TestParametersAreValues(t *testing.T) {
	e := engine(t)
	for _, v := range []string{"it's", `a\b`, "tab\tand\nline", "'; DROP TABLE x; --", "ä{b}"} {
		var b bytes.Buffer
		if err := Ask(t.Context(), e.ReadOnlyDSN(), "SELECT hex({v:String}) AS h", map[string]string{"v": v}, FormatTSV, &b,
			Limits{}); err != nil {
			t.Errorf("%q: %v", v, err)
			continue
		}
		var want bytes.Buffer
		for i := range len(v) {
			const digits = "0123456789ABCDEF"
			want.WriteByte(digits[v[i]>>4])
			want.WriteByte(digits[v[i]&15])
		}
		if got := strings.TrimPrefix(strings.TrimSpace(b.String()), "h\n"); got != want.String() {
			t.Errorf("%q arrives as %s, want %s", v, got, want.String())
		}
	}
}
