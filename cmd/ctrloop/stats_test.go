package main

import (
	"bytes"
	"context"
	"encoding/json"
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
	p, err := kong.New(&cmd, kong.Name("stats"), kong.Writers(&out, io.Discard), kong.BindTo(t.Context(), (*context.Context)(nil)), kong.Bind(&Globals{}), kong.Bind(&output{stdout: &out, stderr: io.Discard}), kong.Exit(func(int) { t.Fatal("exit while parsing") }))
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
	in := tempFile(t, "unit,arm,impressions,clicks\na,control,10,1\nb,control,10,2\nc,treatment,10,3\nd,treatment,10,2\n")
	v := runJSON(t, "lift", in)
	c := v["control"].(map[string]any)
	if c["units"] != 2.0 || c["impressions"] != 20.0 || c["clicks"] != 3.0 || c["ctr"] != 0.15 {
		t.Errorf("control %v", c)
	}
	// Each arm: rates 0.1/0.2 and 0.3/0.2, sample variance of the rate 0.005, halved: 0.0025; both: 0.005.
	for k, want := range map[string]float64{"lift_absolute": 0.1, "se": math.Sqrt(0.005), "lift_relative": 0.25/0.15 - 1} {
		if got := v[k].(float64); math.Abs(got-want) > 1e-12 {
			t.Errorf("%s = %v, want %v", k, got, want)
		}
	}
	low, high := v["low"].(float64), v["high"].(float64)
	if math.Abs((low+high)/2-0.1) > 1e-12 || low > 0 {
		t.Errorf("interval [%g, %g]", low, high)
	}
	if p := v["p_always_valid"].(float64); p < 0.5 || p > 1 {
		t.Errorf("four units gave p = %g", p)
	}
	if out, err := runStats(t, "lift", "--alpha", "0.1", "--nstar", "100", in); err != nil || !strings.Contains(out, "90 % at every look") {
		t.Errorf("text: %v\n%s", err, out)
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

func TestStatsErrorsNameTheFile(t *testing.T) {
	in := tempFile(t, "unit,arm,impressions\n")
	if _, err := runStats(t, "lift", in); err == nil || !strings.Contains(err.Error(), in) || !strings.Contains(err.Error(), `"clicks"`) {
		t.Errorf("error %v, want one with the file and the column", err)
	}
	if _, err := runStats(t, "lift", filepath.Join(t.TempDir(), "none.csv")); err == nil {
		t.Error("a missing file was read")
	}
}
