package arch

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// sqlText is a query or a statement that changes tables, over several lines too.
var sqlText = regexp.MustCompile("(?is)[\"`(\\s](SELECT\\s[^\"]{1,400}?\\sFROM\\s|INSERT INTO\\s\\w|ALTER TABLE\\s\\w|DELETE FROM\\s\\w)")

// sqlElsewhere are files that compose their queries, each with what it waits for. The list may only become shorter.
var sqlElsewhere = map[string]string{
	"app/overview.go": "names a view for people",
	"bench/query.go":  "the benchmark's own shop, and views by name",
	"bench/sink.go":   "the engine's own log and parts",
}

var sqlFolders = []string{"internal/warehouse/", "schemas/", "third_party/", "internal/arch/"}

// SQL is text of internal/warehouse and schemas: elsewhere nobody sees all of it when a table changes.
func TestSQLStandsInTheWarehouse(t *testing.T) {
	found := map[string]bool{}
	for _, name := range tracked(t) {
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") ||
			slices.ContainsFunc(sqlFolders, func(f string) bool { return strings.HasPrefix(name, f) }) {
			continue
		}
		for block := range strings.SplitSeq(readText(t, filepath.Join("../..", name)), "\n\n") {
			m := sqlText.FindString(block)
			if m == "" {
				continue
			}
			found[name] = true
			if sqlElsewhere[name] == "" {
				t.Errorf("%s has SQL: %.80q; put it into internal/warehouse/query, or beside the code of internal/warehouse", name, m)
			}
		}
	}
	for name := range sqlElsewhere {
		if !found[name] {
			t.Errorf("%s has no SQL any more: take it off the list", name)
		}
	}
}
