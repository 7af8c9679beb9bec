package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/ingest"
	"ctrloop/internal/stream"
	"ctrloop/internal/telemetry"
	"ctrloop/internal/warehouse"
	"ctrloop/joiner"
	"ctrloop/joiner/sink"
	"ctrloop/joiner/window"
	"ctrloop/pairer"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving"
	"ctrloop/serving/console"
	"ctrloop/serving/creatives"
	"ctrloop/serving/decide"
	"ctrloop/serving/gateway"
	"ctrloop/serving/swap"
)

var t0 = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)

func at(seconds float64) time.Time { return t0.Add(time.Duration(seconds * float64(time.Second))) }

func ms(seconds float64) int64 { return at(seconds).UnixMilli() }

// folded is the state after commands, one second apart, each behind those that must come before it.
func folded(t *testing.T, commands ...control.Event) *control.State {
	t.Helper()
	st := control.NewState()
	for i, e := range commands {
		for _, e := range append(before(t, st, e), e) {
			e.ID, e.Time = fmt.Sprint("e", st.Offset+1), at(float64(i))
			if _, err := st.Apply(st.Offset+1, e); err != nil {
				t.Fatal(err)
			}
		}
	}
	return st
}

// before are commands without which the log would reject e: versions that are probed, jobs that are started.
func before(t *testing.T, st *control.State, e control.Event) (out []control.Event) {
	t.Helper()
	var data struct {
		Version, Control, Treatment string
	}
	if err := json.Unmarshal(e.Data, &data); err != nil {
		t.Fatal(err)
	}
	probe := func(version string) {
		if st.Models[version] == nil {
			out = append(out, registered(t, control.Model{Version: version, Logical: "prompt", Base: "b"}))
		} else if st.Models[version].State != control.ModelFetched {
			return
		}
		for _, s := range []control.ModelState{control.ModelLoaded, control.ModelProbed, control.ModelShadow} {
			out = append(out, event(t, control.ModelStateChanged, control.ModelEntity(version), "", control.ModelStateChange{State: s}))
		}
	}
	switch e.Type {
	case control.ModelPromoted:
		probe(data.Version)
	case control.ExperimentCreated:
		probe(data.Control)
		probe(data.Treatment)
	case control.JobFinished, control.JobFailed:
		if j := st.Jobs[strings.TrimPrefix(e.Entity, control.JobEntity(""))]; j == nil || j.State != control.JobQueued {
			break
		}
		out = append(out, event(t, control.JobStarted, e.Entity, "", control.JobUpdate{Attempt: 1}))
	default: // needs nothing before it
	}
	return out
}

func event(t *testing.T, typ control.Type, entity, note string, data any) control.Event {
	t.Helper()
	e, err := control.NewEvent("x", typ, entity, -1, "test", note, t0, data)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func registered(t *testing.T, m control.Model) control.Event {
	return event(t, control.ModelRegistered, control.ModelEntity(m.Version), "", m)
}

func promoted(t *testing.T, version, note string) control.Event {
	return event(t, control.ModelPromoted, control.RouteEntity("prompt"), note, control.Promotion{Logical: "prompt", Version: version})
}

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

// The names are a contract with services that do not know of it.
func TestTheCountersExist(t *testing.T) {
	reg, log := prometheus.NewRegistry(), zerolog.Nop()
	kafka := stream.Config{Brokers: []string{"127.0.0.1:1"}}
	if _, err := ingest.New(ingest.Default(), kafka, log, reg); err != nil {
		t.Fatal(err)
	}
	edge, err := ingest.NewEdge(ingest.Default(), kafka, log, reg)
	if err != nil {
		t.Fatal(err)
	}
	defer edge.Close()
	service, err := decide.New(decide.Default(), creatives.NewLibrary(), nil, log, reg)
	if err != nil {
		t.Fatal(err)
	}
	service.Decide([]decide.Request{{Product: "none"}}, nil)
	// Vectors without a child are not gathered; registering a second one of the name is refused if it is there.
	for _, name := range []string{metricRouted, metricRead, metricDropped, metricRejected, metricDecisions} {
		label := map[string]string{metricRouted: "kind", metricRead: "topic", metricDropped: "reason", metricRejected: "reason",
			metricDecisions: "policy"}[name]
		probe := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: "probe"}, []string{label})
		if err := reg.Register(probe); err == nil {
			t.Errorf("no service registers the counter %s", name)
		} else if !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	got := counters(reg, metricDecisions)
	if diff := cmp.Diff(map[string]map[string]float64{metricDecisions: {"error": 1}}, got); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
}

func TestFreshness(t *testing.T) {
	base := registered(t, control.Model{Version: "prompt-base", Logical: "prompt"})
	trained := control.Model{Version: "prompt-1", Logical: "prompt", Base: "b", Dataset: "d", LabelsTo: ms(60)}
	data := event(t, control.DatasetBuilt, control.DatasetEntity("d"), "", control.Dataset{Digest: "d", Pairs: 7, ToMS: ms(50)})
	undated := trained
	undated.LabelsTo = 0
	for name, c := range map[string]struct {
		st     *control.State
		newest int64
		age    float64 // < 0: none
		why    string
	}{
		"no champion":           {folded(t, base), ms(900), -1, "No model"},
		"base":                  {folded(t, base, promoted(t, "prompt-base", "")), ms(900), -1, "base model"},
		"trained":               {folded(t, data, registered(t, trained), promoted(t, "prompt-1", "")), ms(900), 840, ""},
		"by its data":           {folded(t, data, registered(t, undated), promoted(t, "prompt-1", "")), ms(900), 850, ""},
		"does not say":          {folded(t, registered(t, undated), promoted(t, "prompt-1", "")), ms(900), -1, "does not say"},
		"no event yet":          {folded(t, data, registered(t, trained), promoted(t, "prompt-1", "")), 0, -1, "not known"},
		"never from the future": {folded(t, data, registered(t, trained), promoted(t, "prompt-1", "")), ms(10), 0, ""},
	} {
		f := freshness(c.st, c.newest)
		switch {
		case c.age < 0 && (f.AgeSeconds != nil || f.NewestClick != nil || !strings.Contains(f.Why, c.why)):
			t.Errorf("%s: %+v, want no age and a reason with %q", name, f, c.why)
		case c.age >= 0 && (f.AgeSeconds == nil || *f.AgeSeconds != c.age || f.NewestClick == nil || f.Why != ""):
			t.Errorf("%s: %+v, want the age %v", name, f, c.age)
		}
	}
}

func TestChampionHasItsOwnFigures(t *testing.T) {
	st := folded(t, registered(t, control.Model{Version: "prompt-base", Logical: "prompt"}), promoted(t, "prompt-base", "first"),
		event(t, control.DatasetBuilt, control.DatasetEntity("d"), "", control.Dataset{Digest: "d", Pairs: 7}),
		registered(t, control.Model{Version: "prompt-1", Logical: "prompt", Base: "b", Dataset: "d"}), promoted(t, "prompt-1", "better"))
	want := &console.Champion{Version: "prompt-1", Since: at(4), Previous: "prompt-base", Note: "better", Pairs: 7, Impressions: 90, Clicks: 4}
	if diff := cmp.Diff(want, champion(st, traffic{champion: "prompt-1", championImpressions: 90, championClicks: 4})); diff != "" {
		t.Errorf("champion (-want +got):\n%s", diff)
	}
	if c := champion(st, traffic{champion: "prompt-base", championImpressions: 90, championClicks: 4}); c.Impressions != 0 {
		t.Errorf("the new champion is shown with %d impressions of the old one", c.Impressions)
	}
	if c := champion(control.NewState(), traffic{}); c != nil {
		t.Errorf("champion %+v of an empty log", c)
	}
}

func TestLedgerAndWatermark(t *testing.T) {
	l := joiner.Ledger{
		Partitions: []joiner.PartitionLedger{{WatermarkMS: ms(30), MaxImpressionMS: ms(40), MaxClickMS: ms(45)}, {WatermarkMS: ms(20)}, {}},
		Total:      window.Ledger{ImpressionsIn: 15, Positive: 1, FinalNegative: 2, Duplicate: 3, LateImpressions: 4, Open: 5},
	}
	if diff := cmp.Diff(console.Ledger{Received: 15, Positive: 1, Negative: 2, Open: 5, Duplicate: 3, Late: 4},
		ledgerOf(l.Total)); diff != "" {
		t.Errorf("ledger (-want +got):\n%s", diff)
	}
	if newestEvent(l) != ms(45) || lowWatermark(l) != ms(20) {
		t.Errorf("newest event %d, watermark %d; want %d and %d", newestEvent(l), lowWatermark(l), ms(45), ms(20))
	}
	if p := ledgerProblem(l, 4); p != "" {
		t.Errorf("problem %q where there is none", p)
	}
	l.Partitions[1].Partition, l.Partitions[1].Problem = 1, "1 in, 2 out"
	if p := ledgerProblem(l, 4); p != "partition 1: 1 in, 2 out" {
		t.Errorf("problem %q", p)
	}
	if p := ledgerProblem(joiner.Ledger{}, 4); !strings.Contains(p, "of 4") {
		t.Errorf("without partitions the problem is %q", p)
	}
}

func TestDrain(t *testing.T) {
	for _, c := range []struct {
		n    int64
		rate *float64
		want *float64
	}{{0, nil, new(0.0)}, {10, nil, nil}, {10, new(0.0), nil}, {10, new(4.0), new(2.5)}} {
		if diff := cmp.Diff(c.want, drain(c.n, c.rate)); diff != "" {
			t.Errorf("%d records (-want +got):\n%s", c.n, diff)
		}
	}
}

func TestPairStage(t *testing.T) {
	look := func(p pairer.Status) console.Stage { return pairStage(p, 10*time.Second, counted{}, ms(600), at(1000)) }
	s := look(pairer.Status{At: at(995), ToMS: ms(480), Reason: "skip: too few"})
	if s.State != console.Running || s.LagSeconds == nil || *s.LagSeconds != 120 || s.Detail != "too few" {
		t.Errorf("gathering evidence: %+v", s)
	}
	if s := look(pairer.Status{At: at(995), Reason: "skip: busy"}); s.State != console.Idle || s.LagSeconds != nil {
		t.Errorf("busy elsewhere: %+v", s)
	}
	if s := look(pairer.Status{At: at(100), ToMS: ms(1)}); s.State != console.Degraded || !strings.Contains(s.Detail, "15m") {
		t.Errorf("stuck: %+v", s)
	}
	if s := look(pairer.Status{Reason: "no look yet"}); s.State != console.Idle || s.Detail != "no look yet" {
		t.Errorf("before the first look: %+v", s)
	}
}

func TestTrainStage(t *testing.T) {
	job := func(typ control.Type, id string, data any) control.Event {
		return event(t, typ, control.JobEntity(id), "", data)
	}
	first := []control.Event{
		job(control.JobSubmitted, "reward-1", control.Job{ID: "reward-1", Kind: "reward"}),
		job(control.JobStarted, "reward-1", control.JobUpdate{}),
	}
	progress := func(id string) string {
		return "arm dpo epoch 1 id " + id + " kind reward loss 0.41 seconds 12 stage epoch"
	}
	check := func(name string, st *control.State, state console.StageState, lag *float64, detail string) {
		t.Helper()
		s := trainStage(st, at(100), progress)
		if s.State != state || s.Detail != detail || !cmp.Equal(s.LagSeconds, lag) {
			t.Errorf("%s: %+v", name, s)
		}
	}
	check("nothing", control.NewState(), console.Idle, nil, "no job yet")
	check("queued", folded(t, first[0]), console.Idle, new(100.0), "reward-1 waits")
	check("running", folded(t, first...), console.Running, new(100.0), "reward dpo epoch 1 loss 0.41")
	done := append(first, job(control.JobFinished, "reward-1", control.JobUpdate{}))
	check("done", folded(t, done...), console.Idle, nil, "last: reward, 1s")
	check(
		"gate",
		folded(
			t,
			append(
				done,
				registered(
					t,
					control.Model{Version: "prompt-1", Job: "reward-1", Gates: []control.Gate{{Name: "matching", Value: 0.1, Threshold: 0.2}}},
				),
			)...),
		console.Idle,
		nil,
		"last: reward, 1s; prompt-1 failed: gate matching: 0.1 against 0.2",
	)
	check(
		"failed",
		folded(t, append(first, job(control.JobFailed, "reward-1", control.JobUpdate{Class: "diverged", Error: "diverged: NaN"}))...),
		console.Degraded,
		nil,
		"reward-1 failed (diverged): NaN",
	)
}

func TestServeStage(t *testing.T) {
	for _, c := range []struct {
		version  string
		replicas int
		stats    serving.Stats
		state    console.StageState
		detail   string
	}{
		{"", 0, serving.Stats{}, console.Degraded, "no model loaded"},
		{"prompt-1", 0, serving.Stats{}, console.Degraded, "no model server answers for prompt-1"},
		{"prompt-1", 1, serving.Stats{Swap: swap.Stats{Flips: 2, FlipWorst: 1234567}}, console.Idle,
			"prompt-1 on 1 server, 2 hot swaps, worst 1.23ms"},
		{"prompt-1", 2, serving.Stats{Gateway: gateway.Stats{Requests: 9, Failed: 1}}, console.Idle,
			"prompt-1 on 2 servers; of 9 requests to models 1 failed"},
	} {
		if s := serveStage(c.version, c.replicas, c.stats); s.State != c.state || !strings.HasPrefix(s.Detail, c.detail) {
			t.Errorf("%q on %d: %+v, want %s, %q", c.version, c.replicas, s, c.state, c.detail)
		}
	}
}

func TestExperimentCreativesAndMarks(t *testing.T) {
	create := func(id string) control.Event {
		return event(t, control.ExperimentCreated, control.ExperimentEntity(id), "", control.Experiment{
			ID: id, Logical: "prompt", Control: "prompt-aaaaaaaaaaaa", Treatment: "prompt-bbbbbbbbbbbb", Steps: []float64{0.005, 0.5},
			Created: at(map[string]float64{"x1": 1, "x2": 2}[id])})
	}
	step := event(t, control.ExperimentStepped, control.ExperimentEntity("x2"), "", control.Step{Index: 1, Share: 0.5, AtMS: ms(77)})
	end := func(id string) control.Event {
		return event(t, control.ExperimentDecided, control.ExperimentEntity(id), "", control.Decision{Outcome: control.RollBack})
	}
	if x := latestExperiment(control.NewState()); x != nil {
		t.Errorf("experiment %s of an empty log", x.ID)
	}
	if x := latestExperiment(folded(t, create("x1"), create("x2"), end("x2"))); x.ID != "x1" {
		t.Errorf("experiment %s, want the running one", x.ID)
	}
	st := folded(t, create("x1"), end("x1"), create("x2"), step)
	x := latestExperiment(st)
	if x.ID != "x2" {
		t.Errorf("experiment %s, want the newest", x.ID)
	}
	for version, want := range map[string]string{x.Control: "control", x.Treatment: "treatment", "prompt-c": "", "": ""} {
		if got := variant(*x, version); got != want {
			t.Errorf("variant of %q is %q, want %q", version, got, want)
		}
	}
	if got := variant(control.ExperimentStatus{}, ""); got != "" {
		t.Errorf("variant without an experiment is %q", got)
	}
	var got []console.Mark
	for _, m := range append(stepMarks(folded(t, create("x2"), step)), undated{"promoted", x.Treatment, at(9), 0},
		undated{"rolled_back", x.Control, at(9), 0}) {
		got = append(got, m.mark(max(m.atMS, ms(9))))
	}
	want := []console.Mark{{Time: at(9), Kind: "step", Label: "bbbbbbbb at 0.5 %"}, {Time: at(77), Kind: "step", Label: "50 %"},
		{Time: at(9), Kind: "promoted", Label: "bbbbbbbb promoted"}, {Time: at(9), Kind: "rolled_back", Label: "back to aaaaaaaa"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("marks (-want +got):\n%s", diff)
	}
	r := (&overview{app: &App{cfg: Default()}}).rollout(background{verdict: unknown(*x)})
	if r == nil || r.Lift != nil || r.P != nil || r.Control.CTR != nil || !r.Running || r.Index != 1 {
		t.Errorf("before the first look the rollout is %+v, want it without figures", r)
	}
}

func TestNewestCreatives(t *testing.T) {
	all := []schemas.Creative{
		{ID: "c1", Created: at(1)},
		{ID: "c4", Created: at(4)},
		{ID: "c3", Created: at(3)},
		{ID: "c2", Created: at(3)},
		{ID: "c9", Created: at(9), Blocked: "wrong size"},
	}
	var ids []string
	for _, c := range newestCreatives(all, 3) {
		ids = append(ids, c.ID)
	}
	if diff := cmp.Diff([]string{"c4", "c2", "c3"}, ids); diff != "" {
		t.Errorf("newest (-want +got):\n%s", diff)
	}
	if all[0].ID != "c1" || len(all) != 5 {
		t.Error("the list of the creative log was changed")
	}
}

func TestAlerts(t *testing.T) {
	job := func(typ control.Type, id string, data any) control.Event {
		return event(t, typ, control.JobEntity(id), "", data)
	}
	submit := func(id, kind string) control.Event {
		return job(control.JobSubmitted, id, control.Job{ID: id, Kind: kind})
	}
	failed := []control.Event{submit("rounds-1", "rounds"), job(control.JobFailed, "rounds-1", control.JobUpdate{Class: "bug", Error: "boom"})}
	trip := event(t, control.BreakerTripped, control.BreakerEntity("all"), "", control.Breaker{Slice: "all", Reason: "CTR halved"})
	o := &overview{}
	got := o.since(at(50), controlAlerts(folded(t, append(failed, trip)...)))
	want := []console.Alert{
		{Severity: page, Title: "The circuit breaker of all is open: CTR halved", Since: at(50)},
		{Severity: warn, Title: "Training job rounds-1 failed (bug): boom", Since: at(1)},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("alerts (-want +got):\n%s", diff)
	}
	if got := o.since(at(60), controlAlerts(folded(t, trip))); !got[0].Since.Equal(at(50)) {
		t.Errorf("the alert is dated %v, want when it was first seen", got[0].Since)
	}
	other := append(failed, submit("reward-2", "reward"), job(control.JobFinished, "reward-2", control.JobUpdate{}))
	if got := o.since(at(70), controlAlerts(folded(t, other...))); len(got) != 1 {
		t.Errorf("a job of another stage went well, and the alerts are: %v", got)
	}
	healed := append(failed, submit("rounds-2", "rounds"), job(control.JobFinished, "rounds-2", control.JobUpdate{}))
	if got := o.since(at(70), controlAlerts(folded(t, healed...))); len(got) != 0 {
		t.Errorf("a later job went well, and still: %v", got)
	}
	if got := o.since(at(80), controlAlerts(folded(t, trip))); !got[0].Since.Equal(at(80)) {
		t.Errorf("an alert that fires again is dated %v, want now", got[0].Since)
	}
}

func TestBucketsFitThePage(t *testing.T) {
	for _, span := range []time.Duration{0, time.Second, 90 * time.Second, time.Hour, 26 * time.Hour, 40 * 24 * time.Hour,
		3000 * 24 * time.Hour} {
		from := ms(13)
		to := from + span.Milliseconds()
		w := bucket(from, to)
		if n := to/w - from/w + 1; n > maxPoints || n < 1 {
			t.Errorf("%v in buckets of %d ms are %d", span, w, n)
		}
	}
	if w := bucket(ms(0), ms(3600)); w != 60_000 {
		t.Errorf("an hour has buckets of %d ms, want a minute", w)
	}
}

func TestBrief(t *testing.T) {
	for d, want := range map[time.Duration]string{5 * time.Minute: "5m", 2 * time.Hour: "2h", 10 * time.Second: "10s",
		90 * time.Minute: "1h30m", 0: "0s"} {
		if got := brief(d); got != want {
			t.Errorf("brief(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestReasons(t *testing.T) {
	if got := reasons(map[string]float64{"a": 1, "none": 0, "c": 5, "b": 5}); got != "b 5, c 5, a 1" {
		t.Errorf("reasons: %q", got)
	}
}

func TestRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r refreshed[int]
		var mu sync.Mutex
		loads, takes, fail := 0, time.Second, error(nil)
		set := func(d time.Duration, err error) {
			mu.Lock()
			defer mu.Unlock()
			takes, fail = d, err
		}
		load := func(context.Context) (int, error) {
			mu.Lock()
			d := takes
			mu.Unlock()
			time.Sleep(d)
			mu.Lock()
			defer mu.Unlock()
			loads++
			return loads, fail
		}
		get := func(key string) (int, error) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			return r.get(ctx, key, 5*time.Second, 20, load)
		}
		expect := func(what, key string, want int, wantErr error) {
			t.Helper()
			if v, err := get(key); v != want || !errors.Is(err, wantErr) {
				t.Errorf("%s: %d, %v; want %d, %v", what, v, err, want, wantErr)
			}
		}
		expect("the first load is waited for", "a", 1, nil)
		time.Sleep(19 * time.Second)
		expect("it rests 20 times as long as it took", "a", 1, nil)
		time.Sleep(2 * time.Second)
		expect("when it is due, the old value stays meanwhile", "a", 1, nil)
		expect("and one load at a time", "a", 1, nil)
		time.Sleep(2 * time.Second)
		expect("then there is the new one", "a", 2, nil)
		expect("another key does not wait for its turn", "b", 2, nil)
		time.Sleep(2 * time.Second)
		broken := errors.New("no answer")
		set(0, broken)
		expect("the key's value", "b", 3, nil)
		time.Sleep(21 * time.Second)
		_, _ = get("b")
		synctest.Wait()
		expect("a failure keeps the value and says so", "b", 3, broken)
		set(time.Second, nil)
		time.Sleep(time.Hour)
		expect("after a pause it is waited for", "b", 5, nil)
		set(time.Hour, nil)
		time.Sleep(time.Hour)
		expect("but not for ever", "b", 5, nil)
		time.Sleep(2 * time.Hour)
		mu.Lock()
		defer mu.Unlock()
		if loads != 6 {
			t.Errorf("%d loads, want 6", loads)
		}
	})
}

var _ console.Source = (*overview)(nil)

// TestOldFiguresSayThatTheyAreOld: the page is gathered anew each second, its figures are not (review N12).
func TestOldFiguresSayThatTheyAreOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r refreshed[int]
		broken := errors.New("no answer")
		var mu sync.Mutex
		var fail error
		get := func() {
			_, _ = r.get(t.Context(), "", 5*time.Second, 0, func(context.Context) (int, error) {
				mu.Lock()
				defer mu.Unlock()
				return 1, fail
			})
			synctest.Wait()
		}
		if got := r.stale(time.Now(), "x"); got != nil {
			t.Errorf("before anybody asked: %v", got)
		}
		get()
		time.Sleep(5*time.Second + tooOld)
		if got := r.stale(time.Now(), "x"); got != nil {
			t.Errorf("fresh: %v", got)
		}
		mu.Lock()
		fail = broken
		mu.Unlock()
		time.Sleep(5 * time.Minute)
		get()
		want := []console.Stale{{Part: "x", AgeSeconds: (5*time.Minute + 5*time.Second + tooOld).Seconds(), Why: "no answer"}}
		if d := cmp.Diff(want, r.stale(time.Now(), "x")); d != "" {
			t.Error(d)
		}
	})
}

// TestAPartOfABucketIsNoOutage: the last point is left out until all of its time is mature (review N12).
func TestAPartOfABucketIsNoOutage(t *testing.T) {
	var series []console.CTRPoint
	for i := range 4 {
		series = append(series, console.CTRPoint{Time: time.UnixMilli(int64(i) * 60_000)})
	}
	if got := whole(series, 239_000); len(got) != 3 {
		t.Errorf("%d points while the last is open", len(got))
	}
	if got := whole(series, 240_000); len(got) != 4 {
		t.Errorf("%d points when it is whole", len(got))
	}
	if got := whole(series[:2], 0); len(got) != 2 {
		t.Errorf("%d points of two", len(got))
	}
}

func TestCurve(t *testing.T) {
	for progress, want := range map[string]string{
		"arm pcpo chosen -0.05 epoch 1 loss 3.48 seconds 127 stage rounds step 5": "pcpo epoch 1 step 5 loss 3.48",
		"lr 0.003 model ours seconds 73 stage reward validation -0.69":            "ours validation -0.69",
		"stage start": "", "": "", "a loss": "",
	} {
		if got := curve(progress); got != want {
			t.Errorf("curve(%q) = %q, want %q", progress, got, want)
		}
	}
}

func TestStagesOfOtherProcesses(t *testing.T) {
	a := &App{opt: Options{Targets: []Target{Serving, Pairer, Trainer}}, ready: telemetry.NewReadiness()}
	a.ready.Gate(string(Serving)).Healthy()
	a.ready.Gate(string(Pairer)).Unhealthy("starting")
	working := func() console.Stage { return console.Stage{State: console.Running} }
	for target, want := range map[Target]console.StageState{
		Serving: console.Running, Pairer: console.Starting, Trainer: console.Starting, Ingest: console.Stopped,
	} {
		if s := a.stage("x", target, a.up(), working); s.State != want {
			t.Errorf("%s: %+v, want %s", target, s, want)
		}
	}
}

// R6: the page counts a difference where nothing is on its way that could explain it, as the sink's audit does.
func TestAuditOnThePage(t *testing.T) {
	at := time.Unix(6000, 0)
	two := []warehouse.Mismatch{{Minute: at, WantLabels: 5}, {Minute: at.Add(time.Hour), WantLabels: 5}}
	if n, err := differing(two, sink.Left{}, 6060); n != 1 || err != nil {
		t.Errorf("%d, %v, want the one of before", n, err)
	}
	if n, err := differing(two, sink.Left{Audit: 3}, 6060); n != 0 || err == nil || !strings.Contains(err.Error(), "3 rows are on their way") {
		t.Errorf("with rows on their way: %d, %v", n, err)
	}
	if n, err := differing(two, sink.Left{Audit: 3}, 6000); n != 0 || err != nil {
		t.Errorf("nothing of it is old enough: %d, %v", n, err)
	}
}
