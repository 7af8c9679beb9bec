package simulate

import (
	"fmt"
	"math"
	"math/rand/v2"

	"ctrloop/internal/stats"

	"gonum.org/v1/gonum/stat/distuv"
)

// zTwoSided is the normal critical value of a test of error 5 % that is made once.
const zTwoSided = 1.959964

// trial is an experiment at a constant share of 1/2 with a look after every batch, to the end whatever is found.
type trial struct {
	name            string
	world           World
	looks, perLook  int
	lift            func(look int) float64 // relative, of the users of that batch
	bots            Bots
	returning       int // users who come back; 0: everybody comes once
	decideFromLook  int // first look that may decide; 0: the first
	withSampleRatio bool
}

func constant(lift float64) func(int) float64 { return func(int) float64 { return lift } }

// seen is what the looks of one trial saw.
type seen struct {
	found, foundUp       bool    // the sequence left out zero at some look that may decide; on the upper side
	look                 int     // the first such
	units                float64 // users in both arms by then
	estimate             float64 // relative, by then
	missedAtStop         bool    // the truth was outside by then
	missed               bool    // the truth was outside at some look
	delta, naive         bool    // a z-test found something at some look
	deltaLast, naiveLast bool    // at the last
	ratio                bool    // the sample-ratio test did
	last                 float64 // estimate at the last look
	lastAbove            bool    // the last interval lies above zero
}

// crowds are the users of each lift that a trial uses; made once for all runs.
type crowds map[float64]*crowd

func (t trial) crowds() crowds {
	c := crowds{0: newCrowd(t.world, 1)}
	for look := range t.looks {
		if lift := t.lift(look); c[lift] == nil {
			c[lift] = newCrowd(t.world, 1+lift)
		}
	}
	return c
}

func (t trial) run(l *lab) ([]seen, error) {
	c := t.crowds()
	var names []string
	var quantiles []float64
	if t.returning > 0 {
		names, quantiles = newNames(t.returning), rateQuantiles(t.world)
	}
	return each(l, t.name, func(rng *rand.Rand) seen {
		var sums tally
		var who visitors = &strangers{bots: t.bots}
		if t.returning > 0 {
			who = newRegulars(names, quantiles, &sums, rng)
		}
		d := newDoor(rng, 0.5)
		var s seen
		truth := 0.0
		for look := range t.looks {
			lift := t.lift(look)
			truth += (lift - truth) / float64(look+1) // batches are alike but for their lift
			who.batch(&sums, d, 0.5, t.perLook, rng, c[0], c[lift], 1, lift)
			s.look1(t, look, sums.step, truth)
		}
		return s
	})
}

// look1 is one look.
func (s *seen) look1(t trial, look int, b both, truth float64) {
	q := stats.DefaultSequence()
	l, err := stats.Compare(b[armControl], b[armTreatment], q)
	if err != nil {
		return // an arm without impressions
	}
	outside := truth < l.RelativeI.Low || truth > l.RelativeI.High
	s.missed = s.missed || outside
	if !s.found && look >= t.decideFromLook && (l.Interval.Low > 0 || l.Interval.High < 0) {
		s.found, s.foundUp = true, l.Interval.Low > 0
		s.look, s.units, s.estimate, s.missedAtStop = look+1, l.Units, l.Relative, outside
	}
	s.last, s.lastAbove = l.Relative, l.Interval.Low > 0
	s.deltaLast = math.Abs(l.Absolute) > zTwoSided*l.SE
	p := (b[0].M + b[1].M) / (b[0].D + b[1].D)
	s.naiveLast = math.Abs(l.Absolute) > zTwoSided*math.Sqrt(p*(1-p)*(1/b[0].D+1/b[1].D))
	s.delta, s.naive = s.delta || s.deltaLast, s.naive || s.naiveLast
	if t.withSampleRatio && !s.ratio {
		ln, err := stats.SampleRatio([]int64{b[0].N, b[1].N}, []float64{0.5, 0.5}, 1)
		s.ratio = err == nil && stats.PFromLogE(ln) <= 0.01
	}
}

func isFound(s seen) bool     { return s.found }
func isFoundUp(s seen) bool   { return s.foundUp }
func isMissed(s seen) bool    { return s.missed }
func isDelta(s seen) bool     { return s.delta }
func isNaive(s seen) bool     { return s.naive }
func isDeltaLast(s seen) bool { return s.deltaLast }
func isNaiveLast(s seen) bool { return s.naiveLast }
func isRatio(s seen) bool     { return s.ratio }

func unitsAtStop(s seen) (float64, bool)    { return s.units, s.found }
func looksAtStop(s seen) (float64, bool)    { return float64(s.look), s.found }
func estimateAtStop(s seen) (float64, bool) { return s.estimate, s.found }
func estimateAtEnd(s seen) (float64, bool)  { return s.last, true }

func describe(w World) string {
	c := newCrowd(w, 1)
	return fmt.Sprintf(
		"CTR %g %%, %.1f impressions a user (at most %d; as (d + %g)^-%g), impressions of one user correlated by %.3g; the variance of the "+
			"rate is %.1f times that of independent impressions",
		100*w.CTR,
		c.dbar,
		w.MaxImpressions,
		w.Shift,
		w.Tail,
		1/(w.Concentration+1),
		c.e2/(c.dbar*w.CTR*(1-w.CTR)),
	)
}

func runAA(l *lab) (Table, error) {
	t := Table{Setup: []string{
		"100 looks, 500 users (returning: visits) a look, split evenly; no true difference",
		"ordinary users: " + describe(Ordinary()),
		"strong: " + describe(Strong()),
		"returning: 5,000 users with ordinary rates, 50,000 visits of 1 to 3 impressions; the most active hundredth of the users makes a tenth " +
			"of the visits",
	}}
	for _, x := range []struct {
		label     string
		world     World
		returning int
	}{{"ordinary users", Ordinary(), 0}, {"strong over-dispersion", Strong(), 0}, {"returning users", Ordinary(), 5000}} {
		s, err := trial{
			name:            "aa " + x.label,
			world:           x.world,
			looks:           100,
			perLook:         500,
			lift:            constant(0),
			returning:       x.returning,
			withSampleRatio: true,
		}.run(
			l,
		)
		if err != nil {
			return t, err
		}
		n := len(s)
		t.Rows = append(t.Rows, Row{x.label, []Cell{
			share("sequence, a look at every batch", count(s, isFound), n).that(AtMost, 0.05),
			share("delta-method z-test, a look at every batch", count(s, isDelta), n).that(Exceeds, 0.05),
			share("z-test per impression, a look at every batch", count(s, isNaive), n).that(Exceeds, 0.05),
			share("delta-method z-test, last look only", count(s, isDeltaLast), n),
			share("z-test per impression, last look only", count(s, isNaiveLast), n),
			share("sample ratio, a look at every batch", count(s, isRatio), n).that(AtMost, 0.01),
		}})
	}
	return t, nil
}

// fixedSize is the number of users in both arms with which a test made once finds the lift with the given power.
func fixedSize(c, b *crowd, ctr, lift, power float64) float64 {
	z := zTwoSided + distuv.UnitNormal.Quantile(power)
	return math.Pow(z*sigma(c, b, 0.5)/(ctr*lift), 2)
}

func runLift(l *lab) (Table, error) {
	t := Table{Setup: []string{
		"an even split, a look at every batch, to the end of the planned traffic even if something is found, for the coverage",
		"stop: the first look whose interval leaves out zero",
		"planned traffic: the users at which one look has a power of 80 %, in 50 looks",
	}}
	q := stats.DefaultSequence()
	for _, x := range []struct {
		label string
		world World
		lift  float64
	}{
		{"+2 %", Ordinary(), 0.02}, {"+5 %", Ordinary(), 0.05}, {"+10 %", Ordinary(), 0.10},
		{"+10 %, strong over-dispersion", Strong(), 0.10},
	} {
		c, b := newCrowd(x.world, 1), newCrowd(x.world, 1+x.lift)
		need := stats.UnitsToDetect(q, sigma(c, b, 0.5), x.world.CTR*math.Abs(x.lift), 0.8)
		perLook := int(math.Ceil(need/50/100)) * 100
		s, err := trial{name: "lift " + x.label, world: x.world, looks: 50, perLook: perLook, lift: constant(x.lift)}.run(l)
		if err != nil {
			return t, err
		}
		n := len(s)
		found := count(s, isFound)
		t.Rows = append(t.Rows, Row{x.label, []Cell{
			value("users a look", Number, float64(perLook)),
			share("found in the planned traffic", found, n).that(AtLeast, 0.8),
			share("found with the wrong sign", count(s, func(s seen) bool { return s.found && s.foundUp != (x.lift > 0) }), n).that(AtMost, 0.05),
			value("theory: users for 80 % at one look", Number, need),
			value("theory: users of a test made once, 80 %", Number, fixedSize(c, b, x.world.CTR, x.lift, 0.8)),
			quantile("users at the stop, median", 0.5, pick(s, unitsAtStop)),
			mean("users at the stop, mean", Number, pick(s, unitsAtStop)),
			quantile("users at the stop, 9 of 10 runs", 0.9, pick(s, unitsAtStop)),
			quantile("looks at the stop, median", 0.5, pick(s, looksAtStop)),
			share("truth covered at every look", n-count(s, isMissed), n).that(AtLeast, 0.95),
			share("truth covered at the stop", found-count(s, func(s seen) bool { return s.found && s.missedAtStop }), found).that(AtLeast, 0.95),
			mean("estimate at the stop, mean", Relative, pick(s, estimateAtStop)),
			mean("estimate at the end, mean", Relative, pick(s, estimateAtEnd)),
		}})
	}
	return t, nil
}

func runBots(l *lab) (Table, error) {
	bots := Bots{Share: 0.006, Impressions: 100, Missed: 1}
	t := Table{Setup: []string{
		"ordinary users, an even split, 100 looks of 500 users; z-test per impression beside the sequence",
		fmt.Sprintf("bots: %g %% of the users, %d impressions each (%.1f %% of all), every one clicked", 100*bots.Share, bots.Impressions,
			100*bots.Share*float64(bots.Impressions)/(bots.Share*float64(bots.Impressions)+(1-bots.Share)*newCrowd(Ordinary(), 1).dbar)),
		"one-sided: the bots look at the treatment's ads alone, as a crawler that follows what is new",
	}}
	filter := func(missed float64, oneSided bool) Bots {
		b := bots
		b.Missed, b.TreatmentOnly = missed, oneSided
		return b
	}
	for _, x := range []struct {
		label string
		lift  float64
		bots  Bots
	}{
		{"A/A, no filter", 0, filter(1, false)},
		{"A/A, filter", 0, filter(0, false)},
		{"+10 %, no filter", 0.10, filter(1, false)},
		{"+10 %, filter finds 90 %", 0.10, filter(0.1, false)},
		{"+10 %, filter", 0.10, filter(0, false)},
		{"A/A, one-sided, no filter", 0, filter(1, true)},
		{"A/A, one-sided, filter finds 90 %", 0, filter(0.1, true)},
	} {
		s, err := trial{
			name:            "bots " + x.label,
			world:           Ordinary(),
			looks:           100,
			perLook:         500,
			lift:            constant(x.lift),
			bots:            x.bots,
			withSampleRatio: true,
		}.run(
			l,
		)
		if err != nil {
			return t, err
		}
		n := len(s)
		found := share("sequence finds a difference", count(s, isFound), n)
		cover := share("people's lift covered at every look", n-count(s, isMissed), n)
		if x.bots.Missed == 0 {
			cover = cover.that(AtLeast, 0.95)
		}
		if x.lift == 0 && !(x.bots.TreatmentOnly && x.bots.Missed > 0) {
			found = found.that(AtMost, 0.05)
		}
		t.Rows = append(t.Rows, Row{x.label, []Cell{
			found,
			share("z-test per impression finds one", count(s, isNaive), n),
			quantile("users at the stop, median", 0.5, pick(s, unitsAtStop)),
			mean("estimate at the end, mean", Relative, pick(s, estimateAtEnd)),
			cover,
			share("sample ratio alarms", count(s, isRatio), n),
		}})
	}
	return t, nil
}

// fading is a lift that begins at first and halves its way to the rest.
func fading(first, rest, half float64) func(int) float64 {
	return func(look int) float64 { return rest + (first-rest)*math.Exp2(-float64(look)/half) }
}

func runNovelty(l *lab) (Table, error) {
	const looks, perLook = 100, 800
	t := Table{Setup: []string{
		fmt.Sprintf(
			"ordinary users, an even split, %d looks of %d users; the lift begins at +20 %% and halves its distance to the lasting one "+
				"every 10 looks",
			looks,
			perLook,
		),
		"decided: the first look whose interval leaves out zero; from look 60: no decision before",
		"covered: the mean lift of the batches so far, at every look",
	}}
	for _, x := range []struct {
		label string
		rest  float64
		from  int
	}{
		{"lasting +3 %", 0.03, 0}, {"lasting 0", 0, 0}, {"lasting -3 %", -0.03, 0}, {"lasting -3 %, from look 60", -0.03, 59},
	} {
		lift := fading(0.20, x.rest, 10)
		s, err := trial{name: "novelty " + x.label, world: Ordinary(), looks: looks, perLook: perLook, lift: lift, decideFromLook: x.from}.run(l)
		if err != nil {
			return t, err
		}
		n := len(s)
		sum := 0.0
		for look := range looks {
			sum += lift(look) / looks
		}
		t.Rows = append(t.Rows, Row{x.label, []Cell{
			share("found better", count(s, isFoundUp), n),
			share("found worse", count(s, func(s seen) bool { return s.found && !s.foundUp }), n),
			quantile("looks at the stop, median", 0.5, pick(s, looksAtStop)),
			mean("estimate at the stop, mean", Relative, pick(s, estimateAtStop)),
			mean("true lift of the batch at the stop, mean", Relative, pick(s, func(s seen) (float64, bool) { return lift(s.look - 1), s.found })),
			value("true lift, mean of all looks", Relative, sum),
			mean("estimate at the end, mean", Relative, pick(s, estimateAtEnd)),
			share("interval at the end above zero", count(s, func(s seen) bool { return s.lastAbove }), n),
			share("mean lift so far covered at every look", n-count(s, isMissed), n).that(AtLeast, 0.95),
		}})
	}
	return t, nil
}
