package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"ctrloop/internal/process"
	"ctrloop/pairer/dataset"
	trainerbridge "ctrloop/trainer-bridge"
)

// RewardOptions say what `eval reward` compares.
type RewardOptions struct {
	Seeds  []uint64       // worlds; or
	Data   string         // a data set folder, and
	Truth  string         // the file with its true click-through rates, empty where nobody knows them
	Judges []any          // texts or objects, as the trainer's reward/judges.py reads them
	MLLM   bool           // the two-image multimodal model besides
	Hyper  map[string]any // of the evaluate job
}

// hyper of the evaluate job.
func (o RewardOptions) hyper() map[string]any {
	h := merged(o.Hyper)
	if len(o.Judges) > 0 {
		h["judges"] = o.Judges
	}
	if o.MLLM {
		h["mllm"] = true
	}
	return h
}

// Models of the table that are not baselines.
var notBaselines = []string{ours, "ours_mllm", "oracle"}

// gapRow is a part of the test pairs and how a model does on it.
type gapRow struct {
	From     float64 `json:"from"`
	To       float64 `json:"to"` // infinity is written as null, and read as 0
	Pairs    int     `json:"pairs"`
	Accuracy float64 `json:"accuracy"`
}

// tableRow is what is read of a row of table.json.
type tableRow struct {
	Model             string   `json:"model"`
	Accuracy          float64  `json:"accuracy"`
	FractionOfCeiling *float64 `json:"fraction_of_ceiling"`
	SwapConsistency   *float64 `json:"swap_consistency"`
	CalibrationError  *float64 `json:"calibration_error"`
	LogLoss           *float64 `json:"log_loss"`
	CostUSD           *float64 `json:"cost_usd"`
	AccuracyTrue      *float64 `json:"accuracy_true"`
	ByGap             []gapRow `json:"by_gap"`
}

// RewardWorld is the table of one data set, as the trainer wrote it.
type RewardWorld struct {
	Seed  *uint64         `json:"seed,omitempty"`
	Data  string          `json:"dataset,omitempty"`
	Pairs int             `json:"test_pairs"`
	Table json.RawMessage `json:"table"`
	// Later is the same table on the split by time: training products, evidence from after the training span.
	Later json.RawMessage `json:"later,omitempty"`

	later []tableRow
	rows  []tableRow
	draws map[string][]float64 // accuracy by model, over products
}

// ModelSummary is a model over data sets.
type ModelSummary struct {
	Model            string   `json:"model"`
	Accuracy         Over     `json:"accuracy"`
	Fraction         *Over    `json:"fraction_of_ceiling,omitempty"`
	SwapConsistency  *Over    `json:"swap_consistency,omitempty"`
	CalibrationError *Over    `json:"calibration_error,omitempty"`
	LogLoss          *Over    `json:"log_loss,omitempty"`
	AccuracyTrue     *Over    `json:"accuracy_true,omitempty"`  // share of pairs whose true order it names
	LaterAccuracy    *Over    `json:"later_accuracy,omitempty"` // on the split by time
	LaterFraction    *Over    `json:"later_fraction_of_ceiling,omitempty"`
	CostUSD          *float64 `json:"cost_usd,omitempty"`   // of all data sets
	OursLess         *Over    `json:"ours_less,omitempty"`  // accuracy of ours less this model's, on the same pairs
	ByGap            []gapRow `json:"by_gap,omitempty"`     // over the pairs of all data sets
	Wins             int      `json:"ours_above,omitempty"` // data sets in which ours is more accurate
}

// RewardReport is what `eval reward` found.
type RewardReport struct {
	Seeds   []uint64       `json:"seeds,omitempty"`
	Models  []ModelSummary `json:"models"`
	Targets []Target       `json:"targets,omitempty"`
	Worlds  []RewardWorld  `json:"worlds"`
}

// RunReward trains and scores every reward model of the table on each data set.
func (b *Bench) RunReward(ctx context.Context, opt RewardOptions) (*RewardReport, error) {
	if _, err := b.Trainer.Settings(ctx, Asked{trainerbridge.KindEvaluate, opt.hyper()}); err != nil {
		return nil, err
	}
	if opt.Data != "" {
		w, err := b.rewardOn(ctx, opt)
		if err != nil {
			return nil, err
		}
		return summariseReward(nil, []RewardWorld{*w}), nil
	}
	worlds := make([]RewardWorld, len(opt.Seeds))
	err := b.each(ctx, "reward", opt.Seeds, weightWorld+weightEvaluate, func(ctx context.Context, i int, t *trial) error {
		data, err := t.dataset(ctx, PairRule{})
		if err != nil {
			return err
		}
		w, err := t.evaluate(ctx, data, filepath.Join(data, TruthFile), opt)
		if err != nil {
			return err
		}
		w.Seed = &opt.Seeds[i]
		worlds[i] = *w
		return nil
	})
	if err != nil {
		return nil, err
	}
	return summariseReward(opt.Seeds, worlds), nil
}

// rewardOn evaluates on a data set that is there.
func (b *Bench) rewardOn(ctx context.Context, opt RewardOptions) (*RewardWorld, error) {
	t := &trial{Bench: b, dir: b.Dir, tracker: newTracker(b.Progress, "reward", weightEvaluate)}
	defer t.tracker.stop()
	w, err := t.evaluate(ctx, opt.Data, opt.Truth, opt)
	if w != nil {
		w.Data = filepath.Base(opt.Data)
	}
	return w, err
}

// evaluate runs an evaluate job and reads its table.
func (t *trial) evaluate(ctx context.Context, data, truth string, opt RewardOptions) (*RewardWorld, error) {
	rows, err := dataset.Pairs(data)
	if err != nil {
		return nil, badInput{err}
	}
	h := opt.hyper()
	if len(opt.Judges) > 0 {
		// Answers cost money: they outlive the run. A folder has one writer, hence one for each world.
		h["judge_cache"] = filepath.Join(t.Trainer.home, "lab", "judges", filepath.Base(t.dir))
	}
	spec := t.Trainer.Job(trainerbridge.KindEvaluate, "evaluate", t.seed, h)
	spec.Dataset, spec.Truth = data, truth
	out, err := t.job(ctx, spec, weightEvaluate, data)
	if err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(filepath.Join(out, "table.json"))
	if err != nil {
		return nil, err
	}
	w := &RewardWorld{Table: raw}
	if err := json.Unmarshal(raw, &w.rows); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(out, "table.json"), err)
	}
	if w.Later, err = os.ReadFile(filepath.Join(out, "later.json")); err == nil {
		err = json.Unmarshal(w.Later, &w.later)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", filepath.Join(out, "later.json"), err)
	}
	rows = slices.DeleteFunc(rows, func(r dataset.PairRow) bool { return r.Split != "test" })
	w.Pairs = len(rows)
	w.draws, err = accuracyDraws(rows, filepath.Join(out, "predictions.jsonl"), t.seed)
	return w, err
}

// accuracyDraws resamples the products of a table's predictions: accuracy by model, the same products in each draw.
// Models that do not judge every pair (a judge on a sample) have no draws.
func accuracyDraws(test []dataset.PairRow, predictions string, seed uint64) (map[string][]float64, error) {
	row, product := map[string]dataset.PairRow{}, map[string]int{}
	for _, r := range test {
		row[r.PairID] = r
		product[r.Product] = 0
	}
	for i, p := range slices.Sorted(maps.Keys(product)) {
		product[p] = i
	}
	scores := map[string][]Score{}
	err := readLines(predictions, func(p prediction) error {
		r, ok := row[p.PairID]
		if !ok {
			return nil // of another split
		}
		if scores[p.Model] == nil {
			scores[p.Model] = make([]Score, len(product))
		}
		scores[p.Model][product[r.Product]].Add(p.PLeft-0.5, r.LeftWins)
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := map[string][]float64{}
	for model, s := range scores {
		var n int64
		for _, x := range s {
			n += x.N
		}
		if int(n) != len(test) {
			continue
		}
		out[model] = bootstrap(seed, len(product), func(w []float64) float64 {
			var right, all float64
			for i, x := range s {
				right, all = right+w[i]*x.Right, all+w[i]*float64(x.N)
			}
			return right / all
		})
	}
	return out, nil
}

func (w RewardWorld) row(model string) *tableRow { return rowOf(w.rows, model) }

func rowOf(rows []tableRow, model string) *tableRow {
	for i := range rows {
		if rows[i].Model == model {
			return &rows[i]
		}
	}
	return nil
}

func summariseReward(seeds []uint64, worlds []RewardWorld) *RewardReport {
	r := &RewardReport{Seeds: seeds, Worlds: worlds}
	var names []string
	for _, w := range worlds {
		for _, row := range w.rows {
			if !slices.Contains(names, row.Model) {
				names = append(names, row.Model)
			}
		}
	}
	for _, name := range names {
		r.Models = append(r.Models, summariseModel(name, worlds))
	}
	r.Targets = rewardTargets(r.Models, worlds)
	return r
}

func summariseModel(name string, worlds []RewardWorld) ModelSummary {
	m := ModelSummary{Model: name}
	accuracy := make([]part, len(worlds))
	less := make([]part, len(worlds))
	for i, w := range worlds {
		accuracy[i], less[i] = part{value: math.NaN()}, part{value: math.NaN()}
		row, mine := w.row(name), w.row(ours)
		if row == nil {
			continue
		}
		accuracy[i] = part{row.Accuracy, w.draws[name]}
		if row.CostUSD != nil {
			sum := *row.CostUSD
			if m.CostUSD != nil {
				sum += *m.CostUSD
			}
			m.CostUSD = &sum
		}
		if mine != nil && !slices.Contains(notBaselines, name) {
			less[i] = differences([]part{{mine.Accuracy, w.draws[ours]}}, []part{{row.Accuracy, w.draws[name]}})[0]
			if mine.Accuracy > row.Accuracy {
				m.Wins++
			}
		}
		m.ByGap = addGaps(m.ByGap, row.ByGap)
	}
	m.Accuracy = over(1, accuracy)
	table := func(w RewardWorld) []tableRow { return w.rows }
	later := func(w RewardWorld) []tableRow { return w.later }
	field := func(better float64, of func(*tableRow) *float64, from func(RewardWorld) []tableRow) *Over {
		var parts []part
		for _, w := range worlds {
			if row := rowOf(from(w), name); row != nil && of(row) != nil {
				parts = append(parts, part{value: *of(row)})
			}
		}
		if len(parts) == 0 {
			return nil
		}
		o := over(better, parts)
		return &o
	}
	m.Fraction = field(1, func(r *tableRow) *float64 { return r.FractionOfCeiling }, table)
	m.SwapConsistency = field(1, func(r *tableRow) *float64 { return r.SwapConsistency }, table)
	m.CalibrationError = field(-1, func(r *tableRow) *float64 { return r.CalibrationError }, table)
	m.LogLoss = field(-1, func(r *tableRow) *float64 { return r.LogLoss }, table)
	m.AccuracyTrue = field(1, func(r *tableRow) *float64 { return r.AccuracyTrue }, table)
	m.LaterAccuracy = field(1, func(r *tableRow) *float64 { return &r.Accuracy }, later)
	m.LaterFraction = field(1, func(r *tableRow) *float64 { return r.FractionOfCeiling }, later)
	if o := over(1, less); o.Worlds > 0 {
		m.OursLess = &o
	}
	return m
}

// addGaps pools accuracy by gap, weighed by pairs; parts are told apart by where they begin.
func addGaps(sum, more []gapRow) []gapRow {
	for _, g := range more {
		i := slices.IndexFunc(sum, func(s gapRow) bool { return s.From == g.From })
		if i < 0 {
			sum = append(sum, g)
			continue
		}
		n := sum[i].Pairs + g.Pairs
		if n > 0 {
			sum[i].Accuracy = (sum[i].Accuracy*float64(sum[i].Pairs) + g.Accuracy*float64(g.Pairs)) / float64(n)
		}
		sum[i].Pairs = n
	}
	slices.SortFunc(sum, func(a, b gapRow) int { return cmp.Compare(a.From, b.From) })
	return sum
}

// rewardTargets holds the table against the design's targets; nil where it has none of ours or no oracle.
func rewardTargets(models []ModelSummary, worlds []RewardWorld) []Target {
	i := slices.IndexFunc(models, func(m ModelSummary) bool { return m.Model == ours })
	if i < 0 {
		return nil
	}
	var out []Target
	if f := models[i].Fraction; f != nil {
		out = append(out, target("RM: (accuracy - 0.5) / (ceiling - 0.5)", "median", *f, f.Median, 0.60, 0.90, false),
			target("RM: (accuracy - 0.5) / (ceiling - 0.5)", "worst", *f, f.Worst, 0.60, 0.90, false))
	}
	var above int
	var why []string
	for k, w := range worlds {
		mine, all := w.row(ours), true
		for _, row := range w.rows {
			if mine == nil || !slices.Contains(notBaselines, row.Model) && row.Accuracy >= mine.Accuracy {
				all = false
				where := w.Data
				if w.Seed != nil {
					where = fmt.Sprintf("world %d", *w.Seed)
				}
				why = append(why, fmt.Sprintf("%s in %s", row.Model, cmp.Or(where, fmt.Sprint(k))))
			}
		}
		if all {
			above++
		}
	}
	t := target(
		"RM above every baseline",
		"share of data sets",
		Over{Worlds: len(worlds)},
		float64(above)/float64(max(1, len(worlds))),
		1,
		1,
		false,
	)
	if len(why) > 0 {
		t.Why = "not above " + strings.Join(why, ", ")
	}
	return append(out, t)
}

// Print writes the report for people.
func (r *RewardReport) Print(w io.Writer) {
	on := "one data set"
	if len(r.Seeds) > 0 {
		on = "worlds " + joined(r.Seeds)
	}
	fmt.Fprintf(
		w,
		"\nReward models on %s: pairs of products that training never saw. Median (worst); ours less: mean difference with 95 %% interval.\n\n",
		on,
	)
	t := newTable(
		"model",
		"accuracy",
		"interval",
		"of ceiling",
		"true order",
		"swap",
		"ECE",
		"log-loss",
		"later, of ceiling",
		"ours less",
		"ours above",
		"USD",
	)
	for _, m := range r.Models {
		t.row(m.Model, both(&m.Accuracy), span2(m.Accuracy.Interval), both(m.Fraction), both(m.AccuracyTrue), both(m.SwapConsistency),
			both(m.CalibrationError), both(m.LogLoss), both(m.LaterFraction), less(m.OursLess), wins(m, len(r.Worlds)), dollars(m.CostUSD))
	}
	t.print(w)
	r.printGaps(w)
	if len(r.Targets) > 0 {
		printTargets(w, r.Targets)
	}
}

func (r *RewardReport) printGaps(w io.Writer) {
	var starts []float64
	for _, m := range r.Models {
		for _, g := range m.ByGap {
			if !slices.Contains(starts, g.From) {
				starts = append(starts, g.From)
			}
		}
	}
	if len(starts) == 0 {
		return
	}
	slices.Sort(starts)
	head := []string{"accuracy by gap of the rates"}
	for _, s := range starts {
		head = append(head, fmt.Sprintf("from %.0f %%", 100*s))
	}
	t := newTable(head...)
	for _, m := range r.Models {
		cells := []string{m.Model}
		for _, s := range starts {
			i := slices.IndexFunc(m.ByGap, func(g gapRow) bool { return g.From == s })
			if i < 0 || m.ByGap[i].Pairs == 0 {
				cells = append(cells, "-")
				continue
			}
			cells = append(cells, fmt.Sprintf("%.3f (%d)", m.ByGap[i].Accuracy, m.ByGap[i].Pairs))
		}
		t.row(cells...)
	}
	t.print(w)
}

func both(o *Over) string {
	switch {
	case o == nil || o.Worlds == 0:
		return "-"
	case o.Worlds == 1:
		return fmt.Sprintf("%.3f", o.Median)
	}
	return fmt.Sprintf("%.3f (%.3f)", o.Median, o.Worst)
}

func span2(i *Interval) string {
	if i == nil {
		return "-"
	}
	return fmt.Sprintf("%.3f to %.3f", i.Low, i.High)
}

func less(o *Over) string {
	if o == nil {
		return ""
	}
	if o.Interval == nil {
		return fmt.Sprintf("%+.3f", o.Median)
	}
	return span(o.Interval)
}

func wins(m ModelSummary, worlds int) string {
	if m.OursLess == nil {
		return ""
	}
	return fmt.Sprintf("%d of %d", m.Wins, worlds)
}

func dollars(v *float64) string {
	if v == nil {
		return ""
	}
	return fmt.Sprintf("%.2f", *v)
}

// Form of public creative data that the trainer converts.
type Form string

// Forms, by the names of the converter's commands.
const (
	FormCAIG            Form = "caig"
	FormCreativeRanking Form = "creative-ranking"
)

// Convert makes a data set of public data; images is the folder of its pictures, empty for the form's own place. A
// data set that was made from the same files stays.
func (t *Trainer) Convert(ctx context.Context, form Form, from, images, to string) error {
	key, err := sourceKey(form, from, images)
	if err != nil {
		return badInput{err}
	}
	return once(filepath.Dir(to), key, func() error {
		if err := os.RemoveAll(to); err != nil {
			return err
		}
		args := []string{"-m", "ctrloop_trainer.reward.formats", string(form), from, "--out", to}
		if images != "" {
			args = append(args, "--images", images)
		}
		err := process.Run(ctx, process.Spec{
			Name: "formats", Path: t.Python, Args: args, Env: []string{"PYTHONPATH=" + t.Trainer, "PYTHONDONTWRITEBYTECODE=1"}, Threads: t.Threads,
		}, t.Log)
		if exit, ok := process.ExitOf(err); ok && exit.Code == badInput.ExitCode(badInput{}) {
			return badInput{fmt.Errorf("convert %s: %w", from, err)}
		}
		if err != nil {
			return fmt.Errorf("convert %s: %w", from, err)
		}
		return nil
	})
}

// sourceKey names the source of a conversion by its files' sizes and times: public data are too large to be read for it.
func sourceKey(form Form, paths ...string) (any, error) {
	key := []any{form}
	for _, p := range paths {
		if p == "" {
			continue
		}
		info, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		abs, err := filepath.Abs(p)
		if err != nil {
			return nil, err
		}
		key = append(key, abs, info.Size(), info.ModTime().UnixNano())
	}
	return key, nil
}
