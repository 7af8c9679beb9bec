package demo

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ctrloop/app"
	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging"
)

func TestAResumedDemoKeepsItsOptionsAndItsEnding(t *testing.T) {
	dir := t.TempDir()
	s := settings{Seed: 3, Quick: true, HoldoutFraction: 0.2}
	first, err := openState(dir, s)
	if err != nil {
		t.Fatal(err)
	}
	first.Ending = decided
	first.Phases["traffic"] = 12
	first.Swap = Swap{Count: 1, FlipP99MS: 2}
	if err := first.save(); err != nil {
		t.Fatal(err)
	}
	second, err := openState(dir, s)
	if err != nil {
		t.Fatal(err)
	}
	if second.Attempts != 2 || second.Ending != decided || second.Phases["traffic"] != 12 || second.Swap.Count != 1 {
		t.Errorf("resumed as %+v", second)
	}
	s.Seed = 4
	if _, err := openState(dir, s); err == nil || !strings.Contains(err.Error(), "other options") {
		t.Errorf("another seed on the same folder: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "demo.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openState(dir, settings{}); err == nil || !strings.Contains(err.Error(), "resume the demo") {
		t.Errorf("a damaged state: %v", err)
	}
}

func TestSwapsOfAttemptsAddUp(t *testing.T) {
	got := add(Swap{Count: 1, Requests: 10, Failed: 1, FlipP99MS: 3}, Swap{Count: 2, Requests: 5, WrongVersion: 1, FlipP99MS: 1})
	if want := (Swap{Count: 3, Requests: 15, Failed: 1, WrongVersion: 1, FlipP99MS: 3}); got != want {
		t.Errorf("%+v", got)
	}
}

func TestScoreboardHidesNoFailure(t *testing.T) {
	var out bytes.Buffer
	(&Scoreboard{Seed: 1, Outcome: "no model was good enough: gate matching", Stream: Stream{Lost: 3}}).Print(&out)
	for _, want := range []string{"no model was good enough: gate matching", "lost 3", "ledger OPEN"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not on the scoreboard:\n%s", want, out.String())
		}
	}
}

// TestWithoutAnExperimentThereIsNoLift: zeros would be measurements (review N8).
func TestWithoutAnExperimentThereIsNoLift(t *testing.T) {
	var out bytes.Buffer
	board := &Scoreboard{Seed: 1, Outcome: "no model was good enough", Freshness: 60}
	board.Print(&out)
	if !strings.Contains(out.String(), "has learned from no click") {
		t.Errorf("of the base:\n%s", out.String())
	}
	raw, err := json.Marshal(board)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"lift":null`, `"lift_low":null`, `"true_lift":null`, `"srm_p":null`, `"live_has_learned":false`} {
		if !bytes.Contains(raw, []byte(want)) {
			t.Errorf("no %s in %s", want, raw)
		}
	}
	board.Experiment = Experiment{ID: "x", Decision: "promote", Lift: 0.1}
	if raw, err = json.Marshal(board); err != nil || !bytes.Contains(raw, []byte(`"lift":0.1`)) {
		t.Errorf("%v: %s", err, raw)
	}
}

// folder writes the first n products of the built-in catalogue, renamed.
func folder(t *testing.T, prefix string, n int) string {
	t.Helper()
	dir := t.TempDir()
	var ps []*catalogue.Product
	for _, p := range catalogue.Embedded().Products()[:n] {
		q := *p
		q.ID = prefix + p.ID
		ps = append(ps, &q)
	}
	if err := writeCatalogue(dir, ps); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestHeldOutFolderIsMergedAndNamed(t *testing.T) {
	opt := Options{Dir: t.TempDir(), Products: folder(t, "a-", 3), Holdout: folder(t, "b-", 2)}
	dir, held, err := products(opt)
	if err != nil {
		t.Fatal(err)
	}
	all, err := catalogue.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(all.Products()) != 5 || len(held) != 2 || !strings.HasPrefix(held[0], "b-") {
		t.Fatalf("%d products, held out %v", len(all.Products()), held)
	}
	// The copy of a product is the product: its pixels are what every creative is held against.
	orig := catalogue.Embedded().Products()[0]
	cp, _ := all.Get("a-" + orig.ID)
	if d := cmp.Diff(imaging.Plain(orig, 64).Pix, imaging.Plain(cp, 64).Pix); d != "" {
		t.Error("the merged catalogue has other pixels")
	}
	opt.Holdout = opt.Products
	if _, _, err := products(opt); err == nil || !strings.Contains(err.Error(), "in the training catalogue too") {
		t.Errorf("a product on both sides: %v", err)
	}
}

// A tour has traffic for the longest experiment that there can be: every step ends by itself at its limit, and a look comes a
// chunk later at the latest.
func TestATourHasTrafficForItsVerdict(t *testing.T) {
	p := planOf(true)
	cfg := app.Default()
	p.config(&cfg)
	steps := int64(len(steps))
	if longest := steps * (cfg.Experiment.Ramp.MaxImpressions + 2*p.chunk); p.experiment < longest {
		t.Errorf("an experiment may take %d impressions, and the tour sends %d", longest, p.experiment)
	}
}
