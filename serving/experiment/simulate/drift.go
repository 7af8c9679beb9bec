package simulate

import (
	"fmt"
	"math"
	"math/rand/v2"

	"ctrloop/internal/stats"
	"ctrloop/serving/experiment/ramp"
)

// Estimators of a lift over a ramp.
const (
	pooled    = iota // the sums of all steps, added up
	oneStep          // the last step alone: the controller's rule (ADR 0009)
	byStratum        // overlap weights, steps merged as if they had different users
	byUser           // overlap weights, totals by user (ADR 0024)
	estimators
)

var estimatorNames = [estimators]string{"pooled", "one step (the controller)", "stratified", "stratified, totals by user"}

// drifting is a ramp by the clock while the rate falls and swings with the hour.
type drifting struct {
	name      string
	world     World
	lift      float64
	shares    []float64
	looks     []int // of each step
	perLook   int
	returning int
}

// level falls from 1.4 to 0.6 over the experiment, and swings by 30 % with a period of 24 looks.
func (d drifting) level(look int) float64 {
	all := 0
	for _, n := range d.looks {
		all += n
	}
	return (1.4 - 0.8*float64(look)/float64(all-1)) * day(look, 0.3)
}

// estimated is what one estimator saw in one run.
type estimated struct {
	known       bool
	last        float64 // relative, at the last look
	low, high   float64 // interval of the difference at the last look
	found       bool    // zero left out at some look
	missed      bool    // truth left out at some look
	units       float64 // users by the first look that left out zero
	claimed, at float64 // standard error and estimate of the difference at the last look
}

func (d drifting) run(l *lab) ([][estimators]estimated, error) {
	var controls, treatments []*crowd
	var names []string
	var quantiles []float64
	all := 0
	for _, n := range d.looks {
		all += n
	}
	for look := range all {
		var c, b *crowd
		if d.returning == 0 {
			c, b = newCrowd(d.world, d.level(look)), newCrowd(d.world, d.level(look)*(1+d.lift))
		}
		controls, treatments = append(controls, c), append(treatments, b)
	}
	if d.returning > 0 {
		names, quantiles = newNames(d.returning), rateQuantiles(d.world)
	}
	return each(l, d.name, func(rng *rand.Rand) [estimators]estimated {
		var out [estimators]estimated
		var sums tally
		var who visitors = &strangers{}
		if d.returning > 0 {
			who = newRegulars(names, quantiles, &sums, rng)
		}
		door := newDoor(rng, d.shares[0])
		look := 0
		for k, share := range d.shares {
			door.share(share)
			if k > 0 {
				sums.next(d.shares[k-1])
			}
			for range d.looks[k] {
				who.batch(&sums, door, share, d.perLook, rng, controls[look], treatments[look], d.level(look), d.lift)
				look++
				var at [estimators]both
				if enough(sums.total) {
					at[pooled], at[byStratum], at[byUser] = sums.total, sums.byStratum(share), sums.weighted
				}
				if k == len(d.shares)-1 && enough(sums.step) {
					at[oneStep] = sums.step
				}
				for i, b := range at {
					units := b.units()
					if i == byStratum || i == byUser {
						units = sums.units
					}
					out[i].look(b, units, d.lift, float64(look*d.perLook))
				}
			}
		}
		return out
	})
}

// enough says whether the controller would look at the sums at all.
func enough(b both) bool {
	cfg := ramp.Default()
	return min(b[0].N, b[1].N) >= cfg.MinUnits && min(b[0].D, b[1].D) >= float64(cfg.MinImpressions)
}

func (e *estimated) look(b both, units, truth, seen float64) {
	l, err := stats.CompareWeighted(b[armControl], b[armTreatment], units, stats.DefaultSequence())
	if err != nil {
		return
	}
	e.known, e.last, e.low, e.high = true, l.Relative, l.Interval.Low, l.Interval.High
	e.claimed, e.at = l.SE, l.Absolute
	if !e.found && (l.Interval.Low > 0 || l.Interval.High < 0) {
		e.found, e.units = true, seen
	}
	e.missed = e.missed || truth < l.RelativeI.Low || truth > l.RelativeI.High
}

func runSimpson(l *lab) (Table, error) {
	shares, looks := []float64{0.05, 0.2, 0.5}, []int{20, 20, 80}
	t := Table{Setup: []string{
		"shares 5, 20 and 50 % for 20, 20 and 80 looks of 500 users (returning: visits of 5,000 users); everybody's rate falls from 1.4 to 0.6 " +
			"of its mean over the experiment and swings by 30 % with a period of 24 looks",
		"a look at every batch, from the controller's smallest sample on; spread / claimed: standard deviation of the estimates over the mean " +
			"standard error, at the last look",
	}}
	for _, x := range []struct {
		label     string
		lift      float64
		returning int
	}{{"no effect", 0, 0}, {"+10 %", 0.10, 0}, {"no effect, returning", 0, 5000}} {
		s, err := drifting{"simpson " + x.label, Ordinary(), x.lift, shares, looks, 500, x.returning}.run(l)
		if err != nil {
			return t, err
		}
		for i, name := range estimatorNames {
			if x.returning == 0 && i == byUser { // the same as byStratum where nobody comes back
				continue
			}
			of := func(f func(estimated) bool) int {
				return count(s, func(e [estimators]estimated) bool { return f(e[i]) })
			}
			n := len(s)
			found := share("finds a difference", of(func(e estimated) bool { return e.found }), n)
			cover := share("truth covered at every look", n-of(func(e estimated) bool { return e.missed }), n)
			switch {
			case i == pooled && x.returning == 0:
				cover = share("truth missed at some look", of(func(e estimated) bool { return e.missed }), n).that(Exceeds, 0.5)
			case i == oneStep || i == byUser || (i == byStratum && x.returning == 0):
				cover = cover.that(AtLeast, 0.95)
				if x.lift == 0 {
					found = found.that(AtMost, 0.05)
				}
			}
			var spread, claimed []float64
			for _, e := range s {
				spread, claimed = append(spread, e[i].at), append(claimed, e[i].claimed)
			}
			t.Rows = append(t.Rows, Row{fmt.Sprintf("%s: %s", x.label, name), []Cell{
				mean("estimate at the end, mean", Relative, pick(s, func(e [estimators]estimated) (float64, bool) { return e[i].last, e[i].known })),
				found, cover,
				quantile(
					"users at the first find, median",
					0.5,
					pick(s, func(e [estimators]estimated) (float64, bool) { return e[i].units, e[i].found }),
				),
				value("spread / claimed, %", Number, 100*deviation(spread)/average(claimed)),
			}})
		}
	}
	return t, nil
}

func average(xs []float64) float64 {
	sum := 0.0
	for _, x := range xs {
		sum += x
	}
	return sum / float64(len(xs))
}

func deviation(xs []float64) float64 {
	m, sum := average(xs), 0.0
	for _, x := range xs {
		sum += (x - m) * (x - m)
	}
	return math.Sqrt(sum / float64(len(xs)-1))
}
