package config

import (
	"reflect"
	"strings"
)

// derivedTag lists the keys below a field that the program sets itself from other ones, separated by commas:
//
//	Serving serving.Config `yaml:"serving" derived:"replicas,swap.base_dir"`
//
// They are not part of the file: they cannot be given, are not documented or shown, and what their section's Validate
// says of them is left to the service, which validates again when it has them.
const derivedTag = "derived"

// derivedPaths collects the paths of derived keys of a tree.
func derivedPaths(t reflect.Type, prefix string) []string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || decodesItself(t) {
		return nil
	}
	var paths []string
	for _, f := range fieldsOf(t) {
		path := join(prefix, f.key)
		if f.derived != "" {
			for key := range strings.SplitSeq(f.derived, ",") {
				paths = append(paths, join(path, strings.TrimSpace(key)))
			}
		}
		paths = append(paths, derivedPaths(f.typ, path)...)
	}
	return paths
}

// isDerived reports whether a path is one of the derived ones, or inside one.
func isDerived(path string, derived []string) bool {
	for _, d := range derived {
		if rest, ok := strings.CutPrefix(path, d); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			return true
		}
	}
	return false
}
