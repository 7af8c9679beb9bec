package warehouse

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/go-faster/city"
	"github.com/google/go-cmp/cmp"

	"ctrloop/internal/stats"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/schemas/eventpb"
	"ctrloop/schemas/question"
)

const (
	testWindow = 10 * time.Minute
	testBucket = time.Second
)

// database is a migrated database of the test's own on the shared engine.
func database(t testing.TB) *DB {
	t.Helper()
	name := "test_" + strings.ToLower(strings.NewReplacer("/", "_", "#", "_").Replace(t.Name()))
	db := connect(t, strings.Replace(engine(t).DSN(), "/"+Database+"?", "/"+name+"?", 1))
	if err := db.Migrate(t.Context(), Options{Window: testWindow, Bucket: testBucket}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.conn.Exec(t.Context(), "DROP DATABASE "+name) })
	return db
}

// world draws labels as a joiner would make them: negatives when their window has closed, corrections,
// bots, several days, all offsets of a partition in watermark order.
func world(rng *rand.Rand, n int) []LabelRow {
	start := time.Date(2026, 3, 1, 23, 0, 0, 0, time.UTC)
	var rows []LabelRow
	offsets := [3]int64{}
	for i := range n {
		at := start.Add(time.Duration(i) * 2 * time.Hour / time.Duration(n))
		var random [10]byte
		for j := range random {
			random[j] = byte(rng.Uint32())
		}
		p, c := rng.IntN(5), rng.IntN(4)
		r := LabelRow{
			Impression: schemas.NewImpressionID(at, random), Version: 1, User: rng.Uint64N(200) * 0x9e3779b97f4a7c15,
			Product: fmt.Sprintf("p%d", p), Creative: fmt.Sprintf("p%d-c%d", p, c), Category: fmt.Sprintf("home/k%d", p%2),
			Placement: []string{"feed", "side"}[rng.IntN(2)], Position: 1 + rng.Uint32N(4), Campaign: "spring",
			ModelVersion: fmt.Sprintf("prompt-%d", c%2),
			Policy:       "thompson", Propensity: rng.Float64(), Bot: rng.IntN(20) == 0, Weight: 1, Partition: int32(rng.IntN(3)),
		}
		if rng.IntN(3) > 0 {
			r.Experiment = fmt.Sprintf("x%d", rng.IntN(2))
			r.Variant = []string{"control", "treatment", "third"}[(r.User%7+uint64(rng.IntN(2)))%3]
		}
		if r.Clicked = rng.Float64() < 0.05+0.05*float64(c); r.Clicked {
			r.Kind, r.Clicks, r.ClickDelayMS = eventpb.LabelKind_LABEL_KIND_POSITIVE, 1+rng.Uint32N(2), rng.Int64N(600_000)
			r.WatermarkMS = at.UnixMilli() + r.ClickDelayMS
		} else {
			r.Kind = eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE
			r.WatermarkMS = at.Add(testWindow).UnixMilli() + rng.Int64N(1000)
		}
		rows = append(rows, r)
		for late := !r.Clicked && rng.IntN(30) == 0; late && r.Version < 3; {
			r.Version++
			r.Kind, r.Clicked, r.Clicks = eventpb.LabelKind_LABEL_KIND_CORRECTED, true, r.Clicks+1
			r.ClickDelayMS = testWindow.Milliseconds() + rng.Int64N(10_000)
			r.WatermarkMS += 10_000
			rows = append(rows, r)
			late = rng.IntN(2) == 0
		}
	}
	slices.SortStableFunc(rows, func(a, b LabelRow) int { return int(a.WatermarkMS - b.WatermarkMS) })
	// The stream is cut here: what a later watermark would bring is not known yet.
	rows = rows[:len(rows)*4/5]
	for i := range rows {
		rows[i].Offset = offsets[rows[i].Partition]
		offsets[rows[i].Partition] += 1 + rng.Int64N(2)
	}
	return rows
}

// mature is the oracle: the latest version of each impression up to the horizon, without bots.
func mature(rows []LabelRow) (out []LabelRow, horizon int64) {
	newest := map[int32]int64{}
	latest := map[schemas.ImpressionID]LabelRow{}
	for _, r := range rows {
		newest[r.Partition] = max(newest[r.Partition], r.WatermarkMS)
		if r.Version > latest[r.Impression].Version {
			latest[r.Impression] = r
		}
	}
	horizon = math.MaxInt64
	for _, w := range newest {
		horizon = min(horizon, w-testWindow.Milliseconds()-testBucket.Milliseconds())
	}
	for _, r := range latest {
		if r.Impression.UnixMilli() <= horizon && !r.Bot {
			out = append(out, r)
		}
	}
	return out, horizon
}

// load inserts the rows in several blocks, and some of them again under other tokens, as a broken sink
// would. Merges are stopped, so that the duplicates stay.
func load(t *testing.T, db *DB, rows []LabelRow) {
	t.Helper()
	exec1(t, db, "SYSTEM STOP MERGES labels")
	for i, block := range slices.Collect(slices.Chunk(rows, 1000)) {
		for again := range 1 + i%3 {
			if err := db.InsertLabels(t.Context(), fmt.Sprintf("%d/%d", i, again), block); err != nil {
				t.Fatal(err)
			}
		}
	}
	if raw, final := count(t, db, "SELECT count() FROM labels"), count(t, db, "SELECT count() FROM labels FINAL"); raw <= final {
		t.Fatalf("no duplicates in the table (%d, %d): the test would prove nothing", raw, final)
	}
}

// lines reads a query as lines of text.
func lines(t *testing.T, db *DB, q string) string {
	t.Helper()
	var b bytes.Buffer
	dsn := strings.Replace(engine(t).DSN(), "/"+Database+"?", "/"+db.database+"?", 1)
	if err := SQL(t.Context(), dsn, q, FormatTSV, &b, Limits{}); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	_, body, _ := strings.Cut(b.String(), "\n")
	return body
}

// grouped renders counts of rows by key, sorted, as the views do.
func grouped(rows []LabelRow, key func(LabelRow) string) string {
	type sums struct{ n, clicks int }
	m := map[string]*sums{}
	for _, r := range rows {
		k := key(r)
		if m[k] == nil {
			m[k] = &sums{}
		}
		m[k].n++
		if r.Clicked {
			m[k].clicks++
		}
	}
	var lines []string
	for k, s := range m {
		lines = append(lines, fmt.Sprintf("%s\t%d\t%d\n", k, s.n, s.clicks))
	}
	sort.Strings(lines)
	return strings.Join(lines, "")
}

func sorted(s string) string {
	all := strings.SplitAfter(s, "\n")
	sort.Strings(all)
	return strings.Join(all, "")
}

func TestViews(t *testing.T) {
	db := database(t)
	rows := world(rand.New(rand.NewPCG(1, 2)), 6000)
	for i := range rows { // x0 begins on the second day
		if r := &rows[i]; r.Experiment == "x0" && r.Impression.Time().Day() == 1 {
			r.Experiment, r.Variant = "", ""
		}
	}
	load(t, db, rows)
	good, horizon := mature(rows)
	if len(good) == 0 || len(good) == len(rows) {
		t.Fatalf("%d of %d mature: the test would prove nothing", len(good), len(rows))
	}
	check := func(t *testing.T) {
		t.Helper()
		if got := int64(count(t, db, "SELECT toUInt64(horizon_ms) FROM label_horizon")); got != horizon {
			t.Errorf("horizon %d, want %d", got, horizon)
		}
		for _, c := range []struct {
			name, query string
			key         func(LabelRow) string
		}{
			{"ctr_by_creative", "SELECT product, category, creative, model_version, impressions, clicks FROM ctr_by_creative",
				func(r LabelRow) string {
					return strings.Join([]string{r.Product, r.Category, r.Creative, r.ModelVersion}, "\t")
				}},
			{"ctr_by_product_day", "SELECT day, product, category, impressions, clicks FROM ctr_by_product_day",
				func(r LabelRow) string {
					return strings.Join([]string{r.Impression.Time().Format(time.DateOnly), r.Product, r.Category}, "\t")
				}},
			{"ctr_by_category", "SELECT category, impressions, clicks FROM ctr_by_category", func(r LabelRow) string { return r.Category }},
			{"pair_evidence", "SELECT product, category, creative, placement, impressions, clicks FROM pair_evidence",
				func(r LabelRow) string {
					return strings.Join([]string{r.Product, r.Category, r.Creative, r.Placement}, "\t")
				}},
			{"model_timeline", "SELECT hour, model_version, impressions, clicks FROM model_timeline",
				func(r LabelRow) string {
					return r.Impression.Time().Truncate(time.Hour).Format(time.DateTime) + "\t" + r.ModelVersion
				}},
		} {
			if diff := cmp.Diff(grouped(good, c.key), sorted(lines(t, db, c.query))); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.name, diff)
			}
		}
	}
	t.Run("before merges", check)
	t.Run("others", func(t *testing.T) { checkOtherViews(t, db, rows, good, horizon) })
	t.Run("delay", func(t *testing.T) { checkClickDelay(t, db, good) })
	t.Run("experiments", func(t *testing.T) { checkExperiments(t, db, good) })
	t.Run("audit", func(t *testing.T) { checkAudit(t, db, rows) })
	if got, want := lines(t, db, "SELECT partition, newest_offset FROM freshness ORDER BY partition"), newestOffsets(rows); got != want {
		t.Errorf("freshness %q, want %q", got, want)
	}
	rollUp(t, db)
	t.Run("rolled up", check)
	t.Run("others rolled up", func(t *testing.T) { checkOtherViews(t, db, rows, good, horizon) })
	t.Run("experiments rolled up", func(t *testing.T) { checkExperiments(t, db, good) })
	exec1(t, db, "SYSTEM START MERGES labels")
	exec1(t, db, "OPTIMIZE TABLE labels FINAL")
	t.Run("after merges", check)
	t.Run("experiments after merges", func(t *testing.T) { checkExperiments(t, db, good) })
	if n := count(t, db, "SELECT count() FROM audit_mismatch"); n != 0 {
		t.Errorf("%d minutes differ after merges", n)
	}
	checkDamage(t, db, rows)
}

func newestOffsets(rows []LabelRow) string {
	newest := map[int32]int64{}
	for _, r := range rows {
		newest[r.Partition] = max(newest[r.Partition], r.Offset)
	}
	return fmt.Sprintf("0\t%d\n1\t%d\n2\t%d\n", newest[0], newest[1], newest[2])
}

func checkClickDelay(t *testing.T, db *DB, good []LabelRow) {
	var total, corrected, longest int64
	for _, r := range good {
		if r.Clicked {
			total++
			longest = max(longest, r.ClickDelayMS)
		}
		if r.Kind == eventpb.LabelKind_LABEL_KIND_CORRECTED {
			corrected++
		}
	}
	if got, want := lines(t, db, "SELECT sum(clicks), sum(corrected), max(max_ms) FROM click_delay"),
		fmt.Sprintf("%d\t%d\t%d\n", total, corrected, longest); got != want {
		t.Errorf("click_delay: %q, want %q", got, want)
	}
}

// checkExperiments compares both views with internal/stats on sums made by it from the raw rows.
func checkExperiments(t *testing.T, db *DB, good []LabelRow) {
	type arm struct{ experiment, variant string }
	type unit struct {
		arm
		user uint64
	}
	units := map[unit]*[2]float64{}
	for _, r := range good {
		if r.Experiment == "" || r.User == 0 { // nobody is not a user
			continue
		}
		k := unit{arm{r.Experiment, r.Variant}, r.User}
		if units[k] == nil {
			units[k] = &[2]float64{}
		}
		units[k][1]++
		if r.Clicked {
			units[k][0]++
		}
	}
	sums := map[arm]*stats.RatioSums{}
	for k, u := range units {
		if sums[k.arm] == nil {
			sums[k.arm] = &stats.RatioSums{}
		}
		sums[k.arm].Observe(u[0], u[1])
	}
	var results []struct {
		Experiment string  `ch:"experiment"`
		Variant    string  `ch:"variant"`
		N          uint64  `ch:"n"`
		M          uint64  `ch:"sum_m"`
		D          uint64  `ch:"sum_d"`
		MM         uint64  `ch:"sum_mm"`
		DD         uint64  `ch:"sum_dd"`
		MD         uint64  `ch:"sum_md"`
		CTR        float64 `ch:"ctr"`
		SE         float64 `ch:"se"`
	}
	if err := db.Select(t.Context(), &results,
		"SELECT experiment, variant, n, sum_m, sum_d, sum_mm, sum_dd, sum_md, ctr, se FROM experiment_results"); err != nil {
		t.Fatal(err)
	}
	if len(results) != len(sums) || len(sums) != 6 {
		t.Errorf("%d arms, want %d = 6", len(results), len(sums))
	}
	for _, r := range results {
		got := stats.RatioSums{N: int64(r.N), M: float64(r.M), D: float64(r.D), MM: float64(r.MM), DD: float64(r.DD), MD: float64(r.MD)}
		want := *sums[arm{r.Experiment, r.Variant}]
		if got != want {
			t.Errorf("%s/%s: sums %+v, want %+v", r.Experiment, r.Variant, got, want)
		}
		near(t, r.Experiment+"/"+r.Variant+" ctr", r.CTR, want.Rate())
		near(t, r.Experiment+"/"+r.Variant+" se", r.SE, math.Sqrt(want.RateVariance()))
	}
	lifts := readLifts(t, db)
	if len(lifts) != 4 {
		t.Errorf("%d lifts, want 4", len(lifts))
	}
	for _, l := range lifts {
		checkLift(t, l, *sums[arm{l.Experiment, "control"}], *sums[arm{l.Experiment, l.Variant}])
	}
}

type liftRow struct {
	Experiment string  `ch:"experiment"`
	Variant    string  `ch:"variant"`
	Diff       float64 `ch:"diff"`
	DiffLow    float64 `ch:"diff_low"`
	DiffHigh   float64 `ch:"diff_high"`
	Lift       float64 `ch:"lift"`
	LiftLow    float64 `ch:"lift_low"`
	LiftHigh   float64 `ch:"lift_high"`
	P          float64 `ch:"p"`
	Unknown    string  `ch:"unknown"`
}

func readLifts(t *testing.T, db *DB) (out []liftRow) {
	t.Helper()
	if err := db.Select(t.Context(), &out,
		"SELECT experiment, variant, diff, diff_low, diff_high, lift, lift_low, lift_high, p, unknown FROM experiment_lift"); err != nil {
		t.Fatal(err)
	}
	return out
}

func checkLift(t *testing.T, l liftRow, control, treatment stats.RatioSums) {
	t.Helper()
	want, err := stats.Compare(control, treatment, stats.DefaultSequence())
	if err != nil {
		t.Fatal(err)
	}
	name := l.Experiment + "/" + l.Variant + " "
	near(t, name+"diff", l.Diff, want.Absolute)
	near(t, name+"diff_low", l.DiffLow, want.Interval.Low)
	near(t, name+"diff_high", l.DiffHigh, want.Interval.High)
	near(t, name+"lift", l.Lift, want.Relative)
	near(t, name+"lift_low", l.LiftLow, want.RelativeI.Low)
	near(t, name+"lift_high", l.LiftHigh, want.RelativeI.High)
	near(t, name+"p", l.P, want.P)
	if (l.Unknown == "") != (want.Unknown == "") {
		t.Errorf("%sunknown %q, want %q", name, l.Unknown, want.Unknown)
	}
}

// near is equality to 1e-9, relative to the larger where that is above 1.
func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if got == want || math.IsNaN(got) && math.IsNaN(want) {
		return
	}
	if d := math.Abs(got - want); !(d <= 1e-9*max(1, math.Abs(want))) {
		t.Errorf("%s = %.15g, want %.15g", what, got, want)
	}
}

// Arms large and small: a clear effect (p far below 1e-9), no clicks, one user, a control near zero.
func TestLiftEdges(t *testing.T) {
	db := database(t)
	rng := rand.New(rand.NewPCG(3, 4))
	var rows []LabelRow
	sums := map[string]*stats.RatioSums{}
	at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	fill := func(experiment, variant string, users, impressions int, rate float64) {
		s := &stats.RatioSums{}
		sums[experiment+"/"+variant] = s
		for u := range users {
			m := 0
			for range impressions {
				var random [10]byte
				for j := range random {
					random[j] = byte(rng.Uint32())
				}
				r := LabelRow{
					Impression:  schemas.NewImpressionID(at, random),
					Version:     1,
					User:        uint64(u) + 1,
					Product:     "p",
					Creative:    "c",
					Experiment:  experiment,
					Variant:     variant,
					Kind:        eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE,
					WatermarkMS: at.Add(time.Hour).UnixMilli(),
					Weight:      1,
				}
				if rng.Float64() < rate {
					r.Clicked, r.Kind = true, eventpb.LabelKind_LABEL_KIND_POSITIVE
					m++
				}
				rows = append(rows, r)
			}
			s.Observe(float64(m), float64(impressions))
		}
	}
	fill("clear", "control", 2000, 5, 0.1)
	fill("clear", "treatment", 2000, 5, 0.5)
	fill("silent", "control", 50, 3, 0)
	fill("silent", "treatment", 50, 3, 0)
	fill("lonely", "control", 1, 10, 0.5)
	fill("lonely", "treatment", 10, 10, 0.5)
	fill("rare", "control", 40, 5, 0.01)
	fill("rare", "treatment", 40, 5, 0.3)
	fill("zero", "control", 40, 5, 0)
	fill("zero", "treatment", 40, 5, 0.3)
	if err := db.InsertLabels(t.Context(), "edges", rows); err != nil {
		t.Fatal(err)
	}
	lifts := readLifts(t, db)
	if len(lifts) != 5 {
		t.Errorf("%d lifts, want 5", len(lifts))
	}
	for _, l := range lifts {
		checkLift(t, l, *sums[l.Experiment+"/control"], *sums[l.Experiment+"/treatment"])
	}
}

// Small arms of all kinds: the views say what internal/stats says, and nothing where it says nothing. Among them arms without
// a click, with one user, with users who are all alike, and impressions of nobody.
func TestSmallArmsEqualStats(t *testing.T) {
	db := database(t)
	rng := rand.New(rand.NewPCG(36, 1))
	at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	var rows []LabelRow
	show := func(experiment, variant string, user uint64, clicked bool) {
		var random [10]byte
		for j := range random {
			random[j] = byte(rng.Uint32())
		}
		r := LabelRow{Impression: schemas.NewImpressionID(at, random), Version: 1, User: user, Product: "p", Creative: "c", Category: experiment,
			Experiment: experiment, Variant: variant, Kind: eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE,
			WatermarkMS: at.Add(time.Hour).UnixMilli(), Weight: 1}
		if clicked {
			r.Clicked, r.Kind = true, eventpb.LabelKind_LABEL_KIND_POSITIVE
		}
		rows = append(rows, r)
	}
	const experiments = 150
	sums, nobody := map[string]*stats.RatioSums{}, map[string]int{}
	for i := range experiments {
		experiment := fmt.Sprintf("small-%03d", i)
		for _, variant := range []string{"control", "treatment"} {
			s := &stats.RatioSums{}
			sums[experiment+"/"+variant] = s
			rate := []float64{0, 0.02, 0.1, 0.5, 1}[rng.IntN(5)]
			alike, most := rng.IntN(4) == 0, 1+rng.IntN(12)
			for user := range 1 + rng.IntN(60) {
				d := 1 + rng.IntN(most)
				if alike {
					d = most
				}
				m := 0
				for k := range d {
					clicked := rng.Float64() < rate
					if alike {
						clicked = float64(k) < rate*float64(d)
					}
					if clicked {
						m++
					}
					show(experiment, variant, 1+uint64(user), clicked)
				}
				s.Observe(float64(m), float64(d))
			}
			for range rng.IntN(3) {
				nobody[experiment+"/"+variant]++
				show(experiment, variant, 0, true)
			}
		}
	}
	if err := db.InsertLabels(t.Context(), "small", rows); err != nil {
		t.Fatal(err)
	}
	for _, view := range []string{"experiment_lift", "experiment_lift_by_category"} {
		var got []liftRow
		err := db.Select(t.Context(), &got,
			"SELECT experiment, variant, diff, diff_low, diff_high, lift, lift_low, lift_high, p, unknown FROM "+view)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != experiments {
			t.Errorf("%s: %d lifts, want %d", view, len(got), experiments)
		}
		said := 0
		for _, l := range got {
			checkLift(t, l, *sums[l.Experiment+"/control"], *sums[l.Experiment+"/treatment"])
			if l.Unknown == "" {
				said++
			}
		}
		if said < 10 || said > experiments-10 {
			t.Errorf("%s: %d of %d say something: the test is of one kind only", view, said, experiments)
		}
	}
	for _, view := range []string{"experiment_results", "experiment_health"} {
		var got []struct {
			Experiment string `ch:"experiment"`
			Variant    string `ch:"variant"`
			Users      uint64 `ch:"users"`
			Anonymous  uint64 `ch:"anonymous"`
		}
		if err := db.Select(t.Context(), &got, "SELECT experiment, variant, users, anonymous FROM "+view); err != nil {
			t.Fatal(err)
		}
		for _, r := range got {
			k := r.Experiment + "/" + r.Variant
			if int64(r.Users) != sums[k].N || int(r.Anonymous) != nobody[k] {
				t.Errorf("%s: %s has %d users and %d impressions without one, want %d and %d", view, k, r.Users, r.Anonymous, sums[k].N, nobody[k])
			}
		}
	}
	if n := count(t, db, "SELECT count() FROM experiment_health WHERE isNaN(planned) AND not_planned != ''"); n != 2*experiments {
		t.Errorf("%d arms have a reason for the plan that nobody knows, want %d", n, 2*experiments)
	}
}

// A partition whose time is not known has shown clicks only. It holds nobody back, and is left out until it has one.
func TestPartitionWithoutAWatermark(t *testing.T) {
	db := database(t)
	at := time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	label := func(i byte, partition int32, clicked bool, watermark time.Time) LabelRow {
		r := LabelRow{Impression: schemas.NewImpressionID(at, [10]byte{i}), Version: 1, User: 1, Product: "p", Creative: "c", Weight: 1,
			Partition: partition, Offset: int64(i), Kind: eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE}
		if clicked {
			r.Clicked, r.Kind = true, eventpb.LabelKind_LABEL_KIND_POSITIVE
		}
		if !watermark.IsZero() {
			r.WatermarkMS = watermark.UnixMilli()
		}
		return r
	}
	later := at.Add(5 * time.Hour)
	insert := func(token string, rows ...LabelRow) {
		if err := db.InsertLabels(t.Context(), token, rows); err != nil {
			t.Fatal(err)
		}
	}
	const figures = "SELECT count(), sum(clicked) FROM labels_mature UNION ALL SELECT sum(impressions), sum(clicks) FROM ctr_hours"
	insert("a", label(1, 0, false, later), label(2, 0, true, later))
	rollUp(t, db)
	insert("b", label(3, 1, true, time.Time{}), label(4, 1, true, time.Time{}))
	if got, want := lines(t, db, "SELECT toString(horizon), partitions, timeless FROM label_horizon"),
		"2026-03-01 14:49:59.000\t2\t1\n"; got != want {
		t.Errorf("horizon %q, want %q", got, want)
	}
	for _, when := range []string{"as they came", "after a roll-up"} {
		if got, want := lines(t, db, figures), "2\t1\n2\t1\n"; got != want {
			t.Errorf("%s, while a partition has no time: %q, want %q", when, got, want)
		}
		if r, err := db.RollUp(t.Context(), 0); err != nil || r.Days != 0 {
			t.Errorf("rolled up %+v, %v, while a partition has no time", r, err)
		}
	}
	insert("c", label(5, 1, false, later))
	rollUp(t, db)
	if got, want := lines(t, db, figures), "5\t3\n5\t3\n"; got != want {
		t.Errorf("once it has one: %q, want %q", got, want)
	}
}

// The share of an arm that was not said is not known, which is not 0.
func TestArmShare(t *testing.T) {
	db := database(t)
	at := time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)
	var rows []LabelRow
	for i, share := range []float64{0.1, 0, 1} {
		rows = append(rows, LabelRow{Impression: schemas.NewImpressionID(at.Add(time.Duration(i)*time.Second), [10]byte{9}), Version: 1,
			Product: "p", Creative: "c", Kind: eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, Weight: 1, Propensity: 0.5, ArmShare: share,
			WatermarkMS: at.Add(time.Hour).UnixMilli()})
	}
	if err := db.InsertLabels(t.Context(), "a", rows); err != nil {
		t.Fatal(err)
	}
	if err := db.Exec(t.Context(), "INSERT INTO labels (impression_id, event_time, version, product, creative, kind, weight, watermark) "+
		"VALUES (generateUUIDv7(), '2026-03-01 10:00:03.000', 1, 'p', 'c', 'final_negative', 1, '2026-03-01 11:00:00')"); err != nil {
		t.Fatal(err)
	}
	if got, want := lines(t, db, "SELECT ifNull(toString(arm_share), 'not known') FROM labels_mature ORDER BY event_time"),
		"0.1\nnot known\n1\nnot known\n"; got != want {
		t.Errorf("shares %q, want %q", got, want)
	}
}

// A ramp of a draft, in a world without effect whose rate rises: step 0, step 1, back to 0, step 1 for good. Pooled, the
// treatment is better for sure; step by step it is not, and each step has the figures of its visits.
func TestStepsOfARamp(t *testing.T) {
	db := database(t)
	rng := rand.New(rand.NewPCG(7, 7))
	start := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	const settle = time.Minute
	shares := []float64{0.1, 0.5}
	visits := []struct {
		step int
		at   time.Time
		rate float64
	}{{0, start, 0.05}, {1, start.Add(time.Hour), 0.2}, {0, start.Add(2 * time.Hour), 0.1}, {1, start.Add(3 * time.Hour), 0.3}}
	var log []ControlRow
	add := func(typ control.Type, rejected string, data any) {
		e, err := control.NewEvent(
			fmt.Sprintf("id%d", len(log)),
			typ,
			"experiment/ramp",
			0,
			"tester",
			"why",
			start.Add(time.Duration(len(log))*time.Minute),
			data,
		)
		if err != nil {
			t.Fatal(err)
		}
		log = append(log, ControlRow{Event: e, Place: Place{TopicID: "t", Offset: int64(len(log))}, Rejected: rejected})
	}
	add(control.ExperimentCreated, "", control.Experiment{ID: "ramp", Unit: "user", Steps: shares, Draft: true})
	add(control.ExperimentStarted, "", control.Start{AtMS: start.UnixMilli()})
	add(control.ExperimentStepped, "somebody was first", control.Step{Index: 1, Share: 0.5, AtMS: start.Add(time.Minute).UnixMilli()})
	for _, v := range visits[1:] {
		add(control.ExperimentStepped, "", control.Step{Index: v.step, Share: shares[v.step], AtMS: v.at.UnixMilli()})
	}
	if err := db.InsertControl(t.Context(), log); err != nil {
		t.Fatal(err)
	}
	type unit struct {
		step    int
		variant string
		user    uint64
	}
	units := map[unit][2]float64{}
	var rows []LabelRow
	for range 8000 {
		at := start.Add(time.Duration(rng.Int64N(int64(4 * time.Hour)))).Truncate(time.Millisecond)
		v := visits[int(at.Sub(start)/time.Hour)]
		var random [10]byte
		for j := range random {
			random[j] = byte(rng.Uint32())
		}
		r := LabelRow{
			Impression:  schemas.NewImpressionID(at, random),
			Version:     1,
			User:        1 + rng.Uint64N(1000),
			Product:     "p",
			Creative:    "c",
			Experiment:  "ramp",
			Variant:     "control",
			Kind:        eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE,
			WatermarkMS: start.Add(6 * time.Hour).UnixMilli(),
			Weight:      1,
		}
		if float64(r.User) <= 1000*shares[v.step] {
			r.Variant = "treatment"
		}
		if rng.Float64() < v.rate {
			r.Clicked, r.Kind = true, eventpb.LabelKind_LABEL_KIND_POSITIVE
		}
		rows = append(rows, r)
		if at.Before(v.at.Add(settle)) {
			continue
		}
		k := unit{v.step, r.Variant, r.User}
		u := units[k]
		u[1]++
		if r.Clicked {
			u[0]++
		}
		units[k] = u
	}
	if err := db.InsertLabels(t.Context(), "ramp", rows); err != nil {
		t.Fatal(err)
	}
	sums := map[unit]*stats.RatioSums{}
	for k, u := range units {
		k.user = 0
		if sums[k] == nil {
			sums[k] = &stats.RatioSums{}
		}
		sums[k].Observe(u[0], u[1])
	}
	checkRampIsNotPooled(t, db)
	var got []struct {
		liftRow
		Step   uint64    `ch:"step"`
		Share  float64   `ch:"share"`
		Visits uint64    `ch:"visits"`
		Since  time.Time `ch:"since"`
		Until  time.Time `ch:"until"`
		Users  uint64    `ch:"users"`
	}
	const query = "SELECT experiment, variant, diff, diff_low, diff_high, lift, lift_low, lift_high, p, unknown, step, share, visits, " +
		"since, until, users FROM experiment_steps(id = 'ramp', settle = 60) ORDER BY step"
	if err := db.Select(t.Context(), &got, query); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 {
		t.Fatalf("%d steps: %+v", len(got), got)
	}
	spans := [][2]time.Time{
		{start.Add(settle), start.Add(3 * time.Hour)},
		{start.Add(time.Hour + settle), time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)},
	}
	for i, g := range got {
		c, b := sums[unit{i, "control", 0}], sums[unit{i, "treatment", 0}]
		if int(g.Step) != i+1 || g.Share != shares[i] || g.Visits != 2 || int64(g.Users) != b.N || !g.Since.Equal(spans[i][0]) ||
			!g.Until.Equal(spans[i][1]) {
			t.Errorf("step %d: %+v", i+1, g)
		}
		checkLift(t, g.liftRow, *c, *b)
		if g.DiffLow > 0 || g.DiffHigh < 0 {
			t.Errorf("step %d finds a difference where there is none: %+v", i, g)
		}
	}
	if n := count(t, db, "SELECT count() FROM experiment_steps(id = 'none', settle = 60)"); n != 0 {
		t.Errorf("an experiment that does not exist has %d steps", n)
	}
}

// An experiment by product: by user nothing is said, and its one step counts products.
func TestLiftByProduct(t *testing.T) {
	db := database(t)
	at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	e, err := control.NewEvent(
		"id",
		control.ExperimentCreated,
		"experiment/x0",
		0,
		"tester",
		"why",
		at,
		control.Experiment{ID: "x0", Unit: "product", Steps: []float64{0.5}},
	)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.InsertControl(t.Context(), []ControlRow{{Event: e, Place: Place{TopicID: "t"}}}); err != nil {
		t.Fatal(err)
	}
	rows := world(rand.New(rand.NewPCG(4, 4)), 3000)
	for i := range rows {
		if p := rows[i].Product[1] - '0'; rows[i].Experiment != "" {
			rows[i].Variant = []string{"control", "treatment"}[p%2]
		}
	}
	if err := db.InsertLabels(t.Context(), "a", rows); err != nil {
		t.Fatal(err)
	}
	if got, want := lines(t, db, "SELECT experiment, isNaN(lift), diff_low, p = 1, unit FROM experiment_lift ORDER BY experiment"),
		"x0\t1\t-1\t1\tproduct\nx1\t0\t"; !strings.HasPrefix(got, want) {
		t.Errorf("%q, want %q and so on", got, want)
	}
	good, _ := mature(rows)
	per := map[string]*[2]float64{}
	for _, r := range good {
		if r.Experiment != "x0" {
			continue
		}
		if per[r.Product] == nil {
			per[r.Product] = &[2]float64{}
		}
		per[r.Product][1]++
		if r.Clicked {
			per[r.Product][0]++
		}
	}
	var even, odd stats.RatioSums
	for product, u := range per {
		if (product[1]-'0')%2 == 0 {
			even.Observe(u[0], u[1])
		} else {
			odd.Observe(u[0], u[1])
		}
	}
	var got []liftRow
	if err := db.Select(t.Context(), &got, "SELECT experiment, variant, diff, diff_low, diff_high, lift, lift_low, lift_high, p, unknown "+
		"FROM experiment_steps(id = 'x0', settle = 0)"); err != nil ||
		len(got) != 1 {
		t.Fatal(err, got)
	}
	checkLift(t, got[0], even, odd)
}

// checkRampIsNotPooled holds the views that pool to saying nothing of the ramp, where pooling would be sure of an effect that is
// not there, and the question for owners to the figures of the last look.
func checkRampIsNotPooled(t *testing.T, db *DB) {
	t.Helper()
	var arms []struct {
		N  uint64 `ch:"n"`
		M  uint64 `ch:"sum_m"`
		D  uint64 `ch:"sum_d"`
		MM uint64 `ch:"sum_mm"`
		DD uint64 `ch:"sum_dd"`
		MD uint64 `ch:"sum_md"`
	}
	if err := db.Select(t.Context(), &arms,
		"SELECT n, sum_m, sum_d, sum_mm, sum_dd, sum_md FROM experiment_results WHERE experiment = 'ramp' ORDER BY variant"); err != nil ||
		len(arms) != 2 {
		t.Fatal(err, arms)
	}
	var sums [2]stats.RatioSums
	for i, a := range arms {
		sums[i] = stats.RatioSums{N: int64(a.N), M: float64(a.M), D: float64(a.D), MM: float64(a.MM), DD: float64(a.DD), MD: float64(a.MD)}
	}
	pooled, err := stats.Compare(sums[0], sums[1], stats.DefaultSequence())
	if err != nil || pooled.Interval.Low <= 0 {
		t.Errorf("pooled %+v, %v: no trap here, this test shows nothing", pooled, err)
	}
	for _, view := range []string{"experiment_lift", "experiment_lift_by_category"} {
		if got, want := lines(t, db, "SELECT diff, diff_low, diff_high, lift, lift_low, lift_high, p, steps, unit FROM "+view),
			"nan\t-1\t1\tnan\t-1\tinf\t1\t4\tuser\n"; got != want {
			t.Errorf("%s says %q of a ramp, want %q", view, got, want)
		}
	}
	q, err := question.Find("experiments")
	if err != nil {
		t.Fatal(err)
	}
	ask := func() string { return lines(t, db, "SELECT ctr, lift, lift_low, lift_high, p, of FROM ("+q.SQL+")") }
	if got, want := ask(), "nan\tnan\tnan\tnan\tnan\tnot looked at yet: ask experiment-steps\n"; got != want {
		t.Errorf("before a look: %q, want %q", got, want)
	}
	exec1(
		t,
		db,
		`INSERT INTO experiment_looks (experiment, time, step, share, action, rule, lift, lift_low, lift_high, p, srm_p, impressions) VALUES
		('ramp', '2026-03-01 02:30:00', 0, 0.1, 'hold', '', 0.5, -0.5, 2, 0.3, 1, 100),
		('ramp', '2026-03-01 03:30:00', 1, 0.5, 'hold', '', 0.25, -0.125, 1.5, 0.75, 1, 100)`,
	)
	if got, want := ask(), "nan\t0.25\t-0.125\t1.5\t0.75\tstep 2 at 2026-03-01 03:30:00\n"; got != want {
		t.Errorf("after two looks: %q, want %q", got, want)
	}
}

// checkOtherViews holds the remaining views against figures made here from the raw rows.
func checkOtherViews(t *testing.T, db *DB, rows, good []LabelRow, horizon int64) {
	// creative_fatigue: day by day of each creative's life.
	first := map[string]time.Time{}
	for _, r := range good {
		k, day := r.Product+"\t"+r.Creative, r.Impression.Time().Truncate(24*time.Hour)
		if f, ok := first[k]; !ok || day.Before(f) {
			first[k] = day
		}
	}
	age := func(r LabelRow) string {
		k := r.Product + "\t" + r.Creative
		return fmt.Sprintf("%s\t%d", k, int(r.Impression.Time().Truncate(24*time.Hour).Sub(first[k]).Hours()/24))
	}
	if diff := cmp.Diff(grouped(good, age),
		sorted(lines(t, db, "SELECT product, creative, age_days, impressions, clicks FROM creative_fatigue"))); diff != "" {
		t.Errorf("creative_fatigue (-want +got):\n%s", diff)
	}
	if n := count(t, db, "SELECT count() FROM creative_fatigue WHERE abs(change - (ctr / first_ctr - 1)) > 1e-12 OR "+
		"age_days < 3 AND first_ctr <= 0"); n != 0 {
		t.Errorf("creative_fatigue: %d rows do not add up", n)
	}
	// experiment_health: users by variant, and those who met more than one.
	met := map[string]map[uint64]map[string]bool{}
	for _, r := range good {
		if r.Experiment != "" && r.User != 0 {
			if met[r.Experiment] == nil {
				met[r.Experiment] = map[uint64]map[string]bool{}
			}
			if met[r.Experiment][r.User] == nil {
				met[r.Experiment][r.User] = map[string]bool{}
			}
			met[r.Experiment][r.User][r.Variant] = true
		}
	}
	health := map[string][2]int{}
	for x, users := range met {
		for _, variants := range users {
			for v := range variants {
				h := health[x+"\t"+v]
				h[0]++
				if len(variants) > 1 {
					h[1]++
				}
				health[x+"\t"+v] = h
			}
		}
	}
	var want []string
	for k, h := range health {
		want = append(want, fmt.Sprintf("%s\t%d\t%d\n", k, h[0], h[1]))
	}
	if diff := cmp.Diff(sorted(strings.Join(want, "")),
		sorted(lines(t, db, "SELECT experiment, variant, users, users_elsewhere FROM experiment_health"))); diff != "" {
		t.Errorf("experiment_health (-want +got):\n%s", diff)
	}
	// experiment_results_by_category, and the lifts made of it.
	type cell struct{ experiment, category, variant string }
	type unit struct {
		cell
		user uint64
	}
	units := map[unit][2]float64{}
	for _, r := range good {
		if r.Experiment != "" && r.User != 0 {
			k := unit{cell{r.Experiment, r.Category, r.Variant}, r.User}
			u := units[k]
			u[1]++
			if r.Clicked {
				u[0]++
			}
			units[k] = u
		}
	}
	sums := map[cell]*stats.RatioSums{}
	for k, u := range units {
		if sums[k.cell] == nil {
			sums[k.cell] = &stats.RatioSums{}
		}
		sums[k.cell].Observe(u[0], u[1])
	}
	var lifts []struct {
		Category string `ch:"category"`
		liftRow
	}
	if err := db.Select(t.Context(), &lifts, "SELECT experiment, category, variant, diff, diff_low, diff_high, lift, lift_low, lift_high, p, "+
		"unknown FROM experiment_lift_by_category"); err != nil {
		t.Fatal(err)
	}
	if len(lifts) != 8 {
		t.Errorf("%d lifts by category, want 8", len(lifts))
	}
	for _, l := range lifts {
		checkLift(t, l.liftRow, *sums[cell{l.Experiment, l.Category, "control"}], *sums[cell{l.Experiment, l.Category, l.Variant}])
	}
	// trace_impression: every version of one that was corrected.
	for _, r := range rows {
		if r.Version != 2 {
			continue
		}
		versions, latest := 0, uint32(0)
		for _, o := range rows {
			if o.Impression == r.Impression {
				versions++
				latest = max(latest, o.Version)
			}
		}
		counts := 0
		if !r.Bot && r.Impression.UnixMilli() <= horizon {
			counts = 1
		}
		got := lines(
			t,
			db,
			"SELECT count(), max(version), sum(latest), maxIf(version, latest), sum(counts), min(age_ms) > 0 FROM trace_impression(id = '"+
				r.Impression.String()+"')",
		)
		if want := fmt.Sprintf("%d\t%d\t1\t%d\t%d\t1\n", versions, latest, latest, counts); got != want {
			t.Errorf("trace_impression: %q, want %q", got, want)
		}
		break
	}
	// ctr_hours and user_days add up to all of it.
	clicks := 0
	for _, r := range good {
		if r.Clicked {
			clicks++
		}
	}
	for _, view := range []string{"ctr_hours", "ctr_days", "user_days"} {
		if got, want := lines(t, db, "SELECT sum(impressions), sum(clicks) FROM "+view), fmt.Sprintf("%d\t%d\n", len(good), clicks); got != want {
			t.Errorf("%s: %q, want %q", view, got, want)
		}
	}
	checkCUPED(t, db, good)
}

// checkCUPED: what users of x0 did on the days before it.
func checkCUPED(t *testing.T, db *DB, good []LabelRow) {
	start := ""
	for _, r := range good {
		if day := r.Impression.Time().Format(time.DateOnly); r.Experiment == "x0" && (start == "" || day < start) {
			start = day
		}
	}
	type unit struct {
		variant string
		user    uint64
	}
	during, before := map[unit][2]uint64{}, map[uint64][2]uint64{}
	for _, r := range good {
		c := uint64(0)
		if r.Clicked {
			c = 1
		}
		if r.Experiment == "x0" && r.User != 0 {
			k := unit{r.Variant, r.User}
			during[k] = [2]uint64{during[k][0] + c, during[k][1] + 1}
		}
		if r.Impression.Time().Format(time.DateOnly) < start {
			before[r.User] = [2]uint64{before[r.User][0] + c, before[r.User][1] + 1}
		}
	}
	if len(before) == 0 || len(during) == 0 {
		t.Fatal("nobody was there before or during x0: the test would prove nothing")
	}
	sums := map[string][15]uint64{}
	for k, u := range during {
		m, d, x, y := u[0], u[1], before[k.user][0], before[k.user][1]
		s := sums[k.variant]
		for i, v := range [15]uint64{1, m, d, x, y, m * m, d * d, m * d, x * x, y * y, x * y, m * x, m * y, d * x, d * y} {
			s[i] += v
		}
		sums[k.variant] = s
	}
	var want []string
	for v, s := range sums {
		want = append(want, v+"\t"+strings.ReplaceAll(strings.Trim(fmt.Sprint(s), "[]"), " ", "\t")+"\n")
	}
	got := lines(
		t,
		db,
		"SELECT variant, n, sum_m, sum_d, sum_x, sum_y, sum_mm, sum_dd, sum_md, sum_xx, sum_yy, sum_xy, sum_mx, sum_my, sum_dx, sum_dy "+
			"FROM experiment_cuped(id = 'x0', days = 14)",
	)
	if diff := cmp.Diff(sorted(strings.Join(want, "")), sorted(got)); diff != "" {
		t.Errorf("experiment_cuped (-want +got):\n%s", diff)
	}
}

// checkAudit fills audit with what a joiner would say, computed in Go, and then finds planted damage.
func checkAudit(t *testing.T, db *DB, rows []LabelRow) {
	type minute struct {
		partition int32
		ms        int64
	}
	truth := map[minute][]*eventpb.AuditMinute{}
	for _, r := range rows {
		k := minute{r.Partition, r.Impression.UnixMilli() / 60_000 * 60_000}
		as := truth[k]
		if len(as) == 0 || as[len(as)-1].Labels == 7 { // several transactions a minute
			as = append(as, &eventpb.AuditMinute{Partition: k.partition, MinuteMs: k.ms})
		}
		a, h := as[len(as)-1], city.CH64(r.Impression[:])
		a.Labels++
		a.HashXor ^= h
		a.HashSum += h
		if r.Kind == eventpb.LabelKind_LABEL_KIND_POSITIVE || r.Kind == eventpb.LabelKind_LABEL_KIND_CORRECTED {
			a.Positive++
		}
		truth[k] = as
	}
	var audit []AuditRow
	for _, as := range truth {
		for _, a := range as {
			audit = append(audit, AuditRow{a, Place{TopicID: "t1", Offset: int64(len(audit))}})
		}
	}
	for range 2 { // a mirror may repeat itself
		if err := db.InsertAudit(t.Context(), audit); err != nil {
			t.Fatal(err)
		}
	}
	if got := lines(t, db, "SELECT * FROM audit_mismatch LIMIT 5"); got != "" {
		t.Fatalf("exact labels are reported:\n%s", got)
	}
}

// checkDamage plants a label that the joiner never made.
func checkDamage(t *testing.T, db *DB, rows []LabelRow) {
	damage := rows[len(rows)/2]
	damage.Version, damage.Offset = 9, 1<<40
	if err := db.InsertLabels(t.Context(), "damage", []LabelRow{damage}); err != nil {
		t.Fatal(err)
	}
	if n := count(t, db, "SELECT count() FROM audit_mismatch WHERE labels = want_labels + 1 AND "+
		"hash_sum - want_sum = bitXor(want_xor, hash_xor)"); n != 1 {
		t.Errorf("a spurious label shows in %d minutes, want 1:\n%s", n, lines(t, db, "SELECT * FROM audit_mismatch"))
	}
	exec1(t, db, "DELETE FROM labels WHERE version = 9")
	if n := count(t, db, "SELECT count() FROM audit_mismatch"); n != 0 {
		t.Errorf("%d minutes differ after the repair", n)
	}
}

// The hash of the audit is the same function in Go and in SQL.
func TestAuditHash(t *testing.T) {
	db := connect(t, engine(t).DSN())
	rng := rand.New(rand.NewPCG(5, 6))
	for range 50 {
		var random [10]byte
		for j := range random {
			random[j] = byte(rng.Uint32())
		}
		id := schemas.NewImpressionID(time.UnixMilli(rng.Int64N(4e12)), random)
		if got, want := count(t, db, fmt.Sprintf("SELECT cityHash64(UUIDToNum(toUUID('%s')))", id)), city.CH64(id[:]); got != want {
			t.Fatalf("%s: SQL %d, Go %d", id, got, want)
		}
	}
}

func TestEmptyViews(t *testing.T) {
	db := database(t)
	names := strings.Fields(
		lines(
			t,
			db,
			"SELECT name FROM system.tables WHERE database = currentDatabase() AND engine = 'View' "+
				"AND NOT match(create_table_query, '\\\\{[a-z]+:')",
		),
	)
	if len(names) < 13 {
		t.Errorf("only the views %v", names)
	}
	for _, name := range names {
		got := lines(t, db, "SELECT * FROM "+name)
		if name == "label_horizon" {
			if !strings.Contains(got, "\t600000\t1000\t0\t0\t[]\n") {
				t.Errorf("label_horizon of nothing: %q", got)
			}
		} else if got != "" {
			t.Errorf("%s of nothing: %q", name, got)
		}
	}
}

func TestControlFeedsItsTables(t *testing.T) {
	db := database(t)
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var rows []ControlRow
	add := func(typ control.Type, entity, rejected string, data any) {
		e, err := control.NewEvent(
			fmt.Sprintf("id%d", len(rows)),
			typ,
			entity,
			0,
			"tester",
			"why",
			at.Add(time.Duration(len(rows))*time.Minute),
			data,
		)
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, ControlRow{Event: e, Place: Place{TopicID: "t", Offset: int64(len(rows))}, Rejected: rejected})
	}
	add(
		control.ModelRegistered,
		"model/prompt-1",
		"",
		control.Model{
			Version:  "prompt-1",
			Logical:  "prompt",
			Parents:  []string{"a", "b"},
			LabelsTo: at.UnixMilli(),
			Metrics:  map[string]any{"auc": 0.75},
		},
	)
	add(control.ModelRegistered, "model/prompt-1", "registered already", control.Model{Version: "prompt-1", Logical: "other"})
	add(control.ModelPromoted, "route/prompt", "", control.Promotion{Logical: "prompt", Version: "prompt-1"})
	add(control.JobSubmitted, "job/j1", "", control.Job{ID: "j1", Kind: "rounds", Reason: "enough pairs", Spec: json.RawMessage("{}")})
	add(control.JobFinished, "job/j1", "", control.JobUpdate{Attempt: 1, Metrics: map[string]any{"win_rate": 0.5, "note": "x"}})
	add(control.DatasetBuilt, "dataset/d1", "", control.Dataset{Digest: "d1", Pairs: 7, Seed: 1 << 60})
	for range 2 { // the mirror starts from the beginning each time
		if err := db.InsertControl(t.Context(), rows); err != nil {
			t.Fatal(err)
		}
	}
	for q, want := range map[string]string{
		"SELECT count(), countIf(rejected != ''), sum(expect) FROM control_log FINAL": "6\t1\t0\n",
		"SELECT version, logical, parents, labels_to, metrics FROM model_versions FINAL": "prompt-1\tprompt\t['a','b']\t2026-03-01 " +
			"12:00:00.000\t{\"auc\":0.75}\n",
		"SELECT job, state, kind, reason, attempt FROM jobs FINAL ORDER BY time": "j1\tsubmitted\trounds\tenough pairs\t0\nj1\tfinished\t\t\t1\n",
		"SELECT job, name, value FROM job_metrics FINAL WHERE name = 'win_rate'": "j1\twin_rate\t0.5\n",
		"SELECT digest, pairs, seed FROM datasets FINAL":                         "d1\t7\t1152921504606846976\n",
	} {
		if got := lines(t, db, q); got != want {
			t.Errorf("%s\n got %q\nwant %q", q, got, want)
		}
	}
}

func TestCatalogueRowsReplaceThemselves(t *testing.T) {
	db := database(t)
	c := schemas.Creative{ID: "c-1", Product: "p", Seed: 1 << 63, Prior: 0.5, Created: time.UnixMilli(1000), Valid: true}
	for _, blocked := range []string{"", "ugly", ""} { // back to a state that was there before
		c.Blocked = blocked
		if err := db.InsertCreatives(t.Context(), []schemas.Creative{c}); err != nil {
			t.Fatal(err)
		}
	}
	p := schemas.Pair{
		ID:      "x",
		Product: "p",
		Chosen:  schemas.PairSide{Creative: "c-1", Impressions: 10, Clicks: 3, Mean: 0.3},
		Left:    true,
		Split:   "train",
	}
	for range 2 {
		if err := db.InsertPairs(t.Context(), []schemas.Pair{p}); err != nil {
			t.Fatal(err)
		}
		if err := db.InsertProducts(t.Context(), []ProductRow{{ID: "p", Title: "Mug", Category: "home/mugs", Holdout: true}}); err != nil {
			t.Fatal(err)
		}
		if err := db.InsertLate(t.Context(),
			[]LateRow{{&eventpb.Late{Reason: "click_after_window", ImpressionId: []byte("short"), TimeMs: 5}, Place{"t", 1, 2}}}); err != nil {
			t.Fatal(err)
		}
	}
	for q, want := range map[string]string{
		"SELECT id, blocked, seed, created FROM creatives FINAL":          "c-1\t\t9223372036854775808\t1970-01-01 00:00:01.000\n",
		"SELECT id, chosen, chosen_clicks, left, split FROM pairs FINAL":  "x\tc-1\t3\t1\ttrain\n",
		"SELECT id, department, holdout FROM products FINAL":              "p\thome\t1\n",
		"SELECT count(), any(reason), any(source_offset) FROM late FINAL": "1\tclick_after_window\t2\n",
	} {
		if got := lines(t, db, q); got != want {
			t.Errorf("%s\n got %q\nwant %q", q, got, want)
		}
	}
}
