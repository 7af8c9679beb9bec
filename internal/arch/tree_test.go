package arch

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// maxFileBytes bounds what is committed: the engine and the Python packages are downloads, not sources.
const maxFileBytes = 8 << 20

// tracked lists the files of the repository, relative to its root.
func tracked(t *testing.T) []string {
	t.Helper()
	cmd := exec.Command("git", "ls-files", "-z")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("not a git checkout: %v", err)
	}
	var files []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		if _, err := os.Stat(filepath.Join("../..", name)); err == nil { // not one being removed
			files = append(files, name)
		}
	}
	return files
}

func readText(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// forbidden is what must not be in a tracked text. The patterns are written so that they do not match themselves.
var forbidden = []struct {
	pattern *regexp.Regexp
	reason  string
}{
	{regexp.MustCompile(`(^|[^\w.$}-])/(work|farm|root|home)/\w`), "a path of one machine"},
	{
		regexp.MustCompile(
			`(pypi[.]org|pythonhosted[.]org|registry[.]npmjs[.]org|registry[.]yarnpkg|proxy[.]golang[.]org|static[.]crates[.]io|repo1?[.]maven)`,
		),
		"a registry's host: downloads go through the user's own package clients, whose settings decide",
	},
	{regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b`), "unfinished work: finish it, or file it"},
}

func TestTrackedTexts(t *testing.T) {
	for _, name := range tracked(t) {
		path := filepath.Join("../..", name)
		stat, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if stat.Size() > maxFileBytes {
			t.Errorf("%s has %d bytes: more than %d do not belong into the tree", name, stat.Size(), maxFileBytes)
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.IndexByte(raw[:min(len(raw), 8000)], 0) >= 0 || name == "go.sum" {
			continue // binary, or checksums only
		}
		number := 0
		for line := range strings.Lines(string(raw)) {
			number++
			for _, f := range forbidden {
				if match := f.pattern.FindString(line); match != "" {
					t.Errorf("%s:%d: %q: %s", name, number, match, f.reason)
				}
			}
		}
	}
}

func TestForbiddenTextsAreFound(t *testing.T) {
	for text, want := range map[string]bool{
		"see /wo" + "rk/main": true, "cd /ro" + "ot/x": true,
		"index-url = https://py" + "pi.org/simple": true, "// TO" + "DO: later": true,
		"trainer/wo" + "rk/x": false, "a temporary folder": false, "/run/secrets/token": false,
	} {
		found := false
		for _, f := range forbidden {
			found = found || f.pattern.MatchString(text)
		}
		if found != want {
			t.Errorf("%q: found=%v", text, found)
		}
	}
}

var (
	link      = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading   = regexp.MustCompile(`(?m)^#+ +(.+?) *$`)
	codeBlock = regexp.MustCompile("(?s)```.*?```")
	notInSlug = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
)

// TestLinksResolve follows the relative links of every Markdown file, to the heading.
func TestLinksResolve(t *testing.T) {
	for _, name := range tracked(t) {
		if filepath.Ext(name) != ".md" {
			continue
		}
		text := codeBlock.ReplaceAllString(readText(t, filepath.Join("../..", name)), "")
		for _, match := range link.FindAllStringSubmatch(text, -1) {
			target, anchor, _ := strings.Cut(match[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			path := filepath.Join("../..", filepath.Dir(name), target)
			if target == "" {
				path = filepath.Join("../..", name)
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s links to %s, which is not there", name, match[1])
				continue
			}
			if anchor != "" && filepath.Ext(path) == ".md" && !hasHeading(readText(t, path), anchor) {
				t.Errorf("%s links to %s, which has no such heading", name, match[1])
			}
		}
	}
}

// hasHeading reports whether a Markdown text has a heading whose anchor this is.
func hasHeading(text, anchor string) bool {
	for _, match := range heading.FindAllStringSubmatch(text, -1) {
		slug := notInSlug.ReplaceAllString(strings.ToLower(match[1]), "")
		if strings.ReplaceAll(slug, " ", "-") == anchor {
			return true
		}
	}
	return false
}
