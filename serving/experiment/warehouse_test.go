package experiment

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"ctrloop/internal/stats"
	"ctrloop/internal/warehouse"
	"ctrloop/internal/warehouse/warehousetest"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/schemas/eventpb"
	"ctrloop/serving/experiment/exposure"
	"ctrloop/serving/experiment/ramp"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestMain(m *testing.M) {
	warehouse.MaybeChild() // the embedded engine is this binary, run again
	os.Exit(m.Run())
}

// One engine for all: its start is what costs.
func TestWarehouse(t *testing.T) {
	_, db := warehousetest.Start(t, warehouse.Options{Window: window, Bucket: time.Second})
	t.Run("sums", func(t *testing.T) { checkSums(t, db) })
	t.Run("days", func(t *testing.T) { checkDays(t, db) })
	t.Run("looks", func(t *testing.T) { checkLooks(t, db) })
	t.Run("exposures", func(t *testing.T) { checkExposures(t, db) })
}

const window = 10 * time.Minute

// The sums of the warehouse are those counted by hand over the same impressions: only this experiment's, only the
// span's, only mature ones, no bots, by user or by product.
func checkSums(t *testing.T, db *warehouse.DB) {
	start := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	rng := rand.New(rand.NewPCG(9, 9))
	var rows []warehouse.LabelRow
	end := start.Add(2 * time.Hour)
	for i := range 6000 {
		at := start.Add(time.Duration(rng.Int64N(int64(2 * time.Hour))))
		var random [10]byte
		for i := range random {
			random[i] = byte(rng.Uint32())
		}
		r := warehouse.LabelRow{
			Impression:  schemas.NewImpressionID(at, random),
			Version:     1,
			User:        1 + rng.Uint64N(300),
			Product:     []string{"p1", "p2", "p3", "p4"}[rng.IntN(4)],
			Creative:    "c" + strconv.Itoa(i%3),
			Category:    []string{"Books", "Garden"}[rng.IntN(2)],
			Experiment:  []string{"e", "other", ""}[rng.IntN(3)],
			Weight:      1,
			Bot:         rng.IntN(20) == 0,
			Kind:        eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE,
			WatermarkMS: end.UnixMilli(),
		}
		if r.Experiment != "" {
			r.Variant = []string{"control", "treatment"}[r.User%2]
			if r.User == 7 && rng.IntN(2) == 0 { // one user meets both
				r.Variant = "control"
			}
		}
		if rng.IntN(20) == 0 {
			r.Clicked, r.Clicks, r.Kind = true, 1, eventpb.LabelKind_LABEL_KIND_POSITIVE
		}
		rows = append(rows, r)
	}
	if err := db.InsertLabels(t.Context(), "all", rows); err != nil {
		t.Fatal(err)
	}
	horizon := end.Add(-window - time.Second)
	checkReports(t, db, rows, horizon)
	checkScores(t, db, rows, horizon)
	from, to := start.Add(30*time.Minute).Truncate(time.Millisecond), start.Add(80*time.Minute)
	for _, unit := range []string{"user", "product"} {
		for _, spans := range [][]Span{nil, {{}}, {{From: from}}, {{From: from, To: to}}, {{From: horizon.Add(time.Second)}},
			{{To: from}, {From: to}}} {
			type key struct {
				variant, product string
				user             uint64
			}
			per := map[key][2]float64{}
			for _, r := range rows {
				at := r.Impression.Time()
				if r.Experiment != "e" || r.Bot || at.After(horizon) ||
					!slices.ContainsFunc(spans, func(s Span) bool { return !at.Before(s.From) && (s.To.IsZero() || at.Before(s.To)) }) {
					continue
				}
				k := key{variant: r.Variant}
				if unit == "user" {
					k.user = r.User
				} else {
					k.product = r.Product
				}
				v := per[k]
				v[1]++
				if r.Clicked {
					v[0]++
				}
				per[k] = v
			}
			var want ramp.Sums
			for k, v := range per {
				arm := map[string]*stats.RatioSums{"control": &want.Control, "treatment": &want.Treatment}[k.variant]
				arm.Observe(v[0], v[1])
			}
			got, err := Warehouse{db}.Sums(t.Context(), control.Experiment{ID: "e", Unit: unit}, spans)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s %v (-want +got):\n%s", unit, spans, d)
			}
			if none := len(spans) == 0 || spans[0].From.After(horizon); none != (got.Control.N == 0) {
				t.Errorf("%s %v: %d units of control", unit, spans, got.Control.N)
			}
		}
	}
}

// checkDays holds spans of days and parts of days against counts by hand, with and without rollups.
func checkDays(t *testing.T, db *warehouse.DB) {
	start := time.Date(2026, 3, 3, 15, 0, 0, 0, time.UTC)
	rng := rand.New(rand.NewPCG(10, 10))
	type key struct{ variant, unit string }
	var rows []warehouse.LabelRow
	for range 4000 {
		var random [10]byte
		for i := range random {
			random[i] = byte(rng.Uint32())
		}
		r := warehouse.LabelRow{
			Impression: schemas.NewImpressionID(start.Add(time.Duration(rng.Int64N(int64(90*time.Hour)))), random),
			Version:    1,
			User:       1 + rng.Uint64N(200),
			Product: fmt.Sprint(
				"p",
				rng.IntN(30),
			),
			Creative:    "c",
			Experiment:  "days",
			Variant:     []string{"control", "treatment"}[rng.IntN(2)],
			Weight:      1,
			Kind:        eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE,
			WatermarkMS: start.AddDate(0, 0, 9).UnixMilli(),
		}
		if rng.IntN(10) == 0 {
			r.Clicked, r.Clicks, r.Kind = true, 1, eventpb.LabelKind_LABEL_KIND_POSITIVE
		}
		switch rng.IntN(40) {
		case 0:
			r.User = 0
		case 1:
			r.Variant = "anything that somebody wrote"
		}
		rows = append(rows, r)
	}
	if err := db.InsertLabels(t.Context(), "days", rows); err != nil {
		t.Fatal(err)
	}
	day := start.Truncate(24 * time.Hour)
	w := Warehouse{db}
	check := func(unit string, spans []Span) {
		t.Helper()
		per := map[key][2]float64{}
		arms := map[string]map[string]bool{}
		var apart ramp.Apart
		for _, r := range rows {
			at := r.Impression.Time()
			if !slices.ContainsFunc(spans, func(s Span) bool { return !at.Before(s.From) && (s.To.IsZero() || at.Before(s.To)) }) {
				continue
			}
			k := key{r.Variant, fmt.Sprint(r.User)}
			if unit == "product" {
				k.unit = r.Product
			}
			if k.unit == "0" {
				apart.Anonymous++
				continue
			}
			if r.Variant != "control" && r.Variant != "treatment" {
				apart.Foreign++
				continue
			}
			v := per[k]
			v[1]++
			if r.Clicked {
				v[0]++
			}
			per[k] = v
			if arms[k.unit] == nil {
				arms[k.unit] = map[string]bool{}
			}
			arms[k.unit][r.Variant] = true
		}
		want := ramp.Sums{Apart: apart}
		for k, v := range per {
			map[string]*stats.RatioSums{"control": &want.Control, "treatment": &want.Treatment}[k.variant].Observe(v[0], v[1])
		}
		multiple := Multiple{Units: int64(len(arms))}
		for _, a := range arms {
			multiple.Both += int64(len(a) / 2)
		}
		x := control.Experiment{ID: "days", Unit: unit}
		if got, err := w.Sums(t.Context(), x, spans); err != nil || got != want {
			t.Errorf("%s %v: %+v, %v; want %+v", unit, spans, got, err, want)
		}
		if got, err := w.Multiple(t.Context(), x, spans); err != nil || got != multiple {
			t.Errorf("%s %v: %+v, %v; want %+v", unit, spans, got, err, multiple)
		}
	}
	arrivals := func() {
		t.Helper()
		first := map[key]time.Time{}
		for _, r := range rows {
			if r.User == 0 || r.Variant != "control" && r.Variant != "treatment" {
				continue
			}
			k, d := key{r.Variant, fmt.Sprint(r.User)}, r.Impression.Time().Truncate(24*time.Hour)
			if f, ok := first[k]; !ok || d.Before(f) {
				first[k] = d
			}
		}
		want := make([]Arrivals, 5)
		for i := range want {
			want[i].Day = day.AddDate(0, 0, i)
		}
		for k, d := range first {
			if a := &want[int(d.Sub(day)/(24*time.Hour))]; k.variant == "control" {
				a.Control++
			} else {
				a.Treatment++
			}
		}
		want = slices.DeleteFunc(want, func(a Arrivals) bool { return a.Control+a.Treatment == 0 })
		got, err := w.Arrivals(t.Context(), control.Experiment{ID: "days", Unit: "user"})
		if d := cmp.Diff(want, got); err != nil || d != "" || len(want) < 2 {
			t.Errorf("arrivals: %v (-want +got):\n%s", err, d)
		}
	}
	hour := func(n int) time.Time { return day.Add(time.Duration(n) * time.Hour).Add(time.Millisecond) }
	for _, rolled := range []bool{false, true} {
		if rolled {
			if done, err := db.RollUp(t.Context(), 0); err != nil || done.Days < 4 {
				t.Fatalf("%+v, %v", done, err)
			}
		}
		arrivals()
		for _, unit := range []string{"user", "product"} {
			for _, spans := range [][]Span{
				{{}}, {{From: day, To: day.AddDate(0, 0, 2)}}, {{From: hour(20), To: hour(22)}}, {{From: hour(20), To: hour(30)}},
				{{From: hour(20), To: hour(70)}},
				{{To: hour(40)}}, {{From: hour(40)}}, {{To: hour(20)}, {From: hour(30), To: hour(55)}, {From: day.AddDate(0, 0, 3)}},
				{{From: hour(21), To: hour(48)}, {From: hour(60)}},
			} {
				check(unit, spans)
			}
		}
	}
}

// checkScores adds the scores of what was shown up by hand. One creative has none.
func checkScores(t *testing.T, db *warehouse.DB, rows []warehouse.LabelRow, horizon time.Time) {
	scores := map[string]float64{"c0": 0.25, "c1": 1, "never shown": 0.5}
	per := map[string]map[uint64][2]float64{"control": {}, "treatment": {}}
	var want ScoreSums
	for _, r := range rows {
		if r.Experiment != "e" || r.Bot || r.Impression.Time().After(horizon) {
			continue
		}
		want.Impressions[map[string]int{"control": 0, "treatment": 1}[r.Variant]]++
		if score, ok := scores[r.Creative]; ok {
			u := per[r.Variant][r.User]
			per[r.Variant][r.User] = [2]float64{u[0] + score, u[1] + 1}
		}
	}
	for variant, users := range per {
		for _, u := range users {
			map[string]*stats.RatioSums{"control": &want.Control, "treatment": &want.Treatment}[variant].Observe(u[0], u[1])
		}
	}
	got, err := Warehouse{db}.Scores(t.Context(), control.Experiment{ID: "e", Unit: "user"}, []Span{{}}, scores)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmpopts.EquateApprox(1e-12, 0)); d != "" || got.Impressions[0] < int64(got.Control.D)*5/4 {
		t.Errorf("(-want +got):\n%s", d)
	}
	if got, err = (Warehouse{db}).Scores(t.Context(), control.Experiment{ID: "e"}, nil, scores); err != nil || got != (ScoreSums{}) {
		t.Errorf("of no span: %+v, %v", got, err)
	}
	many := map[string]float64{} // more than a query's text could hold
	for i := range 20_000 {
		many[fmt.Sprintf("c-%016x", i)] = 1
	}
	if got, err = (Warehouse{db}).Scores(t.Context(), control.Experiment{ID: "e"}, []Span{{}}, many); err != nil || got.Control.N != 0 ||
		got.Impressions != want.Impressions {
		t.Errorf("nothing shown has a score: %+v, %v", got, err)
	}
}

// checkReports holds the questions of the pages against the same rows.
func checkReports(t *testing.T, db *warehouse.DB, rows []warehouse.LabelRow, horizon time.Time) {
	x := control.Experiment{ID: "e", Unit: "user"}
	type key struct {
		category, variant string
		user              uint64
	}
	per := map[key][2]float64{}
	arms := map[uint64]map[string]bool{}
	first := map[key]time.Time{}
	for _, r := range rows {
		at := r.Impression.Time()
		if r.Experiment != "e" || r.Bot || at.After(horizon) {
			continue
		}
		v := per[key{r.Category, r.Variant, r.User}]
		v[1]++
		if r.Clicked {
			v[0]++
		}
		per[key{r.Category, r.Variant, r.User}] = v
		if arms[r.User] == nil {
			arms[r.User] = map[string]bool{}
		}
		arms[r.User][r.Variant] = true
		k := key{variant: r.Variant, user: r.User}
		if f, ok := first[k]; !ok || at.Before(f) {
			first[k] = at
		}
	}
	want := []CategorySums{{Category: "Books"}, {Category: "Garden"}}
	for k, v := range per {
		c := &want[0]
		if k.category == "Garden" {
			c = &want[1]
		}
		if k.variant == "control" {
			c.Control.Observe(v[0], v[1])
		} else {
			c.Treatment.Observe(v[0], v[1])
		}
	}
	w := Warehouse{db}
	got, err := w.Categories(t.Context(), x, []Span{{}})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("categories (-want +got):\n%s", d)
	}
	checkWeighted(t, w, rows, horizon)
	both := int64(0)
	for _, a := range arms {
		if len(a) > 1 {
			both++
		}
	}
	if m, err := w.Multiple(t.Context(), x, []Span{{}}); err != nil || both != 1 || m != (Multiple{Units: int64(len(arms)), Both: both}) {
		t.Errorf("multiple %+v, %v; want %d of %d", m, err, both, len(arms))
	}
	days, err := w.Arrivals(t.Context(), x)
	if err != nil {
		t.Fatal(err)
	}
	sum := Arrivals{}
	for k := range first {
		if k.variant == "control" {
			sum.Control++
		} else {
			sum.Treatment++
		}
	}
	sum.Day = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	if d := cmp.Diff([]Arrivals{sum}, days); d != "" {
		t.Errorf("arrivals (-want +got):\n%s", d)
	}
}

// The weights are those of the part that an impression is in, and a unit of both parts is one unit.
func checkWeighted(t *testing.T, w Warehouse, rows []warehouse.LabelRow, horizon time.Time) {
	cut, end := horizon.Add(-time.Hour).Truncate(time.Millisecond), horizon.Add(-30*time.Minute).Truncate(time.Millisecond)
	parts := []Part{{[]Span{{To: cut}}, 0.05}, {[]Span{{From: cut, To: end}}, 0.5}}
	for _, unit := range []string{"user", "product"} {
		type key struct{ variant, unit string }
		per := map[key][2]float64{}
		for _, r := range rows {
			at := r.Impression.Time()
			if r.Experiment != "e" || r.Bot || at.After(horizon) || !at.Before(end) {
				continue
			}
			weight := 0.5
			if at.Before(cut) {
				weight = map[string]float64{"control": 0.05, "treatment": 0.95}[r.Variant]
			}
			k := key{r.Variant, fmt.Sprint(r.User)}
			if unit == "product" {
				k.unit = r.Product
			}
			v := per[k]
			v[1] += weight
			if r.Clicked {
				v[0] += weight
			}
			per[k] = v
		}
		var want ramp.Sums
		for k, v := range per {
			arm := map[string]*stats.RatioSums{"control": &want.Control, "treatment": &want.Treatment}[k.variant]
			arm.Observe(v[0], v[1])
		}
		got, err := w.Weighted(t.Context(), control.Experiment{ID: "e", Unit: unit}, parts)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got, cmpopts.EquateApprox(1e-9, 0)); d != "" || got.Control.N == 0 {
			t.Errorf("weighted by %s (-want +got):\n%s", unit, d)
		}
	}
	if got, err := w.Weighted(t.Context(), control.Experiment{ID: "e"}, nil); err != nil || got != (ramp.Sums{}) {
		t.Errorf("no parts: %+v, %v", got, err)
	}
}

// An exposure is one row however often it comes, whatever its unit is called.
func checkExposures(t *testing.T, db *warehouse.DB) {
	at := time.Date(2026, 3, 1, 23, 59, 59, int(7*time.Millisecond), time.UTC)
	es := []exposure.Exposure{
		{Experiment: "e", Unit: "u1", Variant: "control", Time: at},
		{Experiment: "e", Unit: "it's a \\ \"unit\"", Variant: "treatment", Time: at.Add(time.Second)},
	}
	w := Warehouse{db}
	for range 2 {
		if err := w.Expose(t.Context(), es); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Expose(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	var got []struct {
		Unit    string    `ch:"unit"`
		Variant string    `ch:"variant"`
		Day     string    `ch:"day"`
		Time    time.Time `ch:"time"`
	}
	if err := db.Select(t.Context(), &got,
		"SELECT unit, variant, toString(day) AS day, time FROM exposures FINAL ORDER BY unit DESC"); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Unit != "u1" || got[0].Day != "2026-03-01" || !got[0].Time.Equal(at) || got[1].Unit != es[1].Unit ||
		got[1].Day != "2026-03-02" ||
		got[1].Variant != "treatment" {
		t.Errorf("%+v", got)
	}
}

func checkLooks(t *testing.T, db *warehouse.DB) {
	x := control.ExperimentStatus{
		Experiment: control.Experiment{ID: "e", Steps: []float64{0.5}, Alpha: 0.05, NStar: 5000},
		Step:       control.Step{Share: 0.5},
	}
	look := Look{
		Time:       time.UnixMilli(1_800_000_000_123),
		Experiment: "e",
		Step:       x.Step,
		Verdict:    ramp.Look(ramp.Default(), x, ramp.Evidence{}),
	} // nothing known: NaN and infinite
	if err := (Warehouse{db}).RecordLook(t.Context(), look); err != nil {
		t.Fatal(err)
	}
	var s ramp.Sums
	for i := range 2000 {
		s.Control.Observe(float64(i%20/19), 5)
		s.Treatment.Observe(float64(i%15/14), 5)
	}
	look.Time = look.Time.Add(time.Second)
	look.Verdict = ramp.Look(ramp.Default(), x, ramp.Evidence{Now: s, Deciding: s})
	if err := (Warehouse{db}).RecordLook(t.Context(), look); err != nil {
		t.Fatal(err)
	}
	type row struct {
		Action      string  `ch:"action"`
		Rule        string  `ch:"rule"`
		Lift        float64 `ch:"lift"`
		High        float64 `ch:"lift_high"`
		P           float64 `ch:"p"`
		Impressions int64   `ch:"impressions"`
	}
	var got []row
	if err := db.Select(t.Context(), &got,
		"SELECT action, rule, lift, lift_high, p, impressions FROM experiment_looks WHERE experiment = 'e' ORDER BY time"); err != nil {
		t.Fatal(err)
	}
	f := look.Figures
	nothing := ramp.Look(ramp.Default(), x, ramp.Evidence{}).Figures
	want := []row{
		{"hold", "min_samples", float64(nothing.Relative), float64(nothing.RelativeHigh), 1, 0},
		{string(look.Action), string(look.Rule), float64(f.Relative), float64(f.RelativeHigh), float64(f.P), 20000},
	}
	if d := cmp.Diff(want, got, cmpopts.EquateNaNs()); d != "" {
		t.Errorf("looks (-want +got):\n%s", d)
	}
	back, err := Warehouse{db}.Looks(t.Context(), "e", 1)
	if err != nil || len(back) != 1 || back[0].Rule != string(look.Rule) || back[0].Impressions != 20000 || !back[0].Time.Equal(look.Time) ||
		float64(back[0].Lift) != float64(f.Relative) {
		t.Errorf("read back %+v, %v", back, err)
	}
}
