// Package question is the book of saved questions to the warehouse: one SQL file each, for `ctrloop sql --question`,
// the documentation and the console. The name is that of the file. A file begins with the question as a comment,
// then a line for each parameter, "-- param NAME: meaning" or "-- param NAME = DEFAULT: meaning"; the query names
// them as ClickHouse does, {NAME:Type}.
package question

import (
	"embed"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

//go:embed *.sql
var files embed.FS

// Question is a saved query.
type Question struct {
	Name   string  `json:"name"`
	Text   string  `json:"text"` // the question in words
	Params []Param `json:"params,omitempty"`
	SQL    string  `json:"sql"`
}

// Param is a parameter of a question.
type Param struct {
	Name    string  `json:"name"`
	Meaning string  `json:"meaning"`
	Default *string `json:"default,omitempty"` // nil: must be given
}

// All returns the book, sorted by name.
func All() []Question {
	entries, err := files.ReadDir(".")
	if err != nil {
		panic(err) // embedded files can be read
	}
	out := make([]Question, 0, len(entries))
	for _, e := range entries {
		raw, err := files.ReadFile(e.Name())
		if err != nil {
			panic(err)
		}
		out = append(out, parse(strings.TrimSuffix(e.Name(), ".sql"), string(raw)))
	}
	return out
}

// Find returns the question of a name; the error lists all names.
func Find(name string) (Question, error) {
	all := All()
	var names []string
	for _, q := range all {
		if q.Name == name {
			return q, nil
		}
		names = append(names, q.Name)
	}
	return Question{}, fmt.Errorf("no question %q in the book: it has %s", name, strings.Join(names, ", "))
}

var paramLine = regexp.MustCompile(`^-- param (\w+)(?: = (\S+))?: (.*)$`)

func parse(name, text string) Question {
	q := Question{Name: name}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, line := range lines {
		if m := paramLine.FindStringSubmatch(line); m != nil {
			p := Param{Name: m[1], Meaning: m[3]}
			if m[2] != "" {
				p.Default = &m[2]
			}
			q.Params = append(q.Params, p)
		} else if words, ok := strings.CutPrefix(line, "-- "); ok {
			q.Text = strings.TrimSpace(q.Text + " " + words)
		} else {
			q.SQL = strings.Join(lines[i:], "\n")
			break
		}
	}
	return q
}

// Values are the parameters to send: those given, with defaults for the others. A parameter that the question
// does not have, or that has no default and was not given, is an error.
func (q Question) Values(given map[string]string) (map[string]string, error) {
	values := maps.Clone(given)
	if values == nil {
		values = map[string]string{}
	}
	var known []string
	for _, p := range q.Params {
		known = append(known, p.Name)
		if _, ok := values[p.Name]; ok {
			continue
		}
		if p.Default == nil {
			return nil, fmt.Errorf("question %s needs %s (%s): give it with --param %s=VALUE", q.Name, p.Name, p.Meaning, p.Name)
		}
		values[p.Name] = *p.Default
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !slices.Contains(known, name) {
			if len(known) == 0 {
				return nil, fmt.Errorf("question %s has no parameters, and %s was given", q.Name, name)
			}
			return nil, fmt.Errorf("question %s has no parameter %s: it has %s", q.Name, name, strings.Join(known, ", "))
		}
	}
	return values, nil
}
