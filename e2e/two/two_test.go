package two

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"ctrloop/internal/setup"
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
joiner:
  {transactional_id: join-INSTANCE, instance_id: join-INSTANCE, window: ` + f.window.String() + `, lateness: ` + f.lateness.String() + `}
sink: {instance_id: sink-INSTANCE, audit_interval: 5s}
pairer:
  {interval: 1s, min_impressions: 10, min_effective_pairs: 1, holdout_fraction: 0, failed_pause: 1s,
   evidence: {transactional_id: evidence-INSTANCE}}
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
	t.Logf("%d processes on %s, up after %.0f s", len(c.nodes), "Apache Kafka "+setup.KafkaVersion, time.Since(began).Seconds())
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
	t.Logf("%s, %s, seed %d: %d rounds in %.0f s, %d kills, %d stops, %d kills of a model server; %s; %s; %s; %d versions, %d experiments",
		f.name, "Apache Kafka "+setup.KafkaVersion, seed, f.rounds, time.Since(began).Seconds(),
		count[kill], count[stop], count[lose], tr, jobs, p,
		len(st.Models), len(st.Experiments))
}

// learned goes on with the traffic until the loop has turned, from a data set to an experiment, and a person promotes its version:
// that every reader has the same champion says more when there has been another.
func (c *cluster) learned(tr *traffic, p *people) {
	c.wait(10*time.Minute, "a version to be tested and promoted", func() string {
		tr.tick()
		asked := c.of("serving")[tr.next%2]
		x := p.running(asked)
		if x.ID == "" {
			return asked.name + " knows of no experiment that runs"
		}
		if p.give(asked, "POST", "/v1/experiments/"+x.ID+"/promote", map[string]any{}) != acknowledged {
			return "the promotion of " + x.ID + " is not acknowledged"
		}
		return ""
	})
}
