package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestCompletion(t *testing.T) {
	for _, c := range []struct {
		words string // separated by spaces
		want  string // all of them, or those that must be among many
		all   bool
	}{
		{"exp", "experiment", true},
		{"experiment re", "replay resume", true},
		{"experiment create --dr", "--draft", true},
		{"experiment list --phase ", "decided draft paused running", true},
		{"experiment list --phase=pa", "--phase=paused", true},
		{"experiment list --phase = pa", "paused", true}, // as bash says it
		{"experiment force e u17 ", "control none treatment", true},
		{"completion ", "bash fish zsh", true},
		{"sql --json --", "--dir --dsn --config", false},
		{"sql --dir ", "", true}, // files
		{"replay ", "", true},
		{"", "demo up help completion", false},
		{"compl", "completion", true}, // not what the scripts call
	} {
		code, stdout, stderr := cli(t, append([]string{"complete", "--"}, strings.Split(c.words, " ")...)...)
		got, want := strings.Fields(stdout), strings.Fields(c.want)
		if code != exitOK || c.all && !slices.Equal(got, want) {
			t.Errorf("%q: exit %d, %q, want %q: %s", c.words, code, got, want, stderr)
		}
		for _, w := range want {
			if !slices.Contains(got, w) {
				t.Errorf("%q: no %s in %q", c.words, w, got)
			}
		}
	}
}

// The script in a real bash, with this test binary as the program.
func TestCompletionInBash(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, "ctrloop")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bash, "--norc", "-c", `source <(ctrloop completion bash)
COMP_WORDS=(ctrloop experiment pa) COMP_CWORD=2
_ctrloop
echo "${COMPREPLY[@]}"
complete -p ctrloop`)
	cmd.Env = append(os.Environ(), asMain+"=1", "PATH="+dir+":"+os.Getenv("PATH"))
	got, err := cmd.CombinedOutput()
	if err != nil || string(got) != "pause\ncomplete -o default -F _ctrloop ctrloop\n" {
		t.Errorf("%v: %s", err, got)
	}
}
