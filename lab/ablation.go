package lab

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"

	"ctrloop/pairer/pairs"
)

// Variant is the method with one part taken out or changed. Variants with the same pairs and the same reward model
// share them, and those that differ by the arm only share a job: base, products, seeds and drawings are the same.
type Variant struct {
	Name   string         `json:"name"`
	What   string         `json:"what"`
	Arm    string         `json:"arm"`              // of the trainer's rounds/settings.py
	Pairs  PairRule       `json:"pairs,omitzero"`   // of the training pairs
	Reward map[string]any `json:"reward,omitempty"` // hyper-parameters of the reward job
}

// Variants of the method. The first is the method itself, which the others are compared with.
func Variants() []Variant {
	return []Variant{
		{Name: "full", What: "PCPO + DPO, siamese reward model with CE + 0.5 MSE on scaled rates, posterior weights", Arm: armPCPO},
		{Name: "no PCPO", What: "plain DPO", Arm: armDPO},
		{Name: "CAIG's x~", What: "the corrupted half is the masked picture or another caption, by a coin", Arm: "caig"},
		{Name: "placebo PCPO", What: "the corrupted half is not corrupted: what is left is not about the product", Arm: "placebo"},
		{Name: "one order only", What: "the reward model is asked once, sides as they come", Arm: "one_order"},
		{Name: "no form term", What: "L_form left out: what PCPO does by itself", Arm: "no_form"},
		{Name: "form term only", What: "DPO with L_form, without PCPO: what L_form does by itself", Arm: "form_only"},
		{Name: "no NLL term", What: "nothing holds the likelihood of y+", Arm: "no_nll"},
		{Name: "anchor", What: "mDPO's anchor on y+ besides", Arm: "anchored"},
		{Name: "no point loss", What: "reward model without the 0.5 MSE on rates", Arm: armPCPO, Reward: map[string]any{"point_weight": 0.0}},
		{
			Name:   "raw CTR scale",
			What:   "the point loss on rates as they are, about 0.03",
			Arm:    armPCPO,
			Reward: map[string]any{"ctr_scale": "raw"},
		},
		{
			Name:  "hard pair rule",
			What:  "CAIG's rule, ratio 1.05 to 1.20 and weight 1; its floor of 1,000 impressions is 200 at this traffic",
			Arm:   armPCPO,
			Pairs: PairRule{Policy: pairs.PolicyCAIG, CAIGFloor: 200},
		},
	}
}

// AblationOptions say what is run.
type AblationOptions struct {
	Seeds    []uint64
	Epochs   int // 0: as many as the trainer's jobs have by default
	Budget   int
	Variants []Variant // the first is what the others are compared with
}

// AblationRow is a variant over worlds. Figures are of its last epoch.
type AblationRow struct {
	Variant
	Figures map[string]Over `json:"figures"`
	// Against are differences to the first variant, world by world, positive where the variant has more.
	Against map[string]Over `json:"against_full,omitempty"`
}

// AblationReport is what `eval ablation` found.
type AblationReport struct {
	Seeds  []uint64      `json:"seeds"`
	Epochs int           `json:"epochs"`
	Rows   []AblationRow `json:"rows"`
	// Worlds are the reports behind it, one for each reward model and world.
	Worlds map[string][]RoundsWorld `json:"worlds"`
}

// family is what variants share: pairs and reward model.
type family struct {
	name   string
	pairs  PairRule
	reward map[string]any
	arms   []string
}

// familiesOf groups variants, in order.
func familiesOf(variants []Variant) []*family {
	var out []*family
	for _, v := range variants {
		f := familyOf(out, v)
		if f == nil {
			f = &family{name: v.Name, pairs: v.Pairs, reward: v.Reward}
			out = append(out, f)
		}
		if !slices.Contains(f.arms, v.Arm) {
			f.arms = append(f.arms, v.Arm)
		}
	}
	return out
}

// familyOf finds the family of a variant, nil if there is none yet.
func familyOf(all []*family, v Variant) *family {
	for _, f := range all {
		if f.pairs == v.Pairs && maps.Equal(f.reward, v.Reward) {
			return f
		}
	}
	return nil
}

// RunAblation runs every variant in each world.
func (b *Bench) RunAblation(ctx context.Context, opt AblationOptions) (*AblationReport, error) {
	families := familiesOf(opt.Variants)
	var err error
	if opt.Epochs, err = b.checkRounds(ctx, opt.Epochs, families...); err != nil {
		return nil, err
	}
	weight := 0.0
	for _, f := range families {
		weight += float64(weightWorld + 2*weightReward + weightArm*len(f.arms)*opt.Epochs + weightJudge)
		if opt.Budget > 0 {
			weight += weightBest
		}
	}
	worlds := map[string][]RoundsWorld{}
	for _, f := range families {
		worlds[f.name] = make([]RoundsWorld, len(opt.Seeds))
	}
	err = b.each(ctx, "ablation", opt.Seeds, weight, func(ctx context.Context, i int, t *trial) error {
		for n, f := range families {
			suffix := ""
			if n > 0 {
				suffix = fmt.Sprintf("-%d", n)
			}
			models, err := t.rewardModels(ctx, suffix, f.pairs, f.reward)
			if err != nil {
				return fmt.Errorf("variant %q: %w", f.name, err)
			}
			o := RoundsOptions{Epochs: opt.Epochs, Arms: f.arms, Budget: opt.Budget}
			w, err := t.rounds(ctx, "ablation"+suffix, models, o, map[string]any{"main": f.arms[0]})
			if err != nil {
				return fmt.Errorf("variant %q: %w", f.name, err)
			}
			worlds[f.name][i] = *w
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	r := &AblationReport{Seeds: opt.Seeds, Epochs: opt.Epochs, Worlds: worlds}
	for i, v := range opt.Variants {
		mine := worlds[familyOf(families, v).name]
		row := AblationRow{Variant: v, Figures: map[string]Over{}}
		for _, f := range ablationFigures {
			row.Figures[f.name] = over(better(f.key+"."), f.parts(mine, v.Arm))
		}
		if i > 0 {
			first := opt.Variants[0]
			row.Against = map[string]Over{}
			for _, f := range ablationFigures {
				row.Against[f.name] = over(
					better(f.key+"."),
					differences(f.parts(mine, v.Arm), f.parts(worlds[familyOf(families, first).name], first.Arm)),
				)
			}
		}
		r.Rows = append(r.Rows, row)
	}
	return r, nil
}

// ablationFigure is a column of the table.
type ablationFigure struct {
	name, key string
	ofArm     bool // the figure is an arm's; else the reward model's
}

var ablationFigures = []ablationFigure{
	{"reward_fraction", "reward_fraction", false},
	{"matching", "matching", true},
	{"gain", "gain", true},
	{"share_of_best", "share_of_best", true},
	{"valid", "valid", true},
	{"clickbait", "clickbait", true},
	{"equal_lift", "equal_lift", true},
}

// parts of the figure in each world; not a number where a world has none.
func (f ablationFigure) parts(worlds []RoundsWorld, arm string) []part {
	key := f.key
	if f.ofArm {
		key += "." + arm
	}
	out := make([]part, len(worlds))
	for i, w := range worlds {
		p, ok := w.figures[key]
		if !ok {
			p = part{value: math.NaN()}
		}
		out[i] = p
	}
	return out
}

// differences of two variants world by world. The draws are of the same products in the same order, so that a
// difference has the draws of the difference.
func differences(a, b []part) []part {
	out := make([]part, len(a))
	for i := range a {
		out[i].value = a[i].value - b[i].value
		if len(a[i].draws) != len(b[i].draws) {
			continue
		}
		for k := range a[i].draws {
			out[i].draws = append(out[i].draws, a[i].draws[k]-b[i].draws[k])
		}
	}
	return out
}

// Print writes the table for people.
func (r *AblationReport) Print(w io.Writer) {
	fmt.Fprintf(
		w,
		"\nAblation over worlds %s, %d epochs, products that training never saw. Median (worst); against \"%s\": mean with 95 %% interval.\n\n",
		joined(r.Seeds),
		r.Epochs,
		r.Rows[0].Name,
	)
	t := newTable(
		"variant",
		"RM of ceiling",
		"matching",
		"CTR gain",
		"of best",
		"valid",
		"clickbait",
		"matching against full",
		"CTR gain against full",
	)
	for _, row := range r.Rows {
		cells := []string{row.Name}
		for _, f := range []string{"reward_fraction", "matching", "gain", "share_of_best", "valid", "clickbait"} {
			o := row.Figures[f]
			if o.Worlds == 0 {
				cells = append(cells, "-")
				continue
			}
			cells = append(cells, fmt.Sprintf("%.3f (%.3f)", o.Median, o.Worst))
		}
		for _, f := range []string{"matching", "gain"} {
			cells = append(cells, span(row.Against[f].Interval))
		}
		t.row(cells...)
	}
	t.print(w)
	for _, row := range r.Rows {
		fmt.Fprintf(w, "  %-16s %s\n", row.Name, row.What)
	}
	fmt.Fprintln(w)
}
