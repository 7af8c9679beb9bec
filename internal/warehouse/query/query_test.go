package query

import (
	"slices"
	"strings"
	"testing"
)

// A file begins with what it answers, and has one statement behind it.
func TestQueriesSayWhatTheyAnswer(t *testing.T) {
	if len(Names()) < 10 {
		t.Fatal("no queries")
	}
	for _, name := range Names() {
		raw, err := files.ReadFile(name + ".sql")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(raw), "-- ") {
			t.Errorf("%s.sql does not say what it answers", name)
		}
		text := Text(name)
		verb := func(v string) bool { return strings.HasPrefix(text, v+" ") }
		verbs := []string{"SELECT", "WITH", "INSERT INTO", "OPTIMIZE TABLE", "TRUNCATE TABLE", "SYSTEM"}
		if !slices.ContainsFunc(verbs, verb) || strings.Contains(text, "--") || strings.HasSuffix(text, ";") {
			t.Errorf("%s.sql: want one statement behind the comment, without another comment or a semicolon: %q", name, text)
		}
		for i, line := range strings.Split(string(raw), "\n") {
			if len(line) > 140 {
				t.Errorf("%s.sql:%d: %d characters, at most 140", name, i+1, len(line))
			}
		}
	}
}
