package simulate

import (
	"math"
	"math/rand/v2"
	"strconv"
	"sync"

	"ctrloop/internal/stats"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/assign"

	"gonum.org/v1/gonum/mathext"
)

// Arms, as indices.
const (
	armControl = iota
	armTreatment
	arms
)

// both are the sums of both arms.
type both [arms]stats.RatioSums

func (b both) add(o both) both {
	return both{b[0].Add(o[0]), b[1].Add(o[1])}
}

func (b both) units() float64 { return float64(b[0].N + b[1].N) }

// door assigns users to arms: the real assigner on the state of the control log that a step makes.
type door struct {
	assigner *assign.Assigner
	seed     string
}

// logical is the name of the model under test.
const logical = "ad"

func newDoor(rng *rand.Rand, share float64) *door {
	d := &door{seed: strconv.FormatUint(uint64(rng.Uint32()), 36)}
	d.share(share)
	return d
}

// share sets the treatment's share.
func (d *door) share(s float64) {
	st := control.NewState()
	st.Routes[logical] = control.Route{Champion: "old"}
	st.Experiments["x"] = &control.ExperimentStatus{
		Experiment: control.Experiment{ID: "x", Logical: logical, Unit: "user", Seed: d.seed, Control: "old", Treatment: "new"},
		Step:       control.Step{Share: s},
	}
	d.assigner = assign.New(st)
}

func (d *door) arm(user string) int {
	a, _ := d.assigner.Assign(logical, assign.Unit{User: user})
	if a.Variant == assign.Treatment {
		return armTreatment
	}
	return armControl
}

// tally is what the estimators are given.
type tally struct {
	total    both    // since the beginning, whatever the step
	step     both    // since the step began
	weighted both    // with overlap weights, by user where users come back
	strata   both    // with overlap weights, merged by step: units are taken for new ones in each
	units    float64 // clock of the two above
	ledgers  [3]*ledger
}

// fresh adds users who come once.
func (t *tally) fresh(batch both, share float64) {
	t.total, t.step = t.total.add(batch), t.step.add(batch)
	w := both{batch[0].Weighted(stats.OverlapWeight(1 - share)), batch[1].Weighted(stats.OverlapWeight(share))}
	t.weighted, t.strata = t.weighted.add(w), t.strata.add(w)
	t.units += stats.OverlapUnits(batch.units(), share)
}

// ledger keeps the clicks and impressions of users who come back, by arm, and the sums over them up to date.
type ledger struct {
	m, d [arms][]float64
}

func newLedger(users int) *ledger {
	l := &ledger{}
	for a := range arms {
		l.m[a], l.d[a] = make([]float64, users), make([]float64, users)
	}
	return l
}

func (l *ledger) clear() {
	for a := range arms {
		clear(l.m[a])
		clear(l.d[a])
	}
}

func (l *ledger) add(s *both, arm, user int, m, d float64) {
	om, od := l.m[arm][user], l.d[arm][user]
	nm, nd := om+m, od+d
	l.m[arm][user], l.d[arm][user] = nm, nd
	x := &s[arm]
	if od == 0 && nd > 0 {
		x.N++
	}
	x.M += m
	x.D += d
	x.MM += nm*nm - om*om
	x.DD += nd*nd - od*od
	x.MD += nm*nd - om*od
}

// visit adds a visit of a user who may come back.
func (t *tally) visit(arm, user int, m, d, share float64) {
	w := share
	if arm == armTreatment {
		w = 1 - share
	}
	t.ledgers[0].add(&t.total, arm, user, m, d)
	if t.ledgers[1].d[0][user]+t.ledgers[1].d[1][user] == 0 { // the user's first visit of this step
		t.units += stats.OverlapUnits(1, share)
	}
	t.ledgers[1].add(&t.step, arm, user, m, d)
	t.ledgers[2].add(&t.weighted, arm, user, w*m, w*d)
}

// next begins another step. The strata of returning users are closed here; see sums.
func (t *tally) next(share float64) {
	if t.ledgers[1] != nil {
		t.strata = t.byStratum(share)
		t.ledgers[1].clear()
	}
	t.step = both{}
}

// byStratum are the weighted sums that take users of each step for new ones.
func (t *tally) byStratum(share float64) both {
	if t.ledgers[1] == nil {
		return t.strata
	}
	return t.strata.add(both{t.step[0].Weighted(stats.OverlapWeight(1 - share)), t.step[1].Weighted(stats.OverlapWeight(share))})
}

// visitors come in batches and are added to a tally. A level multiplies everybody's rate: the hour, the season.
type visitors interface {
	batch(t *tally, door *door, share float64, n int, rng *rand.Rand, control, treatment *crowd, level, lift float64)
}

// strangers come once each.
type strangers struct {
	next int
	bots Bots
}

// names are the first users' names, made once for all runs: making them would cost as much as drawing the users.
var names = sync.OnceValue(func() []string { return newNames(1 << 20) })

// Bots click on everything they see.
type Bots struct {
	// Share of the users.
	Share float64 `json:"share"`
	// Impressions of each.
	Impressions int `json:"impressions"`
	// TreatmentOnly makes bots look at the treatment's ads alone, as a crawler that follows what is new.
	TreatmentOnly bool `json:"treatment_only,omitempty"`
	// Missed is the share of bots that the filter leaves in: 1 is no filter.
	Missed float64 `json:"missed"`
}

func (s *strangers) name() string {
	i := s.next
	s.next++
	if i < len(names()) {
		return names()[i]
	}
	return nameOf(i)
}

func (s *strangers) batch(t *tally, door *door, share float64, n int, rng *rand.Rand, control, treatment *crowd, _, _ float64) {
	crowds := [arms]*crowd{control, treatment}
	var sums both
	for range n {
		arm := door.arm(s.name())
		if s.bots.Share > 0 && rng.Float64() < s.bots.Share {
			if kept := rng.Float64() < s.bots.Missed; kept && (arm == armTreatment || !s.bots.TreatmentOnly) {
				sums[arm].Observe(float64(s.bots.Impressions), float64(s.bots.Impressions))
			}
			continue
		}
		sums[arm].Observe(crowds[arm].draw(rng))
	}
	t.fresh(sums, share)
}

// regulars are a fixed number of users who come back, some of them all the time.
type regulars struct {
	names []string
	rates []float64 // quantiles of the Beta distribution of rates
	rate  []float64 // of each user, in this run
}

// newNames are the users of all runs.
func newNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = nameOf(i)
	}
	return names
}

func nameOf(i int) string { return "u" + strconv.Itoa(i) }

// rateQuantiles stand for a world's Beta distribution of rates.
func rateQuantiles(w World) []float64 {
	q := make([]float64, 2048)
	for i := range q {
		q[i] = mathext.InvRegIncBeta(w.CTR*w.Concentration, (1-w.CTR)*w.Concentration, (float64(i)+0.5)/float64(len(q)))
	}
	return q
}

func newRegulars(names []string, quantiles []float64, t *tally, rng *rand.Rand) *regulars {
	r := &regulars{names: names, rates: quantiles, rate: make([]float64, len(names))}
	for i := range r.rate {
		r.rate[i] = quantiles[rng.IntN(len(quantiles))]
	}
	for i := range t.ledgers {
		t.ledgers[i] = newLedger(len(names))
	}
	return r
}

// batch are n visits. A visitor is user floor(N u^2) for a uniform u: the most active hundredth of the users makes a
// tenth of the visits. A visit has 1 to 3 impressions.
func (r *regulars) batch(t *tally, door *door, share float64, n int, rng *rand.Rand, _, _ *crowd, level, lift float64) {
	for range n {
		u := rng.Float64()
		user := int(u * u * float64(len(r.names)))
		arm := door.arm(r.names[user])
		p := r.rate[user] * level
		if arm == armTreatment {
			p *= 1 + lift
		}
		d, m := 1+rng.IntN(3), 0
		for range d {
			if rng.Float64() < p {
				m++
			}
		}
		t.visit(arm, user, float64(m), float64(d), share)
	}
}

// day is the level of click-through rates at a look: a curve with a period of 24 looks.
func day(look int, amplitude float64) float64 {
	return 1 + amplitude*math.Sin(2*math.Pi*float64(look%24)/24)
}
