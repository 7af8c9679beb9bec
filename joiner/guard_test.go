package joiner

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/schemas/eventpb"
)

// memoryLog is a control log in memory.
type memoryLog struct {
	mu     sync.Mutex
	state  *control.State
	events []control.Event
}

func (l *memoryLog) State() *control.State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.Clone()
}

func (l *memoryLog) Changed() <-chan struct{} { return nil }

func (l *memoryLog) Append(_ context.Context, e control.Event) (control.Answer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
	return l.state.Apply(int64(len(l.events)), e)
}

// minuteOf traffic of one department: n impressions, every tenth clicked unless the clicks are lost.
func minuteOf(m, n int, dept string, lost bool) (rs []*stream.Record) {
	for i := range n {
		at := int64(epochMS) + int64(m)*minuteMS + int64(i)*minuteMS/int64(n)
		id := schemas.NewImpressionID(time.UnixMilli(at), [10]byte{byte(m), byte(m >> 8), byte(i), byte(i >> 8), dept[0]})
		rs = append(
			rs,
			&stream.Record{
				Topic:     schemas.TopicImpressions,
				Key:       id[:],
				Timestamp: id.Time(),
				Value:     marshal(&eventpb.Impression{Id: id[:], Category: dept + "/lamps", Schema: 1}),
			},
		)
		if i%10 == 0 && !lost {
			rs = append(
				rs,
				&stream.Record{
					Topic:     schemas.TopicClicks,
					Key:       id[:],
					Timestamp: time.UnixMilli(at + 100),
					Value:     marshal(&eventpb.Click{ImpressionId: id[:], Id: []byte("c"), TimeMs: at + 100, Schema: 1}),
				},
			)
		}
	}
	return rs
}

// TestBreakerEndToEnd: the clicks stop for some minutes. Every label is written all the same; those of that time are
// marked, the control log has it from trip to reset, and a restart in the middle forgets nothing.
func TestBreakerEndToEnd(t *testing.T) {
	b := streamtest.Start(t, 1)
	cfg := testConfig(b)
	cfg.MaxPoll = 5000
	cfg.Breaker.Warm, cfg.Breaker.Hold, cfg.Breaker.Recent = 10*time.Minute, 4*time.Minute, 2*time.Minute
	log := &memoryLog{state: control.NewState()}
	tr := &truth{partitions: 1}
	write := func(from, to int, lost bool) {
		for m := from; m < to; m++ {
			streamtest.Produce(t, b.Config, append(minuteOf(m, 600, "home", lost), tr.punctuation(epochMS+int64(m+1)*minuteMS)...)...)
		}
	}
	begin := func() *instance {
		i := prepare(t, cfg, nil)
		i.Guard(log)
		i.begin(t)
		return i
	}
	wantOpen := func(i *instance, open bool) {
		t.Helper()
		for n := 0; (len(log.State().Breakers) > 0) != open || (len(i.Tripped()) > 0) != open; n++ {
			if n > 2000 {
				t.Fatalf("control log: %v, breaker %+v, want open %v", log.State().Breakers, i.Tripped(), open)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	i := begin()
	write(0, 30, false)
	settle(t, b.Config, i)
	wantOpen(i, false)
	for m := 30; m < 36; m++ {
		write(m, m+1, true)
		settle(t, b.Config, i)
	}
	wantOpen(i, true)
	if r := log.State().Breakers["all"].Reason; !strings.Contains(r, "clicks per impression") && !strings.Contains(r, "stale") {
		t.Errorf("reason %q", r)
	}
	i.close(t)
	i = begin()
	for m := 36; m < 40; m++ {
		write(m, m+1, true)
		settle(t, b.Config, i)
	}
	wantOpen(i, true)
	for m := 40; m < 60; m++ {
		write(m, m+1, false)
		settle(t, b.Config, i)
	}
	wantOpen(i, false)
	l := settle(t, b.Config, i)
	suspect, total := map[bool]int{}, uint64(0)
	for _, rs := range streamtest.Records(t, b.Config, schemas.TopicLabels) {
		for _, r := range rs {
			label := new(eventpb.Label)
			must(t, proto.Unmarshal(r.Value, label))
			suspect[label.Suspect]++
			total++
		}
	}
	if total != l.Total.Positive+l.Total.FinalNegative || l.Total.ImpressionsIn != 60*600 {
		t.Errorf("%d labels, ledger %+v", total, l.Total)
	}
	if suspect[true] < 5*600 || suspect[false] < 40*600 {
		t.Errorf("suspect and not: %v", suspect)
	}
	var got []string
	for _, e := range log.events {
		got = append(got, fmt.Sprint(e.Type, " ", e.Entity))
	}
	if len(got) < 2 || got[0] != "breaker.tripped breaker/all" || !strings.HasPrefix(got[len(got)-1], "breaker.reset") {
		t.Errorf("%v", got)
	}
}

// TestBreakerSwitchedOff: what it had open must not stop the learning for ever. Slices of others are not its own.
func TestBreakerSwitchedOff(t *testing.T) { synctest.Test(t, breakerSwitchedOff) }

func breakerSwitchedOff(t *testing.T) {
	log := &memoryLog{state: control.NewState()}
	for _, name := range []string{"all", "home@another"} {
		e, err := control.NewEvent(
			"trip-"+name,
			control.BreakerTripped,
			control.BreakerEntity(name),
			-1,
			"joiner",
			"",
			time.Now(),
			control.Breaker{Slice: name, Reason: "r"},
		)
		must(t, err)
		_, err = log.Append(t.Context(), e)
		must(t, err)
	}
	cfg := Default()
	cfg.Breaker.Enabled = false
	g := newGuard(cfg, testLog(t))
	g.control = log
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.run(ctx)
	}()
	synctest.Wait() // it goes on to look whether the other instance is gone
	stop()
	<-done
	if b := log.State().Breakers; len(b) != 1 || b["home@another"].Reason == "" {
		t.Errorf("%v", b)
	}
}

// TestBreakerOfSeveralInstances: each has its own slices, and leaves those of others alone.
func TestBreakerOfSeveralInstances(t *testing.T) {
	cfg := Default()
	cfg.TransactionalID = "ctrloop-joiner-7"
	g := newGuard(cfg, testLog(t))
	if n := g.name("home"); n != "home@ctrloop-joiner-7" {
		t.Error(n)
	}
	for name, want := range map[string]bool{"home@ctrloop-joiner-7": true, "home": false, "home@ctrloop-joiner-70": false} {
		if _, mine := g.mine(name); mine != want {
			t.Errorf("%s is mine: %v", name, mine)
		}
	}
}

// S11: a slice of an instance that is gone is closed once it has been silent for an hour; one that lives says so again and again, and one
// that comes back within the hour takes its slice over.
func TestSliceOfAGoneInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &memoryLog{state: control.NewState()}
		tripped := func(name, reason string) {
			e, err := control.NewEvent(name, control.BreakerTripped, control.BreakerEntity(name), -1, "joiner", reason, time.Now(),
				control.Breaker{Slice: name, Reason: reason})
			if err == nil {
				_, err = log.Append(t.Context(), e)
			}
			must(t, err)
		}
		tripped("home@gone", "no clicks")
		tripped("home@lives", "no clicks")
		tripped("home@returns", "no clicks")
		begin := func(id string) (*guard, func()) {
			cfg := Default()
			cfg.TransactionalID = id
			s, err := New(cfg, testLog(t), prometheus.NewRegistry())
			must(t, err)
			s.Guard(log)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); s.guard.run(ctx) }()
			return s.guard, func() { cancel(); <-done }
		}
		open := func() string {
			synctest.Wait()
			return strings.Join(slices.Sorted(maps.Keys(log.State().Breakers)), " ")
		}
		_, end := begin("observer")
		defer end()
		_, endLiving := begin("lives")
		defer endLiving()
		time.Sleep(59 * time.Minute)
		if got := open(); got != "home@gone home@lives home@returns" {
			t.Errorf("before the hour is over: %s", got)
		}
		_, endReturned := begin("returns")
		defer endReturned()
		time.Sleep(3 * time.Hour)
		if got := open(); got != "home@lives home@returns" {
			t.Errorf("three hours later: %s", got)
		}
		why := map[string]string{} // by id: two that see it at once say the same
		for _, e := range log.events {
			if e.Type == control.BreakerReset {
				why[e.ID] = e.Note
			}
		}
		if len(why) != 1 || !strings.Contains(why["breaker-gone-home@gone-0"], "gone; was: no clicks") {
			t.Errorf("resets: %q", why)
		}
		if n := len(log.events); n > 60 {
			t.Errorf("%d commands in four hours", n)
		}
	})
}
