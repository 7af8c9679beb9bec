package warehouse

import (
	"errors"
	"testing"
	"time"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// S12: what a breaker has marked can be looked at, cleared, and taken back. Figures follow, those of a day that is rolled up too.
func TestSuspectLabelsAreReviewed(t *testing.T) {
	db := database(t)
	at := time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	var rows []LabelRow
	for i := range 240 { // four hours; in the second one every other label is suspect
		when := at.Add(time.Duration(i) * time.Minute)
		l := LabelRow{Impression: schemas.NewImpressionID(when, [10]byte{byte(i)}), Version: 1, User: uint64(i), Product: []string{"mug", "tea"}[i/2%2],
			Creative: "c", Placement: "feed", Kind: eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, Weight: 1, Partition: int32(i / 4 % 2),
			Offset: int64(i), WatermarkMS: at.Add(48 * time.Hour).UnixMilli(), Suspect: i >= 60 && i < 120 && i%2 == 0}
		if i%10 == 0 {
			l.Kind, l.Clicked = eventpb.LabelKind_LABEL_KIND_POSITIVE, true
		}
		rows = append(rows, l)
	}
	if err := db.InsertLabels(t.Context(), "a", rows); err != nil {
		t.Fatal(err)
	}
	rollUp(t, db)
	const figures = "SELECT count(), sum(clicked) FROM labels_mature UNION ALL SELECT sum(impressions), sum(clicks) FROM ctr_days"
	check := func(when, want string) {
		t.Helper()
		for _, how := range []string{"", ", rolled up"} {
			if got := lines(t, db, figures); got != want+want {
				t.Errorf("%s%s: %q, want twice %q", when, how, got, want)
			}
			if _, err := db.RollUp(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	check("at first", "210\t18\n")
	cells, err := db.Suspect(t.Context(), Suspects{})
	if err != nil || len(cells) != 4 {
		t.Fatalf("%+v, %v", cells, err)
	}
	if c := cells[0]; !c.Hour.Equal(at.Add(time.Hour)) || c.Verdict != string(VerdictOpen) || c.Labels < 7 || c.Usual == nil || *c.Usual < 0.05 || *c.Usual > 0.12 {
		t.Errorf("%+v", c)
	}
	review := func(s Suspects, v Verdict, cells, labels uint64) {
		t.Helper()
		r, err := db.Review(t.Context(), s, v, "ada", "a campaign began")
		if err != nil || r != (Reviewed{cells, labels}) {
			t.Errorf("%+v, %v, want %d cells and %d labels", r, err, cells, labels)
		}
	}
	review(Suspects{Product: "mug"}, VerdictCleared, 2, 15)
	check("the mugs cleared", "225\t21\n")
	if cells, err = db.Suspect(t.Context(), Suspects{Product: "mug"}); err != nil || len(cells) != 2 || cells[1].Verdict != string(VerdictCleared) ||
		cells[1].By != "ada" || cells[1].Reason != "a campaign began" {
		t.Errorf("%+v, %v", cells, err)
	}
	one := uint16(1)
	review(Suspects{From: at.Add(time.Hour), Until: at.Add(2 * time.Hour), Partition: &one}, VerdictCleared, 2, 16)
	review(Suspects{}, VerdictConfirmed, 4, 30)
	check("all confirmed", "210\t18\n")
	review(Suspects{Placement: "feed"}, VerdictCleared, 4, 30)
	check("all cleared", "240\t24\n")
	late := rows[60]
	late.Impression, late.Offset = schemas.NewImpressionID(at.Add(61*time.Minute), [10]byte{250}), 1000
	if err := db.InsertLabels(t.Context(), "b", []LabelRow{late}); err != nil {
		t.Fatal(err)
	}
	check("one more in a cleared cell", "241\t25\n")
	review(Suspects{}, VerdictOpen, 4, 31)
	check("taken back", "210\t18\n")
	if n := lines(t, db, "SELECT uniqExact(time), count() FROM label_reviews FINAL"); n != "5\t16\n" {
		t.Errorf("the record of reviews has %q", n)
	}
	if _, err := db.Review(t.Context(), Suspects{Product: "lamp"}, VerdictCleared, "ada", ""); !errors.Is(err, ErrNoSuspects) {
		t.Errorf("a review of nothing: %v", err)
	}
}
