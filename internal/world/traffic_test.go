package world

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"ctrloop/internal/catalogue"
	"ctrloop/schemas"
)

// twoArms shows one of two creatives of a product, by user.
type twoArms struct{ skip bool }

func (d twoArms) Decide(_ context.Context, visits []Visit) ([]Decision, error) {
	out := make([]Decision, len(visits))
	for i, v := range visits {
		if d.skip && v.User%5 == 0 {
			continue
		}
		arm := []string{"control", "treatment"}[mix64(v.User)&1]
		out[i] = Decision{Creative: v.Product + "/" + arm, Experiment: "e1", Variant: arm, ModelVersion: "m1", Policy: "p1", Propensity: 0.5}
	}
	return out, nil
}

// armCTR makes the treatment a quarter better.
func armCTR(creative string) float64 {
	if strings.HasSuffix(creative, "treatment") {
		return 0.05
	}
	return 0.04
}

// recorder keeps what was sent and the lines to compare runs by.
type recorder struct {
	batches [][]Event
	failAt  int // number of the Send that fails, 0: none
	sends   int
}

var errSend = errors.New("broker away")

func (r *recorder) Send(_ context.Context, b []Event) error {
	r.sends++
	r.batches = append(r.batches, b)
	if r.sends == r.failAt {
		return errSend
	}
	return nil
}

func (r *recorder) events() (out []Event) {
	for _, b := range r.batches {
		out = append(out, b...)
	}
	return out
}

// wire is the exact bytes of a batch.
func wire(b []Event) string {
	h := sha256.New()
	for _, e := range b {
		var raw []byte
		var err error
		if e.Click != nil {
			raw, err = proto.MarshalOptions{Deterministic: true}.Marshal(e.Click)
		} else {
			raw, err = proto.MarshalOptions{Deterministic: true}.Marshal(e.Impression)
		}
		if err != nil {
			panic(err)
		}
		_, _ = fmt.Fprintf(h, "%v %d %x\n", e.Click != nil, e.TimeMS, raw)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func smallTraffic(seed uint64) TrafficConfig {
	c := DefaultTraffic(seed)
	c.Users, c.BatchVisits, c.Window = 2000, 200, 5*time.Minute
	return c
}

func open(t testing.TB, cfg TrafficConfig, s Sender, dir string) *Traffic {
	t.Helper()
	tr, err := Open(cfg, catalogue.Embedded(), twoArms{}, s, armCTR, dir)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestTrafficIsDeterministic(t *testing.T) {
	var runs [3]string
	for i, seed := range []uint64{1, 1, 2} {
		r := new(recorder)
		tr := open(t, smallTraffic(seed), r, "")
		if err := tr.Run(t.Context(), Until{Impressions: 5000}); err != nil {
			t.Fatal(err)
		}
		if err := tr.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		runs[i] = wire(r.events())
	}
	if runs[0] != runs[1] {
		t.Error("two runs of one seed differ")
	}
	if runs[0] == runs[2] {
		t.Error("two seeds give the same traffic")
	}
}

func TestRatesAreAsStated(t *testing.T) {
	r := new(recorder)
	cfg := DefaultTraffic(7)
	tr := open(t, cfg, r, "")
	const n = 200_000
	if err := tr.Run(t.Context(), Until{Impressions: n}); err != nil {
		t.Fatal(err)
	}
	if err := tr.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	imps, dups, impLate, clkLate := map[string]bool{}, 0, 0, 0
	var clicks, orphans, beyond, bots, repeats int
	clickedIDs := map[string]bool{}
	var maxTime int64
	perArm := map[string]*[2]float64{"control": {}, "treatment": {}}
	variant := map[string]string{}
	for _, e := range r.events() {
		if maxTime-e.TimeMS >= cfg.MaxDisorder.Milliseconds() {
			t.Fatalf("an event is %d ms out of order", maxTime-e.TimeMS)
		}
		if e.Impression != nil {
			if e.TimeMS < maxTime {
				impLate++
			}
			id := string(e.Impression.Id)
			if imps[id] {
				dups++
			} else if imps[id] = true; !e.Impression.Bot {
				perArm[e.Impression.Variant][0]++
				variant[id] = e.Impression.Variant
			}
			if e.Impression.Bot {
				bots++
			}
		}
		maxTime = max(maxTime, e.TimeMS)
	}
	maxTime = 0
	for _, e := range r.events() {
		if e.Click != nil {
			id := schemas.ImpressionID(e.Click.ImpressionId)
			if e.TimeMS < maxTime {
				clkLate++
			}
			clicks++
			switch late := e.TimeMS-id.UnixMilli() > cfg.Window.Milliseconds(); {
			case !imps[string(id[:])]:
				orphans++
			case late:
				beyond++
			case clickedIDs[string(id[:])]:
				repeats++
			default:
				clickedIDs[string(id[:])] = true
				if v, ok := variant[string(id[:])]; ok {
					perArm[v][1]++
				}
			}
		}
		maxTime = max(maxTime, e.TimeMS)
	}
	near := func(what string, got, want, n float64) {
		t.Helper()
		if sd := math.Sqrt(want * (1 - want) / n); math.Abs(got-want) > 4.5*sd {
			t.Errorf("%s: %.5f, want %.5f (standard error %.5f)", what, got, want, sd)
		}
	}
	if len(imps) != n {
		t.Errorf("%d impressions, want %d", len(imps), n)
	}
	real := float64(clicks - orphans - repeats)
	near("duplicates", float64(dups)/n, cfg.DuplicateShare, n)
	near("bots", float64(bots)/n, cfg.BotShare*(1+cfg.DuplicateShare), n)
	near("orphan clicks", float64(orphans)/real, cfg.OrphanShare, real)
	near("late clicks", float64(beyond)/real, cfg.LateShare, real)
	near("repeated clicks", float64(repeats)/real, cfg.RepeatShare, real)
	// A duplicate is sent after its original, so it counts as out of order too.
	near("impressions out of order", float64(impLate)/n, cfg.DisorderShare+cfg.DuplicateShare, n)
	near("clicks out of order", float64(clkLate)/float64(clicks), cfg.DisorderShare, float64(clicks))
	c, tr2 := perArm["control"], perArm["treatment"]
	lift := tr2[1] / tr2[0] / (c[1] / c[0])
	t.Logf("clicks %d, control CTR %.4f, treatment %.4f, lift %.3f", clicks, c[1]/c[0], tr2[1]/tr2[0], lift)
	if lift < 1.14 || lift > 1.37 {
		t.Errorf("lift %.3f, want about 1.25", lift)
	}
	if ctr := c[1] / c[0]; ctr < 0.030 || ctr > 0.041 {
		t.Errorf("control CTR %.4f: biases must average out around 0.04, fatigue takes a little", ctr)
	}
	s := tr.Stats()
	if s.Impressions != n || s.Pending != 0 || s.Duplicates != int64(dups) || s.Orphans != int64(orphans) || s.Late != int64(beyond) ||
		s.Sent != int64(len(r.events())) {
		t.Errorf("stats %+v do not agree with the events", s)
	}
}

func TestRunEndsAtAnEventTime(t *testing.T) {
	r := new(recorder)
	cfg := smallTraffic(3)
	tr := open(t, cfg, r, "")
	end := cfg.StartMS + 60_000
	if err := tr.Run(t.Context(), Until{TimeMS: end}); err != nil {
		t.Fatal(err)
	}
	n := float64(tr.Stats().Impressions)
	want := 60 * cfg.RatePerSecond * (1 + cfg.DayCurve*math.Cos(2*math.Pi*(8.0-20)/24))
	if math.Abs(n-want) > 5*math.Sqrt(want) {
		t.Errorf("%v impressions in a minute at 08:00, want about %.0f", n, want)
	}
	for _, e := range r.events() {
		if e.TimeMS >= end {
			t.Fatalf("an event at %d, after the end %d", e.TimeMS, end)
		}
	}
}

func TestFailedDecisionChangesNothing(t *testing.T) {
	plain, faulty := new(recorder), new(recorder)
	a := open(t, smallTraffic(5), plain, "")
	if err := a.Run(t.Context(), Until{Impressions: 1000}); err != nil {
		t.Fatal(err)
	}
	d := &failing{n: 3}
	b, err := Open(smallTraffic(5), catalogue.Embedded(), d, faulty, armCTR, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Run(t.Context(), Until{Impressions: 1000}); err == nil {
		t.Fatal("the decider's error is lost")
	}
	if err := b.Run(t.Context(), Until{Impressions: 1000}); err != nil {
		t.Fatal(err)
	}
	if wire(plain.events()) != wire(faulty.events()) {
		t.Error("a failed decision changed the traffic")
	}
}

type failing struct{ n int }

func (f *failing) Decide(ctx context.Context, v []Visit) ([]Decision, error) {
	if f.n--; f.n == 0 {
		return nil, errors.New("no answer")
	}
	return twoArms{}.Decide(ctx, v)
}

func TestBadDecisionsAreRefused(t *testing.T) {
	for name, f := range map[string]func([]Decision) []Decision{
		"too few":          func(d []Decision) []Decision { return d[1:] },
		"unknown creative": func(d []Decision) []Decision { d[3].Creative = "?"; return d },
		"foreign time": func(d []Decision) []Decision {
			d[2].ImpressionID = schemas.NewImpressionID(time.UnixMilli(1), [10]byte{})
			return d
		},
	} {
		tr, err := Open(smallTraffic(5), catalogue.Embedded(), altered(f), new(recorder), func(c string) float64 {
			if c == "?" {
				return 0
			}
			return 0.04
		}, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := tr.Run(t.Context(), Until{Impressions: 100}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

type altered func([]Decision) []Decision

func (f altered) Decide(ctx context.Context, v []Visit) ([]Decision, error) {
	d, err := twoArms{}.Decide(ctx, v)
	return f(d), err
}

func TestSkippedVisitsLeaveNoTrace(t *testing.T) {
	r := new(recorder)
	tr, err := Open(smallTraffic(5), catalogue.Embedded(), twoArms{skip: true}, r, armCTR, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.Run(t.Context(), Until{Impressions: 500}); err != nil {
		t.Fatal(err)
	}
	for _, e := range r.events() {
		if e.Impression != nil && e.Impression.User%5 == 0 {
			t.Fatal("a visit without a creative became an impression")
		}
	}
	if s := tr.Stats(); s.Visits <= s.Impressions {
		t.Errorf("%d visits, %d impressions", s.Visits, s.Impressions)
	}
}

// withoutCrash is the run that all crashes must reproduce.
func withoutCrash(t *testing.T, cfg TrafficConfig, n int64) []string {
	r := new(recorder)
	tr := open(t, cfg, r, t.TempDir())
	if err := tr.Run(t.Context(), Until{Impressions: n}); err != nil {
		t.Fatal(err)
	}
	if err := tr.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, b := range r.batches {
		out = append(out, wire(b))
	}
	return out
}

// The generator is abandoned (never closed) at every kind of place, the file's tail is torn, and the next
// one goes on: what arrives is the run without a crash, batch for batch, with a repetition at most where
// a batch had arrived but was not acknowledged.
func TestCrashesChangeNothing(t *testing.T) {
	cfg := smallTraffic(11)
	const n = 4000
	want := withoutCrash(t, cfg, n)
	dir := t.TempDir()
	file := filepath.Join(dir, journalName)
	var got []string
	for crash, failAt := range []int{1, 2, 5, 3, 1, 4, 2, 0} {
		r := &recorder{failAt: failAt}
		tr := open(t, cfg, r, dir)
		if tr.Resumed() != (crash > 0) {
			t.Fatalf("crash %d: Resumed() = %v", crash, tr.Resumed())
		}
		err := tr.Run(t.Context(), Until{Impressions: n})
		if err == nil {
			err = tr.Drain(t.Context())
		}
		for i, b := range r.batches {
			w := wire(b)
			if i == 0 && len(got) > 0 && got[len(got)-1] == w {
				continue // sent again, byte for byte
			}
			got = append(got, w)
		}
		if failAt == 0 {
			if err != nil {
				t.Fatal(err)
			}
			if err := tr.Close(); err != nil {
				t.Fatal(err)
			}
			break
		}
		if !errors.Is(err, errSend) {
			t.Fatalf("crash %d: %v", crash, err)
		}
		tear(t, file, crash)
	}
	if len(got) != len(want) {
		t.Fatalf("%d batches, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("batch %d differs from the run without crashes", i)
		}
	}
}

// tear leaves what a killed writer may leave at the end of the file.
func tear(t *testing.T, file string, how int) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var junk []byte
	switch how % 3 {
	case 1:
		junk = []byte{9, 0, 0} // a cut head
	case 2:
		junk = append([]byte{40, 0, 0, 0, 1, 2, 3, 4, frameBatch}, make([]byte, 20)...) // a cut payload
	}
	if _, err := f.Write(junk); err != nil {
		t.Fatal(err)
	}
}

func TestDamageInTheMiddleIsAnError(t *testing.T) {
	cfg, dir := smallTraffic(11), t.TempDir()
	tr := open(t, cfg, new(recorder), dir)
	if err := tr.Run(t.Context(), Until{Impressions: 1000}); err != nil {
		t.Fatal(err)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, journalName)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	raw[headerBytes+200] ^= 1
	if err := os.WriteFile(file, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg, catalogue.Embedded(), twoArms{}, new(recorder), armCTR, dir); err == nil ||
		!strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged journal opens: %v", err)
	}
}

func TestJournalOfAnotherWorldIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := open(t, smallTraffic(1), new(recorder), dir).Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(smallTraffic(2), catalogue.Embedded(), twoArms{}, new(recorder), armCTR, dir); !errors.Is(err, ErrOtherWorld) {
		t.Errorf("error %v, want ErrOtherWorld", err)
	}
	if _, err := OpenOracle(smallTraffic(2), catalogue.Embedded(), dir); !errors.Is(err, ErrOtherWorld) {
		t.Errorf("oracle: error %v, want ErrOtherWorld", err)
	}
}

// sharedArms says its arms' shares, in bits that nothing else has.
type sharedArms struct{ twoArms }

const knownShare = 0.49999237060546875

func (d sharedArms) Decide(ctx context.Context, visits []Visit) ([]Decision, error) {
	out, err := d.twoArms.Decide(ctx, visits)
	for i := range out {
		out[i].ArmShare = knownShare
	}
	return out, err
}

// earlier turns a journal into one of the format before births had shares of arms.
func earlier(raw []byte) (out []byte, batches int) {
	share := binary.LittleEndian.AppendUint64(nil, math.Float64bits(knownShare))
	out = append(out, raw[:headerBytes]...)
	for at := headerBytes; at < len(raw); {
		n := int(binary.LittleEndian.Uint32(raw[at:]))
		kind, payload := raw[at+8], raw[at+frameHead:at+frameHead+n]
		if kind == frameBatch {
			kind, payload = 1, bytes.ReplaceAll(payload, share, nil)
			batches++
		}
		frame := append(make([]byte, 8), kind)
		frame = append(frame, payload...)
		binary.LittleEndian.PutUint32(frame, uint32(len(payload)))
		binary.LittleEndian.PutUint32(frame[4:], crc32.Checksum(frame[8:], crcTable))
		out = append(out, frame...)
		at += frameHead + n
	}
	return out, batches
}

// V12: a journal of an earlier version has propensities of another meaning, the probability within the arm. Sent again, or judged
// by the oracle, they would be taken for what the word means now.
func TestJournalOfAnEarlierVersionIsRefused(t *testing.T) {
	cfg, dir := smallTraffic(12), t.TempDir()
	tr, err := Open(cfg, catalogue.Embedded(), sharedArms{}, new(recorder), armCTR, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.Run(t.Context(), Until{Impressions: 500}); err != nil {
		t.Fatal(err)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, journalName)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	old, batches := earlier(raw)
	if batches == 0 || len(raw)-len(old) < 8*500 {
		t.Fatalf("%d batches, and %d bytes less: that is no journal of an earlier version", batches, len(raw)-len(old))
	}
	if err := os.WriteFile(file, old, 0o644); err != nil {
		t.Fatal(err)
	}
	_, opened := Open(cfg, catalogue.Embedded(), sharedArms{}, new(recorder), armCTR, dir)
	_, judged := OpenOracle(cfg, catalogue.Embedded(), dir)
	for what, err := range map[string]error{"the world": opened, "the oracle": judged} {
		if err == nil || !strings.Contains(err.Error(), "earlier version") || !strings.Contains(err.Error(), "another folder") {
			t.Errorf("%s opens it with the error %v, want one that says what it is and what to do", what, err)
		}
	}
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(after, old) {
		t.Errorf("the journal was changed: %v", err)
	}
}

// fileSender appends the digest of each batch to a file, as a broker would keep it.
type fileSender struct{ f *os.File }

func (s fileSender) Send(_ context.Context, b []Event) error {
	_, err := fmt.Fprintln(s.f, wire(b))
	return err
}

const childEnv = "CTRLOOP_WORLD_CHILD"

// TestChild is the process that TestKill9 kills.
func TestChild(t *testing.T) {
	dir := os.Getenv(childEnv)
	if dir == "" {
		t.Skip("only as a child of TestKill9")
	}
	f, err := os.OpenFile(filepath.Join(dir, "sent"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	tr := open(t, smallTraffic(21), fileSender{f}, dir)
	fmt.Println("child runs")
	if err := tr.Run(t.Context(), Until{Impressions: killImpressions}); err != nil {
		t.Fatal(err)
	}
	if err := tr.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
}

const killImpressions = 40_000

func TestKill9(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	want := withoutCrash(t, smallTraffic(21), killImpressions)
	dir := t.TempDir()
	kills := 0
	for range 40 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChild$", "-test.v")
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Kill it once it has sent some more: a line more in the file than before, wherever that finds it.
		started := make(chan struct{})
		go func() {
			defer close(started)
			buf := make([]byte, 4096)
			for seen := ""; !strings.Contains(seen, "child runs"); {
				n, err := out.Read(buf)
				if err != nil {
					return
				}
				seen += string(buf[:n])
			}
		}()
		<-started
		if kills < 6 {
			kills++
			time.Sleep(time.Duration(kills) * 7 * time.Millisecond)
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			continue
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("child: %v", err)
		}
		break
	}
	raw, err := os.ReadFile(filepath.Join(dir, "sent"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.FieldsSeq(string(raw)) {
		if len(got) == 0 || got[len(got)-1] != line {
			got = append(got, line)
		}
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%d batches after %d kills, %d without: not the same", len(got), kills, len(want))
	}
}

func BenchmarkTraffic(b *testing.B) {
	for _, dir := range []string{"", b.TempDir()} {
		name := map[bool]string{true: "memory", false: "journal"}[dir == ""]
		b.Run(name, func(b *testing.B) {
			if dir != "" {
				dir = b.TempDir()
			}
			cfg := DefaultTraffic(1)
			cfg.RatePerSecond = 5000
			sink := new(counter)
			tr := open(b, cfg, sink, dir)
			b.ResetTimer()
			if err := tr.Run(b.Context(), Until{Impressions: int64(b.N)}); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(sink.n)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

type counter struct{ n int64 }

func (c *counter) Send(_ context.Context, b []Event) error { c.n += int64(len(b)); return nil }
