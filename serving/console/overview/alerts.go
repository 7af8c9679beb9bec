package overview

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"ctrloop/schemas/control"
	"ctrloop/serving/console"
	"ctrloop/serving/rollout"
)

// Severities of alerts.
const (
	page = "page"
	warn = "warn"
)

func (o *Page) alerts(st *control.State, join Join, bg background) []console.Alert {
	var out []console.Alert
	add := func(severity, format string, args ...any) {
		out = append(out, console.Alert{Severity: severity, Title: fmt.Sprintf(format, args...)})
	}
	if !join.Balanced {
		add(page, "The ledger of the join does not close: %s", join.problem(0))
	}
	if o.badRuns > 1 {
		add(
			page,
			"Labels in the warehouse differ from what the joiner has made, in %d minutes of event time (`ctrloop sql --question exact` lists them)",
			bg.audit,
		)
	}
	if o.p.Serving != nil {
		version, replicas := o.p.Serving.Live(rollout.Logical)
		up := time.Since(o.p.Started)
		switch {
		case replicas > 0:
			o.answered = true
		case o.answered || up > slowStart:
			add(page, "No model server answers for %s", cmp.Or(version, rollout.Logical))
		case up > time.Minute: // a model server that starts is no emergency
			add(warn, "No model server has answered for %s yet", cmp.Or(version, rollout.Logical))
		}
	}
	if x := o.p.Experiments; x != nil {
		for _, id := range slices.Sorted(maps.Keys(st.Experiments)) {
			if seen := x.Seen(id); seen.Alarm && st.Experiments[id].Running() {
				add(page, "%s", clip(fmt.Sprintf("Nobody sees what experiment %s does: %d looks in a row failed: %s", id, seen.Failed, seen.Error)))
			}
		}
	}
	if bg.warehouseErr != nil {
		add(warn, "%s", clip(fmt.Sprintf("The warehouse does not answer in time, figures from it are old: %v", bg.warehouseErr)))
	}
	return append(out, controlAlerts(st)...)
}

// controlAlerts are those that the control log knows of.
func controlAlerts(st *control.State) []console.Alert {
	var out []console.Alert
	for slice, b := range st.Breakers {
		out = append(out, console.Alert{Severity: page, Title: fmt.Sprintf("The circuit breaker of %s is open: %s", slice, b.Reason)})
	}
	for _, j := range st.Jobs {
		if j.State != control.JobBroken {
			continue
		}
		healed := false // a later job of its stage went well
		for _, k := range st.Jobs {
			healed = healed || stageOf(k.ID) == stageOf(j.ID) && k.State == control.JobSucceeded && k.Finished.After(j.Finished)
		}
		if !healed {
			out = append(out, console.Alert{Severity: warn, Title: clip("Training job " + failure(j)), Since: j.Finished})
		}
	}
	return out
}

// since dates the alerts that do not know when they began by when they were first seen here, worst first.
func (o *Page) since(now time.Time, alerts []console.Alert) []console.Alert {
	firing := map[string]time.Time{}
	for i := range alerts {
		x := &alerts[i]
		if !x.Since.IsZero() {
			continue
		}
		key, _, _ := strings.Cut(x.Title, ":") // what follows may change from one look to the next
		if x.Since = o.firing[key]; x.Since.IsZero() {
			x.Since = now
		}
		firing[key] = x.Since
	}
	o.firing = firing
	slices.SortFunc(alerts, func(a, b console.Alert) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), a.Since.Compare(b.Since), cmp.Compare(a.Title, b.Title))
	})
	return alerts
}

// clip keeps an alert to about two lines.
func clip(s string) string {
	const most = 200
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

// slowStart is how long a model server may take to its first answer before somebody should look.
const slowStart = 5 * time.Minute
