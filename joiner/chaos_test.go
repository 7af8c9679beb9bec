package joiner

import (
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ctrloop/internal/broker/brokertest"
	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

// How a chaos run is told what to do; `make chaos-join` sets them.
const (
	chaosEventsEnv = "CTRLOOP_CHAOS_EVENTS" // how many, at least
	chaosSeedEnv   = "CTRLOOP_CHAOS_SEED"   // of everything that is drawn
	chaosRoundEnv  = "CTRLOOP_CHAOS_ROUND"  // the only round to run
)

func envInt(t *testing.T, name string, otherwise int64) int64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestChaos runs rounds of a drawn history under drawn faults, each against the oracle: the broker, a process of its
// own, is killed with SIGKILL; instances crash at any step of a transaction or of a rebuild, stop in order, come, go,
// and start with ids that another one has; answers to commits are lost; poison comes in between. What is drawn
// comes from the seed alone; what meets what depends on the machine.
func TestChaos(t *testing.T) {
	events, seed := envInt(t, chaosEventsEnv, 15_000), envInt(t, chaosSeedEnv, time.Now().UnixNano()%1_000_000)
	perRound := min(events, 150_000)
	only := envInt(t, chaosRoundEnv, -1)
	t.Logf("seed %d, %d events at least, %d a round", seed, events, perRound)
	total := 0
	for round := max(only, 0); int64(total) < events; round++ {
		began := time.Now()
		c := newChaos(t, uint64(seed), uint64(round), int(perRound))
		n := c.run()
		total += n
		t.Logf("round %d: %d events, %d partitions, %v in %s, %d crashes, %d answers lost; %d events so far",
			round, n, c.tr.partitions, c.did, time.Since(began).Round(time.Millisecond), c.crashes.Load(), c.cuts.Load(), total)
		if t.Failed() {
			t.Fatalf("to run it again: %s=%d %s=%d %s=%d", chaosSeedEnv, seed, chaosRoundEnv, round, chaosEventsEnv, events)
		}
		if only >= 0 {
			break
		}
	}
}

// chaos is one round.
type chaos struct {
	t       *testing.T
	r       *rand.Rand // of the schedule; only the test's goroutine uses it
	broker  *brokertest.Broker
	cfg     Config
	tr      *truth
	members map[string]*instance
	did     map[string]int
	calm    atomic.Bool // no more faults
	crashes atomic.Int64
	cuts    atomic.Int64
}

func newChaos(t *testing.T, seed, round uint64, events int) *chaos {
	t.Helper()
	c := &chaos{t: t, r: rand.New(rand.NewPCG(seed, round)), members: map[string]*instance{}, did: map[string]int{}}
	r := c.r
	partitions := 1 + r.Int32N(7)
	c.broker = brokertest.Start(t, t.TempDir())
	kafka := c.broker.Config()
	if err := stream.EnsureTopics(t.Context(), kafka, schemas.Topics(), partitions, -1); err != nil {
		t.Fatal(err)
	}
	c.cfg = testConfig(&streamtest.Broker{Config: kafka})
	c.cfg.MaxPoll = []int{100, 500, 2000, 10_000}[r.IntN(4)] * max(1, events/50_000)
	c.cfg.MaxLead = []time.Duration{10 * time.Second, 5 * time.Minute}[r.IntN(2)]
	c.cfg.Workers = r.IntN(3)
	if r.IntN(2) == 0 {
		c.cfg.Segments = Segments{Dir: "set", Interval: time.Duration(1+r.IntN(200)) * time.Millisecond}
		c.cfg.MemoryLimit = r.Int64N(2)
	}
	if r.IntN(2) == 0 {
		c.cfg.Kafka.Dial = losingAnswers(&c.cuts, 1+r.Int64N(6))
	}
	n := events * 5 / 8 // impressions: with repeats and clicks, about `events`
	c.tr = newTruth(r.Uint64(), c.cfg, partitions, n, time.Duration(5+r.IntN(20))*time.Minute)
	return c
}

// fault is what breaks one instance.
func (c *chaos) fault(seed uint64) func(step) error {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, 3))
	perRecord := len(c.tr.imps) / 4
	return func(s step) error {
		if c.calm.Load() {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		odds := 12
		if s == stepProducing || s == stepRebuild {
			odds = perRecord
		}
		if r.IntN(odds) == 0 {
			c.crashes.Add(1)
			return errCrash
		}
		return nil
	}
}

// start starts an instance under a name; another one may have its ids.
func (c *chaos) start(name, transactionalID string) {
	cfg := c.cfg
	cfg.TransactionalID = transactionalID
	if cfg.Segments.Dir != "" {
		cfg.Segments.Dir = c.t.TempDir()
	}
	c.members[name] = start(c.t, cfg, c.fault(c.r.Uint64()))
}

func (c *chaos) stop(name string) {
	c.members[name].close(c.t)
	delete(c.members, name)
}

// acts are what a round draws from; each says whether it could be done.
var acts = []struct {
	name string
	do   func(*chaos) bool
}{
	{"nothing", func(*chaos) bool { return true }},
	{"kill the broker", func(c *chaos) bool {
		brokertest.Crash(c.t, c.broker)
		return true
	}},
	{"kill the broker twice", func(c *chaos) bool {
		brokertest.Crash(c.t, c.broker)
		brokertest.Crash(c.t, c.broker)
		return true
	}},
	{"restart the first", func(c *chaos) bool {
		c.stop("first")
		c.start("first", "chaos-1")
		return true
	}},
	{"a second comes", func(c *chaos) bool {
		if c.members["second"] != nil {
			return false
		}
		c.start("second", "chaos-2")
		return true
	}},
	{"the second goes", func(c *chaos) bool {
		if c.members["second"] == nil {
			return false
		}
		c.stop("second")
		return true
	}},
	{"a twin of the first comes and goes", func(c *chaos) bool {
		c.start("twin", "chaos-1")
		c.await("twin")
		c.stop("twin")
		return true
	}},
	{"poison", func(c *chaos) bool {
		quiet := c.cfg.Kafka
		quiet.Dial = nil
		streamtest.Produce(c.t, quiet, c.tr.poisons()...)
		return true
	}},
}

// await waits until an instance has partitions, or a little while.
func (c *chaos) await(name string) {
	for range 100 {
		if len(c.members[name].Ledger().Partitions) > 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// work lets the instances get somewhere, or gives them a little while.
func (c *chaos) work() {
	done := func() (n uint64) {
		for _, i := range c.members {
			l := i.Ledger().Total
			n += l.ImpressionsIn + l.ClicksIn
		}
		return n
	}
	was, moves := done(), c.r.IntN(4)
	for range 200 {
		if n := done(); n != was {
			if was, moves = n, moves-1; moves < 0 {
				return
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// run writes the history slice by slice, with an act after each, and returns the number of events.
func (c *chaos) run() int {
	c.t.Helper()
	c.start("first", "chaos-1")
	const slices = 8
	quiet := c.cfg.Kafka // the test's own clients lose nothing
	quiet.Dial = nil
	for k := range slices {
		ni, nc := len(c.tr.imps), len(c.tr.clks)
		streamtest.Produce(c.t, quiet, c.tr.imps[k*ni/slices:(k+1)*ni/slices]...)
		streamtest.Produce(c.t, quiet, c.tr.clks[k*nc/slices:(k+1)*nc/slices]...)
		c.work()
		for {
			if act := acts[c.r.IntN(len(acts))]; act.do(c) {
				c.did[act.name]++
				break
			}
		}
	}
	streamtest.Produce(c.t, quiet, c.tr.punctuation(c.tr.endMS)...)
	c.calm.Store(true)
	var left []*instance
	for _, i := range c.members {
		left = append(left, i)
	}
	c.tr.verify(c.t, quiet, settleWithin(c.t, quiet, 3*time.Minute, left...))
	for name := range c.members {
		c.stop(name)
	}
	c.broker.Stop()
	return len(c.tr.imps) + len(c.tr.clks)
}
