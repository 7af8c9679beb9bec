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
		if begins := slices.ContainsFunc([]string{"SELECT ", "INSERT INTO ", "OPTIMIZE TABLE ", "TRUNCATE TABLE ", "SYSTEM "}, func(verb string) bool {
			return strings.HasPrefix(text, verb)
		}); !begins || strings.Contains(text, "--") || strings.HasSuffix(text, ";") {
			t.Errorf("%s.sql: want one statement behind the comment, without another comment or a semicolon: %q", name, text)
		}
		for i, line := range strings.Split(string(raw), "\n") {
			if len(line) > 140 {
				t.Errorf("%s.sql:%d: %d characters, at most 140", name, i+1, len(line))
			}
		}
	}
}
