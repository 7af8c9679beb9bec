package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"ctrloop/internal/stats"
	"ctrloop/internal/stats/statcsv"
	"ctrloop/internal/warehouse"
	"ctrloop/schemas/control"
	"ctrloop/serving/decide"
	"ctrloop/serving/experiment"
)

// statsSource are the options about an experiment in a warehouse, in the place of a file.
type statsSource struct {
	Experiment string `placeholder:"NAME" help:"Take the data of this experiment from the warehouse instead of a file."`
	storeFlags
	Step   string        `placeholder:"STEP" help:"Step of the ramp, all visits to it: a number from 1, deciding (the default: the step that decides or, before it is reached, the present one), or all. Over steps with different shares a plain lift can turn around (Simpson)."`
	Settle time.Duration `default:"1m" help:"Leave this much out after a step began, as the controller does (experiment.settle): some replicas still assign by the old share."`
}

// Values of --step beside numbers.
const (
	stepDeciding = "deciding"
	stepAll      = "all"
)

// fromFileOrWarehouse reads the file, or asks the warehouse where an experiment is named, and says which it was.
func fromFileOrWarehouse[T any](
	ctx context.Context,
	g *Globals,
	o *output,
	file string,
	s *statsSource,
	read func(io.Reader) (T, error),
	ask func(statsWarehouse) (T, error),
) (v T, name string, err error) {
	switch {
	case (file == "") == (s.Experiment == ""):
		return v, "", usageError{errors.New("give a file, or an experiment of the warehouse with --experiment NAME: one of the two")}
	case s.Experiment == "" && s.Step != "":
		return v, "", usageError{fmt.Errorf("--step %s: a file has no steps; it goes with --experiment", s.Step)}
	case s.Settle < 0:
		return v, "", usageError{fmt.Errorf("--settle %v: want 0 or more", s.Settle)}
	}
	if s.Experiment == "" {
		v, err = readStatsFile(file, read)
		return v, file, err
	}
	db, done, err := s.open(ctx, g, o, false)
	if err != nil {
		return v, "", err
	}
	defer done()
	w, err := openExperiment(ctx, db, s)
	if err != nil {
		return v, "", err
	}
	if w.note != "" {
		fmt.Fprintln(o.stderr, "warning: "+w.note)
	}
	v, err = ask(w)
	if err != nil {
		err = fmt.Errorf("experiment %s: %w", s.Experiment, err)
	}
	return v, w.name, err
}

// statsWarehouse is one experiment in a warehouse, and the spans of its ramp that are asked about.
type statsWarehouse struct {
	db     *warehouse.DB
	id     string
	name   string // for people, with the step
	unit   string // column: user or product
	x      *control.ExperimentStatus
	logged bool // x is of the control log; else it is made up: one step, of unknown share
	settle time.Duration
	spans  []experiment.Span
	start  time.Time // of the experiment's first impression
	note   string
}

// openExperiment finds the experiment and the step that is asked for.
func openExperiment(ctx context.Context, db *warehouse.DB, s *statsSource) (statsWarehouse, error) {
	w := statsWarehouse{db: db, id: s.Experiment, name: "experiment " + s.Experiment, unit: "user", settle: s.Settle}
	var commands []struct {
		Type string `ch:"type"`
		Data string `ch:"data"`
	}
	entity := control.ExperimentEntity(s.Experiment)
	err := db.Select(
		ctx,
		&commands,
		`SELECT toString(type) AS type, data FROM control_log FINAL
		WHERE rejected = '' AND entity = ? AND type IN (?, ?, ?) ORDER BY source, offset`,
		entity,
		string(control.ExperimentCreated),
		string(control.ExperimentStarted),
		string(control.ExperimentStepped),
	)
	if err != nil {
		return w, withHint(err, "is this the warehouse of an instance that has run? --dir names its folder, --dsn its ClickHouse")
	}
	log := control.NewState()
	for i, c := range commands {
		e := control.Event{ID: strconv.Itoa(i + 1), Type: control.Type(c.Type), Entity: entity, Data: json.RawMessage(c.Data)}
		if _, err := log.Apply(int64(i), e); err != nil {
			return w, fmt.Errorf("the history of experiment %s in control_log is not readable: %q: %w", s.Experiment, c.Data, err)
		}
	}
	if w.x, w.logged = log.Experiments[s.Experiment]; w.logged && w.x.Unit == "product" {
		w.unit = "product"
	}
	var first []struct {
		N  uint64 `ch:"n"`
		At int64  `ch:"at"`
	}
	if err := db.Select(ctx, &first,
		`SELECT count() AS n, toInt64(toUnixTimestamp64Milli(min(event_time))) AS at FROM labels_mature WHERE experiment = ?`,
		s.Experiment); err != nil {
		return w, err
	}
	if len(first) == 0 || first[0].N == 0 {
		return w, w.unknown(ctx)
	}
	w.start = time.UnixMilli(first[0].At).UTC()
	return w, w.chooseStep(s.Step)
}

// unknown says which experiments there are.
func (w statsWarehouse) unknown(ctx context.Context) error {
	var known []struct {
		Experiment string `ch:"experiment"`
	}
	if err := w.db.Select(ctx, &known,
		`SELECT DISTINCT toString(experiment) AS experiment FROM labels_mature WHERE experiment != '' ORDER BY experiment LIMIT 20`); err != nil {
		return err
	}
	names := make([]string, len(known))
	for i, k := range known {
		names[i] = k.Experiment
	}
	hint := "no experiment has mature impressions yet: they count when the window of their clicks has closed"
	if len(names) > 0 {
		hint = "those with mature impressions: " + strings.Join(names, ", ")
	}
	return withHint(fmt.Errorf("experiment %q has no mature impressions in the warehouse", w.id), hint)
}

// chooseStep sets the spans of the step.
func (w *statsWarehouse) chooseStep(which string) error {
	if !w.logged || which == stepAll {
		w.spans = []experiment.Span{{}}
		switch {
		case w.logged && slices.ContainsFunc(w.x.History, func(s control.Step) bool { return s.Share != w.x.History[0].Share }):
			w.note = "the shares changed during the experiment: sums over all of it mix times with arms, and a lift can come out wrong or " +
				"reversed (Simpson); prefer one --step"
		case !w.logged && which != "" && which != stepAll:
			return usageError{fmt.Errorf("--step %s: the control log does not have the steps of experiment %s; leave it out", which, w.id)}
		}
		return nil
	}
	i := experiment.ShownStep(*w.x)
	if which != "" && which != stepDeciding {
		n, err := strconv.Atoi(which)
		if err != nil || n < 1 || n > len(w.x.Steps) {
			return usageError{fmt.Errorf("--step %s: want deciding, all, or a number from 1 to %d", which, len(w.x.Steps))}
		}
		i = n - 1
	}
	if w.spans = experiment.Visits(w.x.History, i, w.settle); len(w.spans) == 0 {
		var seen []string
		for j := range w.x.Steps {
			if len(experiment.Visits(w.x.History, j, w.settle)) > 0 {
				seen = append(seen, strconv.Itoa(j+1))
			}
		}
		return withHint(
			usageError{fmt.Errorf("step %d of experiment %s was never visited, or for less than the time to settle (%v)", i+1, w.id, w.settle)},
			"steps with data: "+strings.Join(seen, ", "),
		)
	}
	w.name = fmt.Sprintf("%s, step %d of %d (%g %%)", w.name, i+1, len(w.x.Steps), 100*w.x.Steps[i])
	if n := len(w.spans); n > 1 {
		w.name += fmt.Sprintf(", %d visits", n)
	}
	return nil
}

// within is the condition that an impression lies in the asked spans, and its arguments.
func (w statsWarehouse) within() (string, []any) { return experiment.InSpans(w.spans) }

// sequence is the experiment's own confidence sequence where the options say nothing else.
func (w statsWarehouse) sequence(o statsSequence) stats.Sequence {
	q := o.sequence()
	if w.logged && o.Alpha == nil && w.x.Alpha > 0 {
		q.Alpha = w.x.Alpha
	}
	if w.logged && o.NStar == nil && w.x.NStar > 0 {
		q.NStar = w.x.NStar
	}
	return q
}

// sumsRow are the sums of one arm, of one category where these are asked for.
type sumsRow struct {
	Variant  string  `ch:"variant"`
	Category string  `ch:"cat"`
	N        uint64  `ch:"n"`
	M        float64 `ch:"m"`
	D        float64 `ch:"d"`
	MM       float64 `ch:"mm"`
	DD       float64 `ch:"dd"`
	MD       float64 `ch:"md"`
	PreM     float64 `ch:"pm"`
	PreD     float64 `ch:"pd"`
	PreMM    float64 `ch:"pmm"`
	PreDD    float64 `ch:"pdd"`
	PreMD    float64 `ch:"pmd"`
	MPreM    float64 `ch:"mpm"`
	MPreD    float64 `ch:"mpd"`
	DPreM    float64 `ch:"dpm"`
	DPreD    float64 `ch:"dpd"`
}

func (r sumsRow) sums() stats.Sums {
	return stats.Sums{
		RatioSums: stats.RatioSums{N: int64(r.N), M: r.M, D: r.D, MM: r.MM, DD: r.DD, MD: r.MD},
		PreM:      r.PreM, PreD: r.PreD, PreMM: r.PreMM, PreDD: r.PreDD, PreMD: r.PreMD,
		MPreM: r.MPreM, MPreD: r.MPreD, DPreM: r.DPreM, DPreD: r.DPreD,
	}
}

// sums reads n and the 14 sums of each arm, with what the units did in the time pre before the experiment began.
func (w statsWarehouse) sums(ctx context.Context, category string, pre time.Duration) (rows []sumsRow, err error) {
	within, args := w.within()
	before, preArgs := experiment.InSpans([]experiment.Span{{From: w.start.Add(-pre), To: w.start}})
	err = w.db.Select(ctx, &rows, `
		SELECT variant, cat, count() AS n, toFloat64(sum(k)) AS m, toFloat64(sum(c)) AS d,
			toFloat64(sum(k * k)) AS mm, toFloat64(sum(c * c)) AS dd, toFloat64(sum(k * c)) AS md,
			toFloat64(sum(pk)) AS pm, toFloat64(sum(pc)) AS pd,
			toFloat64(sum(pk * pk)) AS pmm, toFloat64(sum(pc * pc)) AS pdd, toFloat64(sum(pk * pc)) AS pmd,
			toFloat64(sum(k * pk)) AS mpm, toFloat64(sum(k * pc)) AS mpd, toFloat64(sum(c * pk)) AS dpm, toFloat64(sum(c * pc)) AS dpd
		FROM (
			SELECT toString(variant) AS variant, `+category+` AS cat, `+w.unit+` AS unit, toUInt64(sum(clicked)) AS k, toUInt64(count()) AS c
			FROM labels_mature
			WHERE experiment = ? AND `+within+`
			GROUP BY variant, cat, unit
		) AS during
		LEFT JOIN (
			SELECT `+w.unit+` AS unit, toUInt64(sum(clicked)) AS pk, toUInt64(count()) AS pc
			FROM labels_mature
			WHERE `+before+`
			GROUP BY unit
		) AS earlier USING (unit)
		GROUP BY variant, cat
		ORDER BY cat, variant
		SETTINGS join_use_nulls = 0`, slices.Concat([]any{w.id}, args, preArgs)...)
	return rows, err
}

// lift reads both arms, their categories, and the covariate.
func (w statsWarehouse) lift(ctx context.Context, pre time.Duration) (statcsv.LiftData, error) {
	out := statcsv.LiftData{HasPre: pre > 0}
	rows, err := w.sums(ctx, "''", pre)
	if err != nil {
		return out, err
	}
	for _, r := range rows {
		switch r.Variant {
		case "control":
			out.Control = r.sums()
		case "treatment":
			out.Treatment = r.sums()
		default:
			return out, fmt.Errorf("impressions have the variant %q, want control or treatment", r.Variant)
		}
	}
	if out.Control.D == 0 || out.Treatment.D == 0 {
		return out, withHint(
			fmt.Errorf("control has %g mature impressions in this span and treatment %g: a lift needs both arms", out.Control.D, out.Treatment.D),
			"choose another --step; at 100 % there is no control",
		)
	}
	if rows, err = w.sums(ctx, "toString(category)", 0); err != nil {
		return out, err
	}
	for _, r := range rows {
		if n := len(out.Categories); n == 0 || out.Categories[n-1].Name != r.Category {
			out.Categories = append(out.Categories, stats.Category{Name: r.Category})
		}
		c := &out.Categories[len(out.Categories)-1]
		if r.Variant == "control" {
			c.Control = r.sums().RatioSums
		} else {
			c.Treatment = r.sums().RatioSums
		}
	}
	if len(out.Categories) == 1 { // it is the whole
		out.Categories = nil
	}
	var both []struct {
		N uint64 `ch:"n"`
	}
	within, args := w.within()
	err = w.db.Select(
		ctx,
		&both,
		`SELECT countIf(v > 1) AS n FROM (SELECT uniqExact(variant) AS v FROM labels_mature WHERE experiment = ? AND `+within+` GROUP BY `+
			w.unit+`)`,
		append([]any{w.id}, args...)...)
	if err == nil && len(both) == 1 {
		out.InBothArms = int(both[0].N)
	}
	return out, err
}

// phases counts each unit once, in the step and the arm of its first impression: those that a ramp moves later were
// drawn by an earlier step's shares. Units that came while a step settled were drawn by either's, and are left out.
func (w statsWarehouse) phases(ctx context.Context, shares []float64) (statcsv.Phases, error) {
	var steps []control.Step
	if w.logged {
		steps = w.x.History
	} else {
		if len(shares) != 2 {
			return statcsv.Phases{}, usageError{fmt.Errorf("--shares has %d shares, an experiment two arms", len(shares))}
		}
		steps = []control.Step{{Share: shares[1]}}
	}
	starts, settled := make([]string, len(steps)), make([]string, len(steps))
	for i, s := range steps {
		starts[i], settled[i] = strconv.FormatInt(s.AtMS, 10), "0"
		if s.AtMS > 0 {
			settled[i] = strconv.FormatInt(s.AtMS+w.settle.Milliseconds(), 10)
		}
	}
	var rows []struct {
		Phase     uint64 `ch:"phase"`
		Control   int64  `ch:"control"`
		Treatment int64  `ch:"treatment"`
	}
	err := w.db.Select(ctx, &rows, `
		SELECT toUInt64(greatest(1, arrayCount(at -> at <= first, [`+strings.Join(starts, ",")+`]))) AS phase,
			toInt64(countIf(arm = 'control')) AS control, toInt64(countIf(arm = 'treatment')) AS treatment
		FROM (
			SELECT toString(argMin(variant, event_time)) AS arm, toInt64(toUnixTimestamp64Milli(min(event_time))) AS first
			FROM labels_mature WHERE experiment = ? GROUP BY `+w.unit+`
		)
		WHERE first >= [`+strings.Join(settled, ",")+`][phase]
		GROUP BY phase ORDER BY phase`, w.id)
	if err != nil {
		return statcsv.Phases{}, err
	}
	out := statcsv.Phases{Arms: []string{"control", "treatment"}}
	for _, r := range rows {
		s := steps[r.Phase-1]
		if s.Share >= 1 { // nothing is drawn
			continue
		}
		out.Names = append(out.Names, strconv.Itoa(s.Index+1))
		out.Phases = append(out.Phases, stats.SharePhase{Counts: []int64{r.Control, r.Treatment}, Shares: []float64{1 - s.Share, s.Share}})
	}
	if len(out.Phases) == 0 {
		return out, errors.New("no units came while both arms had a share")
	}
	return out, nil
}

// units reads the control arm's units, to plan from.
func (w statsWarehouse) units(ctx context.Context) (stats.RatioSums, error) {
	rows, err := w.sums(ctx, "''", 0)
	if err != nil {
		return stats.RatioSums{}, err
	}
	for _, r := range rows {
		if r.Variant == "control" {
			return r.sums().RatioSums, nil
		}
	}
	return stats.RatioSums{}, withHint(
		errors.New("control has no mature impressions in this span"),
		"choose another --step; at 100 % there is no control",
	)
}

// maxLogRows bounds the decisions that are read into memory, about 50 bytes each.
const maxLogRows = 20_000_000

// log reads the logged decisions: those of the experiment's arms, and those that explored instead. Propensities are over all of
// that, so a log without the explorations would not be what they describe.
func (w statsWarehouse) log(ctx context.Context, names *statcsv.Names) (*statcsv.Log, error) {
	within, args := w.within()
	rows, err := w.db.Query(
		ctx,
		`SELECT toString(product), toString(creative), clicked, propensity
		FROM labels_mature
		WHERE (experiment = ? OR experiment = '' AND policy = ?) AND `+within+`
		ORDER BY event_time, impression_id LIMIT ?`,
		slices.Concat([]any{w.id, decide.ExploredFrom(w.id)}, args, []any{maxLogRows + 1})...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // Err says what went wrong
	out := &statcsv.Log{}
	for rows.Next() {
		var product, creative string
		var clicked uint8
		var propensity float64
		if err := rows.Scan(&product, &creative, &clicked, &propensity); err != nil {
			return nil, err
		}
		if err := names.Add(out, product, creative, clicked != 0, propensity); err != nil {
			return nil, err
		}
		if len(out.Item) > maxLogRows {
			return nil, withHint(fmt.Errorf("more than %d decisions", maxLogRows), "choose one --step")
		}
	}
	return out, rows.Err()
}
