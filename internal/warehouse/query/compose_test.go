package query

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite testdata with what is composed now")

var (
	noon    = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	visit   = Span{From: noon, To: noon.Add(3 * time.Hour)}
	again   = Span{From: noon.Add(30 * time.Hour), To: noon.Add(102 * time.Hour)} // with two whole days
	onwards = Span{From: noon.Add(200 * time.Hour)}
)

// composed has every query that is composed, in the forms that differ.
var composed = map[string]Query{
	"arm_sums_user_always":            ArmSums("e", User, []Span{{}}),
	"arm_sums_user_visits":            ArmSums("e", User, []Span{visit, again, onwards}),
	"arm_sums_product_hours":          ArmSums("e", Product, []Span{visit}),
	"arm_sums_user_never":             ArmSums("e", User, nil),
	"units_in_both_arms_user":         UnitsInBothArms("e", User, []Span{visit}),
	"units_in_both_arms_product":      UnitsInBothArms("e", Product, []Span{onwards}),
	"arm_sums_by_category_user":       ArmSumsByCategory("e", User, []Span{visit, onwards}),
	"arm_sums_by_category_product":    ArmSumsByCategory("e", Product, []Span{{}}),
	"arm_sums_by_category_user_never": ArmSumsByCategory("e", User, nil),
	"arm_scores_user":                 ArmScores("e", User, []Span{visit}),
	"arm_scores_product":              ArmScores("e", Product, []Span{visit}),
	"unit_arrivals_user":              UnitArrivals("e", User),
	"unit_arrivals_product":           UnitArrivals("e", Product),
	"arm_sums_weighted_user": ArmSumsWeighted("e", User, []Weighted{
		{[]Span{visit}, 0.1, 0.9}, {[]Span{again, onwards}, 0.5, 0.5},
	}),
	"arm_sums_covariate_user":             ArmSumsCovariate("e", User, []Span{visit}, Span{noon.AddDate(0, 0, -14), noon}, false),
	"arm_sums_covariate_product_category": ArmSumsCovariate("e", Product, []Span{visit}, Span{noon, noon}, true),
	"impressions_apart_user":              ImpressionsApart("e", User, []Span{visit}),
	"unit_phases_user": UnitPhases("e", User, []Phase{
		{0, 0}, {noon.UnixMilli(), noon.Add(time.Minute).UnixMilli()},
	}),
	"bench_arm_sums":  {Text: BenchQuestions("id")[3].Text},
	"bench_merge_day": {Text: BenchMergeDay("20260304")},
	"decisions":       Decisions("e", "explore:e", []Span{visit}, 1000),
}

// What is composed is what a person has read: `go test -update` writes it anew, to be reviewed as a change of SQL. The engine's
// answers to these are tested where they are asked.
func TestComposedQueries(t *testing.T) {
	files, err := filepath.Glob("testdata/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".sql")
		if _, ok := composed[name]; !ok && name != "bench_questions" {
			t.Errorf("%s is of no query", f)
		}
	}
	for name, q := range composed {
		if n := strings.Count(q.Text, "?"); n != len(q.Args) {
			t.Errorf("%s: %d question marks for %d arguments", name, n, len(q.Args))
		}
		var got strings.Builder
		got.WriteString(q.Text + "\n")
		for _, a := range q.Args {
			fmt.Fprintf(&got, "-- %T %v\n", a, a)
		}
		golden(t, name, got.String())
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".sql")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is composed otherwise than testdata says; read the difference, then `go test ./internal/warehouse/query -update`:\n%s",
			name, got)
	}
}

// The questions of the benchmark are in testdata as they are run.
func TestBenchQuestions(t *testing.T) {
	var got strings.Builder
	for _, q := range BenchQuestions("019ca8a5-0000-7000-8000-000000000000") {
		fmt.Fprintf(&got, "-- %s\n%s;\n", q.Name, BenchRun(q.Text, "bench"))
	}
	golden(t, "bench_questions", got.String())
}

// Every text that has places is composed by one of the queries above, and every place of it is filled.
func TestEveryTextWithPlacesIsComposed(t *testing.T) {
	for _, name := range Names() {
		places, seen := strings.Contains(Text(name), "{{"), false
		for of := range composed {
			seen = seen || of == name || strings.HasPrefix(of, name+"_")
		}
		if places != seen {
			t.Errorf("%s.sql: places %v, composed in the test %v", name, places, seen)
		}
	}
	for name, q := range composed {
		if strings.Contains(q.Text, "{{") || strings.Contains(q.Text, "<no value>") {
			t.Errorf("%s: a place is left open: %s", name, q.Text)
		}
	}
}
