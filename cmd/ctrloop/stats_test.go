package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// runStats parses and runs `ctrloop stats ARGS...` the way main does.
func runStats(t *testing.T, args ...string) (stdout string, err error) {
	t.Helper()
	var cmd StatsCmd
	var out bytes.Buffer
	p, err := kong.New(
		&cmd,
		kong.Name("stats"),
		kong.Writers(&out, io.Discard),
		kong.BindTo(t.Context(), (*context.Context)(nil)),
		kong.Bind(&Globals{}),
		kong.Bind(&output{stdout: &out, stderr: io.Discard}),
		kong.Exit(func(int) { t.Fatal("exit while parsing") }),
	)
	if err != nil {
		t.Fatal(err)
	}
	k, err := p.Parse(args)
	if err != nil {
		return "", err
	}
	err = k.Run()
	return out.String(), err
}

func tempFile(t *testing.T, content string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "in.csv")
	if err := os.WriteFile(f, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func runJSON(t *testing.T, args ...string) map[string]any {
	t.Helper()
	f := filepath.Join(t.TempDir(), "out.json")
	if _, err := runStats(t, append(args, "--json", f)...); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(f)
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestStatsLift(t *testing.T) {
	var rows strings.Builder
	rows.WriteString("unit,arm,impressions,clicks\n")
	for i := range 20 {
		fmt.Fprintf(&rows, "a%d,control,10,1\nb%d,control,10,2\nc%d,treatment,10,3\nd%d,treatment,10,2\n", i, i, i, i)
	}
	in := tempFile(t, rows.String())
	v := runJSON(t, "lift", in)
	c := v["control"].(map[string]any)
	if c["units"] != 40.0 || c["impressions"] != 400.0 || c["clicks"] != 60.0 || c["ctr"] != 0.15 {
		t.Errorf("control %v", c)
	}
	// Each arm: 40 rates 0.05 from their mean, sample variance 0.1/39, over 40 units; both arms: twice that.
	for k, want := range map[string]float64{"lift_absolute": 0.1, "se": math.Sqrt(2 * 0.1 / 39 / 40), "lift_relative": 0.25/0.15 - 1} {
		if got := v[k].(float64); math.Abs(got-want) > 1e-12 {
			t.Errorf("%s = %v, want %v", k, got, want)
		}
	}
	low, high := v["low"].(float64), v["high"].(float64)
	if math.Abs((low+high)/2-0.1) > 1e-12 || low <= 0 {
		t.Errorf("interval [%g, %g]", low, high)
	}
	if p := v["p_always_valid"].(float64); p < 0.001 || p > 0.05 || v["null_because"] != nil {
		t.Errorf("p = %g, %v", p, v["null_because"])
	}
	if out, err := runStats(t, "lift", "--alpha", "0.1", "--n-star", "100", in); err != nil || !strings.Contains(out, "90 % at every look") {
		t.Errorf("text: %v\n%s", err, out)
	}
}

// Too little data: null with the reason, in JSON and in words; an exact interval where the bound is known.
func TestStatsLiftOfFewUnits(t *testing.T) {
	in := tempFile(t, "unit,arm,impressions,clicks\na,control,10,1\nb,control,10,1\nc,treatment,10,2\nd,treatment,10,2\n")
	v := runJSON(t, "lift", in, "--exact", "10")
	for _, name := range []string{"low", "high", "se", "p_always_valid", "relative_low", "relative_high"} {
		if why, _ := v["null_because"].(map[string]any)[name].(string); v[name] != nil || !strings.Contains(why, "too little data") {
			t.Errorf("%s = %v because %q", name, v[name], why)
		}
	}
	if e := v["exact"].(map[string]any); e["low"].(float64) > -0.3 || e["high"].(float64) < 0.3 {
		t.Errorf("exact %v", e)
	}
	if out, err := runStats(t, "lift", in); err != nil || !strings.Contains(out, "no interval and no p: too little data") {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := runStats(t, "lift", in, "--exact", "9"); err == nil || !strings.Contains(err.Error(), "known beforehand") {
		t.Errorf("error %v, want one about the bound", err)
	}
}

// The treatment is better within both categories and worse in the sum: it met the poor one more often.
func TestStatsLiftTellsSimpsonsTrap(t *testing.T) {
	var rows strings.Builder
	rows.WriteString("unit,arm,impressions,clicks,category\n")
	n := 0
	fill := func(arm, category string, units, rate int) {
		for i := range units {
			n++
			clicks := 0
			if i%20 < rate {
				clicks = 2
			}
			fmt.Fprintf(&rows, "u%d,%s,10,%d,%s\n", n, arm, clicks, category)
		}
	}
	fill("control", "good", 4000, 10)
	fill("treatment", "good", 1000, 12)
	fill("control", "poor", 1000, 2)
	fill("treatment", "poor", 4000, 3)
	in := tempFile(t, rows.String())
	v := runJSON(t, "lift", in)
	within := v["within_categories"].(map[string]any)
	if v["high"].(float64) >= 0 || within["relative_low"].(float64) <= 0 || within["trap"] == nil {
		t.Errorf("pooled %v, within %v", v["statsDifference"], within)
	}
	if out, err := runStats(t, "lift", in); err != nil || !strings.Contains(out, "Simpson") {
		t.Errorf("%v\n%s", err, out)
	}
}

// What cannot be computed is refused with words: no NaN and no infinity leaves with exit 0.
func TestStatsRefusesWhatHasNoAnswer(t *testing.T) {
	lift := tempFile(t, "unit,arm,impressions,clicks\na,control,10,1\nb,control,10,2\nc,treatment,10,3\nd,treatment,10,2\n")
	units := tempFile(t, "unit,impressions,clicks\na,10,1\nb,10,2\nc,10,3\n")
	srm := tempFile(t, "arm,count\ncontrol,1000\ntreatment,900\n")
	log := tempFile(t, "item_id,position,click,propensity_score\n1,1,1,0.5\n2,1,0,0.5\n1,1,0,0.5\n")
	policy := tempFile(t, "item_id,position,probability\n1,1,0.5\n2,1,0.5\n")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"srm", srm, "--prior", "1e308"}, "prior"},
		{[]string{"srm", srm, "--prior", "inf"}, "prior"},
		{[]string{"srm", tempFile(t, "arm,count\na,9000000000000000000\nb,9000000000000000000\n")}, "counted exactly"},
		{[]string{"srm", tempFile(t, "arm,count\na,9000000000000000\nb,9000000000000000\n")}, "digits"},
		{[]string{"lift", lift, "--n-star", "1e300"}, "nstar"},
		{[]string{"lift", lift, "--alpha", "nan"}, "alpha"},
		{[]string{"lift", tempFile(t, "unit,arm,impressions,clicks\nc,control,9000000000000000000,1\nt,treatment,10,1\n")}, "counted exactly"},
		{[]string{"power", units, "--effects", "1e-12"}, "cannot be planned"},
		{[]string{"power", units, "--target", "1e-12"}, "cannot be planned"},
		{[]string{"power", units, "--units-per-day", "inf"}, "units-per-day"},
		{[]string{"ope", log, "--policy", policy, "--shrink", "inf"}, "shrink"},
		{[]string{"ope", log, "--policy", policy, "--clip", "nan"}, "clip"},
		{[]string{"ope", log, "--policy", policy, "--sg", "nan"}, "sg"},
		{[]string{"ope", tempFile(t, "item_id,position,click,propensity_score\n1,1,1,nan\n"), "--policy", policy}, "finite"},
	} {
		for _, extra := range [][]string{nil, {"--json", "-"}} {
			if out, err := runStats(t, append(c.args, extra...)...); err == nil || !strings.Contains(err.Error(), c.want) || out != "" {
				t.Errorf("%v: error %v, want one about %q; printed %q", c.args, err, c.want, out)
			}
		}
	}
	if err := checkFinite(map[string]any{"a": []*float64{new(float64)}, "b": struct{ X float64 }{math.Inf(1)}}); err == nil ||
		!strings.Contains(err.Error(), "[b].X") {
		t.Errorf("error %v, want one that names the field", err)
	}
}

// Logged propensities that are not those of the log show in the mean weight.
func TestStatsOPEWarnsOfPropensities(t *testing.T) {
	var wrong, right strings.Builder
	for _, b := range []*strings.Builder{&wrong, &right} {
		b.WriteString("item_id,position,click,propensity_score\n")
	}
	for i := range 2000 {
		item, p := 1, 0.9
		if i%10 == 0 {
			item, p = 2, 0.1
		}
		fmt.Fprintf(&wrong, "%d,1,%d,0.5\n", item, i%7/6)
		fmt.Fprintf(&right, "%d,1,%d,%g\n", item, i%7/6, p)
	}
	policy := tempFile(t, "item_id,position,probability\n1,1,0.3\n2,1,0.7\n")
	v := runJSON(t, "ope", tempFile(t, wrong.String()), "--policy", policy)
	if w := v["mean_weight"].(float64); math.Abs(w-(0.9*0.6+0.1*1.4)) > 1e-9 || len(v["warnings"].([]any)) != 1 {
		t.Errorf("mean weight %g, warnings %v", w, v["warnings"])
	}
	if v = runJSON(t, "ope", tempFile(t, right.String()), "--policy", policy); math.Abs(v["mean_weight"].(float64)-1) > 1e-9 ||
		v["warnings"] != nil {
		t.Errorf("mean weight %v, warnings %v", v["mean_weight"], v["warnings"])
	}
}

func TestStatsSRM(t *testing.T) {
	v := runJSON(t, "srm", tempFile(t, "arm,count\na,2\nb,0\n"))
	if math.Abs(v["bayes_factor"].(float64)-1.5) > 1e-12 || math.Abs(v["p"].(float64)-1/1.5) > 1e-12 {
		t.Errorf("got %v, want Bayes factor 1.5 and p 2/3", v)
	}
	v = runJSON(t, "srm", "--shares", "0.99,0.01", "--prior", "10", tempFile(t, "arm,count\na,500000\nb,500000\n"))
	if v["bayes_factor"].(float64) != math.MaxFloat64 || v["p"].(float64) != 0 {
		t.Errorf("a factor beyond float64 gave %v", v)
	}
	if _, err := runStats(t, "srm", "--shares", "0.5,0.2,0.3", tempFile(t, "arm,count\na,2\nb,0\n")); err == nil {
		t.Error("three shares for two arms were taken")
	}
}

func TestStatsOPE(t *testing.T) {
	const dir = "../../internal/stats/statcsv/testdata/"
	v := runJSON(t, "ope", "--policy", dir+"policy-bts-women.csv", dir+"log-random-women.csv.gz")
	ips := v["estimators"].(map[string]any)["ips"].(map[string]any)
	if math.Abs(ips["value"].(float64)-0.0059179622727631356) > 1e-12 || v["rows"] != 10000.0 || v["clicks"] != 46.0 {
		t.Errorf("ips %v of %v rows with %v clicks", ips, v["rows"], v["clicks"])
	}
	if n := len(v["estimators"].(map[string]any)); n != 9 {
		t.Errorf("%d estimators, want 9", n)
	}
}

func TestStatsLiftOfCategoriesWithCovariates(t *testing.T) {
	var in strings.Builder
	in.WriteString("unit,arm,impressions,clicks,category,pre_impressions,pre_clicks\n")
	for u := range 2000 {
		arm, clicks := "control", u%5/4
		if u%2 == 1 {
			arm, clicks = "treatment", u%5/2
		}
		fmt.Fprintf(&in, "u%d,%s,4,%d,bags,9,%d\nu%d,%s,3,%d,shoes,9,%d\n", u, arm, clicks, u%5, u, arm, u%5/4, u%5)
	}
	dir := t.TempDir()
	file := tempFile(t, in.String())
	out, err := runStats(t, "lift", file, "--report", filepath.Join(dir, "r.md"))
	if err != nil || !strings.Contains(out, "takes away") || strings.Count(out, "reported: +") != 1 {
		t.Errorf("%v\n%s", err, out)
	}
	report, err := os.ReadFile(filepath.Join(dir, "r.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, plot := range []string{"r-lift.svg", "r-categories.svg"} {
		if svg, err := os.ReadFile(filepath.Join(dir, plot)); err != nil || !strings.Contains(string(report), "(<"+plot+">)") ||
			!strings.HasPrefix(string(svg), "<svg") {
			t.Errorf("%s: %v, or the report does not show it:\n%s", plot, err, report)
		}
	}
	if !strings.Contains(string(report), out) {
		t.Error("the report lacks the text that the terminal shows")
	}
	v := runJSON(t, "lift", file, "--fdr", "0.05")
	bags := v["categories"].([]any)[0].(map[string]any)
	if bags["category"] != "bags" || bags["discovered"] != true || bags["selected_relative_low"].(float64) >= bags["relative_low"].(float64) {
		t.Errorf("bags: %v", bags)
	}
	if a := v["adjusted"].(map[string]any); a["se"].(float64) >= v["se"].(float64) || a["variance_reduction"].(float64) <= 0 {
		t.Errorf("adjusted %v, plain se %v", a, v["se"])
	}
	if _, err := runStats(t, "lift", file, "--report", filepath.Join(dir, "r.html")); err == nil || !strings.Contains(err.Error(), ".md") {
		t.Errorf("error %v, want one about .md", err)
	}
}

func TestStatsSRMOfARamp(t *testing.T) {
	in := tempFile(t, "phase,arm,count,share\n10 %,a,9010,0.9\n10 %,b,990,0.1\n50 %,a,5300,0.5\n50 %,b,4700,0.5\n")
	v := runJSON(t, "srm", in, "--report", filepath.Join(t.TempDir(), "srm.md"))
	phases := v["phases"].([]any)
	sum := phases[0].(map[string]any)["log_bayes_factor"].(float64) + phases[1].(map[string]any)["log_bayes_factor"].(float64)
	if math.Abs(v["log_bayes_factor"].(float64)-sum) > 1e-12 || v["p_any"].(float64) > 1e-4 {
		t.Errorf("got %v", v)
	}
	more := runJSON(t, "srm", in, "--phases", "5")
	if r := more["p_any"].(float64) / v["p_any"].(float64); math.Abs(r-2.5) > 1e-9 {
		t.Errorf("p over five planned phases is %g times that over two", r)
	}
}

func TestStatsPower(t *testing.T) {
	var in strings.Builder
	in.WriteString("unit,impressions,clicks\n")
	for u := range 1000 {
		fmt.Fprintf(&in, "u%d,10,%d\n", u, u%3)
	}
	file := tempFile(t, in.String())
	v := runJSON(t, "power", file, "--units-per-day", "500", "--effects", "0.05", "--target", "0.02")
	// Clicks 0, 1, 2 out of 10: the rate is 0.0999, a unit's deviation sqrt(2/3)/10, that of a difference twice as much.
	if got, want := v["sigma"].(float64), 0.2*math.Sqrt(2./3); math.Abs(got-want) > 2e-3*want {
		t.Errorf("sigma %g, want %g", got, want)
	}
	e := v["effects"].([]any)[0].(map[string]any)
	if math.Abs(e["days"].(float64)-e["units"].(float64)/500) > 1e-9 ||
		v["days_to_target"].(float64) != (v["units_to_target"].(float64)-1000)/500 {
		t.Errorf("got %v", v)
	}
	if out, err := runStats(t, "power", file, "--report", filepath.Join(t.TempDir(), "p.md")); err != nil || strings.Contains(out, "days") ||
		!strings.Contains(out, "find  +5.0 %") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, args := range [][]string{{"--share", "1"}, {"--power", "0"}, {"--alpha", "2"}} {
		if _, err := runStats(t, append([]string{"power", file}, args...)...); err == nil {
			t.Errorf("%v were taken", args)
		}
	}
	if _, err := runStats(t, "power", tempFile(t, "unit,impressions,clicks\na,1,0\nb,1,0\n")); err == nil ||
		!strings.Contains(err.Error(), "no variation") {
		t.Errorf("error %v, want one about no variation", err)
	}
}

func TestStatsWrongUsage(t *testing.T) {
	in := tempFile(t, "unit,arm,impressions,clicks\na,control,10,1\nb,treatment,10,2\n")
	for _, args := range [][]string{{"--alpha", "2"}, {"--fdr", "1"}, {"--pre", "-1h"}, {"--n-star", "0"}, {"--step", "2"}} {
		if code, _, stderr := cli(t, append([]string{"stats", "lift", in}, args...)...); code != exitUsage || stderr == "" {
			t.Errorf("%v: exit %d: %s", args, code, stderr)
		}
	}
	if code, _, stderr := cli(t, "stats", "power", in, "--effects", "0.05,0"); code != exitUsage || !strings.Contains(stderr, "other than 0") {
		t.Errorf("an effect of 0: exit %d: %s", code, stderr)
	}
}

func TestStatsNeedsOneSource(t *testing.T) {
	for _, args := range [][]string{{"stats", "lift"}, {"stats", "lift", "x.csv", "--experiment", "e"}} {
		if code, _, stderr := cli(t, args...); code != exitUsage || !strings.Contains(stderr, "one of the two") {
			t.Errorf("%q: exit %d: %s", args, code, stderr)
		}
	}
}

func TestStatsErrorsNameTheFile(t *testing.T) {
	in := tempFile(t, "unit,arm,impressions\n")
	if _, err := runStats(t, "lift", in); err == nil || !strings.Contains(err.Error(), in) || !strings.Contains(err.Error(), `"clicks"`) {
		t.Errorf("error %v, want one with the file and the column", err)
	}
	if _, err := runStats(t, "lift", filepath.Join(t.TempDir(), "none.csv")); err == nil {
		t.Error("a missing file was read")
	}
}
