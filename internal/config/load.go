package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	// Line in the file, or 0 for a problem of the values as a whole.
	Line int `json:"line,omitempty"`
	// Path of the key, such as joiner.window.length.
	Path string `json:"path"`
	// Message says what is wrong and what would be right.
	Message string `json:"message"`
}

// String is the problem on one line.
func (p Problem) String() string {
	text := p.Message
	if p.Path != "" {
		text = p.Path + ": " + text
	}
	if p.Line > 0 {
		text = "line " + strconv.Itoa(p.Line) + ": " + text
	}
	return text
}

// Error is every problem of one configuration.
type Error struct {
	// File is the path of the file, or "" for a configuration made in code.
	File     string
	Problems []Problem
}

// Error implements error.
func (e *Error) Error() string {
	file := e.File
	if file == "" {
		file = "configuration"
	}
	if len(e.Problems) == 1 {
		return file + ": " + e.Problems[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d problems", file, len(e.Problems))
	for _, p := range e.Problems {
		b.WriteString("\n" + p.String())
	}
	return b.String()
}

// Hint says what to do about it.
func (e *Error) Hint() string { return "ctrloop config docs lists every key with its default" }

// ExitCode is that of a wrong configuration.
func (e *Error) ExitCode() int { return 2 }

// Load returns def with the values of the YAML file at path, and reports all its problems as an [*Error]. An empty
// path loads no file; the defaults are validated all the same. T is a struct.
func Load[T any](path string, def T) (T, error) {
	var raw []byte
	if path != "" {
		var err error
		if raw, err = os.ReadFile(path); err != nil {
			return def, &Error{File: path, Problems: []Problem{{Message: "cannot be read: " + err.Error()}}}
		}
	}
	return Parse(raw, path, def)
}

// Parse is [Load] for a file's content; path is where it came from, for messages and for relative ${file:...}.
func Parse[T any](raw []byte, path string, def T) (T, error) {
	l := loader{
		dir: filepath.Dir(path), derived: derivedPaths(reflect.TypeFor[T](), ""), lines: map[string]int{}, bad: map[*yaml.Node]bool{},
		badIn: map[string]bool{},
	}
	root, err := document(raw)
	if err != nil {
		return def, &Error{File: path, Problems: []Problem{{Message: err.Error()}}}
	}
	result := def
	if root != nil {
		l.walk(root, reflect.TypeFor[T](), "")
		// What is wrong in itself is left out, so that the rest is judged in the same run: its place keeps the default.
		l.prune(root)
		l.decode(root, &result)
	}
	for _, p := range Validate(result) {
		// A key that is missing beside a wrong one may be that one.
		if l.lines[p.Path] == 0 && l.badIn[section(p.Path)] {
			continue
		}
		p.Line = l.lineOf(p.Path)
		l.problems = append(l.problems, p)
	}
	if len(l.problems) > 0 {
		slices.SortStableFunc(l.problems, func(a, b Problem) int { return a.Line - b.Line })
		return def, &Error{File: path, Problems: l.problems}
	}
	return result, nil
}

// document parses exactly one YAML document; nil is an empty one.
func document(raw []byte) (*yaml.Node, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	var doc yaml.Node
	if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("is not YAML: %w", err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("has more than one YAML document; give one")
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil, nil
	}
	return doc.Content[0], nil
}

type loader struct {
	dir      string
	derived  []string
	problems []Problem
	lines    map[string]int      // of what the file sets, by path
	bad      map[*yaml.Node]bool // values that a problem is about
	badIn    map[string]bool     // sections with such values, by path
}

func (l *loader) problem(line int, path, format string, args ...any) {
	l.badIn[section(path)] = true
	l.problems = append(l.problems, Problem{Line: line, Path: path, Message: fmt.Sprintf(format, args...)})
}

// wrong reports a problem of a value, which is then left out.
func (l *loader) wrong(node *yaml.Node, path, format string, args ...any) {
	l.bad[node] = true
	l.problem(node.Line, path, format, args...)
}

// prune takes the values that a problem is about out of a tree.
func (l *loader) prune(node *yaml.Node) {
	var keep []*yaml.Node
	for i := 0; i < len(node.Content); i++ {
		switch {
		case node.Kind == yaml.MappingNode && i+1 < len(node.Content):
			if value := node.Content[i+1]; !l.bad[value] {
				l.prune(value)
				keep = append(keep, node.Content[i], value)
			}
			i++
		case !l.bad[node.Content[i]]:
			l.prune(node.Content[i])
			keep = append(keep, node.Content[i])
		}
	}
	node.Content = keep
}

// section is the path of what is around.
func section(path string) string { return path[:max(0, strings.LastIndexAny(path, ".["))] }

// lineOf is where the file sets a path, or the section around it; 0 where it sets neither.
func (l *loader) lineOf(path string) int {
	for path != "" {
		if line := l.lines[path]; line > 0 {
			return line
		}
		path = section(path)
	}
	return 0
}

// walk compares a YAML node with the type that will take it: it expands references, turns days into hours, and
// reports unknown keys and durations without a unit. Other mismatches are found when the node is decoded.
func (l *loader) walk(node *yaml.Node, t reflect.Type, path string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if node.Kind == yaml.AliasNode {
		l.wrong(node, path, "anchors and aliases are not supported; write the value out")
		return
	}
	if node.Kind == yaml.ScalarNode {
		l.scalar(node, t, path)
		return
	}
	if decodesItself(t) {
		return
	}
	switch {
	case node.Kind == yaml.MappingNode && t.Kind() == reflect.Struct:
		l.mapping(node, fieldsOf(t), path)
	case node.Kind == yaml.MappingNode && t.Kind() == reflect.Map:
		for i := 0; i < len(node.Content); i += 2 {
			at := join(path, node.Content[i].Value)
			l.lines[at] = node.Content[i].Line
			l.walk(node.Content[i+1], t.Elem(), at)
		}
	case node.Kind == yaml.SequenceNode && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array):
		for i, item := range node.Content {
			at := fmt.Sprintf("%s[%d]", path, i)
			l.lines[at] = item.Line
			l.walk(item, t.Elem(), at)
		}
	}
}

func (l *loader) mapping(node *yaml.Node, fields []field, path string) {
	byKey := make(map[string]field, len(fields))
	for _, f := range fields {
		byKey[f.key] = f
	}
	for i := 0; i < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		f, known := byKey[key.Value]
		l.lines[join(path, key.Value)] = key.Line
		if !known {
			l.bad[value] = true
			hint := ""
			if near := nearest(key.Value, fields); near != "" {
				hint = fmt.Sprintf("; did you mean %q?", near)
			}
			l.problem(key.Line, join(path, key.Value), "unknown key%s", hint)
			continue
		}
		if isDerived(join(path, key.Value), l.derived) {
			l.bad[value] = true
			l.problem(key.Line, join(path, key.Value), "is set by ctrloop itself; remove the key")
			continue
		}
		if value.Tag == "!!null" {
			l.bad[value] = true
			l.problem(key.Line, join(path, key.Value), "has no value; leave the key out for the default")
			continue
		}
		l.walk(value, f.typ, join(path, key.Value))
	}
}

func (l *loader) scalar(node *yaml.Node, t reflect.Type, path string) {
	if strings.Contains(node.Value, "$") {
		value, err := expand(node.Value, l.dir)
		if err != nil {
			l.wrong(node, path, "%v", err)
			return
		}
		if value != node.Value && node.Style == 0 {
			node.Tag = "" // an unquoted reference may stand for a number or a truth value
		}
		node.Value = value
		if t.Kind() == reflect.String {
			node.Tag = "!!str"
		}
	}
	if t == reflect.TypeFor[time.Duration]() {
		l.duration(node, path)
	}
}

// ParseDuration reads a duration with a unit, days among them: 500ms, 30s, 15m, 12h, 7d.
func ParseDuration(text string) (time.Duration, error) {
	value := text
	if number, ok := strings.CutSuffix(text, "d"); ok {
		if days, err := strconv.ParseFloat(number, 64); err == nil {
			value = strconv.FormatFloat(24*days, 'f', -1, 64) + "h"
		}
	}
	d, err := time.ParseDuration(value)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration; write a number with a unit: 500ms, 30s, 15m, 12h, 7d", text)
	}
	return d, nil
}

// duration checks that a duration has a unit. YAML's own reading of a bare 30 would be 30 nanoseconds.
func (l *loader) duration(node *yaml.Node, path string) {
	d, err := ParseDuration(node.Value)
	if err != nil {
		l.wrong(node, path, "%v", err)
		return
	}
	node.Value, node.Tag = d.String(), "!!str"
}

// decode fills out from the node, and reports values of the wrong type.
func (l *loader) decode(node *yaml.Node, out any) {
	err := node.Decode(out)
	var mismatch *yaml.TypeError
	switch {
	case err == nil:
	case errors.As(err, &mismatch):
		for _, text := range mismatch.Errors {
			line := 0
			if number, rest, ok := strings.Cut(strings.TrimPrefix(text, "line "), ": "); ok {
				if n, err := strconv.Atoi(number); err == nil {
					line, text = n, rest
				}
			}
			l.problem(line, "", "%s", text)
		}
	default:
		l.problem(0, "", "%v", err)
	}
}

// decodesItself reports whether a type reads its own YAML, so that its inside is its own business.
func decodesItself(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(reflect.TypeFor[yaml.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// field is one key of a struct.
type field struct {
	key   string
	name  string // of the Go field
	typ   reflect.Type
	owner reflect.Type // the struct that declares it
	index []int
	// derived is the field's tag of that name, see derivedTag.
	derived string
}

// fieldsOf lists the keys of a struct in order, those of inlined structs included.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			continue
		}
		key, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case key == "-":
		case strings.Contains(options, "inline") && f.Type.Kind() == reflect.Struct:
			for _, inner := range fieldsOf(f.Type) {
				inner.index = append([]int{i}, inner.index...)
				fields = append(fields, inner)
			}
		default:
			if key == "" {
				key = strings.ToLower(f.Name) // as yaml does
			}
			fields = append(fields, field{key: key, name: f.Name, typ: f.Type, owner: t, index: []int{i}, derived: f.Tag.Get(derivedTag)})
		}
	}
	return fields
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// nearest returns the key most like a wrong one, or "" where none is close: at most a third of its letters differ.
func nearest(wrong string, fields []field) string {
	best, bestDistance := "", len(wrong)/3+1
	for _, f := range fields {
		if d := distance(strings.ToLower(wrong), f.key); d <= bestDistance && (best == "" || d < bestDistance) {
			best, bestDistance = f.key, d
		}
	}
	return best
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitution := diagonal
			if a[i] != b[j] {
				substitution++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitution, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
