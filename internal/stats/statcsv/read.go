package statcsv

import (
	"fmt"
	"io"
	"slices"

	"ctrloop/internal/stats"
)

// LiftData are the two arms of a test and what is odd about its units.
type LiftData struct {
	Control, Treatment stats.RatioSums
	InBothArms         int // units with rows in both arms; they count in each
}

// ReadLift reads unit,arm,impressions,clicks with the arms "control" and "treatment". Rows of the same unit
// and arm add up (a unit may have a row a day); clicks are clicked impressions, so at most impressions.
func ReadLift(in io.Reader) (LiftData, error) {
	t, err := open(in, "unit", "arm", "impressions", "clicks")
	if err != nil {
		return LiftData{}, err
	}
	type sums struct{ m, d int64 }
	arms := map[string]map[string]sums{"control": {}, "treatment": {}}
	var order [2][]string // of first appearance, so that sums are the same in every run
	for {
		ok, err := t.next()
		if err != nil {
			return LiftData{}, err
		} else if !ok {
			break
		}
		arm := arms[t.text(1)]
		if arm == nil {
			return LiftData{}, t.bad(1, `%q is not an arm, want "control" or "treatment"`, t.text(1))
		}
		unit := t.text(0)
		if unit == "" {
			return LiftData{}, t.bad(0, "empty: every row needs its unit")
		}
		d, err := t.count(2)
		if err != nil {
			return LiftData{}, err
		}
		m, err := t.count(3)
		if err != nil {
			return LiftData{}, err
		}
		if m > d {
			return LiftData{}, t.bad(3, "%d clicks on %d impressions: clicks are clicked impressions here, at most one each", m, d)
		}
		was, seen := arm[unit]
		if !seen {
			i := 0
			if t.text(1) == "treatment" {
				i = 1
			}
			order[i] = append(order[i], unit)
		}
		arm[unit] = sums{was.m + m, was.d + d}
	}
	var out LiftData
	for _, u := range order[0] {
		s := arms["control"][u]
		out.Control.Observe(float64(s.m), float64(s.d))
		if _, both := arms["treatment"][u]; both {
			out.InBothArms++
		}
	}
	for _, u := range order[1] {
		s := arms["treatment"][u]
		out.Treatment.Observe(float64(s.m), float64(s.d))
	}
	if out.Control.D == 0 || out.Treatment.D == 0 {
		return LiftData{}, fmt.Errorf("%w: control has %g impressions and treatment %g: a lift needs both arms", ErrInput, out.Control.D, out.Treatment.D)
	}
	return out, nil
}

// ReadCounts reads arm,count in the file's order. Rows of the same arm are refused: which count is meant?
func ReadCounts(in io.Reader) (arms []string, counts []int64, err error) {
	t, err := open(in, "arm", "count")
	if err != nil {
		return nil, nil, err
	}
	for {
		ok, err := t.next()
		if err != nil {
			return nil, nil, err
		} else if !ok {
			break
		}
		arm := t.text(0)
		if arm == "" || slices.Contains(arms, arm) {
			return nil, nil, t.bad(0, "arm %q is empty or comes twice", arm)
		}
		n, err := t.count(1)
		if err != nil {
			return nil, nil, err
		}
		arms, counts = append(arms, arm), append(counts, n)
	}
	if len(arms) < 2 {
		return nil, nil, fmt.Errorf("%w: a sample ratio needs at least two arms, the file has %d", ErrInput, len(arms))
	}
	return arms, counts, nil
}

// Policy is an evaluation policy without context: the probability of each item at each position.
type Policy struct {
	prob  map[[2]int64]float64
	items map[int64][]int64 // at each position, in the file's order
}

// ReadPolicy reads item_id,position,probability. The probabilities of a position must add up to 1 (1e-6).
func ReadPolicy(in io.Reader) (*Policy, error) {
	t, err := open(in, "item_id", "position", "probability")
	if err != nil {
		return nil, err
	}
	p := &Policy{prob: map[[2]int64]float64{}, items: map[int64][]int64{}}
	sums := map[int64]float64{}
	for {
		ok, err := t.next()
		if err != nil {
			return nil, err
		} else if !ok {
			break
		}
		item, err := t.count(0)
		if err != nil {
			return nil, err
		}
		pos, err := t.count(1)
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
			return nil, t.bad(0, "item %d at position %d comes twice", item, pos)
		}
		p.prob[[2]int64{item, pos}] = x
		p.items[pos] = append(p.items[pos], item)
		sums[pos] += x
	}
	for pos, s := range sums {
		if s < 1-1e-6 || s > 1+1e-6 {
			return nil, fmt.Errorf("%w: the probabilities at position %d add up to %g, not 1", ErrInput, pos, s)
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

// Samples joins the log with an evaluation policy. The reward model is the item's smoothed rate over the log
// itself, (clicks + 1) / (impressions + 100), the same at every position. A logged item that the policy
// never shows there has weight 0; a logged position that the policy does not know is an error.
func (l *Log) Samples(p *Policy) ([]stats.OPESample, error) {
	shown, clicked := map[int64]float64{}, map[int64]float64{}
	for i, item := range l.Item {
		shown[item]++
		clicked[item] += l.Click[i]
	}
	q := func(item int64) float64 { return (clicked[item] + 1) / (shown[item] + 100) }
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
	out := make([]stats.OPESample, len(l.Item))
	for i, item := range l.Item {
		pos := l.Position[i]
		d, ok := direct[pos]
		if !ok {
			return nil, fmt.Errorf("%w: row %d of the log is at position %d, for which the policy has no probabilities", ErrInput, i+1, pos)
		}
		out[i] = stats.OPESample{Reward: l.Click[i], Weight: p.prob[[2]int64{item, pos}] / l.Propensity[i], Q: q(item), QPolicy: d}
	}
	return out, nil
}
