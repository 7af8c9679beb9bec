package recorded

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"ctrloop/internal/stats"
	"ctrloop/internal/stats/statcsv"
	"ctrloop/internal/warehouse/query"
	"ctrloop/serving/decide"
	"ctrloop/serving/experiment/assign"
)

// noControl is what to do where an arm has no data.
const noControl = "choose another --step; at 100 % there is no control"

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
func (e *Experiment) sums(ctx context.Context, byCategory bool, pre time.Duration) (rows []sumsRow, err error) {
	before := query.Span{From: e.started.Add(-pre), To: e.started}
	q := query.ArmSumsCovariate(e.asked.Experiment, e.unit, e.spans, before, byCategory)
	err = e.db.Select(ctx, &rows, q.Text, q.Args...)
	return rows, err
}

// Lift reads both arms, their categories, and the covariate: what the units did in the time pre before the experiment; 0 uses none.
func (e *Experiment) Lift(ctx context.Context, pre time.Duration) (statcsv.LiftData, error) {
	out := statcsv.LiftData{HasPre: pre > 0}
	rows, err := e.sums(ctx, false, pre)
	if err != nil {
		return out, err
	}
	for _, r := range rows {
		if r.Variant == assign.Control {
			out.Control = r.sums()
		} else {
			out.Treatment = r.sums()
		}
	}
	if out.Control.D == 0 || out.Treatment.D == 0 {
		return out, hinted(
			fmt.Errorf("control has %g mature impressions in this span and treatment %g: a lift needs both arms", out.Control.D, out.Treatment.D),
			noControl)
	}
	if out.Categories, err = e.categories(ctx); err != nil {
		return out, err
	}
	out.InBothArms, err = e.inBothArms(ctx)
	return out, err
}

// categories reads both arms in each category; none where there is one alone, which is the whole.
func (e *Experiment) categories(ctx context.Context) (out []stats.Category, err error) {
	rows, err := e.sums(ctx, true, 0)
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		if n := len(out); n == 0 || out[n-1].Name != r.Category {
			out = append(out, stats.Category{Name: r.Category})
		}
		c := &out[len(out)-1]
		if r.Variant == assign.Control {
			c.Control = r.sums().RatioSums
		} else {
			c.Treatment = r.sums().RatioSums
		}
	}
	if len(out) == 1 {
		return nil, nil
	}
	return out, nil
}

func (e *Experiment) inBothArms(ctx context.Context) (int, error) {
	var units, both int64
	q := query.UnitsInBothArms(e.asked.Experiment, e.unit, e.spans)
	err := e.db.QueryRow(ctx, q.Text, q.Args...).Scan(&units, &both)
	return int(both), err
}

// Phases counts each unit once, in the step and the arm of its first impression: those that a ramp moves later were
// drawn by an earlier step's shares. Units that came while a step settled were drawn by either's, and are left out.
// Where the record does not have the ramp, the planned shares are used, and without any those that labels say.
func (e *Experiment) Phases(ctx context.Context, shares []float64) (statcsv.Phases, error) {
	if e.status == nil {
		if len(shares) == 0 {
			return e.plansOfLabels(ctx)
		}
		return e.armsAsGiven(ctx, shares)
	}
	steps := e.status.History
	phases := make([]query.Phase, len(steps))
	for i, s := range steps {
		phases[i].BeganMS = s.AtMS
		if s.AtMS > 0 {
			phases[i].SettledMS = s.AtMS + e.asked.Settle.Milliseconds()
		}
	}
	var rows []struct {
		Phase     uint64 `ch:"phase"`
		Control   int64  `ch:"control"`
		Treatment int64  `ch:"treatment"`
	}
	q := query.UnitPhases(e.asked.Experiment, e.unit, phases)
	if err := e.db.Select(ctx, &rows, q.Text, q.Args...); err != nil {
		return statcsv.Phases{}, err
	}
	out := statcsv.Phases{Arms: []string{assign.Control, assign.Treatment}}
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

// maxArms bounds the arms of an experiment that anybody may name.
const maxArms = 64

// armsAsGiven counts the units of an experiment that the control log does not have, in arms of whatever names, in their order;
// only the caller knows the planned shares.
func (e *Experiment) armsAsGiven(ctx context.Context, shares []float64) (statcsv.Phases, error) {
	rows, err := e.armUnits(ctx)
	if err != nil {
		return statcsv.Phases{}, err
	}
	out := statcsv.Phases{Names: []string{"1"}, Phases: []stats.SharePhase{{Shares: shares}}}
	for _, r := range rows {
		out.Arms = append(out.Arms, r.Arm)
		out.Phases[0].Counts = append(out.Phases[0].Counts, r.Units)
	}
	switch n := len(rows); {
	case n > maxArms:
		return statcsv.Phases{}, mistaken("", "experiment %s has more than %d variants", e.asked.Experiment, maxArms)
	case n < 2:
		return statcsv.Phases{}, mistaken("", "experiment %s has %d variants with users, and a sample ratio wants two", e.asked.Experiment, n)
	case n != len(shares):
		return statcsv.Phases{}, mistaken("give --shares one share for each of them, in this order",
			"--shares has %d shares, the experiment the arms %s", len(shares), strings.Join(out.Arms, ", "))
	}
	return out, nil
}

// plansOfLabels are the phases that labels tell of by arm_share. Where they do not, nobody knows the planned shares, and nothing is held
// against any others.
func (e *Experiment) plansOfLabels(ctx context.Context) (out statcsv.Phases, err error) {
	var rows []struct {
		Plan    uint32  `ch:"plan"`
		Variant string  `ch:"variant"`
		Share   float64 `ch:"share"`
		Users   int64   `ch:"users"`
		Unknown string  `ch:"unknown"`
	}
	if err := e.db.Select(ctx, &rows, query.Text("experiment_plans"), e.asked.Experiment); err != nil {
		return out, err
	}
	if len(rows) == 0 || rows[0].Unknown != "" {
		why := "its labels carry no arm_share"
		if len(rows) > 0 {
			why = rows[0].Unknown
		}
		return out, e.planNotKnown(ctx, why)
	}
	for _, r := range rows {
		if len(out.Phases) < int(r.Plan) {
			out.Phases = append(out.Phases, stats.SharePhase{})
			out.Names = append(out.Names, strconv.Itoa(int(r.Plan)))
		}
		if r.Plan == 1 {
			out.Arms = append(out.Arms, r.Variant)
		}
		p := &out.Phases[len(out.Phases)-1]
		p.Counts, p.Shares = append(p.Counts, r.Users), append(p.Shares, r.Share)
	}
	kept := statcsv.Phases{Arms: out.Arms}
	for i, p := range out.Phases {
		if !slices.Contains(p.Shares, 0) { // else nothing is drawn
			kept.Names, kept.Phases = append(kept.Names, out.Names[i]), append(kept.Phases, p)
		}
	}
	return kept, nil
}

// planNotKnown is why, and how to say the shares of which arms.
func (e *Experiment) planNotKnown(ctx context.Context, why string) error {
	rows, err := e.armUnits(ctx)
	if err != nil {
		return err
	}
	names := make([]string, len(rows))
	for i, r := range rows {
		names[i] = r.Arm
	}
	return mistaken("give --shares one share for each of the arms, in this order: "+strings.Join(names, ", "),
		"the planned shares of experiment %s are not known: it is not on the control log, and %s", e.asked.Experiment, why)
}

// armUnits are the units of an arm that anybody has named.
type armUnits struct {
	Arm   string `ch:"arm"`
	Units int64  `ch:"units"`
}

func (e *Experiment) armUnits(ctx context.Context) (rows []armUnits, err error) {
	err = e.db.Select(ctx, &rows, query.Text("arm_units"), e.asked.Experiment)
	return rows, err
}

// Units reads the control arm's units, to plan from.
func (e *Experiment) Units(ctx context.Context) (stats.RatioSums, error) {
	rows, err := e.sums(ctx, false, 0)
	if err != nil {
		return stats.RatioSums{}, err
	}
	for _, r := range rows {
		if r.Variant == assign.Control {
			return r.sums().RatioSums, nil
		}
	}
	return stats.RatioSums{}, hinted(errors.New("control has no mature impressions in this span"), noControl)
}

// maxDecisions are read into memory at most, about 50 bytes each.
const maxDecisions = 20_000_000

// Decisions reads the logged decisions: those of the experiment's arms, and those that explored instead. Propensities are over all
// of that, so a log without the explorations would not be what they describe.
func (e *Experiment) Decisions(ctx context.Context, names *statcsv.Names) (*statcsv.Log, error) {
	q := query.Decisions(e.asked.Experiment, decide.ExploredFrom(e.asked.Experiment), e.spans, maxDecisions+1)
	rows, err := e.db.Query(ctx, q.Text, q.Args...)
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
		if len(out.Item) > maxDecisions {
			return nil, hinted(fmt.Errorf("more than %d decisions", maxDecisions), "choose one --step")
		}
	}
	return out, rows.Err()
}
