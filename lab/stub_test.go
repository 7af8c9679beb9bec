package lab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image/png"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/rs/zerolog"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/imaging/grammar"
	"ctrloop/internal/world"
	"ctrloop/pairer"
	"ctrloop/pairer/dataset"
	"ctrloop/schemas"
	trainerbridge "ctrloop/trainer-bridge"
)

// stubEnv makes this test binary a trainer: the contract is argv, files and exit status.
const stubEnv = "CTRLOOP_TEST_STUB_TRAINER"

func TestMain(m *testing.M) {
	if os.Getenv(stubEnv) != "" {
		os.Exit(stub(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// stub is `python -m ctrloop_trainer.job SPEC --out DIR`, or a converter of public data.
func stub(args []string) int {
	if strings.HasSuffix(args[1], "formats") {
		return stubFormats(args[2:])
	}
	if strings.HasSuffix(args[1], "settings") {
		return stubSettings()
	}
	var spec trainerbridge.TrainerSpec
	if err := readJSON(args[2], &spec); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	out := args[4]
	log, err := os.OpenFile(filepath.Join(out, "..", "..", "ran.txt"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err == nil {
		fmt.Fprintln(log, spec.ID)
		_ = log.Close()
	}
	switch spec.Kind {
	case trainerbridge.KindReward:
		err = stubReward(spec, out)
	case trainerbridge.KindRounds:
		err = stubRounds(spec, out)
	case trainerbridge.KindEvaluate:
		err = stubEvaluate(spec, out)
	default:
		err = fmt.Errorf("kind %s", spec.Kind)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	return 0
}

// stubReward knows the truth and says it with noise; without its point loss it knows nothing.
func stubReward(spec trainerbridge.TrainerSpec, out string) error {
	rows, err := dataset.Pairs(spec.Dataset)
	if err != nil {
		return err
	}
	truth := map[string]float64{}
	if err := readJSON(filepath.Join(spec.Dataset, TruthFile), &truth); err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(spec.Seed, 1))
	_, ablated := spec.Hyper["point_weight"]
	var lines []byte
	for _, p := range rows {
		if p.Split != "test" {
			continue
		}
		left := 0.25
		if truth[p.Left] > truth[p.Right] {
			left = 0.75
		}
		if ablated {
			left = r.Float64()
		}
		raw, _ := json.Marshal(prediction{p.PairID, ours, left})
		lines = append(append(lines, raw...), '\n')
	}
	if err := os.WriteFile(filepath.Join(out, "predictions.jsonl"), lines, 0o644); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(out, "model"), 0o755); err != nil {
		return err
	}
	return writeJSON(filepath.Join(out, "model", "weights.json"), spec.Hyper)
}

// stubRounds has arms of known character: pcpo writes what suits, dpo writes clickbait ever more often.
func stubRounds(spec trainerbridge.TrainerSpec, out string) error {
	if spec.RewardModel == "" || spec.RefereeModel == "" {
		return fmt.Errorf("reward_model and referee_model: missing")
	}
	epochs := int(spec.Hyper["epochs"].(float64))
	var lines []byte
	for _, p := range testCatalogue().Products() {
		if !schemas.Holdout(p.ID, 0.2) {
			continue
		}
		for arm := range strings.SplitSeq(spec.Hyper["arms"].(string), ",") {
			for e := range epochs + 1 {
				for k := range 24 {
					r := rand.New(rand.NewPCG(hash64(spec.Seed, p.ID, k), 5)) // alike for all arms and epochs
					raw, _ := json.Marshal(Sample{arm, e, p.ID, stubText(p, r, arm, e)})
					lines = append(append(lines, raw...), '\n')
				}
			}
		}
	}
	if err := os.WriteFile(filepath.Join(out, "samples.jsonl"), lines, 0o644); err != nil {
		return err
	}
	return writeJSON(filepath.Join(out, "metrics.json"), map[string]any{
		"arm": armPCPO, "epoch": epochs, "passed": true, "base": map[string]any{"matching_b": 0.3},
		"epochs": []map[string]any{{"arm": armPCPO, "epoch": epochs, "matching_b": 0.5}},
	})
}

func stubText(p *catalogue.Product, r *rand.Rand, arm string, epoch int) string {
	d := world.Untrained(p, r)
	if r.IntN(4) < epoch {
		if arm == armDPO {
			d.Scene = grammar.NumRealScenes // the first clickbait scene
		} else {
			d.Scene, d.Palette = p.Fits()[r.IntN(2)], p.Harmonious()[0]
		}
	}
	return d.String()
}

// testCatalogue is a small shop: 14 products to learn from and 8 that are held out.
var testCatalogue = sync.OnceValue(func() *catalogue.Catalogue {
	files := fstest.MapFS{}
	var list bytes.Buffer
	left := map[bool]int{false: 14, true: 8}
	for _, p := range catalogue.Embedded().Products() {
		held := schemas.Holdout(p.ID, 0.2)
		if left[held]--; left[held] < 0 {
			continue
		}
		var picture bytes.Buffer
		if err := png.Encode(&picture, p.Cutout); err != nil {
			panic(err)
		}
		files[p.ID+".png"] = &fstest.MapFile{Data: picture.Bytes()}
		raw, _ := json.Marshal(map[string]string{"id": p.ID, "title": p.Title, "category": p.Category, "image": p.ID + ".png"})
		list.Write(append(raw, '\n'))
	}
	files["products.jsonl"] = &fstest.MapFile{Data: list.Bytes()}
	cat, err := catalogue.LoadFS(files)
	if err != nil {
		panic(err)
	}
	return cat
})

// small are options of a world that is drawn quickly: little traffic over few creatives.
func small(t *testing.T) WorldOptions {
	t.Helper()
	cfg := pairer.Default()
	return WorldOptions{Clickbait: 1.5, Impressions: 150_000, PerProduct: 4, Pairer: cfg}
}

// bench is a bench on a stub trainer.
func bench(t *testing.T) *Bench {
	t.Helper()
	t.Setenv(stubEnv, "1")
	dir := t.TempDir()
	file := filepath.Join(dir, "catalogue.jsonl")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return &Bench{
		Trainer: &Trainer{
			Local: &trainerbridge.Local{
				Inputs: trainerbridge.Inputs{
					Python: os.Args[0], Trainer: dir, Dir: dir, Catalogue: file, Grammar: file, Renderer: []string{"true"}, Threads: 1,
				},
				Timeout: jobTimeout, StopGrace: jobTimeout, Log: zerolog.Nop(),
			},
			home: dir,
		},
		Catalogue: testCatalogue(), Dir: dir, World: small(t), Described: Untrained(testCatalogue(), 7, 8), Jobs: 2, Progress: io.Discard,
	}
}

// stubEvaluate writes a table of a model that knows most, one that knows something, and the oracle.
func stubEvaluate(spec trainerbridge.TrainerSpec, out string) error {
	rows, err := dataset.Pairs(spec.Dataset)
	if err != nil {
		return err
	}
	truth := map[string]float64{}
	if spec.Truth != "" {
		if err := readJSON(spec.Truth, &truth); err != nil {
			return err
		}
	}
	r := rand.New(rand.NewPCG(spec.Seed, 2))
	var lines []byte
	scores := map[string]*Score{ours: {}, "vam": {}, "oracle": {}}
	for _, p := range rows {
		if p.Split != "test" {
			continue
		}
		d := truth[p.Left] - truth[p.Right]
		coin := r.Float64() - 0.5
		known := map[string]float64{"oracle": d, ours: d, "vam": coin}
		for model, s := range known {
			scores[model].Add(s, p.LeftWins)
			left := 0.25
			if s > 0 {
				left = 0.75
			}
			raw, _ := json.Marshal(prediction{p.PairID, model, left})
			lines = append(append(lines, raw...), '\n')
		}
	}
	if err := os.WriteFile(filepath.Join(out, "predictions.jsonl"), lines, 0o644); err != nil {
		return err
	}
	var table []map[string]any
	for _, model := range []string{"vam", ours, "oracle"} {
		a := scores[model].Accuracy()
		table = append(table, map[string]any{
			"model": model, "accuracy": a, "low": a, "high": a, "swap_consistency": 1.0, "log_loss": 0.7, "calibration_error": 0.02,
			"fraction_of_ceiling": FractionOfCeiling(a, scores["oracle"].Accuracy()),
			"by_gap": []map[string]any{
				{"from": 0.0, "to": 0.1, "pairs": 10, "accuracy": 0.5},
				{"from": 0.1, "to": nil, "pairs": 30, "accuracy": a},
			},
		})
	}
	for i := range spec.Hyper {
		if i == "judges" {
			table = append(table, map[string]any{"model": "judge:stub", "accuracy": 0.5, "cost_usd": 0.25})
		}
	}
	return writeJSON(filepath.Join(out, "table.json"), table)
}

// stubFormats copies nothing: it only takes note of what it was asked.
func stubFormats(args []string) int {
	if args[1] == "" || !strings.Contains(strings.Join(args, " "), "--out") {
		return 2
	}
	if strings.HasSuffix(args[1], "broken") {
		fmt.Fprintln(os.Stderr, "line 1: not a record")
		return 2
	}
	out := args[3]
	if err := os.MkdirAll(out, 0o755); err != nil {
		return 1
	}
	return map[bool]int{true: 0, false: 1}[os.WriteFile(filepath.Join(out, "asked.txt"), []byte(strings.Join(args, " ")), 0o644) == nil]
}

// stubEpochs is the stub's default number of epochs.
const stubEpochs = 3

// stubSettings refuses arms and judges called nope, as the trainer refuses unknown ones.
func stubSettings() int {
	var asked []Asked
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	told := []map[string]any{}
	for _, a := range asked {
		raw, _ := json.Marshal(a.Hyper)
		if strings.Contains(string(raw), "nope") {
			fmt.Fprintf(os.Stderr, "%s: nope is unknown\n", a.Kind)
			return 2
		}
		told = append(told, merged(map[string]any{"epochs": stubEpochs}, a.Hyper))
	}
	if err := json.NewEncoder(os.Stdout).Encode(told); err != nil {
		return 1
	}
	return 0
}
