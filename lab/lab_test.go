package lab

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ctrloop/internal/columnar"
	"ctrloop/internal/imaging"
	"ctrloop/pairer/dataset"
	"ctrloop/pairer/pairs"
	"ctrloop/schemas"
	trainerbridge "ctrloop/trainer-bridge"
)

const jobTimeout = time.Minute

func TestWorldIsItsSeed(t *testing.T) {
	opt := small(t)
	opt.Seed, opt.Described = 101, Untrained(testCatalogue(), 7, 8)
	w, err := OpenWorld(t.Context(), testCatalogue(), opt, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	m, err := w.WriteDataset(filepath.Join(dir, "a"), PairRule{})
	if err != nil {
		t.Fatal(err)
	}
	if m.Train < 20 || m.Test < 3 || m.Later != 0 || m.Seed != 101 {
		t.Fatalf("manifest %+v", m)
	}
	creatives, err := columnar.Read[dataset.CreativeRow](filepath.Join(dir, "a", dataset.CreativesFile))
	if err != nil {
		t.Fatal(err)
	}
	var impressions, clicks int64
	truth := map[string]float64{}
	if err := readJSON(filepath.Join(dir, "a", TruthFile), &truth); err != nil {
		t.Fatal(err)
	}
	for _, c := range creatives {
		impressions, clicks = impressions+c.Impressions, clicks+c.Clicks
		p, _ := testCatalogue().Get(c.Product)
		im, _ := imaging.Render(p, c.Description, c.Seed, creativePx)
		if want := w.TrueCTR(p, im); truth[c.Creative] != want {
			t.Fatalf("truth of %s is %v; the world says %v of its picture", c.Creative, truth[c.Creative], want)
		}
	}
	if ctr := float64(clicks) / float64(impressions); ctr < 0.02 || ctr > 0.05 {
		t.Errorf("%d clicks of %d impressions: the shop's rate is about 3.6 %%, less fatigue", clicks, impressions)
	}

	again, err := OpenWorld(t.Context(), testCatalogue(), opt, nil)
	if err != nil {
		t.Fatal(err)
	}
	if m2, err := again.WriteDataset(filepath.Join(dir, "b"), PairRule{}); err != nil || !cmp.Equal(m, m2) {
		t.Errorf("the same world twice: %v\n%s", err, cmp.Diff(m, m2))
	}
}

func TestLaterPairsComeAfterTraining(t *testing.T) {
	opt := small(t)
	opt.Seed, opt.Described, opt.LaterFraction = 101, Untrained(testCatalogue(), 7, 8), 0.3
	w, err := OpenWorld(t.Context(), testCatalogue(), opt, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "set")
	m, err := w.WriteDataset(dir, PairRule{})
	if err != nil {
		t.Fatal(err)
	}
	if m.Later == 0 || m.Train+m.Later+m.Test != m.Pairs {
		t.Errorf("manifest %+v", m)
	}
	rows, err := dataset.Pairs(dir)
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]int64{} // impressions that the data set tells of a creative
	creatives, err := columnar.Read[dataset.CreativeRow](filepath.Join(dir, dataset.CreativesFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range creatives {
		shown[c.Creative] = c.Impressions
	}
	early := map[string]int64{}
	for _, e := range w.early {
		early[e.Creative] += e.Impressions
	}
	for _, r := range rows {
		held := schemas.Holdout(r.Product, 0.2)
		if held != (r.Split == "test") {
			t.Fatalf("pair of %s (held out: %v) is in split %s", r.Product, held, r.Split)
		}
		if !held && shown[r.Left] != early[r.Left] {
			t.Fatalf("creative %s of a training product tells of %d impressions; %d came before the cut", r.Left, shown[r.Left], early[r.Left])
		}
	}
}

func TestOtherTrainingPairsKeepTheTestPairs(t *testing.T) {
	opt := small(t)
	opt.Seed, opt.Described = 101, Untrained(testCatalogue(), 7, 8)
	w, err := OpenWorld(t.Context(), testCatalogue(), opt, nil)
	if err != nil {
		t.Fatal(err)
	}
	ids := func(split string, rule PairRule) (out []string) {
		ps, _ := w.pairs(rule)
		for _, p := range ps {
			if p.Split == split {
				out = append(out, p.ID)
			}
		}
		slices.Sort(out)
		return out
	}
	hard := PairRule{Policy: pairs.PolicyCAIG, CAIGFloor: 100}
	if d := cmp.Diff(ids("test", PairRule{}), ids("test", hard)); d != "" {
		t.Error("the hard rule changed the test pairs: " + d)
	}
	if a, b := ids("train", PairRule{}), ids("train", hard); len(b) == 0 || len(b) >= len(a) {
		t.Errorf("%d training pairs by the hard rule, %d by the usual one", len(b), len(a))
	}
	if _, err := w.WriteDataset(t.TempDir(), PairRule{Policy: pairs.PolicyCAIG}); err == nil ||
		!strings.Contains(err.Error(), "no training pair") {
		t.Errorf("the hard rule at its own floor, on little traffic: %v", err)
	}
}

func TestAWorldNeedsTwoDescriptionsOfAProduct(t *testing.T) {
	opt := small(t)
	opt.Described = map[string][]string{}
	if _, err := OpenWorld(t.Context(), testCatalogue(), opt, nil); err == nil || !strings.Contains(err.Error(), "a pair needs two") {
		t.Errorf("%v", err)
	}
}

func TestReadDescriptionsSaysWhereItIsWrong(t *testing.T) {
	file := filepath.Join(t.TempDir(), "d.jsonl")
	for text, want := range map[string]string{
		"{\"product\":\"p\",\"text\":\"x\"}\n{": "line 2", "{\"text\":\"x\"}\n": `"product"`,
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadDescriptions(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestEqualLift(t *testing.T) {
	base := step{0, 0.5}
	for _, c := range []struct {
		name       string
		a, b       []step
		diff, lift float64
		ok         bool
	}{
		{"the slower arm sets the lift", []step{base, {0.1, 0.6}}, []step{base, {0.2, 0.3}}, 0.6 - 0.4, 0.1, true},
		{"both reach it at an epoch", []step{base, {0.1, 0.6}}, []step{base, {0.1, 0.4}}, 0.2, 0.1, true},
		{"the first time counts", []step{base, {0.1, 0.7}, {0.05, 0.1}, {0.1, 0.2}}, []step{base, {0.1, 0.5}}, 0.2, 0.1, true},
		{"a fall before the rise", []step{base, {-0.1, 0.9}, {0.1, 0.7}}, []step{base, {0.1, 0.5}}, 0.2, 0.1, true},
		{"one gained nothing", []step{base, {-0.1, 0.9}}, []step{base, {0.1, 0.5}}, 0, 0, false},
	} {
		diff, lift, ok := equalLift(c.a, c.b)
		if ok != c.ok || math.Abs(lift-c.lift) > 1e-9 || ok && math.Abs(diff-c.diff) > 1e-9 {
			t.Errorf("%s: %v at %v, %v", c.name, diff, lift, ok)
		}
	}
}

func TestShareOfBest(t *testing.T) {
	tally := func(ctr float64) Tally { return Tally{Samples: 2, Valid: 2, CTR: 2 * ctr} }
	base, best := Point{tally(0.03), tally(0.03)}, []float64{0.05, 0.04}
	for _, c := range []struct {
		p    Point
		want float64
	}{{base, 0}, {Point{tally(0.05), tally(0.04)}, 1}, {Point{tally(0.045), tally(0.03)}, 0.5}, {Point{tally(0.045), {Samples: 2}}, 0.5}} {
		if got := shareOfBest(c.p, base, best, nil); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%+v: %v, want %v", c.p, got, c.want)
		}
	}
}

func TestScore(t *testing.T) {
	var s Score
	if s.Accuracy() != 0 {
		t.Error("no answers have no accuracy")
	}
	s.Add(0.3, true)   // right
	s.Add(-0.1, false) // right
	s.Add(0.2, false)  // wrong
	s.Add(0, true)     // a tie is half right
	if got := s.Accuracy(); got != 2.5/4 {
		t.Errorf("accuracy %v", got)
	}
}

func TestOver(t *testing.T) {
	parts := []part{{value: 0.1}, {value: 0.4}, {value: 0.2}, {value: math.NaN()}}
	if o := over(1, parts); o.Median != 0.2 || o.Worst != 0.1 || o.Worlds != 3 || o.Interval != nil {
		t.Errorf("%+v", o)
	}
	if o := over(-1, parts); o.Median != 0.2 || o.Worst != 0.4 {
		t.Errorf("less is better: %+v", o)
	}
	sure := part{value: 1, draws: slices.Repeat([]float64{1}, draws)}
	if o := over(1, []part{sure, sure}); o.Interval == nil || o.Interval.Low != 1 || o.Interval.High != 1 {
		t.Errorf("draws without spread: %+v", o)
	}
}

func TestVerdicts(t *testing.T) {
	some := Over{Worlds: 5}
	for _, c := range []struct {
		t    Target
		want string
	}{
		{target("x", "median", some, 0.7, 0.55, 0.65, false), "aim met"},
		{target("x", "median", some, 0.55, 0.55, 0.65, false), "met"},
		{target("x", "median", some, 0, 0, 0.15, true), "NOT met"}, // more than nothing was asked for
		{target("x", "median", some, 0.5, 0.55, 0.65, false), "NOT met"},
		{target("x", "median", Over{}, 0, 0.55, 0.65, false), "not measured"},
	} {
		if got := c.t.verdict(); got != c.want {
			t.Errorf("%+v: %s, want %s", c.t, got, c.want)
		}
	}
	// A difference whose interval holds 0 is not met, whatever its median.
	got := roundsTargets(map[string]Over{"equal_lift.pcpo": {Median: 0.2, Interval: &Interval{-0.1, 0.5}, Worlds: 1}}, []RoundsWorld{{}})
	if got[1].verdict() != "NOT met" || !strings.Contains(got[1].Why, "holds 0") {
		t.Errorf("%+v", got[1])
	}
}

func TestRoundsAreJudgedByTheWorldAndKept(t *testing.T) {
	b := bench(t)
	opt := RoundsOptions{Seeds: []uint64{101, 102}, Epochs: 2, Arms: []string{armDPO, armPCPO}, Budget: 40}
	r, err := b.RunRounds(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range r.Worlds {
		if w.Reward.Fraction != 1 || w.Reward.TrueAccuracy != 1 {
			t.Errorf("a reward model that knows the truth: %+v", w.Reward)
		}
		dpo, pcpo := w.Arms[0].Epochs[2], w.Arms[1].Epochs[2]
		if pcpo.Matching <= w.Base.Matching || dpo.Matching >= w.Base.Matching || dpo.Clickbait <= w.Base.Clickbait {
			t.Errorf("base %+v, dpo %+v, pcpo %+v", w.Base, dpo, pcpo)
		}
		if pcpo.Valid != 1 || pcpo.MatchingB == nil || *pcpo.MatchingB != 0.5 || pcpo.ShareOfBest == nil || *pcpo.ShareOfBest <= 0 ||
			*pcpo.ShareOfBest > 1 {
			t.Errorf("pcpo %+v", pcpo)
		}
		if w.BestCTR <= pcpo.TrueCTR {
			t.Errorf("the best creatives (%v) are no better than pcpo's (%v)", w.BestCTR, pcpo.TrueCTR)
		}
	}
	eq := r.Summary["equal_lift.pcpo"]
	if eq.Worlds != 2 || eq.Median < 0.1 || eq.Interval == nil || eq.Interval.Low <= 0 {
		t.Errorf("at equal lift, what suits against clickbait: %+v", eq)
	}
	var out bytes.Buffer
	r.Print(&out)
	for _, want := range []string{"worlds 101, 102", "PCPO - DPO matching at equal lift", "aim met", "share of the reachable best gain"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in the report:\n%s", want, out.String())
		}
	}

	// A second run does nothing again and says the same.
	before := ran(t, b, 101)
	again, err := b.RunRounds(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(plain(t, r), plain(t, again)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(before, ran(t, b, 101)); d != "" {
		t.Errorf("finished jobs ran again: %s", d)
	}
	// Another reward model is another job, and so are the rounds on it.
	b.Reward = map[string]any{"epochs": 3}
	if _, err := b.RunRounds(t.Context(), opt); err != nil {
		t.Fatal(err)
	}
	if got := len(ran(t, b, 101)); got != 2*len(before) {
		t.Errorf("%d jobs ran after a change, %d before", got, len(before))
	}
}

// ran lists the jobs of a world in the order in which the trainer was started.
func ran(t *testing.T, b *Bench, _ uint64) []string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(b.Dir, "seed-101", "jobs", "ran.txt"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(raw))
}

func plain(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestAblationSharesWorkAndComparesWorldByWorld(t *testing.T) {
	b := bench(t)
	variants := slices.DeleteFunc(Variants(), func(v Variant) bool {
		return !slices.Contains([]string{"full", "no PCPO", "no point loss"}, v.Name)
	})
	r, err := b.RunAblation(t.Context(), AblationOptions{Seeds: []uint64{101}, Epochs: 2, Variants: variants})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"reward", "referee", "ablation", "reward-1", "referee-1", "ablation-1"}, ran(t, b, 101)); d != "" {
		t.Errorf("jobs: %s", d)
	}
	row := map[string]AblationRow{}
	for _, x := range r.Rows {
		row[x.Name] = x
	}
	if f := row["full"].Figures; f["matching"].Median <= row["no PCPO"].Figures["matching"].Median || f["reward_fraction"].Median != 1 {
		t.Errorf("rows %+v", r.Rows)
	}
	if f := row["no point loss"].Figures["reward_fraction"].Median; f > 0.6 {
		t.Errorf("a reward model that guesses has %v of the ceiling", f)
	}
	if d := row["no PCPO"].Against["matching"]; d.Median >= 0 || d.Interval == nil || d.Interval.High >= 0 {
		t.Errorf("against the full method: %+v", d)
	}
	var out bytes.Buffer
	r.Print(&out)
	if !strings.Contains(out.String(), "no point loss") || !strings.Contains(out.String(), "against \"full\"") {
		t.Error(out.String())
	}
}

func TestTheTrainerKnowsWhatTheAblationChanges(t *testing.T) {
	read := func(file string) string {
		raw, err := os.ReadFile(filepath.Join("../trainer-bridge/trainer/ctrloop_trainer", file))
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	arms, reward := read("rounds/settings.py"), read("reward/train.py")
	for _, v := range Variants() {
		if !strings.Contains(arms, `"`+v.Arm+`": {`) {
			t.Errorf("variant %q: the trainer has no arm %q", v.Name, v.Arm)
		}
		for name := range v.Reward {
			if !strings.Contains(reward, "\n    "+name+": ") {
				t.Errorf("variant %q: the reward job has no hyper-parameter %q", v.Name, name)
			}
		}
	}
}

func TestARefusedJobIsWrongUsageAndNamesItsLog(t *testing.T) {
	b := bench(t)
	b.Described = Untrained(testCatalogue(), 7, 2)
	tr := &trial{Bench: b, seed: 101, dir: b.Dir, tracker: newTracker(b.Progress, "test", 1)}
	defer tr.tracker.stop()
	spec := b.Trainer.Job("no-such-kind", "odd", 1, nil)
	_, err := tr.job(t.Context(), spec, 1)
	var coded interface{ ExitCode() int }
	if !errors.As(err, &coded) || coded.ExitCode() != 2 || !strings.Contains(err.Error(), "job.log") ||
		!strings.Contains(err.Error(), "no-such-kind") {
		t.Errorf("%v", err)
	}
}

func TestRewardTableIsPooledAndHeldAgainstTargets(t *testing.T) {
	b := bench(t)
	r, err := b.RunReward(t.Context(), RewardOptions{Seeds: []uint64{101, 102}, Judges: []any{"openai:http://127.0.0.1:1:stub"}})
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]ModelSummary{}
	for _, m := range r.Models {
		at[m.Model] = m
	}
	if m := at[ours]; m.Fraction == nil || m.Fraction.Median != 1 || m.Accuracy.Interval == nil || m.OursLess != nil {
		t.Errorf("ours: %+v", m)
	}
	if m := at["vam"]; m.Wins != 2 || m.OursLess == nil || m.OursLess.Median <= 0 || m.OursLess.Interval == nil || m.ByGap[0].Pairs != 20 {
		t.Errorf("vam: %+v", m)
	}
	if m := at["judge:stub"]; m.CostUSD == nil || *m.CostUSD != 0.5 || m.Fraction != nil {
		t.Errorf("judge: %+v", m)
	}
	if at["oracle"].OursLess != nil {
		t.Error("the oracle is no baseline")
	}
	var out bytes.Buffer
	r.Print(&out)
	for _, want := range []string{"judge:stub", "aim met", "from 10 %", "2 of 2"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in the report:\n%s", want, out.String())
		}
	}
	var spec struct{ Hyper map[string]any }
	if err := readJSON(filepath.Join(b.Dir, "seed-101", "jobs", "evaluate", "spec.json"), &spec); err != nil ||
		spec.Hyper["judge_cache"] != filepath.Join(b.Dir, "lab", "judges", "seed-101") {
		t.Errorf("answers of judges cost money and must outlive the job: %v, %v", spec.Hyper, err)
	}
}

func TestABaselineAboveOursIsNamed(t *testing.T) {
	seed := uint64(101)
	worlds := []RewardWorld{
		{Seed: &seed, rows: []tableRow{{Model: ours, Accuracy: 0.6}, {Model: "vam", Accuracy: 0.61}, {Model: "oracle", Accuracy: 0.9}}},
	}
	r := summariseReward([]uint64{seed}, worlds)
	last := r.Targets[len(r.Targets)-1]
	if last.Met || !strings.Contains(last.Why, "vam in world 101") || strings.Contains(last.Why, "oracle") {
		t.Errorf("%+v", last)
	}
}

func TestConvertHandsOverAndRefuses(t *testing.T) {
	b := bench(t)
	dir := t.TempDir()
	from := filepath.Join(dir, "pairs.json")
	if err := os.WriteFile(from, []byte("[]"), 0o644); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "made", "set")
	if err := b.Trainer.Convert(t.Context(), FormCAIG, from, dir, to); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(to, "asked.txt"))
	if err != nil || !strings.HasPrefix(string(raw), "caig "+from) || !strings.Contains(string(raw), "--images "+dir) {
		t.Errorf("%s, %v", raw, err)
	}
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{broken, filepath.Join(dir, "not-there")} {
		err = b.Trainer.Convert(t.Context(), FormCAIG, file, dir, filepath.Join(dir, "other", "set"))
		var coded interface{ ExitCode() int }
		if !errors.As(err, &coded) || coded.ExitCode() != 2 {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestShareOfAJobFollowsItsCurve(t *testing.T) {
	dir := t.TempDir()
	spec := trainerbridge.TrainerSpec{Kind: trainerbridge.KindRounds, Hyper: map[string]any{"arms": "dpo,pcpo", "epochs": 2}}
	if got := jobShare(spec, dir); got != 0 {
		t.Errorf("before its first line: %v", got)
	}
	lines := strings.Repeat("{\"stage\": \"epoch\"}\n{\"stage\": \"rounds\"}\n", 2)
	if err := os.WriteFile(filepath.Join(dir, "metrics.jsonl"), []byte(lines), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := jobShare(spec, dir); got != 2.0/5 { // the base and two arms of two epochs
		t.Errorf("%v", got)
	}
}

func TestUnknownSettingsAreRefusedBeforeAnythingIsMade(t *testing.T) {
	for name, run := range map[string]func(b *Bench) error{
		"rounds": func(b *Bench) error {
			_, err := b.RunRounds(t.Context(), RoundsOptions{Seeds: []uint64{101}, Arms: []string{"nope"}})
			return err
		},
		"ablation": func(b *Bench) error {
			_, err := b.RunAblation(t.Context(),
				AblationOptions{Seeds: []uint64{101}, Variants: []Variant{{Arm: armPCPO}, {Arm: armDPO, Reward: map[string]any{"ctr_scale": "nope"}}}})
			return err
		},
		"reward": func(b *Bench) error {
			_, err := b.RunReward(t.Context(), RewardOptions{Seeds: []uint64{101}, Judges: []any{"nope"}})
			return err
		},
		// What is wrong with the judge is said even where the folder is not a data set.
		"data": func(b *Bench) error {
			_, err := b.RunReward(t.Context(), RewardOptions{Data: b.Dir, Judges: []any{"nope"}})
			return err
		},
	} {
		b := bench(t)
		err := run(b)
		var bad badInput
		if !errors.As(err, &bad) || bad.ExitCode() != 2 || !strings.Contains(err.Error(), "nope is unknown") {
			t.Errorf("%s: %v", name, err)
		}
		if made, _ := filepath.Glob(filepath.Join(b.Dir, "seed-*")); len(made) > 0 {
			t.Errorf("%s: refused after %v was begun", name, made)
		}
	}
}

func TestWithoutANumberOfEpochsTheTrainersOwnIsRun(t *testing.T) {
	r, err := bench(t).RunRounds(t.Context(), RoundsOptions{Seeds: []uint64{101}, Arms: []string{armDPO, armPCPO}})
	if err != nil {
		t.Fatal(err)
	}
	if got := len(r.Worlds[0].Arms[0].Epochs) - 1; r.Epochs != stubEpochs || got != stubEpochs {
		t.Errorf("%d epochs reported, %d run, want %d", r.Epochs, got, stubEpochs)
	}
}
