package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strconv"
	"text/tabwriter"
	"time"
)

// Machine is where figures were measured.
type Machine struct {
	Go       string    `json:"go"`
	Platform string    `json:"platform"`
	Procs    int       `json:"procs"` // GOMAXPROCS
	Revision string    `json:"revision,omitempty"`
	At       time.Time `json:"at"`
}

// ThisMachine describes the running process.
func ThisMachine() Machine {
	m := Machine{
		Go:       runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Procs:    runtime.GOMAXPROCS(0),
		At:       time.Now().UTC().Truncate(time.Second),
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				m.Revision = s.Value
			}
		}
	}
	return m
}

// Report is the result of `ctrloop bench join`. Parts that did not run are nil.
type Report struct {
	Machine  Machine     `json:"machine"`
	Traffic  Traffic     `json:"traffic"`
	Loop     *LoopResult `json:"loop,omitempty"`
	Open     *OpenResult `json:"open,omitempty"`
	Embedded *EndToEnd   `json:"embedded,omitempty"`
	Live     *Latency    `json:"live,omitempty"`
	Kafka    *EndToEnd   `json:"kafka,omitempty"`
}

// MarshalJSON adds the targets.
func (r Report) MarshalJSON() ([]byte, error) {
	type plain Report
	return json.Marshal(struct {
		plain
		Targets []Target `json:"targets"`
	}{plain(r), r.Targets()})
}

// Wrong is the sum over all parts.
func (r Report) Wrong() (n int64) {
	if r.Loop != nil {
		n += r.Loop.Wrong.Sum()
	}
	for _, e := range []*EndToEnd{r.Embedded, r.Kafka} {
		if e != nil {
			n += e.Wrong.Sum()
		}
	}
	return n
}

// Balanced says whether the ledger of every part closes.
func (r Report) Balanced() bool {
	return (r.Loop == nil || r.Loop.Balanced) && (r.Open == nil || r.Open.Balanced) && (r.Embedded == nil || r.Embedded.Balanced) &&
		(r.Kafka == nil || r.Kafka.Balanced)
}

// Print writes the figures of the parts that ran, and the targets.
func (r Report) Print(w io.Writer) error {
	fmt.Fprintf(w, "%d impressions, %g clicks each, window %s, seed %d; %s, %d procs\n\n",
		r.Traffic.Impressions, r.Traffic.ClickRate, r.Traffic.Window, r.Traffic.Seed, r.Machine.Platform, r.Machine.Procs)
	if r.Loop != nil || r.Embedded != nil || r.Kafka != nil {
		if err := r.printParts(w); err != nil {
			return err
		}
	}
	if o := r.Open; o != nil {
		fmt.Fprintf(
			w,
			"\n%d impressions open over 2 h, in a process of its own: %.1f B each, at most %d MiB resident; restart from %d MiB of "+
				"segments in %.2f s\n",
			o.OpenImpressions,
			o.BytesPerOpen,
			o.PeakRSS>>20,
			o.Stored>>20,
			o.Restart.WallSeconds,
		)
	}
	if l := r.Live; l != nil {
		fmt.Fprintf(
			w,
			"\n%d events/s as they come, embedded broker: %d clicks, label committed after %.0f ms (median), %.0f ms (p99), %.0f ms (longest)\n",
			l.EventsPerSecond,
			l.Clicks,
			l.P50MS,
			l.P99MS,
			l.MaxMS,
		)
	}
	fmt.Fprintln(w)
	return printTargets(w, r.Targets())
}

// printParts has one column for each part that joins the log.
func (r Report) printParts(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(name string, loop func(*LoopResult) string, end func(*EndToEnd) string) {
		fmt.Fprintf(t, "%s\t", name)
		if r.Loop != nil {
			fmt.Fprintf(t, "%s\t", cell(r.Loop, loop))
		}
		for _, e := range []*EndToEnd{r.Embedded, r.Kafka} {
			if e != nil {
				fmt.Fprintf(t, "%s\t", cell(e, end))
			}
		}
		fmt.Fprintln(t)
	}
	fmt.Fprint(t, "\t")
	for _, c := range []struct {
		name string
		ran  bool
	}{{"loop alone", r.Loop != nil}, {"embedded", r.Embedded != nil}, {"real broker", r.Kafka != nil}} {
		if c.ran {
			fmt.Fprintf(t, "%s\t", c.name)
		}
	}
	fmt.Fprintln(t)
	row("events", func(l *LoopResult) string { return count(l.Cost.Events) }, func(e *EndToEnd) string { return count(e.Cost.Events) })
	row(
		"events/s",
		func(l *LoopResult) string { return rate(l.Cost.PerSecond()) },
		func(e *EndToEnd) string { return rate(e.Cost.PerSecond()) },
	)
	row(
		"events/s per core",
		func(l *LoopResult) string { return rate(l.Cost.PerCore()) },
		func(e *EndToEnd) string { return rate(e.Cost.PerCore()) },
	)
	row(
		"CPU s per million",
		func(l *LoopResult) string { return seconds(l.Cost.CPUPerMillion()) },
		func(e *EndToEnd) string { return seconds(e.Cost.CPUPerMillion()) },
	)
	row("broker's CPU s", nil, func(e *EndToEnd) string { return seconds(e.Cost.BrokerCPUSeconds) })
	row("labels in that time", nil, func(e *EndToEnd) string { return count(int64(e.Labels)) })
	row(
		"open impressions",
		func(l *LoopResult) string { return count(int64(l.OpenImpressions)) },
		func(e *EndToEnd) string { return count(int64(e.OpenImpressions)) },
	)
	row("bytes per open impression", func(l *LoopResult) string { return fmt.Sprintf("%.1f", l.BytesPerOpen) }, nil)
	row(
		"GC: longest pause, ms",
		func(l *LoopResult) string { return fmt.Sprintf("%.2f", l.GC.LongestMS) },
		func(e *EndToEnd) string { return fmt.Sprintf("%.2f", e.GC.LongestMS) },
	)
	row("GC: full, windows open, ms", func(l *LoopResult) string { return fmt.Sprintf("%.1f", l.GC.FullMS) }, nil)
	row("cold rebuild, s", nil, func(e *EndToEnd) string { return seconds(e.Rebuild.WallSeconds) })
	row(
		"cold rebuild, s per 100 M",
		nil,
		func(e *EndToEnd) string { return seconds(ratio(e.Rebuild.WallSeconds*1e8, float64(e.Rebuild.Events))) },
	)
	row("peak resident, MiB", nil, func(e *EndToEnd) string { return count(e.PeakRSS >> 20) })
	row("wrong labels", func(l *LoopResult) string { return count(l.Wrong.Sum()) }, func(e *EndToEnd) string { return count(e.Wrong.Sum()) })
	row(
		"ledger closes",
		func(l *LoopResult) string { return strconv.FormatBool(l.Balanced) },
		func(e *EndToEnd) string { return strconv.FormatBool(e.Balanced) },
	)
	return t.Flush()
}

func cell[T any](v T, f func(T) string) string {
	if f == nil {
		return ""
	}
	return f(v)
}

func count(n int64) string { return strconv.FormatInt(n, 10) }

func rate(v float64) string { return fmt.Sprintf("%.0f K", v/1000) }

func seconds(v float64) string { return fmt.Sprintf("%.2f", v) }

// Peer is one side of a comparison.
type Peer struct {
	Name string `json:"name"`
	Cost Cost   `json:"cost"`
	// Wrong labels of its output against the oracle.
	Wrong Wrong `json:"wrong"`
}

// PeersReport is the result of `ctrloop bench peers`: rounds of both on one log.
type PeersReport struct {
	Machine Machine `json:"machine"`
	Traffic Traffic `json:"traffic"`
	Rounds  []Round `json:"rounds"`
	// PerCoreRatio is our events a CPU second over the peer's, over all rounds.
	PerCoreRatio float64 `json:"per_core_ratio"`
}

// Round is one run of each, one after the other.
type Round struct {
	Ours Peer `json:"ours"`
	Peer Peer `json:"peer"`
}

// sum adds up one side of all rounds.
func (r PeersReport) sum(side func(Round) Peer) (p Peer) {
	for _, round := range r.Rounds {
		q := side(round)
		p.Name = q.Name
		p.Cost = p.Cost.plus(q.Cost)
		p.Wrong.Lost += q.Wrong.Lost
		p.Wrong.Duplicate += q.Wrong.Duplicate
		p.Wrong.Spurious += q.Wrong.Spurious
		p.Wrong.Mistaken += q.Wrong.Mistaken
	}
	return p
}

// Ours and Peer are the sums over rounds.
func (r PeersReport) Ours() Peer { return r.sum(func(x Round) Peer { return x.Ours }) }

// Peer is the sum over the other's rounds.
func (r PeersReport) Peer() Peer { return r.sum(func(x Round) Peer { return x.Peer }) }

// Print writes the table.
func (r PeersReport) Print(w io.Writer) error {
	a, b := r.Ours(), r.Peer()
	fmt.Fprintf(
		w,
		"%d rounds of %d events each, window %s; %s, %d procs\n\n",
		len(r.Rounds),
		ratioInt(a.Cost.Events, len(r.Rounds)),
		r.Traffic.Window,
		r.Machine.Platform,
		r.Machine.Procs,
	)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "\t%s\t%s\tratio\t\n", a.Name, b.Name)
	line := func(name string, a, b, ratio float64, format func(float64) string) {
		fmt.Fprintf(t, "%s\t%s\t%s\t%.1f\t\n", name, format(a), format(b), ratio)
	}
	line("events/s per core", a.Cost.PerCore(), b.Cost.PerCore(), ratio(a.Cost.PerCore(), b.Cost.PerCore()), rate)
	line("events/s", a.Cost.PerSecond(), b.Cost.PerSecond(), ratio(a.Cost.PerSecond(), b.Cost.PerSecond()), rate)
	line("CPU s per million", a.Cost.CPUPerMillion(), b.Cost.CPUPerMillion(), ratio(b.Cost.CPUPerMillion(), a.Cost.CPUPerMillion()), seconds)
	fmt.Fprintf(t, "broker's CPU s\t%.2f\t%.2f\t\t\n", a.Cost.BrokerCPUSeconds, b.Cost.BrokerCPUSeconds)
	fmt.Fprintf(t, "wrong labels\t%d\t%d\t\t\n", a.Wrong.Sum(), b.Wrong.Sum())
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	return printTargets(w, r.Targets())
}

// Targets of the comparison: the join's own are those of Report.
func (r PeersReport) Targets() []Target {
	return []Target{
		higher("events/s per core, times Kafka Streams", "", r.PerCoreRatio, 8, 8),
		lower("our wrong labels", "", float64(r.Ours().Wrong.Sum()), 0, 0),
	}
}

func ratioInt(n int64, by int) int64 {
	if by == 0 {
		return 0
	}
	return n / int64(by)
}
