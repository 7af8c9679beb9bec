package main

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ctrloop/app"
	"ctrloop/internal/stats"
	"ctrloop/internal/warehouse"
	"ctrloop/internal/warehouse/warehousetest"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/schemas/eventpb"

	"github.com/google/go-cmp/cmp"
)

// ramped is an experiment of two steps, 10 % and 50 %, after a time without it. Users are drawn by their number;
// those below 10 of 100 are treated in the first step, those below 50 in the second. Then all are, and nobody comes.
type ramped struct {
	start, second, settled, end time.Time // settled: of the second step
	rows                        []warehouse.LabelRow
}

func newRamped() ramped {
	start := time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)
	x := ramped{start: start, second: start.Add(2 * time.Hour), settled: start.Add(2*time.Hour + time.Minute), end: start.Add(4 * time.Hour)}
	rng := rand.New(rand.NewPCG(61, 0))
	for range 20_000 {
		at := start.Add(-4*time.Hour + time.Duration(rng.Int64N(int64(8*time.Hour))))
		var random [10]byte
		for i := range random {
			random[i] = byte(rng.Uint32())
		}
		user := 1 + rng.Uint64N(700)
		if !at.Before(x.second) { // new users go on coming
			user = 1 + rng.Uint64N(1100)
		}
		r := warehouse.LabelRow{
			Impression: schemas.NewImpressionID(
				at,
				random,
			), Version: 1, User: user, Product: []string{"p1", "p2"}[rng.IntN(2)], Creative: []string{"c1", "c2", "c3"}[rng.IntN(3)],
			Category: []string{"bags", "tea/green", "shoes"}[rng.IntN(3)], Weight: 1, Bot: rng.IntN(30) == 0, Propensity: 1. / 3,
			Kind: eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, WatermarkMS: x.end.Add(time.Hour).UnixMilli(),
		}
		if treated := map[bool]uint64{true: 10, false: 50}[at.Before(x.second)]; !at.Before(start) {
			r.Experiment, r.Variant = "e", "control"
			if user%100 < treated {
				r.Variant = "treatment"
			}
		}
		if rate := 0.05 + 0.2*float64(user%7)/7; rng.Float64() < rate {
			r.Clicked, r.Clicks, r.Kind = true, 1, eventpb.LabelKind_LABEL_KIND_POSITIVE
		}
		x.rows = append(x.rows, r)
	}
	x.addStrangers()
	x.addUnlogged()
	return x
}

// addUnlogged is an experiment of somebody else's assignment, with arms of its own names: 100, 100 and 200 users.
func (x *ramped) addUnlogged() {
	for i := range 400 {
		at := x.settled.Add(time.Duration(i) * time.Second)
		x.rows = append(x.rows, warehouse.LabelRow{
			Impression: schemas.NewImpressionID(at, [10]byte{2, byte(i), byte(i >> 8)}), Version: 1, Product: "p1", Creative: "c1", Category: "bags",
			Weight: 1, Propensity: 1. / 3, Kind: eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, WatermarkMS: x.end.Add(time.Hour).UnixMilli(),
			Experiment: "z", Variant: []string{"old", "new", "newest", "newest"}[i%4], User: 9000 + uint64(i),
		})
	}
	// Another one, whose labels say the shares: of b 0.1, and then 0.5.
	for i := range 200 {
		at, phase := x.settled.Add(time.Duration(i)*time.Second), i/100
		variant, share := "b", []float64{0.1, 0.5}[phase]
		if i%100 < []int{90, 40}[phase] {
			variant, share = "a", 1-share
		}
		x.rows = append(x.rows, warehouse.LabelRow{
			Impression: schemas.NewImpressionID(at, [10]byte{3, byte(i)}), Version: 1, Product: "p1", Creative: "c1", Category: "bags",
			Weight: 1, Propensity: 1. / 3, Kind: eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, WatermarkMS: x.end.Add(time.Hour).UnixMilli(),
			Experiment: "y", Variant: variant, ArmShare: share, User: 20_000 + uint64(i),
		})
	}
}

// What nobody can count to a unit of an arm: impressions without a user, who are not one user, and of a variant that the
// experiment does not have. Anybody at the edge can send them.
const anonymous, foreign = 400, 50

// addStrangers puts them into the second step.
func (x *ramped) addStrangers() {
	for i := range anonymous + foreign {
		at := x.settled.Add(time.Duration(i) * time.Second)
		r := warehouse.LabelRow{
			Impression: schemas.NewImpressionID(at, [10]byte{1, byte(i), byte(i >> 8)}), Version: 1, Product: "p1", Creative: "c1", Category: "bags",
			Weight: 1, Propensity: 1. / 3, Kind: eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, WatermarkMS: x.end.Add(time.Hour).UnixMilli(),
			Experiment: "e", Variant: []string{"control", "treatment"}[i%2],
		}
		if i >= anonymous {
			r.User, r.Variant = 5000+uint64(i), "purple"
		}
		x.rows = append(x.rows, r)
	}
}

// sums are those of an arm in a span, by hand, with everything before the test as the covariate.
func (x ramped) sums(variant, category string, from, to time.Time) (s stats.Sums) {
	units := map[uint64]*[4]float64{}
	for _, r := range x.rows {
		at := r.Impression.Time()
		if r.Bot || r.User == 0 || r.Experiment != "e" || r.Variant != variant || category != "" && r.Category != category ||
			at.Before(from) || !at.Before(to) {
			continue
		}
		if units[r.User] == nil {
			units[r.User] = &[4]float64{}
		}
		units[r.User][1]++
		if r.Clicked {
			units[r.User][0]++
		}
	}
	for _, r := range x.rows {
		if u := units[r.User]; u != nil && !r.Bot && r.Impression.Time().Before(x.start) {
			u[3]++
			if r.Clicked {
				u[2]++
			}
		}
	}
	for _, u := range units {
		s.Observe(u[0], u[1], u[2], u[3])
	}
	return s
}

// serve fills an embedded warehouse with the experiment and returns its address.
func (x ramped) serve(t *testing.T) (dsn string) {
	t.Helper()
	e, db := warehousetest.Start(t, warehouse.Options{Window: time.Minute, Bucket: time.Second})
	if err := db.InsertLabels(t.Context(), "all", x.rows); err != nil {
		t.Fatal(err)
	}
	encode := func(v any) json.RawMessage {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	entity := control.ExperimentEntity("e")
	err := db.InsertControl(t.Context(), []warehouse.ControlRow{
		{
			Event: control.Event{
				ID:     "1",
				Type:   control.ExperimentCreated,
				Entity: entity,
				Time:   x.start,
				Data:   encode(control.Experiment{ID: "e", Unit: "user", Steps: []float64{0.1, 0.5, 1}, Alpha: 0.04, NStar: 3000}),
			},
			Place: warehouse.Place{TopicID: "t", Offset: 1},
		},
		{
			Event: control.Event{
				ID:     "2",
				Type:   control.ExperimentStepped,
				Entity: entity,
				Time:   x.second,
				Data:   encode(control.Step{Index: 1, Share: 0.5, AtMS: x.second.UnixMilli()}),
			},
			Place: warehouse.Place{TopicID: "t", Offset: 2},
		},
		{
			Event: control.Event{
				ID:     "3",
				Type:   control.ExperimentStepped,
				Entity: entity,
				Time:   x.second,
				Data:   encode(control.Step{Index: 2, Share: 1, AtMS: 1}),
			},
			Place:    warehouse.Place{TopicID: "t", Offset: 3},
			Rejected: "conflict",
		},
		{
			Event: control.Event{ID: "4", Type: control.ExperimentPaused, Entity: entity, Time: x.second, Data: encode(control.Pause{})},
			Place: warehouse.Place{TopicID: "t", Offset: 4},
		},
		{
			Event: control.Event{
				ID:     "5",
				Type:   control.ExperimentStepped,
				Entity: entity,
				Time:   x.end,
				Data:   encode(control.Step{Index: 2, Share: 1, AtMS: x.end.UnixMilli()}),
			},
			Place: warehouse.Place{TopicID: "t", Offset: 5},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return e.ReadOnlyDSN()
}

// ask runs a command on the experiment and returns its JSON.
func ask(t *testing.T, dsn string, args ...string) map[string]any {
	t.Helper()
	code, stdout, stderr := cli(t, append([]string{"stats"}, append(args, "--experiment", "e", "--dsn", dsn, "--json", "-")...)...)
	if code != exitOK {
		t.Fatalf("%q: exit %d: %s", args, code, stderr)
	}
	var v map[string]any
	if err := json.Unmarshal([]byte(stdout), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// checkRunning: with an instance on the folder its warehouse can be asked, and not be written to by a command.
func checkRunning(t *testing.T, dsn string) {
	dir := t.TempDir()
	raw, err := json.Marshal(app.Addresses{ClickHouse: dsn})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, app.RunFile), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, stdout, stderr := cli(t, "sql", "--dir", dir, "--format", "tsv", "SELECT 6*7 AS x"); code != exitOK ||
		!strings.Contains(stdout, "42") {
		t.Errorf("sql: exit %d: %s%s", code, stdout, stderr)
	}
	for want, args := range map[string][]string{
		"an instance is running on " + dir + "\n": {"migrate"},
		"has a ClickHouse of its own":             {"erase", "user", "alice"}, // there are no passwords in the folder
	} {
		code, _, stderr := cli(t, append(args, "--dir", dir)...)
		if code != exitFailed || !strings.Contains(stderr, want) || !strings.Contains(stderr, "do: ") || strings.Contains(stderr, "migrat") {
			t.Errorf("%v: exit %d: %s", args, code, stderr)
		}
	}
}

// Everything that the commands say of an experiment in the warehouse is what the package says of the same
// impressions, counted by hand.
func TestStatsOverTheWarehouse(t *testing.T) {
	x := newRamped()
	dsn := x.serve(t)
	own := stats.Sequence{Alpha: 0.04, NStar: 3000}
	t.Run("lift of the deciding step, with the experiment's own sequence", func(t *testing.T) {
		v := ask(t, dsn, "lift")
		x.checkLift(t, v, own, x.settled, x.end)
		if v["alpha"] != 0.04 || v["nstar"] != 3000. || v["fdr"] != 0.04 {
			t.Errorf("alpha %v, nstar %v, fdr %v", v["alpha"], v["nstar"], v["fdr"])
		}
	})
	t.Run("strangers are left out and counted", func(t *testing.T) {
		code, _, stderr := cli(t, "stats", "lift", "--experiment", "e", "--dsn", dsn)
		if code != exitOK || !strings.Contains(stderr, "400 impressions without a user") || !strings.Contains(stderr, "50 of another variant") ||
			strings.Contains(stderr, "both arms") {
			t.Errorf("exit %d: %s", code, stderr)
		}
	})
	t.Run("sample ratio of arms of any names, by given shares", func(t *testing.T) { checkUnloggedSRM(t, dsn) })
	t.Run("sample ratio by the shares of labels", func(t *testing.T) { checkSRMOfLabels(t, dsn) })
	t.Run("lift as the options say", func(t *testing.T) {
		x.checkLift(
			t,
			ask(t, dsn, "lift", "--step", "2", "--settle", "0s", "--alpha", "0.1", "--n-star", "5000"),
			stats.Sequence{Alpha: 0.1, NStar: 5000},
			x.second,
			x.end,
		)
	})
	t.Run("lift of the first step", func(t *testing.T) {
		x.checkLift(t, ask(t, dsn, "lift", "--step", "1"), own, x.start, x.second)
	})
	t.Run("sample ratio over the ramp", func(t *testing.T) { x.checkSRM(t, dsn) })
	t.Run("of a running instance it is read only", func(t *testing.T) { checkRunning(t, dsn) })
	t.Run("power from the control arm", func(t *testing.T) {
		v := ask(t, dsn, "power", "--units-per-day", "100")
		s := x.sums("control", "", x.settled, x.end).RatioSums
		if got, want := v["sigma"].(float64), stats.SigmaFromBaseline(s, 0.5); math.Abs(got-want) > 1e-9*want || v["units"] != float64(s.N) {
			t.Errorf("sigma %g of %v units, want %g of %d", got, v["units"], want, s.N)
		}
	})
	t.Run("value of a policy", func(t *testing.T) { x.checkOPE(t, dsn) })
	t.Run("unknown and wrong", func(t *testing.T) {
		for _, c := range []struct {
			args []string
			code int
			want string
		}{
			{[]string{"lift", "--experiment", "nope"}, exitFailed, "those with mature impressions: e"},
			{[]string{"lift", "--experiment", "e", "--step", "4"}, exitUsage, "from 1 to 3"},
			{[]string{"lift", "--experiment", "e", "--step", "last"}, exitUsage, "want deciding, all, or a number"},
			{[]string{"lift", "--experiment", "e", "--step", "3"}, exitFailed, "at 100 % there is no control"},
			{[]string{"lift", "--experiment", "e", "--step", "1", "--settle=-1s"}, exitUsage, "want 0 or more"},
		} {
			code, _, stderr := cli(t, append([]string{"stats"}, append(c.args, "--dsn", dsn)...)...)
			if code != c.code || !strings.Contains(stderr, c.want) {
				t.Errorf("%q: exit %d, %s; want %d with %q", c.args, code, stderr, c.code, c.want)
			}
		}
		code, _, stderr := cli(t, "stats", "lift", "--experiment", "e", "--step", "all", "--dsn", dsn)
		if code != exitOK || !strings.Contains(stderr, "Simpson") || !strings.Contains(stderr, "both arms") {
			t.Errorf("all steps: exit %d, no warning of the changed shares and of users that moved: %s", code, stderr)
		}
	})
}

func (x ramped) checkLift(t *testing.T, v map[string]any, q stats.Sequence, from, to time.Time) {
	t.Helper()
	want, err := stats.CompareAdjusted(x.sums("control", "", from, to), x.sums("treatment", "", from, to), q)
	if err != nil {
		t.Fatal(err)
	}
	adjusted := v["adjusted"].(map[string]any)
	for name, c := range map[string][2]float64{
		"absolute": {adjusted["lift_absolute"].(float64), want.Absolute}, "low": {adjusted["low"].(float64), want.Interval.Low},
		"theta": {adjusted["theta"].(float64), want.Theta},
		"units": {v["control"].(map[string]any)["units"].(float64), float64(x.sums("control", "", from, to).N)},
	} {
		if math.Abs(c[0]-c[1]) > 1e-9*max(1, math.Abs(c[1])) {
			t.Errorf("%s = %.12g, want %.12g", name, c[0], c[1])
		}
	}
	if want.Theta == 0 {
		t.Error("no covariate was used")
	}
	categories := v["categories"].([]any)
	if len(categories) != 3 {
		t.Fatalf("%d categories", len(categories))
	}
	for _, c := range categories {
		c := c.(map[string]any)
		name := c["category"].(string)
		l, err := stats.Compare(x.sums("control", name, from, to).RatioSums, x.sums("treatment", name, from, to).RatioSums, q)
		if err != nil {
			t.Fatal(err)
		}
		if got := c["lift_relative"].(float64); math.Abs(got-l.Relative) > 1e-9 {
			t.Errorf("%s: lift %g, want %g", name, got, l.Relative)
		}
	}
}

func (x ramped) checkSRM(t *testing.T, dsn string) {
	t.Helper()
	first := map[uint64]warehouse.LabelRow{}
	for _, r := range x.rows {
		if f, ok := first[r.User]; r.Experiment == "e" && !r.Bot && r.User != 0 && r.Variant != "purple" &&
			(!ok || r.Impression.Time().Before(f.Impression.Time())) {
			first[r.User] = r
		}
	}
	var want [2]map[string]float64
	for _, r := range first {
		k := 0
		if at := r.Impression.Time(); !at.Before(x.settled) {
			k = 1
		} else if !at.Before(x.second) {
			continue // by either share
		}
		if want[k] == nil {
			want[k] = map[string]float64{}
		}
		want[k][r.Variant]++
	}
	v := ask(t, dsn, "srm")
	phases := v["phases"].([]any)
	if len(phases) != 2 {
		t.Fatalf("%d phases", len(phases))
	}
	for k, p := range phases {
		counts := p.(map[string]any)["counts"].(map[string]any)
		if counts["control"] != want[k]["control"] || counts["treatment"] != want[k]["treatment"] {
			t.Errorf("phase %d: %v, want %v", k+1, counts, want[k])
		}
		if shares := p.(map[string]any)["shares"].([]any); math.Abs(shares[1].(float64)-[]float64{0.1, 0.5}[k]) > 1e-12 {
			t.Errorf("phase %d: shares %v", k+1, shares)
		}
	}
}

// checkUnloggedSRM: an experiment that the control log does not have is tested against the shares that the caller knows.
func checkUnloggedSRM(t *testing.T, dsn string) {
	t.Helper()
	srm := func(shares string) (v map[string]any) {
		code, stdout, stderr := cli(t, "stats", "srm", "--experiment", "z", "--dsn", dsn, "--shares", shares, "--json", "-")
		if err := json.Unmarshal([]byte(stdout), &v); code != exitOK || err != nil {
			t.Fatalf("--shares %s: exit %d, %v: %s", shares, code, err, stderr)
		}
		return v
	}
	v := srm("0.25,0.5,0.25") // new, newest, old
	if diff := cmp.Diff(map[string]any{"new": 100., "newest": 200., "old": 100.}, v["counts"]); diff != "" || v["p"].(float64) < 0.5 {
		t.Errorf("p %v of the shares that they have; counts (-want +got): %s", v["p"], diff)
	}
	if v := srm("0.34,0.33,0.33"); v["p"].(float64) > 0.01 {
		t.Errorf("p %v of shares that they do not have", v["p"])
	}
	for said, args := range map[string][]string{"two shares": {"--shares", "0.5,0.5"}, "are not known": nil} {
		code, _, stderr := cli(t, append([]string{"stats", "srm", "--experiment", "z", "--dsn", dsn}, args...)...)
		if code != exitUsage || !strings.Contains(stderr, "new, newest, old") || !strings.Contains(stderr, "--shares") ||
			!strings.Contains(stderr, strings.Replace(said, "two shares", "2 shares", 1)) {
			t.Errorf("%s for three arms: exit %d: %s", said, code, stderr)
		}
	}
}

// checkSRMOfLabels: where the control log does not have the ramp, and the caller does not say the shares, the labels do.
func checkSRMOfLabels(t *testing.T, dsn string) {
	t.Helper()
	code, stdout, stderr := cli(t, "stats", "srm", "--experiment", "y", "--dsn", dsn, "--json", "-")
	var v struct {
		P      float64 `json:"p"`
		Phases []struct {
			Phase  string           `json:"phase"`
			Counts map[string]int64 `json:"counts"`
			Shares []float64        `json:"shares"`
		} `json:"phases"`
	}
	if err := json.Unmarshal([]byte(stdout), &v); code != exitOK || err != nil {
		t.Fatalf("exit %d, %v: %s", code, err, stderr)
	}
	m, err := stats.SampleRatioRamp([]stats.SharePhase{{Counts: []int64{90, 10}, Shares: []float64{0.9, 0.1}},
		{Counts: []int64{40, 60}, Shares: []float64{0.5, 0.5}}}, 0, 1)
	if err != nil || len(v.Phases) != 2 || math.Abs(v.P-m.PNew) > 1e-9 {
		t.Fatalf("p %g of %d phases, want %g of two, %v", v.P, len(v.Phases), m.PNew, err)
	}
	if diff := cmp.Diff(map[string]int64{"a": 40, "b": 60}, v.Phases[1].Counts); diff != "" || v.Phases[1].Shares[1] != 0.5 {
		t.Errorf("second phase: shares %v, counts (-want +got): %s", v.Phases[1].Shares, diff)
	}
}

func (x ramped) checkOPE(t *testing.T, dsn string) {
	t.Helper()
	// The policy shows c1 twice as often as it was logged: IPS is the mean of weight times click.
	csv, prob := "product,creative,probability\n", map[string]float64{"c1": 2. / 3, "c2": 1. / 3, "c3": 0}
	for _, product := range []string{"p1", "p2"} {
		for c, p := range prob {
			csv += fmt.Sprintf("%s,%s,%g\n", product, c, p)
		}
	}
	file := filepath.Join(t.TempDir(), "policy.csv")
	if err := os.WriteFile(file, []byte(csv), 0o600); err != nil {
		t.Fatal(err)
	}
	v := ask(t, dsn, "ope", "--policy", file)
	n, sum := 0.0, 0.0
	for _, r := range x.rows {
		if r.Experiment == "e" && !r.Bot && !r.Impression.Time().Before(x.settled) {
			n++
			if r.Clicked {
				sum += 3 * prob[r.Creative]
			}
		}
	}
	ips := v["estimators"].(map[string]any)["ips"].(map[string]any)["value"].(float64)
	if v["rows"] != n || math.Abs(ips-sum/n) > 1e-6 { // the file's probabilities have six digits
		t.Errorf("ips %g of %v rows, want %g of %g", ips, v["rows"], sum/n, n)
	}
}
