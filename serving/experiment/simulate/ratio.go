package simulate

import (
	"math"
	"math/rand/v2"
	"sort"

	"ctrloop/internal/stats"

	"gonum.org/v1/gonum/stat/distuv"
)

// chi2 is the critical value of the chi-squared test of one degree of freedom at 1 %.
const chi2 = 6.6349

// counted is what the looks of one run saw of the counts.
type counted struct {
	alarm     float64 // users by the alarm of the sequential test, in all steps; 0: none
	chi       bool    // the chi-squared test of the present step alarmed at some look
	unstepped bool    // the sequential test on the counts of all steps, against the present share, did
}

// counting assigns users, with steps of a ramp, and looks every 1,000.
type counting struct {
	name    string
	planned []float64 // share of each step
	actual  []float64
	users   int // of each step
	alpha   float64
}

func (c counting) run(l *lab) ([]counted, error) {
	limit := c.alpha / float64(len(c.planned))
	return each(l, c.name, func(rng *rand.Rand) counted {
		var out counted
		var all [arms]int64
		who, d := &strangers{}, newDoor(rng, c.actual[0])
		seen := 0.0
		for k, share := range c.planned {
			d.share(c.actual[k])
			var n [arms]int64
			for range c.users / 1000 {
				for range 1000 {
					n[d.arm(who.name())]++
				}
				seen += 1000
				if out.alarm == 0 && ratioP(n, share) <= limit {
					out.alarm = seen
				}
				e := float64(n[0]+n[1]) * share
				x := float64(n[1]) - e
				out.chi = out.chi || x*x/e/(1-share) > chi2
				out.unstepped = out.unstepped || ratioP([arms]int64{all[0] + n[0], all[1] + n[1]}, share) <= c.alpha
			}
			all[0], all[1] = all[0]+n[0], all[1]+n[1]
		}
		return out
	})
}

func ratioP(n [arms]int64, share float64) float64 {
	ln, err := stats.SampleRatio(n[:], []float64{1 - share, share}, 1)
	if err != nil {
		return 1
	}
	return stats.PFromLogE(ln)
}

// alarmProbability is that of an alarm at one look at n users, of whom each is in the treatment with probability
// actual; exact, from the binomial distribution. Looks before can only add to it.
func alarmProbability(n int, planned, actual, alpha float64) float64 {
	alarms := func(k int) bool { return ratioP([arms]int64{int64(n - k), int64(k)}, planned) <= alpha }
	mid := int(math.Round(planned * float64(n)))                                                // no alarm; the factor grows to both sides
	above := mid + sort.Search(n-mid+1, func(i int) bool { return i > n-mid || alarms(mid+i) }) // the first count with an alarm
	below := mid - sort.Search(mid+1, func(i int) bool { return i > mid || alarms(mid-i) })     // the last one
	b := distuv.Binomial{N: float64(n), P: actual}
	p := 0.0
	if below >= 0 {
		p += b.CDF(float64(below))
	}
	if above <= n {
		p += 1 - b.CDF(float64(above-1))
	}
	return p
}

// alarmBy is the smallest number of users, in thousands as the looks are, by which there is an alarm with at least
// the given probability.
func alarmBy(q, planned, actual, alpha float64) int {
	return 1000 * (1 + sort.Search(10_000, func(i int) bool { return alarmProbability(1000*(i+1), planned, actual, alpha) >= q }))
}

func runRatio(l *lab) (Table, error) {
	const planned, actual, alpha = 0.5, 0.49, 0.01
	kl := actual*math.Log(actual/planned) + (1-actual)*math.Log((1-actual)/(1-planned))
	t := Table{Setup: []string{
		"planned 50/50, users fall 51/49; a look every 1,000 users, alarm at 1 % over all looks, prior 1",
		"theory: the number of users at which one look alarms with the given probability, from the binomial distribution; all looks together " +
			"can only be sooner",
		"floor: ln(1/alpha) / KL(49 % | 50 %), which no test of that error can beat on average",
		"ramp: 1, 5, 20 and 50 %, 25,000 users each, fair; every step on its own at a quarter of the 1 %, as the controller does it",
	}}
	by := map[float64]int{}
	for _, q := range []float64{0.5, 0.9, 0.99} {
		by[q] = alarmBy(q, planned, actual, alpha)
	}
	s, err := counting{name: "srm planted", planned: []float64{planned}, actual: []float64{actual}, users: by[0.99], alpha: alpha}.run(l)
	if err != nil {
		return t, err
	}
	within := func(users int) int {
		return count(s, func(c counted) bool { return c.alarm > 0 && c.alarm <= float64(users) })
	}
	alarms := pick(s, func(c counted) (float64, bool) { return c.alarm, c.alarm > 0 })
	t.Rows = append(t.Rows, Row{"51/49", []Cell{
		value("floor: users on average", Number, math.Log(1/alpha)/kl),
		value("theory: users for 50 %", Number, float64(by[0.5])),
		share("alarm by then, 50", within(by[0.5]), len(s)).that(AtLeast, 0.5),
		value("theory: users for 90 %", Number, float64(by[0.9])),
		share("alarm by then, 90", within(by[0.9]), len(s)).that(AtLeast, 0.9),
		value("theory: users for 99 %", Number, float64(by[0.99])),
		share("alarm by then, 99", within(by[0.99]), len(s)).that(AtLeast, 0.99),
		quantile("users at the alarm, median", 0.5, alarms),
		mean("users at the alarm, mean", Number, alarms),
	}})
	steps := []float64{0.01, 0.05, 0.2, 0.5}
	for _, x := range []struct {
		label string
		c     counting
	}{
		{"fair", counting{name: "srm fair", planned: []float64{planned}, actual: []float64{planned}, users: 100_000, alpha: alpha}},
		{"fair, ramp", counting{name: "srm ramp", planned: steps, actual: steps, users: 25_000, alpha: alpha}},
	} {
		s, err := x.c.run(l)
		if err != nil {
			return t, err
		}
		n := len(s)
		row := Row{x.label, []Cell{
			share("alarm", count(s, func(c counted) bool { return c.alarm > 0 }), n).that(AtMost, alpha),
			share("chi-squared test at 1 %, every look", count(s, func(c counted) bool { return c.chi }), n).that(Exceeds, alpha),
		}}
		if len(x.c.planned) > 1 {
			row.Cells = append(
				row.Cells,
				share("all steps' counts against the present share", count(s, func(c counted) bool { return c.unstepped }), n).that(Exceeds, alpha),
			)
		}
		t.Rows = append(t.Rows, row)
	}
	return t, nil
}
