package controllog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"ctrloop/internal/controllog/controltest"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/internal/telemetry/telemetrytest"
	"ctrloop/schemas/control"
)

const ttl = 15 * time.Second

// proc is one process of a test: a leases and a claim on the role of the trainer.
type proc struct {
	*Holder
	stop func() // as a clean stop does: the claim first
	kill func() // as kill -9: nothing is released, nothing beats any more
}

// mortal writes nothing once its process is dead.
type mortal struct {
	control.Log
	dead *atomic.Bool
}

func (m mortal) Append(ctx context.Context, e control.Event) (control.Answer, error) {
	if m.dead.Load() {
		return "", errors.New("killed")
	}
	return m.Log.Append(ctx, e)
}

func start(t *testing.T, shared control.Log, pulse Pulse, owner string) *proc {
	t.Helper()
	log := mortal{shared, &atomic.Bool{}}
	k := NewLeases(log, pulse, owner, ttl, zerolog.Nop(), nil)
	h := k.Hold(control.RoleTrainer)
	beat, endBeat := context.WithCancel(t.Context())
	claim, endClaim := context.WithCancel(t.Context())
	beating, claiming := make(chan struct{}), make(chan struct{})
	go func() { defer close(beating); _ = k.Run(beat) }()
	go func() { defer close(claiming); _ = h.Run(claim) }()
	p := &proc{Holder: h}
	p.stop = func() { endClaim(); <-claiming; endBeat(); <-beating }
	p.kill = func() {
		log.dead.Store(true)
		p.stop()
	}
	return p
}

// holders lists which of the processes hold the role now.
func holders(ps map[string]*proc) []string {
	var out []string
	for _, name := range []string{"a", "b"} {
		if p := ps[name]; p != nil && p.Held() != nil {
			out = append(out, name)
		}
	}
	return out
}

func expect(t *testing.T, ps map[string]*proc, want ...string) {
	t.Helper()
	synctest.Wait()
	if diff := cmp.Diff(want, holders(ps)); diff != "" {
		t.Fatalf("holders: %s", diff)
	}
}

func submit(id string) control.Event {
	e, err := control.NewEvent("submit-"+id, control.JobSubmitted, control.JobEntity(id), -1, "test", "", time.Unix(1, 0), job(id))
	if err != nil {
		panic(err)
	}
	return e
}

func TestAStandbyTakesOverAfterAWholeTTLOfSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, pulse := controltest.New(), &controltest.Pulse{}
		ps := map[string]*proc{"a": start(t, log, pulse, "a")}
		expect(t, ps, "a")
		ps["b"] = start(t, log, pulse, "b")
		time.Sleep(20 * ttl)
		expect(t, ps, "a")
		if n := len(log.Applied()); n != 1 {
			t.Fatalf("%d commands while nothing happened, want the one that acquired the lease", n)
		}
		late := ps["a"].Held()
		ps["a"].kill()
		time.Sleep(ttl - time.Second)
		expect(t, ps)
		time.Sleep(ttl) // it looks every third
		expect(t, ps, "b")
		if l := log.State().Leases[control.RoleTrainer]; l.Owner != "b" || l.Epoch != 2 {
			t.Fatalf("lease %+v", l)
		}
		// What the first one still sends is rejected, by itself and by the fold.
		if _, err := late.Append(t.Context(), submit("x")); !errors.Is(err, control.ErrFenced) {
			t.Fatalf("a late command: %v", err)
		}
		e := submit("x")
		e.Role, e.Epoch = control.RoleTrainer, 1
		_, err := log.Append(t.Context(), e)
		if r, ok := control.Rejected(err); !ok || r.Reason != control.Fenced {
			t.Fatalf("a late command at the fold: %v", err)
		}
		if _, err := ps["b"].Held().Append(t.Context(), submit("x")); err != nil {
			t.Fatal(err)
		}
		ps["b"].stop()
	})
}

func TestACleanStopReleasesAtOnceAndAnOldNameComesBackAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, pulse := controltest.New(), &controltest.Pulse{}
		ps := map[string]*proc{"a": start(t, log, pulse, "a")}
		expect(t, ps, "a")
		ps["b"] = start(t, log, pulse, "b")
		expect(t, ps, "a")
		ps["a"].stop()
		expect(t, ps, "b")
		ps["b"].kill()
		ps["b"] = start(t, log, pulse, "b") // the same name: the process before is dead
		expect(t, ps, "b")
		ps["b"].stop()
		if l := log.State().Leases[control.RoleTrainer]; l.Owner != "" || l.Epoch != 4 {
			t.Fatalf("lease %+v", l)
		}
	})
}

// A holder that cannot show that it is alive rests before another one may take over, and never works beside it.
func TestAHolderThatIsCutOffRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, pulse := controltest.New(), &controltest.Pulse{}
		ps := map[string]*proc{"a": start(t, log, pulse, "a")}
		expect(t, ps, "a")
		ps["b"] = start(t, log, pulse, "b")
		working := make(chan string, 100)
		for name, p := range ps {
			go func() {
				_ = p.Lead(t.Context(), func(ctx context.Context, _ control.Log) error {
					working <- "+" + name
					<-ctx.Done()
					working <- "-" + name
					return nil
				})
			}()
		}
		expect(t, ps, "a")
		pulse.Cut("a", errors.New("broker away"))
		time.Sleep(3 * ttl)
		expect(t, ps, "b")
		pulse.Cut("a", nil)
		time.Sleep(3 * ttl)
		expect(t, ps, "b")
		ps["b"].stop()
		expect(t, ps, "a")
		ps["a"].stop()
		synctest.Wait()
		close(working)
		var got []string
		for w := range working {
			got = append(got, w)
		}
		if diff := cmp.Diff([]string{"+a", "-a", "+b", "-b", "+a", "-a"}, got); diff != "" {
			t.Error(diff)
		}
	})
}

// A holder that was cut off for long enough to rest, and whose beats arrive again before its work has returned, works again: nobody
// took the role over, and the work did not end by itself.
func TestAHolderThatRestedForAMomentWorksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, pulse := controltest.New(), &controltest.Pulse{}
		a := start(t, log, pulse, "a")
		defer a.stop()
		ctx, cancel := context.WithCancel(t.Context())
		works, done := 0, make(chan error, 1)
		go func() {
			done <- a.Lead(ctx, func(ctx context.Context, _ control.Log) error {
				works++
				<-ctx.Done()
				time.Sleep(ttl) // until its last step is taken
				return nil
			})
		}()
		synctest.Wait()
		pulse.Cut("a", errors.New("broker away"))
		time.Sleep(ttl)
		pulse.Cut("a", nil)
		time.Sleep(3 * ttl)
		select {
		case err := <-done:
			t.Fatalf("it ended by itself: %v", err)
		default:
		}
		cancel()
		if err := <-done; err != nil || works != 2 {
			t.Errorf("worked %d times, %v", works, err)
		}
	})
}

// Of many that see the same holder fall silent one wins; refused appends and lost answers change nothing of that.
func TestAcquiringSurvivesFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, pulse := controltest.New(), &controltest.Pulse{}
		once := func(what string) func(control.Event) error {
			done := false
			return func(control.Event) error {
				if done {
					return nil
				}
				done = true
				return errors.New(what)
			}
		}
		log.Refuse(once("refused"))
		log.Lose(once("answer lost"))
		a := start(t, log, pulse, "a")
		ps := map[string]*proc{"a": a}
		time.Sleep(2 * ttl)
		expect(t, ps, "a")
		ps["b"] = start(t, log, pulse, "b")
		c, d := start(t, log, pulse, "c"), start(t, log, pulse, "d")
		a.kill()
		time.Sleep(3 * ttl)
		synctest.Wait()
		n := 0
		for _, p := range []*proc{ps["b"], c, d} {
			if p.Held() != nil {
				n++
			}
		}
		if n != 1 || log.State().Leases[control.RoleTrainer].Epoch != 2 {
			t.Errorf("%d of three candidates hold the lease %+v", n, log.State().Leases[control.RoleTrainer])
		}
		for _, p := range []*proc{ps["b"], c, d} {
			p.stop()
		}
	})
}

// A process that does not understand the log any more gives its role back.
func TestWhoIsBehindHoldsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, pulse := controltest.New(), &controltest.Pulse{}
		ps := map[string]*proc{"a": start(t, log, pulse, "a")}
		expect(t, ps, "a")
		e := submit("x")
		e.Type, e.Format = "job.of_another_age", control.Format+1
		if _, err := log.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		expect(t, ps)
		ps["a"].kill()
	})
}

// Holders are killed one after the other, and each next one goes on: every reader comes to the same state, in which each
// command is once, and the epochs rise.
func TestKilledHoldersOnABroker(t *testing.T) {
	b, ctx := streamtest.Start(t, 1), t.Context()
	reader := open(t, b)
	last := int64(0)
	for i := range 4 {
		l, err := Open(ctx, b.Config, Options{TTL: 300 * time.Millisecond}, zerolog.Nop(), nil)
		if err != nil {
			t.Fatal(err)
		}
		h := l.Hold(control.RoleTrainer)
		claim, end := context.WithCancel(ctx)
		claiming := make(chan struct{})
		go func() { defer close(claiming); _ = h.Run(claim) }()
		err = h.Lead(ctx, func(ctx context.Context, log control.Log) error {
			for n := range i + 1 { // what the ones before have submitted is repeated
				want := control.Repeated
				if n == i {
					want = control.Applied
				}
				if got, err := log.Append(ctx, submit(fmt.Sprint("j", n))); err != nil || got != want {
					return fmt.Errorf("command %d of process %d: %q, %w", n, i, got, err)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		l.Close() // first, so that nothing is released: as kill -9
		end()
		<-claiming
		epoch := l.State().Leases[control.RoleTrainer].Epoch
		if epoch <= last {
			t.Errorf("process %d has epoch %d, the one before had %d", i, epoch, last)
		}
		last = epoch
	}
	want := open(t, b).State()
	if err := reader.replica.WaitFor(ctx, want.Offset); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(marshal(t, want), marshal(t, reader.State())); diff != "" || len(want.Jobs) != 4 {
		t.Errorf("%d jobs, two readers: %s", len(want.Jobs), diff)
	}
}

// The same on a broker: liveness is seen by other processes, the log is as long as what was decided.
func TestLeasesOnABroker(t *testing.T) {
	b := streamtest.Start(t, 1)
	ctx := t.Context()
	one, two := open(t, b), open(t, b)
	first, second := one.Hold(control.RoleSwap), two.Hold(control.RoleSwap)
	stop := func(h *Holder) func() {
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { defer close(done); _ = h.Run(ctx) }()
		return func() { cancel(); <-done }
	}
	await := func(h *Holder) {
		t.Helper()
		err := h.Lead(ctx, func(_ context.Context, log control.Log) error {
			_, err := log.Append(ctx, submit("j-"+h.k.owner))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	endFirst := stop(first)
	await(first)
	endSecond := stop(second)
	if n, err := two.beacon.Last(ctx, one.leases.owner); err != nil || n < 0 {
		t.Fatalf("the second process sees %d of the first, %v", n, err)
	}
	endFirst()
	await(second)
	endSecond()
	if l := two.State().Leases[control.RoleSwap]; l.Epoch != 3 || l.Owner != "" {
		t.Errorf("lease %+v", l)
	}
}

// S9: a process whose claim cannot be written, or that nobody can see, leads nothing. It says so; one that stands by is well.
func TestAProcessThatCannotLeadSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared, pulse := controltest.New(), &controltest.Pulse{}
		refused := errors.New("no right to write")
		shared.Refuse(func(control.Event) error { return refused })
		a, b := start(t, shared, pulse, "a"), start(t, shared, pulse, "b")
		gateA, workA := telemetrytest.NewGate(nil)
		gateB, workB := telemetrytest.NewGate(nil)
		a.Reports(workA)
		b.Reports(workB)
		for _, g := range []telemetrytest.Gate{gateA, gateB} {
			if reason := g.Await(t, false); !strings.Contains(reason, refused.Error()) {
				t.Errorf("the reason is %q", reason)
			}
		}
		shared.Refuse(nil)
		gateA.Await(t, true)
		gateB.Await(t, true) // one leads, the other stands by
		ps := map[string]*proc{"a": a, "b": b}
		led := holders(ps)
		if len(led) != 1 {
			t.Fatalf("holders: %v", led)
		}
		gate := map[string]telemetrytest.Gate{"a": gateA, "b": gateB}[led[0]]
		cut := errors.New("cut off")
		pulse.Cut(led[0], cut)
		if reason := gate.Await(t, false); !strings.Contains(reason, cut.Error()) {
			t.Errorf("the reason is %q", reason)
		}
		pulse.Cut(led[0], nil)
		gate.Await(t, true)
		a.stop()
		b.stop()
	})
}
