package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// expand replaces ${NAME}, ${NAME:-default} and ${file:path} in a value; $$ is a dollar sign. Relative paths are
// relative to dir, the folder of the configuration file.
func expand(value, dir string) (string, error) {
	var b strings.Builder
	for rest := value; ; {
		before, after, found := strings.Cut(rest, "$")
		b.WriteString(before)
		switch {
		case !found:
			return b.String(), nil
		case strings.HasPrefix(after, "$"):
			b.WriteByte('$')
			rest = after[1:]
		case strings.HasPrefix(after, "{"):
			reference, tail, closed := strings.Cut(after[1:], "}")
			if !closed {
				return "", fmt.Errorf("the reference ${%s has no closing brace; write $$ for a dollar sign", after[1:])
			}
			text, err := resolve(reference, dir)
			if err != nil {
				return "", err
			}
			b.WriteString(text)
			rest = tail
		default:
			b.WriteByte('$')
			rest = after
		}
	}
}

// resolve returns what one reference stands for.
func resolve(reference, dir string) (string, error) {
	if path, ok := strings.CutPrefix(reference, "file:"); ok {
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("the file of ${%s} cannot be read: %w", reference, err)
		}
		return strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), "\r"), nil
	}
	name, fallback, hasFallback := strings.Cut(reference, ":-")
	if text, ok := os.LookupEnv(name); ok && (text != "" || !hasFallback) {
		return text, nil
	}
	if !hasFallback {
		return "", fmt.Errorf("the environment variable %s is not set; set it, or write ${%s:-default}", name, name)
	}
	return fallback, nil
}
