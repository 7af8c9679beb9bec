package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// commands are all that a person can call, without those that the binary calls itself.
func commands(t *testing.T) []*kong.Node {
	t.Helper()
	var cli CLI
	parser, err := newParser(&cli, &output{}, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	out := parser.Model.Leaves(true)
	if len(out) < 40 {
		t.Fatalf("only %d commands: does the test see them?", len(out))
	}
	return out
}

// words are the command's name without the program's.
func words(n *kong.Node) []string { return strings.Fields(n.FullPath())[1:] }

// exampleLines are the commands under the heading Examples of a help text.
func exampleLines(help string) (lines []string) {
	_, examples, _ := strings.Cut(help, "\nExamples:\n")
	for line := range strings.Lines(examples) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return lines
}

// shellWords splits an example as a shell would: single quotes only, and nothing that is redirected.
func shellWords(line string) (words []string) {
	line, _, _ = strings.Cut(line, " >")
	line, _, _ = strings.Cut(line, " |")
	for _, m := range regexp.MustCompile(`(?:[^\s']|'[^']*')+`).FindAllString(line, -1) {
		words = append(words, strings.ReplaceAll(m, "'", ""))
	}
	return words
}

// TestEveryCommand holds what all commands have in common: help with an example that the parser takes, and exit codes.
func TestEveryCommand(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"ctrloop.yaml", "token", "clicks.csv", "monday.csv", "tuesday.csv", "units.csv", "arms.csv",
		"policy.csv", "log.csv.gz", "chdb.tgz"} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"backup", "set", "streams", "products"} {
		if err := os.Mkdir(name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range commands(t) {
		name := n.FullPath()
		code, help, stderr := cli(t, append(words(n), "--help")...)
		if code != exitOK || !strings.HasPrefix(help, "Usage: "+name) || stderr != "" {
			t.Errorf("%s --help: exit %d:\n%s%s", name, code, help, stderr)
		}
		if code, again, _ := cli(t, append([]string{"help"}, words(n)...)...); code != exitOK || again != help {
			t.Errorf("ctrloop help %v: exit %d, and not what --help prints", words(n), code)
		}
		if code, _, stderr := cli(t, append(words(n), "--no-such-flag")...); code != exitUsage || !strings.Contains(stderr, "do: ") {
			t.Errorf("%s --no-such-flag: exit %d: %s", name, code, stderr)
		}
		lines := exampleLines(help)
		if len(lines) == 0 {
			t.Errorf("%s: no example in its help", name)
		}
		for _, line := range lines {
			var cli CLI
			parser, err := newParser(&cli, &output{}, func(int) {})
			if err != nil {
				t.Fatal(err)
			}
			got, err := parser.Parse(shellWords(line)[1:])
			if err != nil {
				t.Errorf("%s: the example %q: %v", name, line, err)
			} else if got.Selected().FullPath() != name {
				t.Errorf("%s: the example %q is of %s", name, line, got.Selected().FullPath())
			}
		}
	}
}

func TestHelpAndVersionSucceed(t *testing.T) {
	for _, args := range [][]string{{"help"}, {"--help"}, {"-h"}, {"--version"}, {"version"}, {"help", "experiment"}} {
		if code, stdout, stderr := cli(t, args...); code != exitOK || stdout == "" || stderr != "" {
			t.Errorf("%q: exit %d, %q, %s", args, code, stdout, stderr)
		}
	}
	_, flag, _ := cli(t, "--version")
	if _, command, _ := cli(t, "version"); flag != command {
		t.Errorf("--version says %q, version %q", flag, command)
	}
	if code, _, stderr := cli(t, "help", "bogus"); code != exitUsage || !strings.Contains(stderr, "bogus") {
		t.Errorf("help of nothing: exit %d: %s", code, stderr)
	}
}

// TestOneNameForOneMeaning: who learned a flag at one command knows it at all of them.
func TestOneNameForOneMeaning(t *testing.T) {
	spelling := map[string]string{} // by the letters alone
	for _, n := range commands(t) {
		flags := map[string]*kong.Flag{}
		for _, group := range n.AllFlags(true) {
			for _, f := range group {
				flags[f.Name] = f
				letters := strings.ReplaceAll(f.Name, "-", "")
				if other, ok := spelling[letters]; ok && other != f.Name {
					t.Errorf("%s: --%s is --%s elsewhere", n.FullPath(), f.Name, other)
				}
				spelling[letters] = f.Name
				if strings.Contains(f.FormatPlaceHolder(), ",...") && f.HasDefault && f.PlaceHolder == "" {
					t.Errorf("%s: --%s=%s reads as if there were more", n.FullPath(), f.Name, f.FormatPlaceHolder())
				}
			}
		}
		for _, other := range []string{"file", "output", "to-file"} {
			if flags[other] != nil {
				t.Errorf("%s: --%s, where a file to write is --out", n.FullPath(), other)
			}
		}
		// The engine that is measured belongs to no instance.
		if dsn, config := flags["dsn"], flags["config"]; dsn != nil && (config == nil || flags["dir"] == nil) &&
			n.FullPath() != "ctrloop bench query" {
			t.Errorf("%s: --dsn without --config or --dir: a warehouse is named in three ways everywhere", n.FullPath())
		}
		// What prints a thing itself has no other form of it.
		whole := []string{"up", "render", "config show", "config docs", "help", "completion", "eval world"}
		if flags["json"] == nil && !slices.ContainsFunc(whole, func(w string) bool { return strings.HasPrefix(n.FullPath(), "ctrloop "+w) }) {
			t.Errorf("%s: no --json", n.FullPath())
		}
	}
}

// TestExitCodesAreOnOnePage holds docs/operations.md against the constants.
func TestExitCodesAreOnOnePage(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := bytes.Cut(raw, []byte("\n## Exit codes"))
	section, _, _ = bytes.Cut(section, []byte("\n## "))
	var got []int
	for _, m := range regexp.MustCompile(`(?m)^\| (\d+) \|`).FindAllSubmatch(section, -1) {
		code, err := strconv.Atoi(string(m[1]))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, code)
	}
	want := []int{exitOK, exitFailed, exitUsage, exitNeedsSetup, exitLost, exitInterrupted}
	if !slices.Equal(got, want) {
		t.Errorf("docs/operations.md has the codes %v, the binary %v", got, want)
	}
}

// TestWhatCannotBeRightIsWrongUsage: the code does not depend on which command is given a wrong thing.
func TestWhatCannotBeRightIsWrongUsage(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	broken := filepath.Join(t.TempDir(), "broken.csv")
	if err := os.WriteFile(broken, []byte("no,such,columns\n1,2,3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"render", "catalogue", "--hues", "100"},
		{"render", "catalogue", "--products", missing},
		{"render", "catalogue", "--products", filepath.Dir(missing)},
		{"eval", "world", "--out", missing, "--products", filepath.Dir(broken)},
		{"render", "image", "a scene nobody knows", "--out", missing},
		{"render", "image", "--px", "1", "studio", "--out", missing},
		{"stats", "lift", missing},
		{"stats", "lift", broken},
		{"stats", "srm", broken},
		{"stats", "power", broken},
		{"stats", "ope", broken, "--policy", missing},
		{"stats", "ope", missing, "--policy", broken},
		{"config", "check", missing},
		{"config", "check", broken},
		{"config", "show", missing},
		{"up", "--config", broken},
		{"up", "--target", "nothing"},
		{"sql", "--question", "nothing"},
		{"sql", "--json", "--format", "csv", "SELECT 1"},
		{"sql", "--config", broken, "SELECT 1"},
		{"migrate", "--config", broken},
		{"audit", "--config", broken},
		{"erase", "user", "u1", "--config", broken},
		{"token", "create", "ci", "--scopes", "everything"},
		{"trace", "nothing"},
		{"replay", missing},
		{"demo", "--speed", "0"},
		{"bench", "join", "--rate", "0"},
		{"eval", "rounds", "--jobs", "0"},
		{"restore", missing},
		{"completion", "tcsh"},
	} {
		code, stdout, stderr := cli(t, args...)
		if code != exitUsage || stdout != "" || stderr == "" {
			t.Errorf("%q: exit %d, want %d: %s%s", args, code, exitUsage, stdout, stderr)
		}
	}
}

// TestNoHTTPInHints: who types commands is told commands.
func TestNoHTTPInHints(t *testing.T) {
	_, srv := api(t)
	for _, args := range [][]string{
		{"experiment", "show", "none"},
		{"experiment", "create", "none"},
		{"experiment", "replay", "none"},
		{"experiment", "override", "none", "--step", "1", "--note", "n"},
		{"experiment", "holdout", "none", "--share", "0.1", "--note", "n"},
	} {
		_, _, stderr := cli(t, append(args, "--api", srv.URL)...)
		if !strings.Contains(stderr, "do: ") || regexp.MustCompile(`\b(GET|POST|PUT) |/v1/`).MatchString(stderr) {
			t.Errorf("%q: %s", args, stderr)
		}
	}
}
