package overview

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving"
	"ctrloop/serving/console"
	"ctrloop/serving/gateway"
	"ctrloop/serving/swap"
)

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
	look := func(p Pairing) console.Stage { return pairStage(p, 10*time.Second, counted{}, ms(600), at(1000)) }
	s := look(Pairing{At: at(995), ToMS: ms(480), Reason: "skip: too few"})
	if s.State != console.Running || s.LagSeconds == nil || *s.LagSeconds != 120 || s.Detail != "too few" {
		t.Errorf("gathering evidence: %+v", s)
	}
	if s := look(Pairing{At: at(995), Reason: "skip: busy"}); s.State != console.Idle || s.LagSeconds != nil {
		t.Errorf("busy elsewhere: %+v", s)
	}
	if s := look(Pairing{At: at(100), ToMS: ms(1)}); s.State != console.Degraded || !strings.Contains(s.Detail, "15m") {
		t.Errorf("stuck: %+v", s)
	}
	if s := look(Pairing{Reason: "no look yet"}); s.State != console.Idle || s.Detail != "no look yet" {
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

func TestBrief(t *testing.T) {
	for d, want := range map[time.Duration]string{5 * time.Minute: "5m", 2 * time.Hour: "2h", 10 * time.Second: "10s",
		90 * time.Minute: "1h30m", 0: "0s"} {
		if got := brief(d); got != want {
			t.Errorf("brief(%v) = %q, want %q", d, got, want)
		}
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

func TestJoinOfThePage(t *testing.T) {
	j := Join{Partitions: []Partition{{WatermarkMS: ms(30), NewestMS: ms(45)}, {Number: 1, WatermarkMS: ms(20)}, {Number: 2}}}
	if j.newestMS() != ms(45) || j.watermarkMS() != ms(20) {
		t.Errorf("newest event %d, watermark %d; want %d and %d", j.newestMS(), j.watermarkMS(), ms(45), ms(20))
	}
	if p := j.problem(4); p != "" {
		t.Errorf("problem %q where there is none", p)
	}
	j.Partitions[1].Problem = "1 in, 2 out"
	if p := j.problem(4); p != "partition 1: 1 in, 2 out" {
		t.Errorf("problem %q", p)
	}
	if p := (Join{}).problem(4); !strings.Contains(p, "of 4") {
		t.Errorf("without partitions the problem is %q", p)
	}
}

func TestStagesOfOtherProcesses(t *testing.T) {
	o := New(Parts{Presence: func(p Part) Presence {
		return map[Part]Presence{Serving: Up, Pairer: Starting, Trainer: Starting}[p]
	}})
	working := func() console.Stage { return console.Stage{State: console.Running} }
	for part, want := range map[Part]console.StageState{
		Serving: console.Running, Pairer: console.Starting, Trainer: console.Starting, Ingest: console.Stopped,
	} {
		if s := o.stage("x", part, working); s.State != want {
			t.Errorf("%s: %+v, want %s", part, s, want)
		}
	}
}

// What is not in the process is not asked, and shown as stopped.
func TestPageOfAProcessWithoutParts(t *testing.T) {
	o := New(Parts{
		Presence: func(Part) Presence { return Elsewhere },
		Control:  control.NewState, Creatives: func() []schemas.Creative { return nil }, Counters: prometheus.NewRegistry(),
		Started: t0, Instance: console.Instance{Name: "x"},
	})
	got, err := o.Overview(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.Instance.Name != "x" || got.Instance.UptimeSeconds <= 0 || len(got.Stages) != 5 || len(got.Alerts) != 0 {
		t.Errorf("%+v", got)
	}
	for _, s := range got.Stages {
		if s.State != console.Stopped {
			t.Errorf("%s is %s, want stopped", s.Name, s.State)
		}
	}
}
