package warehouse

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ctrloop/schemas/question"
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
		for _, s := range statements(string(raw)) {
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
	for _, want := range []string{"ctr_by_creative", "ctr_by_product_day", "ctr_by_category", "experiment_results", "experiment_lift",
		"experiment_health", "model_timeline",
		"click_delay", "freshness", "pair_evidence", "trace_impression", "creative_fatigue"} {
		if examples[want] == "" {
			t.Errorf("there is no view %s", want)
		}
	}
}

var update = flag.Bool("update", false, "rewrite the generated part of docs/warehouse.md")

// docsPage is the page whose last part is made from the comments of the views and of the questions.
const (
	docsPage   = "../../docs/warehouse.md"
	docsMarker = "<!-- From here on generated: go test ./internal/warehouse -run DocsPage -update -->\n"
)

// viewReference is the comment of each view as a section, in the order of the files, and the book of questions.
func viewReference(t *testing.T) string {
	t.Helper()
	names, err := fs.Glob(table.Files, "*_view_*.sql")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("## Views\n")
	for _, name := range names {
		raw, err := fs.ReadFile(table.Files, name)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range statements(string(raw)) {
			m := viewName.FindStringSubmatch(s)
			if m == nil {
				continue
			}
			_, comment, ok := strings.Cut(s, "-- "+m[1]+"\n")
			if !ok {
				t.Fatalf("%s: the comment of %s does not begin with its name", name, m[1])
			}
			fmt.Fprintf(&b, "\n### %s\n", m[1])
			for line := range strings.SplitSeq(comment, "\n") {
				text, ok := strings.CutPrefix(line, "-- ")
				if !ok {
					break
				}
				head, rest, isHead := strings.Cut(text, ":")
				switch {
				case isHead && !strings.HasPrefix(text, " ") && head == "Example":
					fmt.Fprintf(&b, "\n\n```sql\n%s\n```", strings.TrimSpace(rest))
				case isHead && !strings.HasPrefix(text, " "):
					fmt.Fprintf(&b, "\n\n**%s.** %s", head, strings.TrimSpace(rest))
				default:
					fmt.Fprintf(&b, "\n%s", strings.TrimSpace(text))
				}
			}
			b.WriteString("\n")
		}
	}
	b.WriteString(
		"\n## The book of questions\n\n`ctrloop sql --list` prints it, `ctrloop sql --question NAME --param k=v` asks.\n\n| name | question | " +
			"parameters |\n|---|---|---|\n",
	)
	for _, q := range question.All() {
		var params []string
		for _, p := range q.Params {
			text := "`" + p.Name + "`: " + p.Meaning
			if p.Default != nil {
				text += " (" + *p.Default + ")"
			}
			params = append(params, text)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", q.Name, q.Text, strings.Join(params, "; "))
	}
	return strings.ReplaceAll(b.String(), "\n\n\n", "\n\n")
}

// The page says what the files say.
func TestDocsPage(t *testing.T) {
	raw, err := os.ReadFile(docsPage)
	if err != nil {
		t.Fatal(err)
	}
	head, got, ok := strings.Cut(string(raw), docsMarker)
	if !ok {
		t.Fatalf("%s has lost its line %q", docsPage, docsMarker)
	}
	want := "\n" + viewReference(t)
	if *update {
		if err := os.WriteFile(docsPage, []byte(head+docsMarker+want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s is not what the files say; run this test with -update (-want +got):\n%s", docsPage, diff)
	}
}
