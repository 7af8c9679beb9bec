package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"math"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ctrloop/internal/controllog"
	"ctrloop/internal/controllog/controltest"
	"ctrloop/internal/httpapi"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment"
	"ctrloop/serving/experiment/ramp"

	"github.com/rs/zerolog"
)

// evenTraffic has the same sums at every look: 3,000 units an arm, 4 % and 5 %.
type evenTraffic struct{}

func (evenTraffic) Sums(_ context.Context, _ control.Experiment, spans []experiment.Span) (ramp.Sums, error) {
	var s ramp.Sums
	for i := range 3000 {
		s.Control.Observe(float64(min(1, max(0, i%25-23))), 1)
		s.Treatment.Observe(float64(min(1, max(0, i%20-18))), 1)
	}
	return s, nil
}

func (t evenTraffic) Categories(ctx context.Context, x control.Experiment, spans []experiment.Span) ([]experiment.CategorySums, error) {
	s, err := t.Sums(ctx, x, spans)
	return []experiment.CategorySums{{Category: "Garden, all", Sums: s}}, err
}

func (evenTraffic) Arrivals(context.Context, control.Experiment) ([]experiment.Arrivals, error) {
	day := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	return []experiment.Arrivals{{Day: day, Control: 1000, Treatment: 1100}, {Day: day.AddDate(0, 0, 1), Control: 2000, Treatment: 1900}}, nil
}

func (evenTraffic) Multiple(context.Context, control.Experiment, []experiment.Span) (experiment.Multiple, error) {
	return experiment.Multiple{Units: 6000, Both: 1}, nil
}

func (t evenTraffic) Weighted(ctx context.Context, x control.Experiment, parts []experiment.Part) (ramp.Sums, error) {
	return t.Sums(ctx, x, parts[0].Spans)
}

func (evenTraffic) Looks(context.Context, string, int) ([]experiment.LookRow, error) {
	return []experiment.LookRow{{Action: "hold", Rule: "min_samples"}}, nil
}

// api serves experiments over two versions of a model.
func api(t *testing.T) (*controltest.Log, *httptest.Server) {
	t.Helper()
	l := controltest.New()
	for _, v := range []string{"prompt-a", "prompt-b"} {
		l.Register(t, control.Model{Version: v, Logical: "prompt"})
		l.Shadow(t, v)
	}
	l.Promote(t, "prompt-a")
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	s, err := experiment.New(experiment.Default(), experiment.Deps{
		Control: l, Lead: controllog.Alone(l), Source: evenTraffic{}, Reports: evenTraffic{}, Wall: time.Now,
		EventNow: func() time.Time { now = now.Add(time.Hour); return now },
	}, zerolog.Nop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(httpapi.OpenAs("ada", s.Routes()...))
	t.Cleanup(srv.Close)
	return l, srv
}

// The life of an experiment from the command line: every command, its exit code, and what it says.
func TestExperimentCommands(t *testing.T) {
	l, srv := api(t)
	file := filepath.Join(t.TempDir(), "x.csv")
	for _, c := range []struct {
		args string // {API} is put in
		code int
		want string // in the output, or for a failure in the errors
	}{
		{"list", 0, "no experiments; `ctrloop experiment create"},
		{"create prompt-c", 2, "no such model version"},
		{"create prompt-b --slot prompt:0", 2, "want LAYER:START:END"},
		{"create prompt-b --target country", 2, "want ATTRIBUTE OPERATOR"},
		{"create prompt-b --target|country like de", 2, `operator "like"`},
		{"create prompt-b --id e --draft --steps 0.2,0.5,1 --target|country in de, fr --target|age gte 18 --slot prompt:0:0.5 --note first", 0,
			"e: prompt-b against prompt-a by user; a draft: `ctrloop experiment start e`"},
		{"list --phase running", 0, "no experiments"},
		{"pause e --note n", 1, "has not started"},
		{"start e", 0, "e: running, step 1 of 3 at 20 %"},
		{"pause e", 2, "--note"},
		{"pause e --note|two pictures look odd", 0, "e: paused, step 1"},
		{"resume e --note fine --expect 7", 1, "at version 3, the request expects 7"},
		{"resume e --note fine --expect 3", 0, "e: running"},
		{"override e --step 9 --note n", 2, "needs a step of 1 to 3"},
		{"override e --step 2 --note faster", 0, "step 2 of 3 at 50 %"},
		{"force e u17 treatment --json", 0, `": "treatment"`},
		{"replay e", 1, "no webhooks are configured"},
		{"show e", 0, "two pictures look odd"},
		{"show e", 0, "1 of 6000 units"},
		{"show e", 0, "found with probability"},
		{"show e", 0, "whole ramp (for reports, decides nothing)"},
		{"show e --json", 0, `"guardrails"`},
		{"show none", 1, "`ctrloop experiment list` lists them"},
		{"stop e --note n", 2, "--outcome"},
		{"stop e --outcome maybe --note n", 2, "must be one of"},
		{"export e --format csv -o " + file, 0, ""},
		{"export e", 0, `"categories"`},
		{"rollback e --note|ugly pictures", 0, "e: decided, rollback by manual"},
		{"promote e --note n", 1, "was decided"},
		{"list", 0, "rollback (manual)"},
		{"list --json", 0, `"phase": "decided"`},
		{"holdout", 0, "no holdout groups"},
		{"holdout prompt", 2, "give --share"},
		{"holdout prompt --share 0.1", 2, "give a note"},
		{"holdout prompt --share 0.1 --version prompt-a --note long", 0, "prompt: 10 % of the users stay at prompt-a"},
		{"holdout --json", 0, `"share": 0.1`},
	} {
		args := []string{"experiment"}
		for i, part := range strings.Split(c.args, " --") {
			if i > 0 {
				part = "--" + part
			}
			if flag, value, ok := strings.Cut(part, "|"); ok {
				args = append(args, flag, value)
			} else {
				args = append(args, strings.Fields(part)...)
			}
		}
		args = append(args, "--api", srv.URL)
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), args, &stdout, &stderr)
		got := stdout.String()
		if c.code != 0 {
			got = stderr.String()
		}
		if code != c.code || !strings.Contains(got, c.want) {
			t.Errorf("%s: exit %d, want %d with %q:\n%s%s", c.args, code, c.code, c.want, &stdout, &stderr)
		}
		if strings.Contains(c.args, "json") && c.code == 0 && !json.Valid(stdout.Bytes()) {
			t.Errorf("%s: not JSON: %s", c.args, &stdout)
		}
		if c.code != 0 && !strings.Contains(stderr.String(), "do: ") {
			t.Errorf("%s: the error does not say what to do: %s", c.args, &stderr)
		}
	}
	x := l.State().Experiments["e"]
	if x.Trail[0].Actor != "ada" || x.Trail[0].Note != "first" || len(x.Trail) != 7 || x.InSlot().End != 0.5 || len(x.Targeting) != 2 ||
		x.Targeting[0].Values[1] != "fr" {
		t.Errorf("on the log: %+v", x)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(bytes.NewReader(raw)).ReadAll()
	if err != nil || len(rows) != 1+4+2 || rows[0][0] != "experiment" || rows[6][2] != "Garden, all" || rows[6][4] != "3000" ||
		rows[6][6] != "150" {
		t.Errorf("%v: %v", err, rows)
	}
}

// What is not known yet is a question mark, not a NaN.
func TestExperimentWithoutData(t *testing.T) {
	nan := ramp.Num(math.NaN())
	arm := ramp.Arm{CTR: nan, Low: nan, High: nan}
	var b strings.Builder
	err := printExperiment(&b, experiment.Results{
		Steps:  []ramp.Figures{{Control: arm, Treatment: arm, Relative: nan, RelativeLow: nan, RelativeHigh: nan, P: nan}},
		Health: experiment.HealthRow{SampleRatioP: nan, HalfWidth: nan, MDE: nan, DaysToOnePercent: nan, UnitsForMargin: nan},
	})
	if err != nil || strings.Contains(b.String(), "NaN") || !strings.Contains(b.String(), "+-? % now") ||
		strings.Contains(b.String(), "as planned") || !strings.Contains(b.String(), "not known") {
		t.Errorf("%v\n%s", err, b.String())
	}
}

func TestExperimentWithoutAnInstance(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"list --dir " + t.TempDir(), "ctrloop up"},
		{"list --api http://127.0.0.1:1", "is it running?"},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), append([]string{"experiment"}, strings.Fields(c.args)...), &stdout, &stderr); code == 0 ||
			!strings.Contains(stderr.String(), c.want) {
			t.Errorf("%s: exit %d, %s", c.args, code, &stderr)
		}
	}
}
