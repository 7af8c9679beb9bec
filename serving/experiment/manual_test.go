package experiment

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"ctrloop/internal/stats"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/assign"
	"ctrloop/serving/experiment/ramp"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// told is what a command says, without its id and the time of its writing.
type told struct {
	Type   control.Type
	Entity string
	Actor  string
	Note   string
	Data   string
}

func commands(l *memoryLog) []told {
	var out []told
	for _, e := range l.events {
		out = append(out, told{e.Type, e.Entity, e.Actor, e.Note, string(e.Data)})
	}
	return out
}

// crash rebuilds everything from the events alone: the fold, and a service that knows nothing.
func (r *rig) crash(t testing.TB) {
	t.Helper()
	fresh := &memoryLog{st: control.NewState(), refuse: r.log.refuse, lose: r.log.lose}
	for _, e := range r.log.events {
		raw, err := json.Marshal(e)
		if err == nil {
			err = json.Unmarshal(raw, &e)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fresh.st.Apply(fresh.offset+1, e); err != nil {
			t.Fatalf("replay of %s: %v", e.Type, err)
		}
		fresh.offset++
		fresh.events = append(fresh.events, e)
	}
	was, is := mustJSON(t, r.log.st.Experiments), mustJSON(t, fresh.st.Experiments)
	if was != is {
		t.Fatalf("rebuilt:\n%s\nwas:\n%s", is, was)
	}
	r.log = fresh
	r.restart(t, r.cfg)
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

var errLost = errors.New("connection lost after the write")

// A life with a pause, an override back and forth, and the decision. At every command the process may die: before it
// is written, right after it was (its answer is lost), or it is rebuilt between all looks. What is on the log in the
// end is the same, and no step is taken twice.
func TestKilledAtEveryCommand(t *testing.T) {
	life := func(kill int, after bool) *rig {
		r := newRig(t, 21, 0.1, 0.5, 1)
		created := len(r.log.events)
		n := 0
		die := func(control.Event) error {
			if n++; n == kill {
				return errLost
			}
			return nil
		}
		if after {
			r.log.lose = die
		} else {
			r.log.refuse = die
		}
		// do is a person's or the controller's doing, done again after a crash. That it was done already is fine then.
		do := func(f func() error) {
			t.Helper()
			err := f()
			if !errors.Is(err, errLost) {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			r.crash(t)
			var done badRequest
			err = f()
			if again := errors.Is(err, control.ErrInvalid) || errors.As(err, &done); err != nil && (!after || !again) {
				t.Fatal(err)
			}
		}
		for h := range 120 {
			r.world.hour(r.log.st, 1200, 0.04, 0.056)
			x := r.log.st.Experiments["e"]
			if !x.Running() {
				break
			}
			step := 1
			switch h {
			case 2:
				do(func() error { return r.Pause(t.Context(), "e", "ada", Request{Note: "look at pictures"}, false) })
			case 8:
				do(func() error { return r.Pause(t.Context(), "e", "ada", Request{Note: "fine"}, true) })
			case 14:
				do(func() error { return r.Override(t.Context(), "e", "ada", Request{Note: "careful", Step: &step}) })
			}
			r.world.now = r.world.now.Add(time.Minute)
			do(func() error { return r.LookAll(t.Context()) })
			if kill == 0 {
				r.crash(t) // between all looks
			}
		}
		if got := commands(r.log)[created:]; len(got) < 7 {
			t.Fatalf("too little happened: %v", got)
		}
		return r
	}
	plain := life(-1, false)
	want := commands(plain.log)
	if x := plain.log.st.Experiments["e"]; x.Running() || x.Decision.Outcome != control.Promote ||
		!slices.IsSortedFunc(x.Trail, func(a, b control.Change) int { return int(a.Version - b.Version) }) {
		t.Fatalf("ended as %+v", x.Decision)
	}
	for kill := range len(want) - 5 + 1 { // 5 commands set the scene; 0: rebuilt between all looks
		for _, after := range []bool{false, true} {
			if diff := cmp.Diff(want, commands(life(kill, after).log)); diff != "" {
				t.Errorf("killed at command %d (after the write: %v), the log differs (-want +got):\n%s", kill, after, diff)
			}
		}
	}
}

// The ramp is changed by hand, up and down, while the click-through rate doubles over the day. The treatment is no
// better. Pooled, its lift is far off; of visits to one step it is not.
func TestChangingTheRampByHandDoesNotBias(t *testing.T) {
	var pooled, honest, pooledCovers, covers int
	const runs = 30
	for seed := range uint64(runs) {
		r := newRig(t, 300+seed, 0.05, 0.5)
		steps := map[int]int{7: 2, 11: 1, 13: 2} // after the hour
		for h := range 20 {
			r.world.hour(r.log.st, 1500, 0.02+0.004*float64(h), 0.02+0.004*float64(h))
			if step, ok := steps[h]; ok {
				if err := r.Override(t.Context(), "e", "ada", Request{Note: "n", Step: &step}); err != nil {
					t.Fatal(err)
				}
			}
		}
		r.world.now = r.world.now.Add(10 * time.Hour) // everything is mature
		if l := r.world.pooled(t); l.Relative > 0 {
			pooled++
			if l.Interval.Low <= 0 {
				pooledCovers++
			}
		}
		v, err := r.Analyse(t.Context(), *r.log.st.Experiments["e"])
		if err != nil {
			t.Fatal(err)
		}
		if n := v.Figures.Control.Impressions; n < 10_000 {
			t.Fatalf("the visits to the step have %d impressions of control: only the last one counts?", n)
		}
		if v.Figures.Relative > 0 {
			honest++
		}
		if v.Figures.LiftLow <= 0 && v.Figures.LiftHigh >= 0 {
			covers++
		}
	}
	t.Logf("of %d runs: pooled above zero %d, step %d; interval of the step covers %d", runs, pooled, honest, covers)
	if pooled < runs-2 || pooledCovers > runs-5 {
		t.Errorf("pooling misleads in %d of %d runs (interval covers in %d): this test shows nothing", pooled, runs, pooledCovers)
	}
	// binomial(30, 0.5) is within 5..25 with probability 0.9998; binomial(30, 0.95) at least 24 with 0.999
	if honest < 5 || honest > 25 || covers < 24 {
		t.Errorf("step's lift is above zero in %d of %d A/A runs, its interval covers in %d", honest, runs, covers)
	}
}

// A planted lift is found at its size although the rate moves and the ramp is changed midway.
func TestALiftIsFoundThroughAChangedRamp(t *testing.T) {
	r := newRig(t, 77, 0.05, 0.5, 1)
	back := []int{1, 2}
	for h := 0; h < 150 && r.log.st.Experiments["e"].Running(); h++ {
		rate := 0.03 + 0.02*float64(h%12)/12
		r.world.hour(r.log.st, 1500, rate, 1.4*rate)
		if err := r.LookAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		x := r.log.st.Experiments["e"]
		if x.Step.Index == 1 && len(back) == 2 || x.Step.Index == 0 && len(back) == 1 {
			r.world.now = r.world.now.Add(time.Minute)
			if err := r.Override(t.Context(), "e", "ada", Request{Note: "n", Step: &back[0]}); err != nil {
				t.Fatal(err)
			}
			back = back[1:]
		}
	}
	x := r.log.st.Experiments["e"]
	if x.Running() || x.Decision.Outcome != control.Promote || x.Decision.LiftLow > 0.4 || x.Decision.LiftHigh < 0.4 {
		t.Errorf("a lift of 40 %% ended as %+v after %+v", x.Decision, x.History)
	}
}

func TestPausedRampsWaitAndGuardsDoNot(t *testing.T) {
	r := newRig(t, 31, 0.2, 0.5, 1)
	if err := r.Pause(t.Context(), "e", "ada", Request{Note: "n"}, false); err != nil {
		t.Fatal(err)
	}
	x := r.run(t, 20, flat(0.04, 0.05))
	if !x.Running() || len(x.History) != 1 {
		t.Fatalf("a paused ramp went on: %+v", x.History)
	}
	if x = r.run(t, 30, flat(0.08, 0.01)); x.Running() || x.Decision.Outcome != control.RollBack || x.Decision.Rule != string(ramp.CTRHarm) {
		t.Errorf("harm during a pause ended as %+v", x.Decision)
	}
}

// Errors of people's requests say what, and what to do.
func TestManualRequests(t *testing.T) {
	r := newRig(t, 41)
	h := r.Handler()
	post := func(path, body string) (int, map[string]any) { return call(t, h, "POST", "/v1/experiments"+path, body) }
	for _, c := range []struct {
		path, body string
		code       int
		want       string // in error or hint; of the answer where the code is 2xx
	}{
		{"", `{"id":"webhooks","treatment":"prompt-b"}`, 422, "none of"},
		{"", `{"treatment":"prompt-b","targeting":[{"attribute":"country","op":"like","values":["d"]}]}`, 422, `operator "like"`},
		{"", `{"treatment":"prompt-b","slot":{"layer":"prompt","start":0.5,"end":0.5}}`, 422, "start < end"},
		{"", `{"treatment":"prompt-b","steps":[0.5,0.5]}`, 422, "the same share twice"},
		{"", `{"id":"e","treatment":"prompt-b","steps":[0.2,0.5,1],"draft":true,"note":"first"}`, 201, `"draft":true`},
		{"/e/pause", `{"note":"n"}`, 409, "has not started"},
		{"/e/promote", `{"note":"n"}`, 422, "nothing to decide on"},
		{"/e/start", `{"expect":9}`, 409, "the request expects 9"},
		{"/e/start", `{"note":"go","expect":1}`, 200, `"phase":"running"`},
		{"/e/start", `{}`, 409, "started already"},
		{"/e/pause", `{}`, 422, "give a note"},
		{"/e/pause", `{"note":"look"}`, 200, `"phase":"paused"`},
		{"/e/pause", `{"note":"look"}`, 409, "paused already"},
		{"/e/resume", `{"note":"on"}`, 200, `"phase":"running"`},
		{"/e/override", `{"note":"n"}`, 422, "needs a step of 1 to 3"},
		{"/e/override", `{"note":"n","step":0}`, 422, "needs a step of 1 to 3"},
		{"/e/override", `{"note":"n","step":7}`, 422, "needs a step of 1 to 3"},
		{"/e/override", `{"note":"n","step":1}`, 422, "is at step 1 already"},
		{"/e/override", `{"note":"n","step":3}`, 422, "deciding step 2"},
		{"/e/override", `{"note":"n","step":2}`, 200, `"number":2,"share":0.5`},
		{"/e/override", `{"note":"n","step":1}`, 200, `"number":1,"share":0.2`},
		{"/e/force", `{"unit":"u","variant":"best"}`, 422, "variant control or treatment"},
		{"/e/force", `{"unit":"u","variant":"treatment"}`, 200, `"forced":{"` + control.HideUnit("e", "u") + `":"treatment"}`},
		{"/e/force", `{"unit":"u"}`, 200, `"phase":"running"`},
		{"/none/pause", `{"note":"n"}`, 404, "no such experiment"},
		{"/e/webhooks/replay", `{}`, 404, "no webhooks"},
		{"/exposures", `{"exposures":[]}`, 404, "no warehouse"},
		{"/e/rollback", `{"note":"n","outcome":"promote"}`, 422, "use stop"},
		{"/e/promote", `{"note":"ship it"}`, 200, `"phase":"decided"`},
		{"/e/resume", `{"note":"n"}`, 409, "was decided"},
	} {
		r.world.now = r.world.now.Add(time.Minute)
		code, v := post(c.path, c.body)
		if text := mustJSON(t, v); code != c.code ||
			!strings.Contains(strings.ReplaceAll(text, `\"`, `"`), c.want) && !strings.Contains(strings.ReplaceAll(text, `\u003c`, "<"), c.want) {
			t.Errorf("POST %s %s: %d %s, want %d with %s", c.path, c.body, code, text, c.code, c.want)
		}
	}
	x := r.log.st.Experiments["e"]
	var trail []string
	for _, c := range x.Trail {
		trail = append(trail, fmt.Sprint(c.Version, " ", c.Type, " ", c.Actor, " ", c.Note))
	}
	want := []string{
		"1 experiment.created ada first",
		"2 experiment.started ada go",
		"3 experiment.paused ada look",
		"4 experiment.resumed ada on",
		"5 experiment.step ada n",
		"6 experiment.step ada n",
		"7 experiment.forced ada ",
		"8 experiment.forced ada ",
		"9 experiment.decided ada ship it",
	}
	if diff := cmp.Diff(want, trail); diff != "" {
		t.Error(diff)
	}
	if c := r.log.st.Routes["prompt"].Champion; c != "prompt-b" || x.Decision.Rule != string(ramp.Manual) {
		t.Errorf("champion %s by %+v", c, x.Decision)
	}
}

// Two steps at one moment of event time could not be told apart.
func TestAnOverrideNeedsALaterEventTime(t *testing.T) {
	r := newRig(t, 43, 0.2, 0.5)
	for i, step := range []int{2, 1} {
		err := r.Override(t.Context(), "e", "ada", Request{Note: "n", Step: &step})
		if (err == nil) != (i == 0) || err != nil && !strings.Contains(err.Error(), "not after the present step") {
			t.Errorf("override %d: %v", i, err)
		}
	}
}

// Slots of one layer may run side by side; whole layers and overlapping slots may not.
func TestSlotsAreExclusive(t *testing.T) {
	r := newRig(t, 42)
	r.log.put(t, control.ModelRegistered, control.ModelEntity("prompt-c"), control.Model{Version: "prompt-c", Logical: "prompt"})
	r.log.shadow(t, "prompt-c")
	h := r.Handler()
	for _, c := range []struct {
		body string
		code int
	}{
		{`{"id":"x","treatment":"prompt-b","slot":{"layer":"prompt","start":0,"end":0.5}}`, 201},
		{`{"id":"y1","treatment":"prompt-c"}`, 422},
		{`{"id":"y2","treatment":"prompt-c","slot":{"layer":"prompt","start":0.4,"end":1}}`, 422},
		{`{"id":"y3","treatment":"prompt-c","slot":{"layer":"other","start":0.5,"end":1}}`, 422}, // another hash: could share units
		{`{"id":"y","treatment":"prompt-c","slot":{"layer":"prompt","start":0.5,"end":1}}`, 201},
	} {
		if code, v := call(t, h, "POST", "/v1/experiments", c.body); code != c.code {
			t.Errorf("%s: %d %v, want %d", c.body, code, v, c.code)
		}
	}
	// A draft may overlap until it is started.
	if code, v := call(t, h, "POST", "/v1/experiments", `{"id":"d","treatment":"prompt-c","draft":true}`); code != 201 {
		t.Errorf("draft: %d %v", code, v)
	}
	if code, v := call(t, h, "POST", "/v1/experiments/d/start", `{}`); code != 422 ||
		!strings.Contains(message(v), "one at a time in a slot") {
		t.Errorf("start over others: %d %v", code, v)
	}
	if code, v := call(t, h, "PUT", "/v1/experiments/holdouts/prompt",
		`{"share":0.05,"version":"prompt-a","note":"long-term value"}`); code != 200 ||
		len(v["holdouts"].([]any)) != 1 {
		t.Errorf("holdout: %d %v", code, v)
	}
	for _, body := range []string{`{"share":1,"note":"n"}`, `{"share":0.1}`, `{"share":0.1,"version":"none","note":"n"}`} {
		if code, v := call(t, h, "PUT", "/v1/experiments/holdouts/prompt", body); code != 422 {
			t.Errorf("%s: %d %v", body, code, v)
		}
	}
	n := map[string]int{}
	a := assign.New(r.log.st)
	for i := range 5000 {
		got, _ := a.Assign("prompt", assign.Unit{User: fmt.Sprint(i)})
		n[got.Experiment]++
	}
	if n["x"] < 2200 || n["y"] < 2200 || n[""] < 150 || n[""] > 350 {
		t.Errorf("units: %v", n)
	}
}

// Another version was promoted by hand meanwhile: better than the old champion is not better than the new one.
func TestAWinOverAnOldChampionPromotesNothing(t *testing.T) {
	r := newRig(t, 1, 0.2, 0.5, 1)
	r.log.put(t, control.ModelRegistered, control.ModelEntity("prompt-c"), control.Model{Version: "prompt-c", Logical: "prompt"})
	r.log.shadow(t, "prompt-c")
	r.log.put(t, control.ModelPromoted, control.RouteEntity("prompt"), control.Promotion{Logical: "prompt", Version: "prompt-c"})
	x := r.run(t, 200, flat(0.04, 0.06))
	if x.Running() || x.Decision.Outcome != control.Inconclusive || x.Decision.Rule != string(ramp.ChampionChanged) ||
		r.log.st.Routes["prompt"].Champion != "prompt-c" {
		t.Errorf("ended as %+v, champion %s", x.Decision, r.log.st.Routes["prompt"].Champion)
	}
}

// The documented example of Argo Rollouts' web metric: jsonPath {$.data}, result.ok && result.successPercent >= 0.90.
func TestArgoWebMetric(t *testing.T) {
	r := newRig(t, 8, 0.2, 0.5, 1)
	failed := int64(0)
	r.d.Health = healthFunc(func() ramp.Counts { return ramp.Counts{Total: 200, Failed: failed} })
	measure := func() (ok, failure, byBool bool, data map[string]any) {
		rec := httptest.NewRecorder()
		r.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", "/v1/experiments/e/analysis", nil))
		var body struct {
			Data map[string]any `json:"data"` // {$.data}
		}
		if err := json.Unmarshal(rec.Body.Bytes(), &body); err != nil || rec.Code != 200 ||
			!strings.HasPrefix(rec.Header().Get("Content-Type"), "application/json") {
			t.Fatalf("%d %s: %v", rec.Code, rec.Body, err)
		}
		result := body.Data
		byBool = result["ok"] == true // {$.data.ok}, result == true
		return byBool && result["successPercent"].(float64) >= 0.90, result["failed"].(bool), byBool, result
	}
	// Both conditions are false, which Argo calls inconclusive: of 0 impressions nothing is known.
	if ok, failure, _, data := measure(); ok || failure || data["inconclusive"] != true || data["successPercent"] != 1.0 ||
		data["lift"] != nil {
		t.Errorf("at the start: %v", data)
	}
	for range 4 {
		r.world.hour(r.log.st, 3000, 0.05, 0.05)
	}
	failed = 4
	if ok, failure, _, data := measure(); !ok || failure || data["successPercent"] != 0.98 {
		t.Errorf("a few failures: %v", data)
	}
	failed = 60
	if ok, failure, byBool, data := measure(); ok || !failure || byBool || data["successPercent"] != 0.7 {
		t.Errorf("many failures: %v", data)
	}
	if err := r.LookAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if x := r.log.st.Experiments["e"]; x.Running() || x.Decision.Rule != string(ramp.GenerationErrors) {
		t.Errorf("the guard on generation did not fire: %+v", x.Decision)
	}
	failed = 0
	if ok, failure, _, data := measure(); ok || !failure || data["decided"] != true || data["promoted"] != false {
		t.Errorf("after the roll-back: %v", data)
	}
	if _, err := r.Stop(t.Context(), "e", "ada", Request{Outcome: control.Promote, Note: "n"}); !errors.Is(err, control.ErrInvalid) {
		t.Errorf("stopped twice: %v", err)
	}
}

type healthFunc func() ramp.Counts

func (f healthFunc) Generation(context.Context, string) (ramp.Counts, error) { return f(), nil }

// Treatments whose backgrounds do not suit the products are rolled back at the first look with enough users, although
// nothing is wrong with their clicks; those that suit as well as the control's are not.
func TestUnsuitableBackgroundsAreRolledBack(t *testing.T) {
	judged := func() []schemas.Creative {
		return []schemas.Creative{
			{ID: "a", ModelVersion: "prompt-a", Matching: 1, MatchingJudge: "rule", Valid: true},
			{ID: "b", ModelVersion: "prompt-b", MatchingJudge: "rule", Valid: true},
		}
	}
	for name, tc := range map[string]struct {
		treatment  float64
		rolledBack bool
	}{"suit half as often": {0.3, true}, "suit as often": {0.6, false}, "suit less often, within the margin": {0.57, false}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 9, 0.2, 0.5)
			r.world.suits = [2]float64{0.6, tc.treatment}
			r.d.Metrics = Measured{Creatives: judged, Shown: r.world}
			matching := func() ramp.Guard {
				v, err := r.Analyse(t.Context(), *r.log.st.Experiments["e"])
				if err != nil {
					t.Fatal(err)
				}
				return v.Figures.Guardrails[0]
			}
			for hour := range 12 {
				r.world.hour(r.log.st, 400, 0.05, 0.05)
				g := matching()
				if g.Metric != ramp.MatchingScore || (g.State == ramp.GuardNoData) != (min(g.Units[0], g.Units[1]) < g.MinUnits) {
					t.Fatalf("hour %d: %+v", hour, g)
				}
				_, v := call(t, r.Handler(), "GET", "/v1/experiments/e/results", "")
				if rows := order(mustJSON(t, v["guardrails"])); !strings.Contains(rows, fmt.Sprintf(`"name":"matching_score","state":%q`, g.State)) {
					t.Errorf("the page says %s", rows)
				}
				if err := r.LookAll(t.Context()); err != nil {
					t.Fatal(err)
				}
				x := r.log.st.Experiments["e"]
				switch enough := g.State != ramp.GuardNoData; {
				case x.Running():
					if tc.rolledBack && enough {
						t.Fatalf("hour %d: it goes on with %+v", hour, g)
					}
				case !tc.rolledBack:
					t.Fatalf("hour %d: ended as %+v", hour, x.Decision)
				default:
					note := x.Trail[len(x.Trail)-1].Note
					if x.Decision.Outcome != control.RollBack || x.Decision.Rule != string(ramp.GuardrailBroken) ||
						!strings.Contains(note, "matching_score: 0.3") ||
						!strings.Contains(note, "rule scored") {
						t.Errorf("ended as %+v: %s", x.Decision, note)
					}
					return
				}
			}
			if g := matching(); tc.rolledBack || g.State == ramp.GuardNoData {
				t.Errorf("after 12 hours: %+v", g)
			}
		})
	}
}

// order puts name and state first in each row, whatever the order of keys.
func order(rows string) string {
	var parsed []map[string]any
	_ = json.Unmarshal([]byte(rows), &parsed)
	var out strings.Builder
	for _, r := range parsed {
		fmt.Fprintf(&out, `"name":%q,"state":%q;`, r["name"], r["state"])
	}
	return out.String()
}

func TestNewNeedsItsParts(t *testing.T) {
	if _, err := New(Default(), Deps{}, zerolog.Nop(), prometheus.NewRegistry()); err == nil {
		t.Error("a service without anything was made")
	}
}

// Of many categories those that differ are reported, with intervals wide enough for having been picked out; the
// numbers behind each stay its own.
func TestCategoriesAreAdjusted(t *testing.T) {
	q := stats.Sequence{Alpha: 0.05, NStar: 5000}
	var sums []CategorySums
	one := func(n int, c, t int) ramp.Sums { // clicks of 100
		var s ramp.Sums
		for i := range n {
			s.Control.Observe(float64(min(1, max(0, c-i%100))), 1)
			s.Treatment.Observe(float64(min(1, max(0, t-i%100))), 1)
		}
		return s
	}
	for i := range 20 {
		sums = append(sums, CategorySums{fmt.Sprint("same", i), one(2000, 10, 10)})
	}
	sums = append(sums, CategorySums{"better", one(6000, 10, 20)}, CategorySums{"empty", ramp.Sums{}})
	rows, err := adjust(sums, q)
	if err != nil {
		t.Fatal(err)
	}
	if r := rows[0]; r.Category != "better" || r.P > 0.05 || !r.Discovered || r.SelectedLow <= 0 || r.SelectedLow >= r.RelativeLow ||
		r.SelectedHigh <= r.RelativeHigh ||
		r.Adjustment != "e-BH over 22" {
		t.Errorf("the largest: %+v", r)
	}
	for _, r := range rows[1:] {
		if r.Discovered || r.P <= 0.05 || r.SelectedLow != -1 || !math.IsInf(float64(r.SelectedHigh), 1) {
			t.Errorf("reported without a difference: %+v", r)
		}
	}
	alone, err := adjust(sums[20:21], q)
	if err != nil {
		t.Fatal(err)
	}
	if r := alone[0]; r.SelectedHigh >= rows[0].SelectedHigh || r.P >= rows[0].P || r.RelativeHigh != rows[0].RelativeHigh ||
		r.SelectedHigh != r.RelativeHigh {
		t.Errorf("alone %+v, among 22 %+v", r, rows[0])
	}
	if last := rows[len(rows)-1]; last.Category != "empty" || last.P != 1 || last.RelativeLow != -1 {
		t.Errorf("without data: %+v", last)
	}
	sums[3].Control.M = -1
	if _, err := adjust(sums, q); err == nil || !strings.Contains(err.Error(), "same3") {
		t.Errorf("impossible sums: %v", err)
	}
}
