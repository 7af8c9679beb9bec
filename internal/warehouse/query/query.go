// Package query holds the SQL that programs send to the warehouse, one file a question, so that a change of a question is a change
// of a file which a person reads. A file begins with what it answers, as a comment; its arguments are question marks in their
// order, or numbered ($1) where one is used several times. Where a text depends on what is asked (the unit of an experiment, the
// spans of a step), a function here fills its places {{.name}} and puts the arguments in order; what comes out of
// each is in testdata, for a person to review too.
// Questions of people are in schemas/question, and what only internal/warehouse asks stands beside its code.
package query

import (
	"embed"
	"strings"
)

//go:embed *.sql
var files embed.FS

// Text is the query of a name, its places not filled. A name that there is not is a mistake in the program.
func Text(name string) string {
	raw, err := files.ReadFile(name + ".sql")
	if err != nil {
		panic("no query " + name)
	}
	text := strings.TrimSpace(string(raw))
	for strings.HasPrefix(text, "--") {
		_, text, _ = strings.Cut(text, "\n")
	}
	return text
}

// Names lists all queries.
func Names() []string {
	entries, err := files.ReadDir(".")
	if err != nil {
		panic(err) // embedded files can be read
	}
	var out []string
	for _, e := range entries {
		out = append(out, strings.TrimSuffix(e.Name(), ".sql"))
	}
	return out
}
