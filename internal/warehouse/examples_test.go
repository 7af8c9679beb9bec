package warehouse

import (
	"io/fs"
	"regexp"
	"strings"
	"testing"

	"ctrloop/schemas/table"
)

var (
	viewName    = regexp.MustCompile(`(?m)^CREATE OR REPLACE VIEW (\w+) `)
	exampleLine = regexp.MustCompile(`(?m)^-- Example:  (.*)$`)
)

// viewExamples are the example queries of the views' files, by view.
func viewExamples(t testing.TB) map[string]string {
	t.Helper()
	names, err := fs.Glob(table.Files, "*_view_*.sql")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, name := range names {
		raw, err := fs.ReadFile(table.Files, name)
		if err != nil {
			t.Fatal(err)
		}
		for s := range strings.SplitSeq(string(raw), ";\n") {
			if m := viewName.FindStringSubmatch(s); m != nil {
				e := exampleLine.FindStringSubmatch(s)
				if e == nil {
					t.Fatalf("%s: view %s has no example", name, m[1])
				}
				out[m[1]] = e[1]
			}
		}
	}
	return out
}

// Each view says what it answers, and its example runs.
func TestEveryViewIsDocumented(t *testing.T) {
	db := database(t)
	examples := viewExamples(t)
	if len(examples) < 20 {
		t.Errorf("%d views", len(examples))
	}
	for view, query := range examples {
		if err := db.Exec(t.Context(), query); err != nil {
			t.Errorf("%s: %s: %v", view, query, err)
		}
	}
	for _, want := range []string{"ctr_by_creative", "ctr_by_product_day", "ctr_by_category", "experiment_results", "experiment_lift", "experiment_health", "model_timeline",
		"click_delay", "freshness", "pair_evidence", "trace_impression", "creative_fatigue"} {
		if examples[want] == "" {
			t.Errorf("there is no view %s", want)
		}
	}
}
