package statcsv

import (
	"fmt"
	"io"
	"math"
	"slices"

	"ctrloop/internal/stats"
)

// LiftData are the two arms of a test and what is odd about its units.
type LiftData struct {
	Control, Treatment stats.Sums
	HasPre             bool             // the file has a covariate from before the test
	Categories         []stats.Category // in the order of their first rows; none without the column
	InBothArms         int              // units with rows in both arms; they count in each
	Units              [2][]stats.Unit  // of control and treatment, in the order of their first rows
}

// liftUnit adds up one unit's rows.
type liftUnit struct {
	m, d, preM, preD int64
	categories       map[string][2]int64 // m and d
}

// ReadLift reads unit,arm,impressions,clicks with the arms "control" and "treatment". Rows of the same unit
// and arm add up (a unit may have a row a day); clicks are clicked impressions, so at most impressions.
//
// Optional columns: category, which splits a unit's impressions; pre_impressions and pre_clicks, what the unit did
// before the test: of the unit, not of the row, so that all its rows must say the same.
func ReadLift(in io.Reader) (LiftData, error) {
	t, err := open(in, "unit", "arm", "impressions", "clicks", "category?", "pre_impressions?", "pre_clicks?")
	if err != nil {
		return LiftData{}, err
	}
	if t.has(5) != t.has(6) {
		return LiftData{}, fmt.Errorf("%w: the header has only one of pre_impressions and pre_clicks", ErrInput)
	}
	arms := [2]map[string]*liftUnit{{}, {}}
	var order [2][]string // of first appearance, so that sums are the same in every run
	var categories []string
	for {
		ok, err := t.next()
		if err != nil {
			return LiftData{}, err
		} else if !ok {
			break
		}
		arm := slices.Index([]string{"control", "treatment"}, t.text(1))
		if arm < 0 {
			return LiftData{}, t.bad(1, `%q is not an arm, want "control" or "treatment"`, t.text(1))
		}
		name := t.text(0)
		if name == "" {
			return LiftData{}, t.bad(0, "empty: every row needs its unit")
		}
		u := arms[arm][name]
		first := u == nil
		if first {
			u = &liftUnit{}
			arms[arm][name] = u
			order[arm] = append(order[arm], name)
		}
		if err := u.add(t, first); err != nil {
			return LiftData{}, err
		}
		if t.has(4) && !slices.Contains(categories, t.text(4)) {
			if categories = append(categories, t.text(4)); len(categories) > maxCategories {
				return LiftData{}, t.bad(4, "more than %d categories: is this a column of categories?", maxCategories)
			}
		}
	}
	out := LiftData{HasPre: t.has(5)}
	for _, name := range categories {
		out.Categories = append(out.Categories, stats.Category{Name: name})
	}
	for arm, sums := range []*stats.Sums{&out.Control, &out.Treatment} {
		for _, name := range order[arm] {
			u := arms[arm][name]
			sums.Observe(float64(u.m), float64(u.d), float64(u.preM), float64(u.preD))
			out.Units[arm] = append(out.Units[arm], stats.Unit{M: float64(u.m), D: float64(u.d)})
			for i := range out.Categories {
				if v, ok := u.categories[out.Categories[i].Name]; ok {
					c := &out.Categories[i].Control
					if arm == 1 {
						c = &out.Categories[i].Treatment
					}
					c.Observe(float64(v[0]), float64(v[1]))
				}
			}
			if _, both := arms[1][name]; both && arm == 0 {
				out.InBothArms++
			}
		}
	}
	if out.Control.D == 0 || out.Treatment.D == 0 {
		return LiftData{}, fmt.Errorf(
			"%w: control has %g impressions and treatment %g: a lift needs both arms",
			ErrInput,
			out.Control.D,
			out.Treatment.D,
		)
	}
	return out, nil
}

// maxCategories bounds the categories of one file; a catalogue has dozens.
const maxCategories = 1000

// add reads the row's figures into the unit; first says that it is the unit's first row.
func (u *liftUnit) add(t *table, first bool) error {
	d, err := t.count(2)
	if err != nil {
		return err
	}
	m, err := t.count(3)
	if err != nil {
		return err
	}
	if m > d {
		return t.bad(3, "%d clicks on %d impressions: clicks are clicked impressions here, at most one each", m, d)
	}
	if u.m, u.d = u.m+m, u.d+d; u.d > maxCount {
		return t.bad(2, "unit %q has more impressions than can be counted exactly (%d)", t.text(0), int64(maxCount))
	}
	if t.has(4) {
		if u.categories == nil {
			u.categories = map[string][2]int64{}
		}
		v := u.categories[t.text(4)]
		u.categories[t.text(4)] = [2]int64{v[0] + m, v[1] + d}
	}
	if !t.has(5) {
		return nil
	}
	preD, err := t.count(5)
	if err != nil {
		return err
	}
	preM, err := t.count(6)
	if err != nil {
		return err
	}
	switch {
	case preM > preD:
		return t.bad(6, "%d clicks on %d impressions: clicks are clicked impressions here, at most one each", preM, preD)
	case !first && (preD != u.preD || preM != u.preM):
		return t.bad(
			5,
			"%d impressions and %d clicks before the test, but an earlier row of unit %q says %d and %d: all rows of a unit must agree",
			preD,
			preM,
			t.text(0),
			u.preD,
			u.preM,
		)
	}
	u.preM, u.preD = preM, preD
	return nil
}

// ReadUnits reads unit,impressions,clicks of one population, as planning needs it; further columns, an arm too, are
// ignored. Rows of the same unit add up.
func ReadUnits(in io.Reader) (stats.RatioSums, error) {
	t, err := open(in, "unit", "arm?", "impressions", "clicks")
	if err != nil {
		return stats.RatioSums{}, err
	}
	t.at = append(t.at, -1, -1, -1) // of liftUnit.add's columns, none of the optional ones
	units := map[string]*liftUnit{}
	var order []string
	for {
		ok, err := t.next()
		if err != nil {
			return stats.RatioSums{}, err
		} else if !ok {
			break
		}
		name := t.text(0)
		if name == "" {
			return stats.RatioSums{}, t.bad(0, "empty: every row needs its unit")
		}
		if units[name] == nil {
			units[name] = &liftUnit{}
			order = append(order, name)
		}
		if err := units[name].add(t, false); err != nil {
			return stats.RatioSums{}, err
		}
	}
	var out stats.RatioSums
	for _, name := range order {
		out.Observe(float64(units[name].m), float64(units[name].d))
	}
	return out, nil
}

// Phases are the counts of a sample-ratio test.
type Phases struct {
	Arms   []string
	Names  []string // of the phases; one, empty, without the column
	Phases []stats.SharePhase
}

// ReadPhases reads arm,count with the optional columns phase and share: the planned share of each arm, which a ramp
// changes from phase to phase. Without the column shares are what the caller plans for the arms in the file's order.
// Every phase must have the same arms, each once.
func ReadPhases(in io.Reader, shares []float64) (Phases, error) {
	t, err := open(in, "arm", "count", "phase?", "share?")
	if err != nil {
		return Phases{}, err
	}
	if t.has(2) && !t.has(3) {
		return Phases{}, fmt.Errorf("%w: a file with phases needs the column \"share\", the planned share of each arm", ErrInput)
	}
	var out Phases
	rows := map[string]map[string]int{} // line of each arm's row in a phase
	for {
		ok, err := t.next()
		if err != nil {
			return Phases{}, err
		} else if !ok {
			break
		}
		phase := ""
		if t.has(2) {
			phase = t.text(2)
		}
		k := slices.Index(out.Names, phase)
		if k < 0 {
			k = len(out.Names)
			out.Names, out.Phases = append(out.Names, phase), append(out.Phases, stats.SharePhase{})
			rows[phase] = map[string]int{}
		}
		arm := t.text(0)
		if _, dup := rows[phase][arm]; dup || arm == "" {
			return Phases{}, t.bad(0, "arm %q is empty or comes twice", arm)
		}
		i := slices.Index(out.Arms, arm)
		if i < 0 {
			i = len(out.Arms)
			out.Arms = append(out.Arms, arm)
		}
		rows[phase][arm] = i
		n, err := t.count(1)
		if err != nil {
			return Phases{}, err
		}
		share := math.NaN()
		if t.has(3) {
			if share, err = t.number(3); err != nil {
				return Phases{}, err
			}
			if !(share > 0 && share < 1) {
				return Phases{}, t.bad(3, "%g is not a share in (0,1)", share)
			}
		} else if i < len(shares) {
			share = shares[i]
		}
		p := &out.Phases[k]
		for len(p.Counts) <= i {
			p.Counts, p.Shares = append(p.Counts, 0), append(p.Shares, math.NaN())
		}
		p.Counts[i], p.Shares[i] = n, share
	}
	if len(out.Arms) < 2 {
		return Phases{}, fmt.Errorf("%w: a sample ratio needs at least two arms, the file has %d", ErrInput, len(out.Arms))
	}
	if !t.has(3) && len(shares) != len(out.Arms) {
		return Phases{}, fmt.Errorf("%w: %d planned shares for the %d arms of the file", ErrInput, len(shares), len(out.Arms))
	}
	for k, name := range out.Names {
		if len(rows[name]) != len(out.Arms) {
			return Phases{}, fmt.Errorf("%w: phase %q has %d of the %d arms", ErrInput, name, len(rows[name]), len(out.Arms))
		}
		sum := 0.0
		for _, v := range out.Phases[k].Shares {
			sum += v
		}
		if math.Abs(sum-1) > 1e-6 {
			return Phases{}, fmt.Errorf("%w: the planned shares%s add up to %g, not 1", ErrInput, ofPhase(name), sum)
		}
	}
	return out, nil
}

func ofPhase(name string) string {
	if name == "" {
		return ""
	}
	return fmt.Sprintf(" of phase %q", name)
}

// Policy is an evaluation policy without context: the probability of each item at each position.
type Policy struct {
	prob  map[[2]int64]float64
	items map[int64][]int64 // at each position, in the file's order
}

// ReadPolicy reads item_id,position,probability. The probabilities of a position must add up to 1 (1e-6).
func ReadPolicy(in io.Reader) (*Policy, error) {
	return readPolicy(in, []string{"item_id", "position", "probability"}, (*table).count)
}

// readPolicy reads a policy whose first two columns, item and position, id makes numbers.
func readPolicy(in io.Reader, columns []string, id func(t *table, i int) (int64, error)) (*Policy, error) {
	t, err := open(in, columns...)
	if err != nil {
		return nil, err
	}
	p := &Policy{prob: map[[2]int64]float64{}, items: map[int64][]int64{}}
	sums, names := map[int64]float64{}, map[int64]string{}
	for {
		ok, err := t.next()
		if err != nil {
			return nil, err
		} else if !ok {
			break
		}
		item, err := id(t, 0)
		if err != nil {
			return nil, err
		}
		pos, err := id(t, 1)
		if err != nil {
			return nil, err
		}
		x, err := t.number(2)
		if err != nil {
			return nil, err
		}
		if x < 0 || x > 1 {
			return nil, t.bad(2, "%g is not a probability", x)
		}
		if _, dup := p.prob[[2]int64{item, pos}]; dup {
			return nil, t.bad(0, "%s %s at %s %s comes twice", columns[0], t.text(0), columns[1], t.text(1))
		}
		p.prob[[2]int64{item, pos}] = x
		p.items[pos] = append(p.items[pos], item)
		sums[pos] += x
		names[pos] = t.text(1)
	}
	for pos, s := range sums {
		if s < 1-1e-6 || s > 1+1e-6 {
			return nil, fmt.Errorf("%w: the probabilities at %s %s add up to %g, not 1", ErrInput, columns[1], names[pos], s)
		}
	}
	return p, nil
}

// Log is a logged bandit data set.
type Log struct {
	Item, Position []int64
	Click          []float64
	Propensity     []float64
}

// ReadLog reads item_id,position,click,propensity_score, the form of the Open Bandit Dataset.
func ReadLog(in io.Reader) (*Log, error) {
	t, err := open(in, "item_id", "position", "click", "propensity_score")
	if err != nil {
		return nil, err
	}
	l := &Log{}
	for {
		ok, err := t.next()
		if err != nil {
			return nil, err
		} else if !ok {
			return l, nil
		}
		item, err := t.count(0)
		if err != nil {
			return nil, err
		}
		pos, err := t.count(1)
		if err != nil {
			return nil, err
		}
		click, err := t.count(2)
		if err != nil {
			return nil, err
		} else if click > 1 {
			return nil, t.bad(2, "%d is neither 0 nor 1", click)
		}
		ps, err := t.number(3)
		if err != nil {
			return nil, err
		} else if ps <= 0 || ps > 1 {
			return nil, t.bad(3, "%g is not a propensity in (0,1]", ps)
		}
		l.Item, l.Position = append(l.Item, item), append(l.Position, pos)
		l.Click, l.Propensity = append(l.Click, float64(click)), append(l.Propensity, ps)
	}
}

// Clicks is the number of clicks in the log.
func (l *Log) Clicks() int64 {
	n := 0.0
	for _, c := range l.Click {
		n += c
	}
	return int64(n)
}

// Prior is what the reward model takes for known of an item before its first impression: Impressions at a Rate.
type Prior struct{ Rate, Impressions float64 }

// Prior of one impression at the log's own rate.
func (l *Log) Prior() Prior {
	return Prior{Rate: float64(l.Clicks()) / max(1, float64(len(l.Item))), Impressions: 1}
}

// Samples joins the log with an evaluation policy. The reward model is the item's smoothed rate over the log
// itself, the prior's impressions added, the same at every position. A logged item that the policy
// never shows there has weight 0; a logged position that the policy does not know is an error.
func (l *Log) Samples(p *Policy, prior Prior) ([]stats.OPESample, error) {
	shown, clicked := map[int64]float64{}, map[int64]float64{}
	for i, item := range l.Item {
		shown[item]++
		clicked[item] += l.Click[i]
	}
	q := func(item int64) float64 {
		return (clicked[item] + prior.Rate*prior.Impressions) / (shown[item] + prior.Impressions)
	}
	direct := map[int64]float64{} // sum_a pi_e(a|position) q(a), normalised as numpy.average does
	for pos, items := range p.items {
		num, den := 0.0, 0.0
		for _, a := range items {
			w := p.prob[[2]int64{a, pos}]
			num += w * q(a)
			den += w
		}
		direct[pos] = num / den
	}
	// The direct method's value is the mean over rows of the policy's items' rates, so a row's reward moves it by the
	// policy's mean probability of its item over all rows, by the item's rows.
	wanted, at := map[int64]float64{}, map[int64]float64{}
	for _, pos := range l.Position {
		at[pos]++
	}
	for pos, items := range p.items {
		for _, a := range items {
			wanted[a] += at[pos] * p.prob[[2]int64{a, pos}]
		}
	}
	out := make([]stats.OPESample, len(l.Item))
	for i, item := range l.Item {
		pos := l.Position[i]
		d, ok := direct[pos]
		if !ok {
			return nil, fmt.Errorf("%w: row %d of the log is at position %d, for which the policy has no probabilities", ErrInput, i+1, pos)
		}
		out[i] = stats.OPESample{
			Reward: l.Click[i], Weight: p.prob[[2]int64{item, pos}] / l.Propensity[i], Q: q(item), QPolicy: d,
			Pull: wanted[item] / (shown[item] + prior.Impressions),
		}
	}
	return out, nil
}
