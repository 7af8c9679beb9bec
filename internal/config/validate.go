package config

import (
	"fmt"
	"reflect"
	"strings"
)

// Validator is a section that can check itself: it returns every problem, joined with [errors.Join], each starting
// with the key it is about ("window: must be positive").
type Validator interface {
	Validate() error
}

// Validate asks every section of a tree that has `Validate() error`, and returns all problems with their full
// paths. A section need not ask the ones inside it; where it does, the problem is reported once.
func Validate(tree any) []Problem {
	var problems []Problem
	seen := make(map[string]bool)
	derived := derivedPaths(reflect.TypeOf(tree), "")
	validate(reflect.ValueOf(tree), "", func(p Problem) {
		if isDerived(p.Path, derived) {
			return
		}
		if text := p.String(); !seen[text] {
			seen[text] = true
			problems = append(problems, p)
		}
	})
	return problems
}

func validate(v reflect.Value, path string, report func(Problem)) {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return
		}
		v = v.Elem()
	}
	if !v.IsValid() {
		return
	}
	if section, ok := asValidator(v); ok {
		for _, err := range flatten(section.Validate()) {
			report(problemOf(path, err))
		}
	}
	switch v.Kind() {
	case reflect.Struct:
		for _, f := range fieldsOf(v.Type()) {
			validate(v.FieldByIndex(f.index), join(path, f.key), report)
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			validate(v.Index(i), fmt.Sprintf("%s[%d]", path, i), report)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			validate(v.MapIndex(key), join(path, fmt.Sprint(key)), report)
		}
	}
}

// asValidator returns the value's Validate, whether it has a pointer receiver or not.
func asValidator(v reflect.Value) (Validator, bool) {
	if !v.CanInterface() {
		return nil, false
	}
	if section, ok := reflect.TypeAssert[Validator](v); ok {
		return section, true
	}
	pointer := reflect.New(v.Type())
	pointer.Elem().Set(v)
	section, ok := reflect.TypeAssert[Validator](pointer)
	return section, ok
}

// flatten takes joined errors apart.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, flatten(e)...)
		}
		return all
	}
	return []error{err}
}

// problemOf puts the path of a section before the key that its problem starts with.
func problemOf(path string, err error) Problem {
	var p Problem
	if key, message, ok := strings.Cut(err.Error(), ": "); ok && isKey(key) {
		p = Problem{Path: join(path, key), Message: message}
	} else {
		p = Problem{Path: path, Message: err.Error()}
	}
	return p
}

// isKey reports whether text looks like a key or a path of keys.
func isKey(text string) bool {
	return text != "" && strings.IndexFunc(text, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' && r != '.' && r != '[' && r != ']'
	}) < 0
}

// AsError returns the problems of a tree made in code as one error, nil where there is none.
func AsError(problems []Problem) error {
	if len(problems) == 0 {
		return nil
	}
	return &Error{Problems: problems}
}
