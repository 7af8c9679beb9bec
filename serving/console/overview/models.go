package overview

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving/console"
	"ctrloop/serving/experiment/ramp"
	"ctrloop/serving/rollout"
)

// freshness compares the newest click that the champion has learned from with the newest event.
func freshness(st *control.State, newest int64) console.Freshness {
	version := st.Routes[rollout.Logical].Champion
	m := st.Models[version]
	switch {
	case m == nil:
		return console.Freshness{Why: "No model has been made champion yet."}
	case m.Base == "":
		return console.Freshness{Why: "The live model is the base model: it has seen no click of this shop."}
	}
	to := cmp.Or(m.LabelsTo, st.Datasets[m.Dataset].ToMS)
	if to == 0 {
		return console.Freshness{Why: version + " does not say which clicks it has learned from."}
	}
	f := console.Freshness{NewestClick: eventTime(to)}
	if newest > 0 {
		age := max(0, float64(newest-to)/1000)
		f.AgeSeconds = &age
	} else {
		f = console.Freshness{Why: "No event has been seen since this process started, so the age of what " + version +
			" has learned is not known."}
	}
	return f
}

func champion(st *control.State, t traffic) *console.Champion {
	r := st.Routes[rollout.Logical]
	m := st.Models[r.Champion]
	if m == nil {
		return nil
	}
	c := &console.Champion{Version: r.Champion, Since: r.Since, Previous: r.Previous, Note: m.Reason, Pairs: st.Datasets[m.Dataset].Pairs}
	if t.champion == r.Champion { // not yet the figures of the one before
		c.Impressions, c.Clicks = t.championImpressions, t.championClicks
	}
	return c
}

// latestExperiment is the running one, else the one decided last.
func latestExperiment(st *control.State) *control.ExperimentStatus {
	var best *control.ExperimentStatus
	for _, x := range st.Experiments {
		if best == nil || x.Running() && !best.Running() || x.Running() == best.Running() && x.Created.After(best.Created) {
			best = x
		}
	}
	return best
}

// verdict is a look at an experiment.
type verdict struct {
	x control.ExperimentStatus
	v ramp.Verdict
}

// unknown is the verdict before the first look: no figure is known.
func unknown(x control.ExperimentStatus) verdict {
	nan := ramp.Num(math.NaN())
	arm := ramp.Arm{CTR: nan, Low: nan, High: nan}
	return verdict{x, ramp.Verdict{Action: ramp.Hold, Rule: ramp.MinSamples, Why: "not looked at yet", Figures: ramp.Figures{
		Step: x.Step, Control: arm, Treatment: arm, Lift: nan, LiftLow: nan, LiftHigh: nan, Relative: nan, RelativeLow: nan, RelativeHigh: nan,
		P: nan, Guard: nan, GuardLow: nan, SRMP: nan, MDE: nan, ErrorP: nan,
	}}}
}

func (o *Page) rollout(bg background) *console.Rollout {
	if bg.verdict.x.ID == "" {
		return nil
	}
	r := console.NewRollout(bg.verdict.x, bg.verdict.v, o.p.GuardMargin)
	switch {
	case !r.Running: // the reason of the decision, not of a look after it
		r.Why = bg.history.decided[control.ExperimentEntity(r.ID)]
	case bg.verdictErr != nil: // the figures are those of an older look
		r.Stale, r.Why = true, clip(fmt.Sprintf("NOT PRESENT, the figures are of an older look: %v", bg.verdictErr))
	}
	return &r
}

func (o *Page) creatives(st *control.State, bg background) []console.Creative {
	var x control.ExperimentStatus
	if running := st.Running(rollout.Logical); len(running) > 0 {
		x = *running[0]
	}
	out := make([]console.Creative, 0, len(bg.latest))
	for _, c := range bg.latest {
		n := bg.traffic.byCreative[c.ID]
		v := console.Creative{
			ID: c.ID, Product: c.Product, Title: c.Product, Category: c.Category, Version: c.ModelVersion, Variant: variant(x, c.ModelVersion),
			Description: c.Description, Created: c.Created, Impressions: n.impressions, Clicks: n.clicks, Blocked: st.WhyBlocked(c.ID),
		}
		if p, ok := o.p.Catalogue.Get(c.Product); ok {
			v.Title, v.Category = p.Title, p.Category
		}
		out = append(out, v)
	}
	return out
}

// variant of a version in a running experiment.
func variant(x control.ExperimentStatus, version string) string {
	switch version {
	case "":
		return ""
	case x.Control:
		return "control"
	case x.Treatment:
		return "treatment"
	}
	return ""
}

// newestCreatives are the n that were made last and by their records may serve, newest first. What people have blocked is known to the
// control log alone.
func newestCreatives(all []schemas.Creative, n int) []schemas.Creative {
	all = slices.DeleteFunc(slices.Clone(all), func(c schemas.Creative) bool { return c.Blocked != "" })
	slices.SortFunc(all, func(a, b schemas.Creative) int { return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID)) })
	return all[:min(len(all), n)]
}
