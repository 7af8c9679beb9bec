package simulate

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"ctrloop/internal/stats"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/ramp"
)

// status is an experiment on the first of the steps.
func status(steps []float64) control.ExperimentStatus {
	q := stats.DefaultSequence()
	first := control.Step{Share: steps[0]}
	return control.ExperimentStatus{
		Experiment: control.Experiment{ID: "x", Logical: logical, Unit: "user", Steps: steps, Alpha: q.Alpha, NStar: q.NStar},
		Step:       first, History: []control.Step{first},
	}
}

func evidence(now, deciding both) ramp.Evidence {
	return ramp.Evidence{Now: ramp.Sums{Control: now[0], Treatment: now[1]}, Deciding: ramp.Sums{Control: deciding[0], Treatment: deciding[1]}}
}

// guarded is what the looks of one run saw of the guards, at one step.
type guarded struct {
	harm  bool // the controller rolled back for harm
	safe  bool // the lower bound of the guard said that the loss is within the margin
	plain bool // the bound that trusts the small arm's own variance would have rolled back
}

// guardTrial looks at one step with the controller, at a true lift.
type guardTrial struct {
	name    string
	world   World
	share   float64
	lift    float64
	looks   int
	perLook int
}

func (t guardTrial) run(l *lab) ([]guarded, error) {
	control, treatment := newCrowd(t.world, 1), newCrowd(t.world, 1+t.lift)
	cfg := ramp.Default()
	cfg.MaxUnits, cfg.MaxImpressions = 0, 0
	x := status([]float64{t.share})
	return each(l, t.name, func(rng *rand.Rand) guarded {
		var out guarded
		var sums tally
		who, d := &strangers{}, newDoor(rng, t.share)
		for range t.looks {
			who.batch(&sums, d, t.share, t.perLook, rng, control, treatment, 1, t.lift)
			v := ramp.Look(cfg, x, evidence(sums.step, sums.step))
			out.harm = out.harm || v.Rule == ramp.CTRHarm
			b := sums.step
			rate := (b[0].M + b[1].M) / (b[0].D + b[1].D)
			q := stats.Sequence{Alpha: cfg.GuardAlpha, NStar: x.NStar}
			out.plain = out.plain || (rate*min(b[0].D, b[1].D) >= cfg.MinClicks && stats.Inferiority(b[0], b[1], cfg.Margin, q).High < 0)
			// Asked under the conditions under which the controller asks for harm.
			out.safe = out.safe || (v.Rule != ramp.MinSamples && v.Figures.GuardLow > 0)
		}
		return out
	})
}

func runGuards(l *lab) (Table, error) {
	cfg := ramp.Default()
	t := Table{Setup: []string{
		fmt.Sprintf(
			"the controller's click-through guard: margin %g %%, error %g %% one-sided, at one step, 50 looks; the true loss is the margin, where "+
				"both of its answers would be wrong",
			100*cfg.Margin,
			100*cfg.GuardAlpha,
		),
		fmt.Sprintf(
			"generation errors: limit %g %%, alarm at %g %%, a look every 20 generations, 10,000 of them",
			100*cfg.ErrorLimit,
			100*cfg.ErrorAlpha,
		),
	}}
	for _, x := range []struct {
		label   string
		world   World
		share   float64
		perLook int
	}{
		{"true loss 5 %, share 1 %", Ordinary(), 0.01, 2500},
		{"share 5 %", Ordinary(), 0.05, 1000},
		{"share 50 %", Ordinary(), 0.5, 500},
		{"share 5 %, strong over-dispersion", Strong(), 0.05, 1000},
	} {
		s, err := guardTrial{"guards " + x.label, x.world, x.share, -cfg.Margin, 50, x.perLook}.run(l)
		if err != nil {
			return t, err
		}
		t.Rows = append(t.Rows, Row{x.label, []Cell{
			value("users a look", Number, float64(x.perLook)),
			share("rolled back for harm", count(s, func(g guarded) bool { return g.harm }), len(s)).that(AtMost, cfg.GuardAlpha),
			share("the same by the plain bound", count(s, func(g guarded) bool { return g.plain }), len(s)),
			share("called within the margin", count(s, func(g guarded) bool { return g.safe }), len(s)).that(AtMost, cfg.GuardAlpha),
		}})
	}
	for _, x := range []struct {
		label string
		rate  float64
	}{{"5 % of generations fail", cfg.ErrorLimit}, {"8 % fail", 0.08}} {
		alarms, err := each(l, "guards "+x.label, func(rng *rand.Rand) float64 {
			var failed, total int64
			for range 500 {
				for range 20 {
					if rng.Float64() < x.rate {
						failed++
					}
				}
				total += 20
				if stats.PFromLogE(stats.RateExceeds(failed, total, cfg.ErrorLimit)) <= cfg.ErrorAlpha {
					return float64(total)
				}
			}
			return 0
		})
		if err != nil {
			return t, err
		}
		alarm := share("alarm", count(alarms, func(n float64) bool { return n > 0 }), len(alarms))
		if x.rate <= cfg.ErrorLimit {
			alarm = alarm.that(AtMost, cfg.ErrorAlpha)
		}
		t.Rows = append(t.Rows, Row{x.label, []Cell{alarm,
			quantile("generations at the alarm, median", 0.5, pick(alarms, func(n float64) (float64, bool) { return n, n > 0 }))}})
	}
	return t, nil
}

// levels are the click-through rates of a day, by look; equal ones share a crowd.
type levels struct{ control, treatment [24]*crowd }

func newLevels(w World, amplitude, lift float64) *levels {
	var out levels
	for h := range 24 {
		out.control[h] = newCrowd(w, day(h, amplitude))
		out.treatment[h] = newCrowd(w, day(h, amplitude)*(1+lift))
	}
	return &out
}

// rollout is a whole ramp under the controller, in a world whose rate goes with the hour.
type rollout struct {
	name      string
	world     World
	steps     []float64
	lift      float64
	perLook   int
	cfg       ramp.Config
	returning int
}

const rolloutAmplitude = 0.4

// maxLooks ends a rollout that the controller does not end in time: the first step of a ramp waits long where fewer
// users than its smallest sample come, again and again.
const maxLooks = 1000

// ended is how one rollout ended.
type ended struct {
	action  ramp.Action
	rule    ramp.Rule
	early   bool // before the deciding step
	looks   int
	units   float64 // all of the experiment
	treated float64 // users of the treatment at steps below 1
	missed  bool    // the interval of some look left out the truth, at any step with both arms
}

func (r rollout) run(l *lab) ([]ended, error) {
	lv := newLevels(r.world, rolloutAmplitude, r.lift)
	var names []string
	var quantiles []float64
	if r.returning > 0 {
		names, quantiles = newNames(r.returning), rateQuantiles(r.world)
	}
	return each(l, r.name, func(rng *rand.Rand) ended {
		var sums tally
		var who visitors = &strangers{}
		if r.returning > 0 {
			who = newRegulars(names, quantiles, &sums, rng)
		}
		x := status(r.steps)
		d := newDoor(rng, x.Step.Share)
		var deciding both
		var out ended
		hour := rng.IntN(24) // of the start
		for look := range maxLooks {
			// A look counts mature impressions: the last batch is not among them yet. Once a step is over it is.
			mature := sums.step
			h := (hour + look) % 24
			who.batch(&sums, d, x.Step.Share, r.perLook, rng, lv.control[h], lv.treatment[h], day(h, rolloutAmplitude), r.lift)
			out.units += float64(r.perLook)
			if x.Step.Share < 1 {
				out.treated += float64(r.perLook) * x.Step.Share
				deciding = mature
			}
			v := ramp.Look(r.cfg, x, evidence(mature, deciding))
			if f := v.Figures; x.Step.Share < 1 && f.Lift == f.Lift && v.Rule != ramp.MinSamples {
				out.missed = out.missed || r.lift < float64(f.RelativeLow) || r.lift > float64(f.RelativeHigh)
			}
			switch v.Action {
			case ramp.Hold:
			case ramp.Step:
				deciding = sums.step
				sums.next(x.Step.Share)
				x.Step = *v.Next
				x.History = append(x.History, x.Step)
				d.share(x.Step.Share)
			default:
				out.action, out.rule, out.looks, out.early = v.Action, v.Rule, look+1, x.Step.Index < ramp.Decides(r.steps)
				return out
			}
		}
		out.action, out.looks = ramp.Hold, maxLooks
		return out
	})
}

func runRollout(l *lab) (Table, error) {
	cfg := ramp.Default()
	cfg.MaxUnits = 100_000
	steps := []float64{0.01, 0.05, 0.2, 0.5, 1}
	t := Table{Setup: []string{
		"the shipped controller with its defaults, but " + fmt.Sprintf(
			"inconclusive after %s users at the deciding step",
			thousands(float64(cfg.MaxUnits)),
		),
		"steps 1, 5, 20, 50 and 100 %; 2,000 users a look; the rate swings by 40 % with a period of 24 looks, from a random hour; the last " +
			"batch is never mature",
		"returning: 20,000 users, 2,000 visits a look, inconclusive after 200,000 impressions",
		"covered: at every look of every step; the steps have sequences of their own, so four errors of 5 % are allowed",
	}}
	early := []float64{0.01, 0.05}
	for _, x := range []struct {
		lift      float64
		steps     []float64
		returning int
	}{
		{-0.40, steps, 0}, {-0.10, steps, 0}, {-0.05, steps, 0}, {-0.02, steps, 0}, {0, steps, 0}, {0.02, steps, 0}, {0.05, steps, 0},
		{0.10, steps, 0},
		{0, steps, 20_000}, {0.10, steps, 20_000}, {0, early, 0},
	} {
		label := "no effect"
		if x.lift != 0 {
			label = fmt.Sprintf("%+g %%", 100*x.lift)
		}
		if len(x.steps) == len(early) {
			label += ", ramp ends at 5 %"
		}
		c := cfg
		if x.returning > 0 {
			label += ", returning"
			c.MaxImpressions = 200_000
		}
		s, err := rollout{"rollout " + label, Ordinary(), x.steps, x.lift, 2000, c, x.returning}.run(l)
		if err != nil {
			return t, err
		}
		t.Rows = append(t.Rows, Row{label, endings(s, x.lift, cfg)})
	}
	return t, nil
}

// endings counts how rollouts ended, and holds the wrong ends against what they may be.
func endings(s []ended, lift float64, cfg ramp.Config) []Cell {
	n := len(s)
	q := stats.DefaultSequence()
	is := func(a ramp.Action, rules ...ramp.Rule) int {
		return count(s, func(e ended) bool {
			return e.action == a && (len(rules) == 0 || slices.Contains(rules, e.rule))
		})
	}
	promoted := share("promoted", is(ramp.Promote), n)
	if lift <= 0 {
		promoted = promoted.that(AtMost, q.Alpha)
	}
	below := share("rolled back: lift below zero", is(ramp.RollBack, ramp.LiftBelowZero), n)
	if lift >= 0 {
		below = below.that(AtMost, q.Alpha)
	}
	harm := share("rolled back: harm beyond the margin", is(ramp.RollBack, ramp.CTRHarm), n)
	if lift >= -cfg.Margin { // a sequence for each of the four compared steps
		harm = harm.that(AtMost, 4*cfg.GuardAlpha)
	}
	back := func(e ended) bool { return e.action == ramp.RollBack }
	return []Cell{
		promoted, below, harm,
		share("rolled back: sample ratio", is(ramp.RollBack, ramp.SampleRatio), n).that(AtMost, cfg.SRMAlpha),
		share("inconclusive: no difference", is(ramp.Inconclusive, ramp.MaxSamples), n),
		share("inconclusive: lift lost", is(ramp.Inconclusive, ramp.LiftLost), n),
		share("still running after 1,000 looks", is(ramp.Hold), n).that(AtMost, 0),
		quantile("looks to the end, median", 0.5, pick(s, func(e ended) (float64, bool) { return float64(e.looks), true })),
		quantile("users or visits to the end, median", 0.5, pick(s, func(e ended) (float64, bool) { return e.units, true })),
		quantile("of them treated before a rollback, median", 0.5, pick(s, func(e ended) (float64, bool) { return e.treated, back(e) })),
		share("rolled back before the deciding step", count(s, func(e ended) bool { return back(e) && e.early }), n),
		share("truth covered", n-count(s, func(e ended) bool { return e.missed }), n).that(AtLeast, 1-4*q.Alpha),
	}
}
