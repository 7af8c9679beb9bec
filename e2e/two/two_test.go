package two

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ctrloop/app"
	"ctrloop/internal/stream"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
)

// Environment of `make two`: how many rounds of each form, and the seed of everything that is drawn.
const (
	roundsEnv = "CTRLOOP_TWO_ROUNDS"
	seedEnv   = "CTRLOOP_TWO_SEED"
)

// form is a way to run.
type form struct {
	name     string
	event    bool          // clock event, else the clock on the wall
	rounds   int           // of faults
	span     time.Duration // in which the faults of a round begin
	longest  time.Duration // that a process is stopped
	window   time.Duration // of the join
	lateness time.Duration // of the join: longer than both edges together may be away
	reaction time.Duration // a click comes at most this long after its impression
	work     time.Duration // of a training process
	slots    int           // -1: no new impressions
}

var (
	short = form{name: "clock event, short", event: true, rounds: 2, span: 5 * time.Second, longest: 6 * time.Second,
		window: 30 * time.Minute, lateness: 30 * time.Second, reaction: 10 * time.Minute, work: time.Second}
	event = form{name: "clock event", event: true, span: 10 * time.Second, longest: 20 * time.Second,
		window: 30 * time.Minute, lateness: 30 * time.Second, reaction: 10 * time.Minute, work: 8 * time.Second}
	wall = form{name: "clock wall", span: 10 * time.Second, longest: 20 * time.Second,
		window: time.Minute, lateness: 2 * time.Minute, reaction: 20 * time.Second, work: 8 * time.Second}
)

// config is the configuration of every process but for INSTANCE and what startCluster fills in.
func (f form) config() string {
	clock := "wall"
	if f.event {
		clock = "event"
	}
	return `
kafka: {brokers: ['%s'], retention: -1s}
clickhouse: {dsn: '%s'}
models: {servers: ['%s', '%s'], base: '%s'}
products: '%s'
ingest: {clock: ` + clock + `, instance: ingest-INSTANCE, user_salt: two}
joiner: {transactional_id: joiner-INSTANCE, instance_id: joiner-INSTANCE, window: ` + f.window.String() + `, lateness: ` + f.lateness.String() + `}
sink: {instance_id: sink-INSTANCE, audit_interval: 5s}
pairer: {interval: 1s, min_impressions: 10, min_effective_pairs: 1, holdout_fraction: 0, failed_pause: 1s}
trainer: {interval: 1s, backoff: 1s, stop_grace: 1s, retries: 20}
rollout: {interval: 1s, creatives_per_product: 2, steps: [0.2, 0.5], n_star: 500}
experiment:
  interval: 1s
  settle: 1s
  ramp: {min_units: 20, min_impressions: 20, min_clicks: 3, max_impressions: 1500, guardrails: []}
serving:
  swap: {check_interval: 500ms, quarantine: 1s, drain_timeout: 2s}
  creatives: {size_px: 64, concurrency: 4}
`
}

// TestTwo is the long form with the rounds that `make two` asks for, and a short one else.
func TestTwo(t *testing.T) {
	seed := uint64(time.Now().UnixNano()) % 1_000_000
	if text := os.Getenv(seedEnv); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedEnv, err)
		}
	}
	forms := []form{short}
	if text := os.Getenv(roundsEnv); text != "" {
		rounds, err := strconv.Atoi(text)
		if err != nil || rounds < 1 {
			t.Fatalf("%s=%q: want a number of rounds", roundsEnv, text)
		}
		event.rounds, wall.rounds = rounds, rounds
		forms = []form{event, wall}
	}
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) { run(t, f, seed) })
	}
}

// run is a whole run: rounds of faults under traffic and commands, and the checks.
func run(t *testing.T, f form, seed uint64) {
	t.Logf("seed %d: %s=%d repeats what is drawn", seed, seedEnv, seed)
	began := time.Now()
	c := startCluster(t, f)
	t.Logf("%d processes on %s, up after %.0f s", len(c.nodes), c.broker, time.Since(began).Seconds())
	rng := rand.New(rand.NewPCG(seed, 1))
	tr := newTraffic(c, f, rand.New(rand.NewPCG(seed, 2)))
	p := &people{c: c, rng: rand.New(rand.NewPCG(seed, 3))}
	count := map[kind]int{}
	for round := range f.rounds {
		faults := draw(c, f, rng)
		for _, x := range faults {
			count[x.kind]++
		}
		t.Logf("round %d at %.0f s: %s", round+1, time.Since(began).Seconds(), list(faults))
		over := c.inflict(faults)
		for busy := true; busy; {
			select {
			case <-over:
				busy = false
			case <-time.After(50 * time.Millisecond):
			}
			tr.tick()
			p.perhaps()
		}
		if f.event { // its windows need not be waited for
			tr.rest()
			c.checkLabels(tr)
		}
	}
	c.learned(tr, p)
	tr.rest()
	c.wait(3*time.Minute, "every process to be ready again", c.allReady)
	c.checkLabels(tr)
	st := c.checkControl(p, f.rounds)
	jobs := c.checkJobs(st)
	c.checkWarehouse(tr)
	if said := c.crashes(); said != "" {
		t.Errorf("processes ended by themselves:\n%s", said)
	}
	clicked := 0
	for _, k := range tr.truth {
		if k {
			clicked++
		}
	}
	fates := map[fate]int{}
	for _, x := range p.sent {
		fates[x.fate]++
	}
	t.Logf("%s, %s, seed %d: %d rounds in %.0f s, %d kills, %d stops, %d kills of a model server; %d impressions, %d clicked, %d requests sent "+
		"again, %d impressions without a decision; %s; commands: %d acknowledged, %d refused, %d unknown; %d versions, %d experiments",
		f.name, c.broker, seed, f.rounds, time.Since(began).Seconds(), count[kill], count[stop], count[lose], len(tr.truth), clicked,
		tr.resends, tr.unaided, jobs, fates[acknowledged], fates[refused], fates[unknown], len(st.Models), len(st.Experiments))
}

// kind of a fault.
type kind string

const (
	kill kind = "killed"  // kill -9, and started again
	stop kind = "stopped" // SIGSTOP, and SIGCONT
	lose kind = "lost"    // a model server that comes back empty
)

// fault is something that happens to one process.
type fault struct {
	node *node // nil: a model server
	i    int   // of the model server
	kind kind
	at   time.Duration // from the begin of the round
	last time.Duration // until it is started again, or continued
}

func (x fault) String() string {
	name := fmt.Sprintf("%s %d", servers, x.i)
	if x.node != nil {
		name = x.node.name
	}
	return fmt.Sprintf("%s %s at %.1f s for %.1f s", name, x.kind, x.at.Seconds(), x.last.Seconds())
}

func list(faults []fault) string {
	lines := make([]string, len(faults))
	for i, x := range faults {
		lines[i] = x.String()
	}
	return strings.Join(lines, ", ")
}

// draw decides what happens in a round: to each process something or nothing, to at least one of each role something.
func draw(c *cluster, f form, rng *rand.Rand) []fault {
	span := func(from, to time.Duration) time.Duration { return from + time.Duration(rng.Int64N(int64(to-from))) }
	var out []fault
	for _, role := range roles {
		nodes := c.of(role)
		both, one := rng.IntN(4) == 0, rng.IntN(2)
		for i, n := range nodes {
			if !both && i != one {
				continue
			}
			x := fault{node: n, kind: kill, at: span(0, f.span), last: span(0, 3*time.Second)}
			if rng.IntN(2) == 0 {
				x.kind, x.last = stop, span(time.Second, f.longest)
				if f.longest > 10*time.Second && rng.IntN(4) == 0 {
					x.last += 20 * time.Second // beyond a lease of 15 s, and perhaps a session of 30 s
				}
			}
			out = append(out, x)
		}
	}
	if rng.IntN(2) == 0 {
		out = append(out, fault{i: rng.IntN(2), kind: lose, at: span(0, f.span), last: span(0, 3*time.Second)})
	}
	slices.SortFunc(out, func(a, b fault) int { return cmp.Compare(a.at, b.at) })
	return out
}

// inflict lets the faults happen; the channel is closed when all are over.
func (c *cluster) inflict(faults []fault) <-chan struct{} {
	over := make(chan struct{})
	var all sync.WaitGroup
	for _, x := range faults {
		all.Go(func() {
			<-time.After(x.at)
			switch x.kind {
			case kill:
				x.node.kill(x.last)
				<-time.After(x.last)
			case stop:
				x.node.signal(syscall.SIGSTOP)
				<-time.After(x.last)
				x.node.signal(syscall.SIGCONT)
			case lose:
				c.models[x.i].Kill()
				<-time.After(x.last)
				if err := c.models[x.i].Restart(); err != nil {
					c.t.Errorf("%v: %v", x, err)
				}
			}
		})
	}
	go func() {
		all.Wait()
		close(over)
	}()
	return over
}

// learned goes on with the traffic until the loop has turned at least once: a data set, its jobs, a version, an experiment.
func (c *cluster) learned(tr *traffic, p *people) {
	c.wait(5*time.Minute, "the loop to have turned once", func() string {
		tr.tick()
		if p.running(c.of("serving")[tr.next%2]).ID != "" {
			return ""
		}
		st, _ := c.readControl()
		if len(st.Experiments) == 0 {
			return fmt.Sprintf("%d data sets, %d jobs, %d models, no experiment", len(st.Datasets), len(st.Jobs), len(st.Models))
		}
		return ""
	})
}

// checkLabels waits until there are as many labels as there were impressions, and holds every one against the truth.
func (c *cluster) checkLabels(tr *traffic) {
	c.t.Helper()
	ctx := c.t.Context()
	c.wait(5*time.Minute, "every label", func() string {
		var rows uint64
		if err := c.db.QueryRow(ctx, "SELECT count() FROM labels").Scan(&rows); err != nil {
			return err.Error()
		}
		if rows < uint64(len(tr.truth)) {
			return fmt.Sprintf("%d of %d", rows, len(tr.truth))
		}
		return ""
	})
	var labels []struct {
		ID      string `ch:"id"`
		Clicked uint8  `ch:"clicked"`
		Version uint32 `ch:"version"`
		Kind    string `ch:"kind"`
	}
	if err := c.db.Select(ctx, &labels, "SELECT toString(impression_id) AS id, clicked, version, toString(kind) AS kind FROM labels"); err != nil {
		c.t.Fatal(err)
	}
	seen := map[string]bool{}
	wrong := map[string]int{}
	for _, l := range labels {
		clicked, known := tr.truth[l.ID]
		switch {
		case !known:
			wrong["of an impression that nobody sent"]++
		case seen[l.ID]:
			wrong["second of its impression"]++
		case (l.Clicked == 1) != clicked:
			wrong[fmt.Sprintf("clicked %d, and the truth is %v", l.Clicked, clicked)]++
		case l.Version != 1 || l.Kind != map[bool]string{true: "positive", false: "final_negative"}[clicked]:
			wrong[fmt.Sprintf("%s of version %d, clicked: %v", l.Kind, l.Version, clicked)]++
		}
		seen[l.ID] = true
	}
	if len(seen) != len(tr.truth) {
		wrong["missing"] = len(tr.truth) - len(seen)
	}
	if len(wrong) > 0 {
		c.t.Fatalf("labels of %d impressions: %v", len(tr.truth), wrong)
	}
}

// checkWarehouse: nothing was late but what its sender had sent before, nothing was refused, and the audit agrees.
func (c *cluster) checkWarehouse(tr *traffic) {
	c.t.Helper()
	ctx := c.t.Context()
	var late []struct {
		ID     string `ch:"id"`
		Reason string `ch:"reason"`
	}
	if err := c.db.Select(ctx, &late, "SELECT toString(impression_id) AS id, reason FROM late FINAL"); err != nil {
		c.t.Fatal(err)
	}
	again := 0
	for _, l := range late {
		if tr.resent[l.ID] {
			again++ // its first sending came to life with the edge that had been stopped over it
			continue
		}
		c.t.Errorf("%s of %s, and the stream alone was slow", l.Reason, l.ID)
	}
	if again > 0 {
		c.t.Logf("%d events were late, all of them second copies", again)
	}
	var dead uint64
	if err := c.db.QueryRow(ctx, "SELECT count() FROM dead_letters").Scan(&dead); err != nil || dead > 0 {
		c.t.Errorf("%d dead letters, %v", dead, err)
	}
	c.wait(2*time.Minute, "the audit to agree", func() string {
		differ, err := c.db.Audit(ctx, time.Time{})
		if err != nil {
			return err.Error()
		}
		if len(differ) > 0 {
			return fmt.Sprintf("%+v", differ)
		}
		return ""
	})
}

// record is a command of the log and what has become of it.
type record struct {
	control.Event
	answer   control.Answer
	err      error
	champion string // behind it
}

// readControl folds the control log from its start.
func (c *cluster) readControl() (*control.State, []record) {
	c.t.Helper()
	st := control.NewState()
	var all []record
	fold := func(r *stream.Record) error {
		var e control.Event
		if err := json.Unmarshal(r.Value, &e); err != nil {
			c.t.Errorf("offset %d of the control log: %v", r.Offset, err)
			return nil
		}
		answer, err := st.Apply(r.Offset, e)
		all = append(all, record{e, answer, err, st.Routes[logical].Champion})
		return nil
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	r, err := stream.OpenReplica(ctx, c.kafka, schemas.TopicControl, -1, fold, func(error) {})
	if err != nil {
		c.t.Fatal(err)
	}
	r.Close()
	return st, all
}

// checkControl: every process has the same state, every serving process the same champion, and every command of a person
// was applied once if it was acknowledged, never if it was refused, and at most once if its answer was lost.
func (c *cluster) checkControl(p *people, rounds int) *control.State {
	c.t.Helper()
	var st *control.State
	var all []record
	c.wait(3*time.Minute, "every reader to see the same", func() string {
		st, all = c.readControl()
		want, err := app.NewControlView(st)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, n := range c.nodes {
			if n.role == "ingest" {
				continue // reads no control log
			}
			var got app.ControlView
			if err := n.get("admin", app.ControlPath, &got); err != nil {
				return n.name + ": " + err.Error()
			}
			if got.Offset != want.Offset || got.Digest != want.Digest || got.Problem != "" {
				return fmt.Sprintf("%s is at %d with %.8s %s, the log at %d with %.8s", n.name, got.Offset, got.Digest, got.Problem,
					want.Offset, want.Digest)
			}
		}
		for _, n := range c.of("serving") {
			var list struct {
				Data []struct{ ID, Version string }
			}
			if err := n.get("api", "/v1/models", &list); err != nil {
				return n.name + ": " + err.Error()
			}
			if len(list.Data) == 0 || list.Data[0].Version != st.Routes[logical].Champion {
				return fmt.Sprintf("%s routes to %+v, the champion is %s", n.name, list.Data, st.Routes[logical].Champion)
			}
		}
		return ""
	})
	applied, ids, fenced := map[string]int{}, map[string]int{}, 0
	champions, last := 0, ""
	for _, r := range all {
		if r.champion != last {
			champions, last = champions+1, r.champion
		}
		if r.answer == control.Applied {
			ids[r.ID]++
			applied[r.Note]++
		}
		if rejection, ok := control.Rejected(r.err); ok && rejection.Reason == control.Fenced {
			fenced++
		}
	}
	for id, n := range ids {
		if n != 1 {
			c.t.Errorf("command %s was applied %d times", id, n)
		}
	}
	for _, x := range p.sent {
		n := applied[x.note]
		if n > 1 || x.fate == acknowledged && n != 1 || x.fate == refused && n != 0 {
			c.t.Errorf("%s (%q), %s: applied %d times", x.what, x.note, x.fate, n)
		}
	}
	terms, changes := map[control.Role]int64{}, int64(0)
	for role, l := range st.Leases {
		terms[role] = l.Epoch
		changes += l.Epoch - 1
	}
	c.t.Logf("%d commands on the control log, %d of a former holder rejected by the fold; champions one after another: %d; newest epochs: %v",
		len(all), fenced, champions, terms)
	if rounds >= enough && (champions < 2 || changes == 0) {
		c.t.Errorf("%d champions and %d changes of leaders in %d rounds: nothing was tested", champions, changes, rounds)
	}
	return st
}

// enough are the rounds after which every kind of thing has happened.
const enough = 10

// logical is the model that everything is about.
const logical = "prompt"

// checkJobs: every attempt of a job was started by one training process at most, every job has ended at most once, and
// made one version at most.
func (c *cluster) checkJobs(st *control.State) string {
	c.t.Helper()
	_, all := c.readControl()
	type history struct{ started, finished, ran int }
	jobs := map[string]*history{}
	of := func(id string) *history {
		if jobs[id] == nil {
			jobs[id] = &history{}
		}
		return jobs[id]
	}
	for _, r := range all {
		if r.answer != control.Applied {
			continue
		}
		id := strings.TrimPrefix(r.Entity, control.JobEntity(""))
		switch r.Type {
		case control.JobStarted:
			h := of(id)
			var u control.JobUpdate
			if err := json.Unmarshal(r.Data, &u); err != nil || u.Attempt != h.started+1 || h.finished > 0 {
				c.t.Errorf("job %s: attempt %d is started, after %d attempts and %d ends: %v", id, u.Attempt, h.started, h.finished, err)
			}
			h.started++
		case control.JobFinished:
			of(id).finished++
		default: // of something else
		}
	}
	ended := 0
	for _, e := range journal(c.t, c.journal) {
		if e.Event == "started" {
			of(e.Job).ran++
		} else {
			ended++
		}
	}
	made := map[string]int{}
	for _, m := range st.Models {
		made[m.Job]++
	}
	var total history
	for _, id := range slices.Sorted(maps.Keys(jobs)) {
		h := jobs[id]
		if h.ran > h.started || h.finished > 1 || made[id] > 1 {
			c.t.Errorf("job %s: %d attempts on the log, %d training processes, %d ends, %d versions", id, h.started, h.ran, h.finished, made[id])
		}
		total.started, total.finished, total.ran = total.started+h.started, total.finished+h.finished, total.ran+h.ran
	}
	return fmt.Sprintf("%d jobs, %d attempts, %d training processes, %d came to their end, %d ends are on the log", len(jobs), total.started,
		total.ran, ended, total.finished)
}
