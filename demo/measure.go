package demo

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"ctrloop/app"
	"ctrloop/internal/imaging"
	"ctrloop/internal/warehouse/query"
	"ctrloop/internal/world"
	"ctrloop/lab"
	"ctrloop/pairer/dataset"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/schemas/eventpb"
	"ctrloop/serving/rollout"
	trainerbridge "ctrloop/trainer-bridge"
)

// truth knows the true click-through rate of every creative: it shows the world the finished picture.
type truth struct {
	world *world.World
	app   *app.App

	mu  sync.Mutex
	ctr map[string]float64
	err error
}

// CTR of a creative. A creative whose picture cannot be read has no clicks; Err then says why.
func (t *truth) CTR(id string) float64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v, ok := t.ctr[id]; ok {
		return v
	}
	v, err := t.look(id)
	if err != nil && t.err == nil {
		t.err = err
	}
	t.ctr[id] = v
	return v
}

func (t *truth) look(id string) (float64, error) {
	c, ok := t.app.Creative(id)
	if !ok {
		return 0, fmt.Errorf("a decision named creative %s, which %s does not hold", id, schemas.TopicCreatives)
	}
	p, ok := t.app.Catalogue().Get(c.Product)
	if !ok {
		return 0, fmt.Errorf("creative %s is of product %s, which is not in the catalogue", id, c.Product)
	}
	im, err := t.app.Picture(c)
	if err != nil {
		return 0, err
	}
	return t.world.TrueCTR(p, im), nil
}

// Err is the first creative that could not be read.
func (t *truth) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// measure fills the scoreboard.
func (d *demo) measure(ctx context.Context) error {
	b := d.board
	for _, part := range []func(context.Context) error{
		d.measureStream, d.measurePairs, d.measureReward, d.measureRounds, d.measureServing, d.measureExperiment,
	} {
		if err := part(ctx); err != nil {
			return fmt.Errorf("measure: %w", err)
		}
	}
	if b.Outcome == "" {
		b.Outcome = "the experiment is not decided"
	}
	if err := d.save(); err != nil {
		return err
	}
	b.WallSeconds = d.state.Wall
	for _, name := range slices.Sorted(maps.Keys(d.state.Phases)) {
		b.Phases = append(b.Phases, Phase{name, d.state.Phases[name]})
	}
	return d.truth.Err()
}

// measureStream compares every row of the warehouse with the oracle. The rows are read as they lie in the
// table, not deduplicated: a label that was inserted twice counts as a duplicate.
func (d *demo) measureStream(ctx context.Context) error {
	cfg := d.trafficConfig()
	oracle, err := world.OpenOracle(cfg, d.cat, d.journal())
	if err != nil {
		return err
	}
	rows, err := d.app.Warehouse().Query(ctx, query.Text("verdicts"))
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	var labels iter.Seq2[world.Label, error] = func(yield func(world.Label, error) bool) {
		for rows.Next() {
			var id uuid.UUID
			var kind int8
			var clicked uint8
			var version uint32
			err := rows.Scan(&id, &kind, &clicked, &version)
			if !yield(world.Label{ID: schemas.ImpressionID(id), Kind: eventpb.LabelKind(kind), Clicked: clicked != 0, Version: version}, err) ||
				err != nil {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(world.Label{}, err)
		}
	}
	// Every window is closed: no impression is too young to have a label.
	r, err := oracle.Compare(labels, d.clock.Now().UnixMilli())
	if err != nil {
		return err
	}
	for _, e := range r.Examples {
		d.opt.Log.Error().Msg("oracle: " + e)
	}
	s := d.people.Stats()
	d.board.Stream = Stream{
		Impressions: s.Impressions, Clicks: s.Clicks, LabelsExpected: r.Expected, Labels: r.Labels, Corrected: r.Corrected,
		Lost: r.Lost, Duplicate: r.Duplicate, Spurious: r.Spurious, LedgerOK: d.app.Ledger().Balanced,
	}
	if d.board.Warehouse.Rows, err = d.app.Warehouse().Count(ctx, query.Text("labels")); err != nil {
		return err
	}
	d.board.Warehouse.AuditMismatch, err = d.app.Warehouse().Count(ctx, query.Text("audit"))
	return err
}

// firstDataset is the one that the candidate was trained on: the first cycle's.
func (d *demo) firstDataset() (digest string, ok bool) {
	first := int64(0)
	for _, s := range d.app.Control().Datasets {
		if !ok || s.ToMS < first {
			digest, first, ok = s.Digest, s.ToMS, true
		}
	}
	return digest, ok
}

func (d *demo) measurePairs(context.Context) error {
	digest, ok := d.firstDataset()
	if !ok {
		return nil
	}
	rows, err := dataset.Pairs(d.app.Artifacts().Path(digest))
	if err != nil {
		return err
	}
	var sum float64
	for _, r := range rows {
		sum += r.Weight
	}
	d.board.Pairs = Pairs{Count: int64(len(rows)), MeanWeight: sum / float64(max(1, len(rows)))}
	return nil
}

// job returns the job of a stage of the first cycle, if it has succeeded.
func (d *demo) job(stage string) *control.JobStatus {
	digest, ok := d.firstDataset()
	if !ok {
		return nil
	}
	j := d.app.Control().Jobs[trainerbridge.JobID(stage, digest)]
	if j == nil || j.State != control.JobSucceeded {
		return nil
	}
	return j
}

// measureReward scores the predictions on pairs of unseen products, and the oracle on the same pairs.
func (d *demo) measureReward(context.Context) error {
	digest, ok := d.firstDataset()
	j := d.job("reward")
	if !ok || j == nil {
		return nil
	}
	rows, err := dataset.Pairs(d.app.Artifacts().Path(digest))
	if err != nil {
		return err
	}
	test := map[string]dataset.PairRow{}
	var oracle, coin lab.Score
	for _, r := range rows {
		if r.Split != "test" {
			continue
		}
		test[r.PairID] = r
		oracle.Add(d.truth.CTR(r.Left)-d.truth.CTR(r.Right), r.LeftWins)
		h := fnv.New32a()
		_, _ = h.Write([]byte(r.PairID))
		coin.Add(float64(h.Sum32()%2)-0.5, r.LeftWins)
	}
	models, real := map[string]*lab.Score{}, lab.Score{}
	err = readLines(filepath.Join(d.app.Artifacts().Path(j.Update.Artifact), "predictions.jsonl"), func(p struct {
		PairID string  `json:"pair_id"`
		Model  string  `json:"model"`
		PLeft  float64 `json:"p_left"`
	}) error {
		r, ok := test[p.PairID]
		if !ok {
			return fmt.Errorf("predictions name pair %s, which is not in the test split", p.PairID)
		}
		if models[p.Model] == nil {
			models[p.Model] = &lab.Score{}
		}
		models[p.Model].Add(p.PLeft-0.5, r.LeftWins)
		if gap := d.truth.CTR(r.Left) - d.truth.CTR(r.Right); p.Model == "ours" && gap != 0 {
			real.Add(p.PLeft-0.5, gap > 0)
		}
		return nil
	})
	if err != nil {
		return err
	}
	b := Reward{TestPairs: oracle.N, Ceiling: oracle.Accuracy(), Baselines: map[string]float64{"random": coin.Accuracy()}}
	for name, t := range models {
		if name == "ours" {
			b.Accuracy = t.Accuracy()
		} else {
			b.Baselines[name] = t.Accuracy()
		}
	}
	if v, ok := j.Update.Metrics["swap_consistency"].(float64); ok {
		b.SwapConsistency = v
	}
	b.FractionOfCeiling, b.TrueAccuracy = lab.FractionOfCeiling(b.Accuracy, b.Ceiling), real.Accuracy()
	b.Drift = d.drift()
	d.board.Reward = b
	return nil
}

// drift is what the newest reward job found out about the model before it; nil after a single cycle.
func (d *demo) drift() any {
	var newest *control.JobStatus
	for _, j := range d.app.Control().Jobs {
		if j.Kind == string(trainerbridge.KindReward) && j.State == control.JobSucceeded && j.Update.Metrics["drift"] != nil &&
			(newest == nil || j.Queued.After(newest.Queued)) {
			newest = j
		}
	}
	if newest == nil {
		return nil
	}
	return newest.Update.Metrics["drift"]
}

// bestBudget is how many drawings the search for a product's best creative may make. A quick run leaves it out.
const bestBudget = 400

// measureRounds has the oracle judge what each arm wrote for unseen products after each epoch.
func (d *demo) measureRounds(ctx context.Context) error {
	j := d.job("rounds")
	if j == nil {
		return nil
	}
	dir := d.app.Artifacts().Path(j.Update.Artifact)
	var samples []lab.Sample
	err := readLines(filepath.Join(dir, "samples.jsonl"), func(s lab.Sample) error { samples = append(samples, s); return nil })
	if err != nil {
		return err
	}
	judged, err := lab.NewJudge(d.world, d.cat).Judge(samples)
	if err != nil {
		return err
	}
	var best []float64
	if !d.opt.Quick {
		if best, err = lab.Best(ctx, d.world, d.cat, judged.Products, bestBudget); err != nil {
			return err
		}
	}
	m, err := lab.ReadRoundsMetrics(filepath.Join(dir, "metrics.json"))
	if err != nil {
		return err
	}
	rounds := lab.Report(d.opt.Seed, judged, best, m)
	d.board.Shipped, d.board.BestCTR = rounds.Shipped, rounds.BestCTR
	for _, a := range rounds.Arms {
		for _, e := range a.Epochs {
			for len(d.board.Epochs) <= e.Epoch {
				d.board.Epochs = append(d.board.Epochs, Epoch{Epoch: len(d.board.Epochs)})
			}
			arm := &Arm{EpochReport: e}
			switch a.Arm {
			case "dpo":
				d.board.Epochs[e.Epoch].DPO = arm
			case "pcpo":
				d.board.Epochs[e.Epoch].PCPO = arm
				d.board.EqualLift = a.AgainstDPO
			default: // further arms are for evaluations: `ctrloop eval rounds`
			}
		}
	}
	return nil
}

func (d *demo) measureServing(ctx context.Context) error {
	b := d.board
	b.Swap = add(d.state.Swap, d.swapped())
	st := d.app.Control()
	weight, err := d.productWeights(ctx)
	if err != nil {
		return err
	}
	for _, m := range st.Models {
		if m.Logical != rollout.Logical {
			continue
		}
		n, _ := d.app.Creatives(m.Version)
		b.Generation.Images += n
		b.Versions = append(
			b.Versions,
			Version{Version: m.Version, State: string(m.State), Reason: m.Reason, TrueCTR: d.versionCTR(m.Version, weight)},
		)
	}
	slices.SortFunc(b.Versions, func(a, c Version) int { return st.Models[a.Version].Since.Compare(st.Models[c.Version].Since) })
	worst, err := d.pixelError()
	if err != nil {
		return err
	}
	b.Generation.ProductPixelMaxError = int64(worst)
	live := st.Models[st.Routes[rollout.Logical].Champion]
	if live != nil && live.LabelsTo > 0 {
		b.Freshness, b.Learned = float64(d.clock.Now().UnixMilli()-live.LabelsTo)/1000, true
	} else { // the live model has learned from no click of this world: its age is the whole run
		b.Freshness = float64(d.clock.Now().UnixMilli()-lab.StartMS) / 1000
	}
	return nil
}

// pixelError decodes every creative and compares the product's pixels with the cut-out.
func (d *demo) pixelError() (worst int, err error) {
	for _, c := range d.app.AllCreatives() {
		p, ok := d.cat.Get(c.Product)
		if !ok {
			continue
		}
		im, err := d.app.Picture(c)
		if err != nil {
			return 0, err
		}
		worst = max(worst, imaging.MaxProductError(im, p))
	}
	return worst, nil
}

// productWeights is each product's share of the impressions.
func (d *demo) productWeights(ctx context.Context) (map[string]float64, error) {
	rows, err := d.app.Warehouse().Query(ctx, query.Text("product_shares"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	w := map[string]float64{}
	for rows.Next() {
		var p string
		var share float64
		if err := rows.Scan(&p, &share); err != nil {
			return nil, err
		}
		w[p] = share
	}
	return w, rows.Err()
}

// versionCTR is the mean true rate of a version's creatives, products weighed by traffic and the creatives of
// one product alike, as decisions draw them. 0: it has none.
func (d *demo) versionCTR(version string, weight map[string]float64) float64 {
	sum, n := map[string]float64{}, map[string]float64{}
	for _, c := range d.app.AllCreatives() {
		if c.ModelVersion == version && c.Blocked == "" {
			sum[c.Product] += d.truth.CTR(c.ID)
			n[c.Product]++
		}
	}
	var total, ctr float64
	for p, w := range weight {
		if n[p] > 0 {
			total += w
			ctr += w * sum[p] / n[p]
		}
	}
	if total == 0 {
		return 0
	}
	return ctr / total
}

func (d *demo) measureExperiment(ctx context.Context) error {
	var x *control.ExperimentStatus
	for _, e := range d.app.Control().Experiments {
		x = e
	}
	if x == nil {
		return nil
	}
	weight, err := d.productWeights(ctx)
	if err != nil {
		return err
	}
	e := Experiment{ID: x.ID, Decision: "undecided"}
	if base := d.versionCTR(x.Control, weight); base > 0 {
		e.TrueLift = d.versionCTR(x.Treatment, weight)/base - 1
	}
	if e.Impressions, err = d.app.Warehouse().Count(ctx, query.Text("experiment_impressions"), x.ID); err != nil {
		return err
	}
	if e.Categories, err = d.app.Warehouse().Count(ctx, query.Text("experiment_categories"), x.ID); err != nil {
		return err
	}
	v, err := d.app.Analyse(ctx, x.ID)
	if err != nil {
		return err
	}
	dec := v.Decision()
	if x.Decision != nil {
		dec = *x.Decision
		e.Decision = string(dec.Outcome)
		d.board.Outcome = map[control.Outcome]string{
			control.Promote:      "promoted " + x.Treatment,
			control.RollBack:     "rolled back " + x.Treatment,
			control.Inconclusive: "inconclusive: " + x.Treatment + " was not promoted",
		}[dec.Outcome]
	}
	e.Rule, e.Lift, e.LiftLow, e.LiftHigh, e.SRMP = dec.Rule, dec.Lift, dec.LiftLow, dec.LiftHigh, dec.SRMP
	d.board.Experiment = e
	return nil
}

// swapped is what this attempt's gateway and swap controller have counted.
func (d *demo) swapped() Swap {
	s := d.app.ServingStats()
	return Swap{
		Count: int64(s.Swap.Flips), Requests: s.Gateway.Requests, Failed: s.Gateway.Failed, WrongVersion: s.Gateway.WrongVersion,
		FlipP99MS: float64(s.Swap.FlipP99) / float64(time.Millisecond),
	}
}

// add adds what an earlier attempt measured.
func add(a, b Swap) Swap {
	return Swap{
		Count: a.Count + b.Count, Requests: a.Requests + b.Requests, Failed: a.Failed + b.Failed, WrongVersion: a.WrongVersion + b.WrongVersion,
		FlipP99MS: max(a.FlipP99MS, b.FlipP99MS),
	}
}

// readLines decodes a file of JSON lines.
func readLines[T any](path string, f func(T) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	sc := bufio.NewScanner(file)
	sc.Buffer(nil, 1<<20)
	for n := 1; sc.Scan(); n++ {
		var v T
		if err := json.Unmarshal(sc.Bytes(), &v); err != nil {
			return fmt.Errorf("%s, line %d: %w", filepath.Base(path), n, err)
		}
		if err := f(v); err != nil {
			return fmt.Errorf("%s, line %d: %w", filepath.Base(path), n, err)
		}
	}
	return sc.Err()
}
