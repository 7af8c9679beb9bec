package question

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Every question is complete: words that end as a question or remark, parameters that the query has, and the other way.
func TestBook(t *testing.T) {
	all := All()
	if len(all) < 10 {
		t.Errorf("%d questions", len(all))
	}
	inSQL := regexp.MustCompile(`\{(\w+):\w+\}`)
	for _, q := range all {
		if !strings.Contains(q.Text, "?") || !strings.HasPrefix(q.SQL, "SELECT") {
			t.Errorf("%s: question %q, query %.20q", q.Name, q.Text, q.SQL)
		}
		want, got := map[string]bool{}, map[string]bool{}
		for _, m := range inSQL.FindAllStringSubmatch(q.SQL, -1) {
			want[m[1]] = true
		}
		for _, p := range q.Params {
			got[p.Name] = true
			if p.Meaning == "" {
				t.Errorf("%s: parameter %s has no meaning", q.Name, p.Name)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: parameters of the query and of the comment differ:\n%s", q.Name, diff)
		}
	}
}

func TestValues(t *testing.T) {
	q := parse("x", "-- What?\n-- param a: must\n-- param b = 7: may\nSELECT {a:String}, {b:UInt8}\n")
	for _, c := range []struct {
		given, want map[string]string
		err         string
	}{
		{map[string]string{"a": "1"}, map[string]string{"a": "1", "b": "7"}, ""},
		{map[string]string{"a": "1", "b": "2"}, map[string]string{"a": "1", "b": "2"}, ""},
		{nil, nil, "needs a (must)"},
		{map[string]string{"a": "1", "c": "2"}, nil, "no parameter c: it has a, b"},
	} {
		got, err := q.Values(c.given)
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%v: %v, want %q", c.given, err, c.err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%v: %s", c.given, diff)
		}
	}
	if _, err := Find("nosuch"); err == nil || !strings.Contains(err.Error(), "freshness") {
		t.Errorf("unknown question: %v", err)
	}
}
