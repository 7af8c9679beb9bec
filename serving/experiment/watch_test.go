package experiment

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"ctrloop/internal/controllog"
	"ctrloop/internal/stats"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/ramp"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
)

// shaky is a warehouse, and figures of guards, that may not answer.
type shaky struct {
	Source
	sums, figures error
	broken        bool // the sums cannot be right
}

func (s *shaky) Sums(ctx context.Context, x control.Experiment, spans []Span) (ramp.Sums, error) {
	if s.sums != nil {
		return ramp.Sums{}, s.sums
	}
	out, err := s.Source.Sums(ctx, x, spans)
	if s.broken {
		out.Treatment.MD = math.NaN()
	}
	return out, err
}

func (s *shaky) Generation(context.Context, string) (ramp.Counts, error) {
	return ramp.Counts{Total: 10}, s.figures
}

// shakyRig is a rig whose warehouse is shaky.
func shakyRig(t *testing.T, failed Failed, steps ...float64) (*rig, *shaky) {
	t.Helper()
	r := newRig(t, 3, steps...)
	s := &shaky{Source: r.world}
	cfg := Default()
	cfg.Failed = failed
	service, err := New(cfg, Deps{Control: r.log, Lead: controllog.Alone(r.log), Source: s, Health: s, Looks: r.looks,
		Wall:     func() time.Time { return time.Unix(1_800_000_000, 0) },
		EventNow: func() time.Time { return r.world.now }}, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	r.Service = service
	return r, s
}

// Looks that fail one after another: an alarm, a pause, a roll-back, each after as many as the configuration says; one good
// look begins the count anew.
func TestLooksThatFailAreAnAlarmThenAPauseThenARollBack(t *testing.T) {
	r, s := shakyRig(t, Failed{AlarmAfter: 3, PauseAfter: 5, RollBackAfter: 8}, 0.2, 0.5)
	s.sums = errors.New("the warehouse is away")
	look := func() { _ = r.LookAll(t.Context()) }
	for range 2 {
		look()
	}
	if seen := r.Seen("e"); seen.Failed != 2 || seen.Alarm || !seen.Stale || seen.Age != -1 || !strings.Contains(seen.Error, "is away") {
		t.Errorf("after two failed looks: %+v", seen)
	}
	s.sums = nil
	look()
	if seen := r.Seen("e"); seen.Failed != 0 || seen.Stale || seen.Age != 0 || seen.Error != "" {
		t.Errorf("after a good one: %+v", seen)
	}
	s.sums = errors.New("the warehouse is away")
	for n := 1; n <= 8; n++ {
		look()
		x := r.log.st.Experiments["e"]
		if alarm := r.Seen("e").Alarm; x.Decision == nil && alarm != (n >= 3) || x.Paused != (n >= 5) || (x.Decision != nil) != (n >= 8) {
			t.Fatalf("after %d failed looks: alarm %v, paused %v, decision %+v", n, alarm, x.Paused, x.Decision)
		}
		if n < 8 && testutil.ToFloat64(r.metrics.failing) != map[bool]float64{true: 1}[n >= 3] {
			t.Errorf("after %d failed looks the gauge is %g", n, testutil.ToFloat64(r.metrics.failing))
		}
	}
	if d := r.log.st.Experiments["e"].Decision; d.Outcome != control.RollBack || d.Rule != string(ramp.Blind) || d.Unknown == "" {
		t.Errorf("ended by %+v", d)
	}
}

// Figures of a guard that cannot be read, and sums that cannot be right, stop no roll-back and hold everything else.
func TestFiguresThatCannotBeReadDecideNothingForTheTreatment(t *testing.T) {
	for _, c := range []struct {
		name      string
		damage    func(*shaky)
		treatment float64
		want      string
	}{
		{"figures unread, better", func(s *shaky) { s.figures = errors.New("no counts") }, 0.12, ""},
		{"figures unread, worse", func(s *shaky) { s.figures = errors.New("no counts") }, 0.01, "rollback"},
		{"broken sums", func(s *shaky) { s.broken = true }, 0.12, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, s := shakyRig(t, Failed{AlarmAfter: 3}, 0.2, 0.5)
			c.damage(s)
			for range 60 {
				r.world.hour(r.log.st, 1200, 0.04, c.treatment)
				if err := r.LookAll(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			x := r.log.st.Experiments["e"]
			if got := r.looks.seen[len(r.looks.seen)-1]; c.want == "" && (x.Decision != nil || x.Step.Index != 0 || got.Rule != ramp.UnreadFigures ||
				got.Ok()) {
				t.Errorf("decision %+v, step %d, last look %s by %s", x.Decision, x.Step.Index, got.Action, got.Rule)
			}
			if c.want != "" && (x.Decision == nil || string(x.Decision.Outcome) != c.want) {
				t.Errorf("decision %+v, want %s", x.Decision, c.want)
			}
			if seen := r.Seen("e"); c.want == "" && (!seen.Alarm || !seen.Stale) {
				t.Errorf("nobody is told: %+v", seen)
			}
		})
	}
}

// Without data enough an analysis is inconclusive: neither ok nor failed, and what is not known is null.
func TestAnalysisWithoutDataIsInconclusive(t *testing.T) {
	r := newRig(t, 4, 0.2, 0.5)
	check := func(when string, ok, inconclusive bool) Analysis {
		t.Helper()
		a, err := r.analyse(t.Context(), *r.log.st.Experiments["e"])
		if err != nil {
			t.Fatal(err)
		}
		if a.OK != ok || a.Inconclusive != inconclusive || a.Data.OK != ok || a.Data.Inconclusive != inconclusive ||
			a.Data.Failed == (ok || inconclusive) {
			t.Errorf("%s: ok %v, inconclusive %v, %+v", when, a.OK, a.Inconclusive, a.Data)
		}
		return a
	}
	a := check("no impression", false, true)
	if a.Data.Lift != nil || a.Data.SuccessPercent != nil || a.Data.Why == "" || a.Missing["lift_absolute"] == "" {
		t.Errorf("without data: %+v, %v", a.Data, a.Missing)
	}
	for range 20 {
		r.world.hour(r.log.st, 1200, 0.04, 0.041)
	}
	if a = check("enough", true, false); a.Data.Lift == nil || a.Missing != nil {
		t.Errorf("with data: %+v, %v", a.Data, a.Missing)
	}
	for range 60 {
		r.world.hour(r.log.st, 1200, 0.04, 0.005)
	}
	check("harm", false, false)
}

// What belongs to no arm is counted apart.
func TestRowsOfOtherVariantsAreCountedApart(t *testing.T) {
	var s ramp.Sums
	for _, r := range []armRow{{Variant: "control", N: 2, M: 1, D: 5, MM: 1, DD: 13, MD: 3}, {Variant: "evil", D: 7}, {Variant: "", D: 4},
		{Variant: "explore", D: 1}} {
		r.into(&s)
	}
	want := ramp.Sums{Control: stats.RatioSums{N: 2, M: 1, D: 5, MM: 1, DD: 13, MD: 3}, Apart: ramp.Apart{Foreign: 8, Anonymous: 4}}
	if s != want {
		t.Errorf("%+v, want %+v", s, want)
	}
}
