package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ctrloop/lab"
)

func TestEvalRefusesWrongArguments(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "some.json")
	if err := os.WriteFile(file, []byte("not descriptions\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		want string
	}{
		{"world --out " + dir, "is not empty"},
		{"world --out " + dir + "/new --impressions 0", "--impressions 0"},
		{"world --out " + dir + "/new --per-product 1 --later-fraction 1", "--per-product 1"},
		{"world --out " + dir + "/new --later-fraction 1", "--later-fraction 1"},
		{"world --out " + dir + "/new --holdout-fraction 0", "nothing to measure on"},
		{"world --out " + dir + "/new --policy best", "posterior"},
		{"world --out " + dir + "/new --descriptions " + file, "line 1"},
		{"rounds --seeds 101,101", "twice"},
		{"rounds --jobs 0", "--jobs 0"},
		{"rounds --epochs=-1", "--epochs -1"},
		{"rounds --best -1", "--best"},
		{"ablation --only nothing", "no such variant"},
		{"reward --caig " + file, "needs --images"},
		{"reward --images " + dir, "goes with"},
		{"reward --truth " + file, "goes with --dataset"},
		{"reward --dataset " + dir + " --creative-ranking " + dir, "--creative-ranking and --dataset"},
		{"reward --judge {", "--judge"},
	} {
		code, _, errs := cli(t, append([]string{"eval"}, strings.Fields(c.args)...)...)
		if code != exitUsage || !strings.Contains(errs, c.want) {
			t.Errorf("%s: exit %d, want %q in:\n%s", c.args, code, c.want, errs)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); err == nil {
		t.Error("a refused command wrote its folder")
	}
}

func TestEvalNeedsThePythonEnvironment(t *testing.T) {
	for _, what := range []string{"world --out " + filepath.Join(t.TempDir(), "w"), "reward", "rounds", "ablation"} {
		args := append(append([]string{"eval"}, strings.Fields(what)...), "--home", t.TempDir())
		if code, _, errs := cli(t, args...); code != exitNeedsSetup || !strings.Contains(errs, "ctrloop setup") {
			t.Errorf("%s: exit %d: %s", what, code, errs)
		}
	}
}

func TestHyperParametersAreJSONOrText(t *testing.T) {
	got := hyper(
		map[string]string{
			"lr":        "0.001",
			"epochs":    "3",
			"baselines": "false",
			"arms":      "dpo,pcpo",
			"penalties": "0.1,0.2",
			"mllm":      `{"epochs": 2}`,
		},
	)
	want := map[string]any{
		"lr": json.Number("0.001"), "epochs": json.Number("3"), "baselines": false, "arms": "dpo,pcpo", "penalties": "0.1,0.2",
		"mllm": map[string]any{"epochs": json.Number("2")},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestOnlyKeepsTheFullMethod(t *testing.T) {
	got, err := only(lab.Variants(), []string{"anchor"})
	if err != nil || len(got) != 2 || got[0].Name != "full" || got[1].Name != "anchor" {
		t.Errorf("%+v, %v", got, err)
	}
}
