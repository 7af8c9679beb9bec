package bench

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// Target is a figure beside what it has to be.
type Target struct {
	Name    string  `json:"name"`
	Unit    string  `json:"unit"`
	Figure  float64 `json:"figure"`
	AtLeast float64 `json:"at_least"`
	Aim     float64 `json:"aim"`
	// AtMost: smaller is better, and AtLeast and Aim are upper bounds.
	AtMost bool `json:"at_most"`
	Met    bool `json:"met"`
	AimMet bool `json:"aim_met"`
}

// higher is a target where more is better, lower one where less is.
func higher(name, unit string, figure, atLeast, aim float64) Target {
	return Target{name, unit, figure, atLeast, aim, false, figure >= atLeast, figure >= aim}
}

func lower(name, unit string, figure, atMost, aim float64) Target {
	return Target{name, unit, figure, atMost, aim, true, figure <= atMost, figure <= aim}
}

// Targets holds the parts that ran against the targets of the join, for two cores.
func (r Report) Targets() (ts []Target) {
	add := func(t Target) { ts = append(ts, t) }
	if l := r.Loop; l != nil {
		add(higher("loop alone, one goroutine", "events/s", l.Cost.PerSecond(), 1.0e6, 2e6))
	}
	if o := r.Open; o != nil {
		at := fmt.Sprintf(", %s open", millions(o.OpenImpressions))
		add(lower("memory per open impression"+at, "B", o.BytesPerOpen, 96, 84))
		add(lower("resident at most, 2 h window"+at, "MiB", float64(o.PeakRSS)/(1<<20), MemoryBound>>20, MemoryBound>>20))
		add(lower("full collection"+at, "ms", o.GC.FullMS, 20, 6))
		add(lower("longest pause"+at, "ms", o.GC.LongestMS, 2, 1))
		add(lower("restart from segments"+at, "s", o.Restart.WallSeconds, 5, 2))
	}
	rebuild := func(e *EndToEnd) float64 { return ratio(e.Rebuild.WallSeconds*1e8, float64(e.Rebuild.Events)) }
	if e := r.Embedded; e != nil {
		add(higher("end to end, embedded broker", "events/s", e.Cost.PerSecond(), 500e3, 800e3))
		add(lower("cold rebuild, embedded broker", "s per 100 M", rebuild(e), 120, 60))
	}
	if e := r.Kafka; e != nil {
		add(higher("end to end, real broker, per joiner core", "events/s", e.Cost.PerCore(), 150e3, 400e3))
		add(lower("cold rebuild, real broker", "s per 100 M", rebuild(e), 120, 60))
	}
	if l := r.Live; l != nil {
		add(lower("click in to label committed, p99", "ms", l.P99MS, 2000, 1000))
	}
	add(lower("wrong labels", "", float64(r.Wrong()), 0, 0))
	return ts
}

func millions(n uint64) string { return fmt.Sprintf("%.3g M", float64(n)/1e6) }

// printTargets writes them as a table.
func printTargets(w io.Writer, ts []Target) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "target\tfigure\tat least\taim\tmet\taim met")
	yes := map[bool]string{true: "yes", false: "NO"}
	for _, x := range ts {
		sign := ""
		if x.AtMost {
			sign = "<= "
		}
		fmt.Fprintf(
			t,
			"%s\t%s %s\t%s%s\t%s%s\t%s\t%s\n",
			x.Name,
			figure(x.Figure),
			x.Unit,
			sign,
			figure(x.AtLeast),
			sign,
			figure(x.Aim),
			yes[x.Met],
			yes[x.AimMet],
		)
	}
	return t.Flush()
}

// figure writes thousands as K and millions as M, three digits of each.
func figure(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.2f M", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.0f K", v/1e3)
	case v >= 100 || v == float64(int(v)):
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
