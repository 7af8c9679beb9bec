package overview

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ctrloop/schemas/control"
	"ctrloop/serving/console"
)

// Counters of the services that have no accessor, as /metrics shows them.
const (
	metricRouted    = "ctrloop_ingest_routed_events_total"
	metricRead      = "ctrloop_ingest_read_records_total"
	metricDropped   = "ctrloop_ingest_dropped_records_total"
	metricRejected  = "ctrloop_edge_rejected_events_total"
	metricDecisions = "ctrloop_decide_decisions_total"
)

// Counters lists the counters that the page reads, each with its label.
func Counters() map[string]string {
	return map[string]string{
		metricRouted: "kind", metricRead: "topic", metricDropped: "reason", metricRejected: "reason", metricDecisions: "policy",
	}
}

// counters reads the named counters: name -> value of the label -> count. Each has one label.
func counters(g prometheus.Gatherer, names ...string) map[string]map[string]float64 {
	out := map[string]map[string]float64{}
	families, _ := g.Gather() // what could be collected comes with the error
	for _, f := range families {
		if !slices.Contains(names, f.GetName()) {
			continue
		}
		of := map[string]float64{}
		for _, m := range f.GetMetric() {
			label := ""
			if ls := m.GetLabel(); len(ls) > 0 {
				label = ls[0].GetValue()
			}
			of[label] += m.GetCounter().GetValue()
		}
		out[f.GetName()] = of
	}
	return out
}

func sum(of map[string]float64) (n float64) {
	for _, v := range of {
		n += v
	}
	return n
}

// stream names what a sample counts.
type streamName string

const (
	impressions streamName = "impressions"
	rawRecords  streamName = "raw records"
	labels      streamName = "labels"
	pairsMade   streamName = "pairs"
	steps       streamName = "steps"
	decisions   streamName = "decisions"
)

// sample is one reading of the counters.
type sample struct {
	at time.Time
	n  map[streamName]float64
}

// rateSpan is over how long rates are averaged: longer than any commit interval, short enough to follow.
const rateSpan = 10 * time.Second

// addSample appends a reading and drops those that are too old for a rate.
func addSample(old []sample, s sample) []sample {
	old = slices.DeleteFunc(old, func(o sample) bool { return s.at.Sub(o.at) > rateSpan })
	return append(old, s)
}

// rate per second over the samples; nil while there are not two, or when a counter began anew.
func rate(samples []sample, of streamName) *float64 {
	if len(samples) < 2 {
		return nil
	}
	first, last := samples[0], samples[len(samples)-1]
	seconds, n := last.at.Sub(first.at).Seconds(), last.n[of]-first.n[of]
	if seconds <= 0 || n < 0 {
		return nil
	}
	r := n / seconds
	return &r
}

// counted is the present reading with its rates.
type counted struct {
	metrics map[string]map[string]float64
	n       map[streamName]float64
	samples []sample
}

func (c counted) rate(of streamName) *float64 { return rate(c.samples, of) }

// state of a stage by what it counts: with one reading alone nobody can say whether it is at work.
func (c counted) state(of streamName) console.StageState {
	r := c.rate(of)
	switch {
	case r == nil:
		return console.Starting
	case *r > 0:
		return console.Running
	}
	return console.Idle
}

func (o *Page) count(join Join, bg background) counted {
	m := counters(o.p.Counters, metricRouted, metricRead, metricDropped, metricRejected, metricDecisions)
	n := map[streamName]float64{
		impressions: m[metricRouted]["impression"],
		rawRecords:  sum(m[metricRead]),
		labels:      float64(join.Labels),
		pairsMade:   float64(bg.history.pairs),
		decisions:   sum(m[metricDecisions]) - m[metricDecisions]["error"],
	}
	return counted{metrics: m, n: n}
}

// steps counts the points of all training curves; a job writes one a step.
func (o *Page) steps(st *control.State) (total int64) {
	if o.curves == nil {
		o.curves = map[string]int64{}
	}
	for id, j := range st.Jobs {
		n, ok := o.curves[id]
		if !ok {
			b, _ := os.ReadFile(filepath.Join(o.p.Jobs.JobDir(id), "out", "metrics.jsonl")) // none before the job starts
			n = int64(bytes.Count(b, []byte("\n")))
			if j.State == control.JobSucceeded || j.State == control.JobBroken {
				o.curves[id] = n
			}
		}
		total += n
	}
	return total
}

// reasons lists what was dropped, most first: "bad_id 12, malformed 3".
func reasons(of map[string]float64) string {
	var names []string
	for name, n := range of {
		if n > 0 {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(of[b], of[a]), cmp.Compare(a, b)) })
	for i, name := range names {
		names[i] = fmt.Sprintf("%s %.0f", name, of[name])
	}
	return strings.Join(names, ", ")
}
