package experiment

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ctrloop/internal/controllog"
	"ctrloop/internal/stats"
	"ctrloop/internal/telemetry/telemetrytest"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/assign"
	"ctrloop/serving/experiment/ramp"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// memoryLog is the control log without a broker.
type memoryLog struct {
	st     *control.State
	offset int64
	events []control.Event
	refuse func(control.Event) error // before the write
	lose   func(control.Event) error // after it: the answer is lost
}

func (l *memoryLog) State() *control.State { return l.st.Clone() }

func (l *memoryLog) Changed() <-chan struct{} { return nil }

func (l *memoryLog) Append(_ context.Context, e control.Event) (control.Answer, error) {
	if l.refuse != nil {
		if err := l.refuse(e); err != nil {
			return "", err
		}
	}
	l.offset++
	answer, err := l.st.Apply(l.offset, e)
	if err != nil {
		return "", err
	}
	l.events = append(l.events, e)
	if l.lose != nil {
		if err := l.lose(e); err != nil {
			return "", err
		}
	}
	return answer, nil
}

// shadow brings a registered version through its probe.
func (l *memoryLog) shadow(t testing.TB, version string) {
	t.Helper()
	for _, s := range []control.ModelState{control.ModelLoaded, control.ModelProbed, control.ModelShadow} {
		l.put(t, control.ModelStateChanged, control.ModelEntity(version), control.ModelStateChange{State: s})
	}
}

// LookAll looks as the leader does.
func (s *Service) LookAll(ctx context.Context) error { return s.lookAll(ctx, s.d.Lead.Held()) }

func (l *memoryLog) put(t testing.TB, typ control.Type, entity string, data any) {
	t.Helper()
	e, err := control.NewEvent(strconv.Itoa(len(l.events))+string(typ)+entity, typ, entity, -1, "test", "", time.Unix(1, 0), data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Append(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

// traffic is a small world that is also the Source: visits with an event time, an arm by the assigner, clicks by
// the arm's true rate. What is younger than lag is not mature yet.
type traffic struct {
	rng    *rand.Rand
	now    time.Time
	lag    time.Duration
	visits []visit
	calls  int
	fail   error
	// suits is the share of what each arm shows whose background suits its product; zeros: nobody scores it.
	suits [2]float64
}

type visit struct {
	at        time.Time
	user      int
	treatment bool
	m, d      float64
	score     float64 // sum over the d impressions
}

func (w *traffic) Sums(_ context.Context, _ control.Experiment, spans []Span) (ramp.Sums, error) {
	w.calls++
	if w.fail != nil {
		return ramp.Sums{}, w.fail
	}
	return w.sum(spans, func(v visit) float64 { return v.m }), nil
}

// Scores makes the world a Shown too; everything it shows has a score.
func (w *traffic) Scores(_ context.Context, _ control.Experiment, spans []Span, _ map[string]float64) (ScoreSums, error) {
	s := ScoreSums{Sums: w.sum(spans, func(v visit) float64 { return v.score })}
	s.Impressions = [2]int64{int64(s.Control.D), int64(s.Treatment.D)}
	return s, nil
}

// sum adds mature visits up by user and arm.
func (w *traffic) sum(spans []Span, m func(visit) float64) (s ramp.Sums) {
	type key struct {
		user      int
		treatment bool
	}
	per := map[key][2]float64{}
	for _, v := range w.mature(spans) {
		k := key{v.user, v.treatment}
		per[k] = [2]float64{per[k][0] + m(v), per[k][1] + v.d}
	}
	for k, v := range per {
		arm := &s.Control
		if k.treatment {
			arm = &s.Treatment
		}
		arm.Observe(v[0], v[1])
	}
	return s
}

// mature are the visits in the spans whose click window is over.
func (w *traffic) mature(spans []Span) []visit {
	var out []visit
	for _, v := range w.visits {
		if !v.at.After(w.now.Add(-w.lag)) &&
			slices.ContainsFunc(spans, func(s Span) bool { return !v.at.Before(s.From) && (s.To.IsZero() || v.at.Before(s.To)) }) {
			out = append(out, v)
		}
	}
	return out
}

// pooled are the sums over all steps at once: what must not decide.
func (w *traffic) pooled(t testing.TB) stats.Lift {
	s, _ := w.Sums(t.Context(), control.Experiment{}, []Span{{}})
	l, err := stats.Compare(s.Control, s.Treatment, stats.DefaultSequence())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// hour lets visits come, at rates of control and treatment.
func (w *traffic) hour(st *control.State, visits int, control, treatment float64) {
	a := assign.New(st)
	for range visits {
		u := w.rng.IntN(6000)
		x, _ := a.Assign("prompt", assign.Unit{User: "u" + strconv.Itoa(u)})
		v := visit{
			at:        w.now.Add(time.Duration(w.rng.Int64N(int64(time.Hour)))),
			user:      u,
			treatment: x.Variant == assign.Treatment,
			d:         float64(1 + w.rng.IntN(6)),
		}
		rate := control
		if v.treatment {
			rate = treatment
		}
		rate *= 0.5 + float64(u%11)/10 // users differ
		for range int(v.d) {
			if w.rng.Float64() < rate {
				v.m++
			}
		}
		if w.suits != [2]float64{} {
			share := w.suits[0]
			if v.treatment {
				share = w.suits[1]
			}
			for range int(v.d) {
				if w.rng.Float64() < share {
					v.score++
				}
			}
		}
		if x.Experiment != "" {
			w.visits = append(w.visits, v)
		}
	}
	w.now = w.now.Add(time.Hour)
}

type looks struct{ seen []Look }

func (l *looks) RecordLook(_ context.Context, x Look) error {
	l.seen = append(l.seen, x)
	return nil
}

type rig struct {
	*Service
	log   *memoryLog
	world *traffic
	looks *looks
}

func newRig(t testing.TB, seed uint64, steps ...float64) *rig {
	t.Helper()
	r := &rig{log: &memoryLog{st: control.NewState()}, looks: &looks{},
		world: &traffic{rng: rand.New(rand.NewPCG(seed, 1)), now: time.UnixMilli(1_700_000_000_000), lag: 90 * time.Minute}}
	for _, v := range []string{"prompt-a", "prompt-b"} {
		r.log.put(t, control.ModelRegistered, control.ModelEntity(v), control.Model{Version: v, Logical: "prompt"})
		r.log.shadow(t, v)
	}
	r.log.put(t, control.ModelPromoted, control.RouteEntity("prompt"), control.Promotion{Logical: "prompt", Version: "prompt-a"})
	if len(steps) > 0 {
		r.log.put(t, control.ExperimentCreated, control.ExperimentEntity("e"), control.Experiment{ID: "e", Logical: "prompt", Unit: "user",
			Seed: "s" + strconv.FormatUint(seed, 10), Control: "prompt-a", Treatment: "prompt-b", Steps: steps, Alpha: 0.05, NStar: 5000})
	}
	cfg := Default()
	cfg.Ramp.MaxImpressions = 120_000
	r.restart(t, cfg)
	return r
}

// restart replaces the service by a new one that knows nothing but the control log.
func (r *rig) restart(t testing.TB, cfg Config) {
	t.Helper()
	s, err := New(cfg, Deps{Control: r.log, Lead: controllog.Alone(r.log), Source: r.world, Looks: r.looks,
		Wall:     func() time.Time { return time.Unix(1_800_000_000, 0) },
		EventNow: func() time.Time { return r.world.now }}, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	r.Service = s
}

// run lets hours pass, with a look after each and a restart every third, until the experiment is decided.
func (r *rig) run(t testing.TB, hours int, rates func(hour int) (control, treatment float64)) *control.ExperimentStatus {
	t.Helper()
	for h := range hours {
		c, tr := rates(h)
		r.world.hour(r.log.st, 1200, c, tr)
		if err := r.LookAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		if h%3 == 2 {
			r.restart(t, r.cfg)
		}
		if x := r.log.st.Experiments["e"]; !x.Running() {
			return x
		}
	}
	return r.log.st.Experiments["e"]
}

func flat(c, t float64) func(int) (float64, float64) {
	return func(int) (float64, float64) { return c, t }
}

func TestRampEndsInPromotion(t *testing.T) {
	r := newRig(t, 1, 0.05, 0.2, 0.5, 1)
	x := r.run(t, 200, flat(0.04, 0.056))
	if x.Running() || x.Decision.Outcome != control.Promote || x.Decision.Rule != string(ramp.LiftAboveZero) {
		t.Fatalf("a lift of 40 %% ended as %+v at step %+v", x.Decision, x.Step)
	}
	if x.Decision.LiftLow <= 0 || x.Decision.LiftLow > 0.4 || x.Decision.LiftHigh < 0.4 {
		t.Errorf("decided on a relative lift of %g [%g, %g], the truth is 0.4", x.Decision.Lift, x.Decision.LiftLow, x.Decision.LiftHigh)
	}
	if r.log.st.Routes["prompt"].Champion != "prompt-b" {
		t.Errorf("champion %+v", r.log.st.Routes["prompt"])
	}
	var shares []float64
	for i, s := range x.History {
		shares = append(shares, s.Share)
		if i > 0 && s.AtMS <= x.History[i-1].AtMS {
			t.Errorf("step %d began at %d, before the one ahead of it", i, s.AtMS)
		}
	}
	if len(shares) != 4 || shares[3] != 1 {
		t.Errorf("steps taken: %v", shares)
	}
	if len(r.looks.seen) == 0 || r.looks.seen[len(r.looks.seen)-1].Action != ramp.Promote {
		t.Error("the looks are not on record")
	}
}

func TestRampEndsInRollback(t *testing.T) {
	r := newRig(t, 2, 0.05, 0.2, 0.5, 1)
	x := r.run(t, 200, flat(0.06, 0.03))
	if x.Running() || x.Decision.Outcome != control.RollBack {
		t.Fatalf("half the rate ended as %+v", x.Decision)
	}
	if c := r.log.st.Routes["prompt"].Champion; c != "prompt-a" {
		t.Errorf("champion %s", c)
	}
	if m := r.log.st.Models["prompt-b"]; m.State != control.ModelRetained {
		t.Errorf("the treatment is %s", m.State)
	}
}

// A/A ramps with a look every hour: wrong promotions stay within alpha/2, wrong ends of either kind within what
// alpha and the guards' alphas add up to, and what is not ended wrongly ends as inconclusive.
func TestAARamps(t *testing.T) {
	const n = 40
	got := map[control.Outcome]int{}
	rules := map[string]int{}
	for seed := range uint64(n) {
		r := newRig(t, 100+seed, 0.05, 0.5, 1)
		x := r.run(t, 80, flat(0.05, 0.05))
		if x.Running() {
			t.Fatalf("run %d did not end: %+v", seed, x.Step)
		}
		got[x.Decision.Outcome]++
		rules[x.Decision.Rule]++
	}
	t.Logf("of %d A/A ramps: %v by %v", n, got, rules)
	// binomial(40, 0.025) exceeds 5 with probability 0.1 %; the guards add 2 x 0.05 + 0.01 to rollbacks.
	if got[control.Promote] > 5 || got[control.RollBack] > 12 || got[control.Inconclusive] < n/2 {
		t.Errorf("A/A ramps ended as %v", got)
	}
}

// The rate doubles over the day while the share of the treatment grows. Pooled over the steps the treatment,
// which is no better, wins by far; step by step it does not.
func TestRisingRateDuringTheRampDoesNotPromote(t *testing.T) {
	r := newRig(t, 3, 0.05, 0.2, 0.5)
	x := r.run(t, 60, func(h int) (float64, float64) {
		rate := min(0.03+0.006*float64(h), 0.12)
		return rate, rate
	})
	if l := r.world.pooled(t); l.Interval.Low <= 0 {
		t.Fatalf("the pooled lift %+v should be misleading here, or this test shows nothing", l)
	}
	if x.Running() || x.Decision.Outcome != control.Inconclusive {
		t.Errorf("ended as %+v, want inconclusive", x.Decision)
	}
}

// The lift over the whole ramp, for reports, while the rate rises as the treatment's share grows: pooled, no effect looks
// like a large one; weighted it does not, and an effect of 40 % is found. It is not the lift that decides.
func TestWholeRampInDrift(t *testing.T) {
	for _, c := range []struct {
		lift float64
		high float64 // of the estimate
	}{{0, 0.08}, {0.4, 0.5}} {
		r := newRig(t, 3, 0.05, 0.2, 0.5, 1)
		r.d.Reports = pages{r.world, r.looks}
		for h := range 14 {
			rate := min(0.03+0.006*float64(h), 0.12)
			r.world.hour(r.log.st, 1200, rate, rate*(1+c.lift))
			if h%3 == 2 && h < 8 { // steps by the clock, so that both worlds have the same ramp
				if err := r.Override(t.Context(), "e", "ada", Request{Step: new(h/3 + 2), Note: "clock"}); err != nil {
					t.Fatal(err)
				}
			}
		}
		st := r.log.st
		got, err := r.Results(t.Context(), st, *st.Experiments["e"])
		if err != nil {
			t.Fatal(err)
		}
		w := got.WholeRamp
		if w == nil || w.Decides || w.Steps != 3 {
			t.Fatalf("whole ramp %+v", w)
		}
		if f := float64(w.Relative); f < c.lift-0.1 || f > c.high || float64(w.RelativeLow) > c.lift || float64(w.RelativeHigh) < c.lift {
			t.Errorf("a lift of %g: %+v", c.lift, w)
		}
		if l := r.world.pooled(t); l.RelativeI.Low <= c.lift {
			t.Errorf("pooled %+v holds %g: no trap here, this test shows nothing", l, c.lift)
		}
		for _, f := range got.Steps {
			if float64(f.Lift) == float64(w.Lift) {
				t.Errorf("it is the lift of step %d", f.Step.Index)
			}
		}
	}
}

// A decision is one command: while it cannot be written nothing of it happens, and then all of it.
func TestADecisionIsAllOrNothing(t *testing.T) {
	r := newRig(t, 1, 0.2, 0.5)
	var gate telemetrytest.Gate
	down := errors.New("broker down")
	r.log.refuse = func(e control.Event) error {
		if e.Type == control.ExperimentDecided {
			return down
		}
		return nil
	}
	rates := flat(0.04, 0.07)
	for range 100 {
		r.world.hour(r.log.st, 1200, 0.04, 0.07)
		gate, r.d.Work = telemetrytest.NewGate(nil) // one that has not worked yet tells of its first failure
		if err := r.LookAll(t.Context()); errors.Is(err, down) {
			break
		}
	}
	if st := r.log.st; st.Routes["prompt"].Champion != "prompt-a" || !st.Experiments["e"].Running() {
		t.Fatalf("want nothing promoted and undecided, have %+v, %+v", st.Routes["prompt"], st.Experiments["e"].Decision)
	}
	if reason := gate.Await(t, false); !strings.Contains(reason, down.Error()) {
		t.Errorf("the process is not ready because of %q", reason)
	}
	r.log.refuse = nil
	r.restart(t, r.cfg)
	if x := r.run(t, 1, rates); x.Running() || x.Decision.Outcome != control.Promote {
		t.Fatalf("after the restart: %+v", x.Decision)
	}
	if st := r.log.st; st.Routes["prompt"].Champion != "prompt-b" || st.Models["prompt-a"].State != control.ModelRetained {
		t.Errorf("route %+v, the old champion is %s", st.Routes["prompt"], st.Models["prompt-a"].State)
	}
	if last := r.log.events[len(r.log.events)-1]; last.Type != control.ExperimentDecided {
		t.Errorf("the last command is %s", last.Type)
	}
}

// Two replicas look at the same data: one command, the other is refused and nothing is reported as failed.
func TestTwoReplicas(t *testing.T) {
	r := newRig(t, 5, 0.5, 1)
	r.world.hour(r.log.st, 4000, 0.05, 0.09)
	r.world.hour(r.log.st, 4000, 0.05, 0.09)
	r.world.hour(r.log.st, 4000, 0.05, 0.09)
	first := true
	r.log.refuse = func(e control.Event) error {
		if first && e.Type == control.ExperimentStepped {
			first = false
			other := e
			other.ID = "other"
			if _, err := r.log.Append(t.Context(), other); err != nil {
				t.Fatal(err)
			}
		}
		return nil
	}
	if err := r.LookAll(t.Context()); err != nil {
		t.Errorf("losing the race was reported: %v", err)
	}
	if x := r.log.st.Experiments["e"]; len(x.History) != 2 {
		t.Errorf("history %+v", x.History)
	}
}

func TestAFailingSourceDecidesNothing(t *testing.T) {
	r := newRig(t, 6, 0.5)
	r.world.fail = errors.New("warehouse gone")
	before := len(r.log.events)
	if err := r.LookAll(t.Context()); err == nil || !strings.Contains(err.Error(), "warehouse gone") {
		t.Errorf("error %v", err)
	}
	if len(r.log.events) != before {
		t.Error("a command was written without data")
	}
}

// Without an event clock a step could not be told from the one before it.
func TestNoStepWithoutAnEventClock(t *testing.T) {
	r := newRig(t, 9, 0.2, 0.5)
	for range 3 {
		r.world.hour(r.log.st, 2000, 0.05, 0.05)
	}
	r.d.EventNow = func() time.Time { return time.Time{} }
	if err := r.LookAll(t.Context()); err == nil || !strings.Contains(err.Error(), "event clock") {
		t.Errorf("error %v", err)
	}
	if x := r.log.st.Experiments["e"]; len(x.History) != 1 {
		t.Errorf("history %+v", x.History)
	}
}

func TestRunLooksAtOnceAndStops(t *testing.T) {
	r := newRig(t, 7, 0.5)
	ctx, cancel := context.WithCancel(t.Context())
	looked := make(chan struct{}, 1)
	r.d.Looks = sinkFunc(func(Look) { looked <- struct{}{} })
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	<-looked
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

type sinkFunc func(Look)

func (f sinkFunc) RecordLook(_ context.Context, l Look) error { f(l); return nil }

func call(t *testing.T, h http.Handler, method, path, body string) (int, map[string]any) {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	req.Header.Set("X-Ctrloop-Actor", "ceo") // nobody believes it
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	raw, _ := io.ReadAll(rec.Body)
	var v map[string]any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%s %s: %d %s", method, path, rec.Code, raw)
	}
	return rec.Code, v
}

func TestHTTP(t *testing.T) {
	r := newRig(t, 8)
	h := r.Handler()
	for _, c := range []struct{ body, want string }{
		{`{"treatment":"prompt-x"}`, "no such model version"},
		{`{"treatment":"prompt-a"}`, "control and treatment are both"},
		{`{"treatment":"prompt-b","steps":[0.5,0.1]}`, "ascending"},
		{`{"treatment":"prompt-b","steps":[1]}`, "at least one below 1"},
		{`{"treatment":"prompt-b","unit":"page"}`, "want user or product"},
		{`{"treatment":"prompt-b","id":"../x"}`, "want letters"},
		{`{"treatment":"prompt-b","colour":1}`, "unknown field"},
		{`{"treatment":"prompt-b"} {}`, "something follows"},
		{`[]`, "body: cannot be a JSON array"},
		{`{"treatment":"prompt-b","steps":"all"}`, "steps cannot be a JSON string"},
	} {
		if code, v := call(t, h, "POST", "/v1/experiments", c.body); code/100 != 4 || !strings.Contains(message(v), c.want) {
			t.Errorf("%s: %d %v, want an error with %q", c.body, code, v, c.want)
		}
	}
	if code, v := call(t, h, "POST", "/v1/experiments", `{"id":"e","treatment":"prompt-b","steps":[0.2,0.5,1]}`); code != 201 ||
		v["control"] != "prompt-a" {
		t.Fatalf("create: %d %v", code, v)
	}
	if code, v := call(t, h, "POST", "/v1/experiments", `{"id":"e2","treatment":"prompt-b"}`); code != 422 ||
		!strings.Contains(message(v), "one at a time") {
		t.Errorf("second on the same model: %d %v", code, v)
	}
	code, v := call(t, h, "GET", "/v1/experiments/e/analysis", "")
	if code != 200 || v["ok"] != false || v["inconclusive"] != true || v["decision"] != "hold" || v["rule"] != "min_samples" ||
		v["lift_absolute"] != nil {
		t.Errorf("analysis without data: %d %v", code, v)
	}
	r.world.hour(r.log.st, 3000, 0.05, 0.05)
	r.world.hour(r.log.st, 3000, 0.05, 0.05)
	if _, v = call(t, h, "GET", "/v1/experiments/e/analysis", ""); v["decision"] != "step" ||
		v["control"].(map[string]any)["units"].(float64) < 100 {
		t.Errorf("analysis with data: %v", v)
	}
	if _, v = call(t, h, "GET", "/v1/experiments/e", ""); v["running"] != true || len(v["history"].([]any)) != 1 {
		t.Errorf("a look without Run changed something: %v", v)
	}
	for _, c := range []struct {
		body string
		want int
	}{{`{"outcome":"promote"}`, 422}, {`{"note":"why"}`, 422}, {`{"outcome":"hold","note":"x"}`, 422},
		{`{"outcome":"rollback","note":"ugly pictures"}`, 200}, {`{"outcome":"promote","note":"x"}`, 409}} {
		if code, v := call(t, h, "POST", "/v1/experiments/e/stop", c.body); code != c.want {
			t.Errorf("stop %s: %d %v, want %d", c.body, code, v, c.want)
		}
	}
	last := r.log.events[len(r.log.events)-1]
	if last.Actor != "ada" || last.Note != "ugly pictures" || last.Type != control.ExperimentDecided {
		t.Errorf("on the log: %+v", last)
	}
	if _, v = call(t, h, "GET", "/v1/experiments/e/analysis", ""); v["ok"] != false || v["decision"] != "rollback" || v["rule"] != "manual" {
		t.Errorf("analysis after the stop: %v", v)
	}
	if code, v = call(t, h, "GET", "/v1/experiments", ""); code != 200 || len(v["experiments"].([]any)) != 1 {
		t.Errorf("list: %d %v", code, v)
	}
	if code, _ = call(t, h, "GET", "/v1/experiments/none", ""); code != 404 {
		t.Errorf("unknown id: %d", code)
	}
	for _, c := range []struct {
		method, path string
		code         int
		says         string
	}{
		{"DELETE", "/v1/experiments/e", 405, "takes no DELETE"},
		{"PATCH", "/v1/experiments", 405, "takes no PATCH"},
		{"POST", "/v1/experiments/e/bogus", 404, "there is no POST /v1/experiments/e/bogus"},
		{"GET", "/v1/experiments/", 404, "there is no GET"},
	} {
		if code, v := call(t, h, c.method, c.path, ""); code != c.code || !strings.Contains(message(v), c.says) {
			t.Errorf("%v: %d %v", c, code, v)
		}
	}
}

// message is that of a refusal.
func message(v map[string]any) string {
	refusal, _ := v["error"].(map[string]any)
	text, _ := refusal["message"].(string)
	return text
}

func TestConfigNamesEveryProblem(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Fatal(err)
	}
	err := Config{Settle: -1}.Validate()
	for _, path := range []string{"interval", "timeout", "settle", "ramp"} {
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s is missing in: %v", path, err)
		}
	}
}
