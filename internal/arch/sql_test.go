package arch

import (
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"ctrloop/internal/warehouse/query"
)

// sqlText is a query or a statement that changes tables, over several lines too.
var sqlText = regexp.MustCompile("(?is)[\"'`(\\s](SELECT\\s[^\"]{1,400}?\\sFROM\\s|" +
	"INSERT INTO\\s\\w|ALTER TABLE\\s\\w|DELETE FROM\\s\\w|" +
	"(?:OPTIMIZE|TRUNCATE|DROP|CREATE) TABLE\\s\\w|SYSTEM (?:FLUSH|RELOAD|STOP|START|SYNC)\\s)")

// sqlExample is a command that is shown to people, with a question of theirs.
var sqlExample = regexp.MustCompile(`ctrloop sql '[^']*'`)

var sqlFolders = []string{"internal/warehouse/", "schemas/", "internal/arch/"}

// SQL is text of internal/warehouse and schemas: elsewhere nobody sees all of it when a table changes.
func TestSQLStandsInTheWarehouse(t *testing.T) {
	for _, name := range tracked(t) {
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") ||
			slices.ContainsFunc(sqlFolders, func(f string) bool { return strings.HasPrefix(name, f) }) {
			continue
		}
		for block := range strings.SplitSeq(readText(t, filepath.Join("../..", name)), "\n\n") {
			if m := sqlText.FindString(sqlExample.ReplaceAllString(block, "")); m != "" {
				t.Errorf("%s has SQL: %.80q; put it into internal/warehouse/query, or beside the code of internal/warehouse", name, m)
			}
		}
	}
}

// A query that nothing asks any more is deleted.
func TestEveryQueryIsAsked(t *testing.T) {
	var code strings.Builder
	for _, name := range tracked(t) {
		if strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") {
			code.WriteString(readText(t, filepath.Join("../..", name)))
		}
	}
	for _, name := range query.Names() {
		if !strings.Contains(code.String(), strconv.Quote(name)) {
			t.Errorf("internal/warehouse/query/%s.sql is asked by nobody", name)
		}
	}
}

// The pattern finds what it is for, and lets words of people pass.
func TestSQLIsFound(t *testing.T) {
	for text, want := range map[string]bool{
		"\"SELECT count() FROM labels\"": true, "`\n\t\tSELECT a,\n\t\tb FROM t`": true, "ask 'SELECT * FROM late'": true,
		"\"INSERT INTO looks (a)\"": true, "\"OPTIMIZE TABLE labels FINAL\"": true, "\"SYSTEM FLUSH LOGS\"": true,
		"// it selects what is left": false, "`ctrloop sql 'SELECT count() FROM labels'`": false,
	} {
		if got := sqlText.MatchString(sqlExample.ReplaceAllString(text, "")); got != want {
			t.Errorf("%q is SQL: %v, want %v", text, got, want)
		}
	}
}
