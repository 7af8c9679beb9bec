package exposure

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"pgregory.net/rapid"
)

var monday = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)

func at(unit, variant string, t time.Time) Exposure { return Exposure{"e", unit, variant, t} }

func TestOncePerUnitAndDay(t *testing.T) {
	d := NewDedup(100)
	for i, c := range []struct {
		e               Exposure
		first, multiple bool
	}{
		{at("u", "control", monday), true, false},
		{at("u", "control", monday.Add(11*time.Hour)), false, false},
		{at("u", "control", monday.Add(12*time.Hour)), true, false}, // midnight
		{at("v", "control", monday), true, false},
		{at("u", "treatment", monday), true, true},
		{Exposure{"other", "u", "treatment", monday}, true, false},
	} {
		if first, multiple := d.First(c.e); first != c.first || multiple != c.multiple {
			t.Errorf("%d: %+v: first %v, multiple %v", i, c.e, first, multiple)
		}
	}
}

// Whatever comes: memory stays within twice the limit, nothing new is ever taken for a repetition, and what is among
// the newest units is not sent again.
func TestMemoryIsBoundedAndNothingIsLost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 20).Draw(t, "limit")
		d := NewDedup(limit)
		seen := map[string]int{} // place of the last time
		for i, u := range rapid.SliceOfN(rapid.IntRange(0, 30), 0, 300).Draw(t, "units") {
			unit := fmt.Sprint(u)
			first, _ := d.First(at(unit, "control", monday))
			last, was := seen[unit]
			if !was && !first {
				t.Fatalf("unit %s is new and was taken for a repetition", unit)
			}
			if was && first && i-last < limit {
				t.Fatalf("unit %s came %d exposures ago, the limit is %d, and it is sent again", unit, i-last, limit)
			}
			if n := len(d.young) + len(d.old); n > 2*limit {
				t.Fatalf("%d units are remembered, the limit is %d", n, limit)
			}
			seen[unit] = i
		}
	})
}

// table keeps one row per key, as the warehouse does.
type table struct {
	rows  map[Exposure]bool
	calls int
	fail  int // so many calls fail
}

func (s *table) Expose(_ context.Context, es []Exposure) error {
	s.calls++
	if s.fail > 0 {
		s.fail--
		return errors.New("down")
	}
	for _, e := range es {
		e.Time = e.Time.Truncate(24 * time.Hour)
		s.rows[e] = true
	}
	return nil
}

// The sink fails for a while and the logger is restarted in the middle: every exposure is one row, and none is missing.
func TestRestartAndAFailingSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &table{rows: map[Exposure]bool{}, fail: 3}
		for range 2 {
			reg := prometheus.NewRegistry()
			l, err := NewLogger(Config{Units: 1000, Queue: 500, Batch: 50, Interval: time.Second}, s, zerolog.Nop(), reg)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- l.Run(ctx) }()
			for i := range 300 {
				l.Expose(at(fmt.Sprint(i), "control", monday))
				l.Expose(at(fmt.Sprint(i), "control", monday.Add(time.Minute)))
			}
			l.Expose(at("7", "treatment", monday))
			time.Sleep(10 * time.Second)
			cancel()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if n := testutil.ToFloat64(l.m.multiple); n != 1 {
				t.Errorf("%g multiple exposures", n)
			}
			sent := testutil.ToFloat64(l.m.exposures.WithLabelValues("sent"))
			again := testutil.ToFloat64(l.m.exposures.WithLabelValues("repeated"))
			if sent != 301 || again != 300 {
				t.Errorf("%g sent, %g repeated", sent, again)
			}
		}
		if len(s.rows) != 301 {
			t.Errorf("%d rows, want 301", len(s.rows))
		}
	})
}

func TestAFullQueueDropsAndCounts(t *testing.T) {
	l, err := NewLogger(Config{Units: 100, Queue: 3, Batch: 1, Interval: time.Second}, &table{}, zerolog.Nop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		l.Expose(at(fmt.Sprint(i), "control", monday))
	}
	if n := testutil.ToFloat64(l.m.exposures.WithLabelValues("dropped")); n != 7 {
		t.Errorf("%g dropped, want 7", n)
	}
	for range 3 {
		<-l.queue
	}
	l.Expose(at("9", "control", monday)) // was dropped: it is not taken for a repetition
	if len(l.queue) != 1 {
		t.Error("a dropped exposure is forgotten for the day")
	}
	if _, err := NewLogger(Config{}, nil, zerolog.Nop(), nil); err == nil {
		t.Error("an empty configuration was taken")
	}
}
