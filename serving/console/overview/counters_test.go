package overview

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

func TestRatesAreOverTheLastSeconds(t *testing.T) {
	var samples []sample
	add := func(seconds, n float64) {
		samples = addSample(samples, sample{at(seconds), map[streamName]float64{labels: n}})
	}
	add(0, 100)
	if r := rate(samples, labels); r != nil {
		t.Errorf("one reading gives the rate %v: want none, it is not known", *r)
	}
	add(1, 150)
	add(2, 150)
	if r := rate(samples, labels); r == nil || *r != 25 {
		t.Errorf("rate %v, want 25", r)
	}
	add(12, 350) // the reading at 2 s is the first that still counts
	if r := rate(samples, labels); r == nil || *r != 20 || len(samples) != 2 {
		t.Errorf("rate %v over %d readings, want 20 over 2", r, len(samples))
	}
	add(13, 10)
	if r := rate(samples, labels); r != nil {
		t.Errorf("a counter that began anew gives the rate %v: want none", *r)
	}
	add(100, 10)
	if r := rate(samples, labels); r != nil || len(samples) != 1 {
		t.Errorf("after a pause: rate %v over %d readings, want none over 1", r, len(samples))
	}
}

func TestReasons(t *testing.T) {
	if got := reasons(map[string]float64{"a": 1, "none": 0, "c": 5, "b": 5}); got != "b 5, c 5, a 1" {
		t.Errorf("reasons: %q", got)
	}
}

func TestCountersByTheirLabel(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricDecisions, Help: "x"}, []string{"policy"})
	reg.MustRegister(c)
	c.WithLabelValues("error").Inc()
	got := counters(reg, metricDecisions, metricRead)
	if diff := cmp.Diff(map[string]map[string]float64{metricDecisions: {"error": 1}}, got); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
}
