package evidence

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ctrloop/pairer/evidence/evidencetest"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// testConfig is a join of short windows.
var testConfig = Config{WindowMS: 60_000, CorrectionMS: 60_000, LatenessMS: 5_000, BucketMS: 1_000}

func (c Config) times() evidencetest.Times {
	return evidencetest.Times{WindowMS: c.WindowMS, CorrectionMS: c.CorrectionMS, BucketMS: c.BucketMS}
}

// stage folds labels of several partitions in transactions, with aborts, and rebuilds from what it has written.
type stage struct {
	t      *testing.T
	cfg    Config
	r      *rand.Rand
	parts  []*Partition
	topics []*topic
	next   []int64
}

func newStage(t *testing.T, cfg Config, partitions int, seed uint64) *stage {
	s := &stage{t: t, cfg: cfg, r: rand.New(rand.NewPCG(seed, 3)), next: make([]int64, partitions)}
	for range partitions {
		s.parts, s.topics = append(s.parts, New(cfg, 0)), append(s.topics, &topic{})
	}
	return s
}

// run folds a history; partition says where a label lies.
func (s *stage) run(labels []evidencetest.Label, partition func(evidencetest.Label) int) {
	s.t.Helper()
	by := make([][][]byte, len(s.parts))
	for _, l := range labels {
		by[partition(l)] = append(by[partition(l)], l.Encode())
	}
	for p, values := range by {
		for len(values) > 0 {
			n := min(len(values), 1+s.r.IntN(40))
			if s.r.IntN(4) == 0 {
				s.abort(p, values[:n])
			}
			s.transact(p, values[:n])
			values = values[n:]
			switch s.r.IntN(12) {
			case 0:
				s.rebuild(p)
			case 1:
				s.topics[p].compact()
			}
		}
	}
}

func (s *stage) fold(p int, values [][]byte) {
	s.t.Helper()
	for i, v := range values {
		if err := s.parts[p].Add(s.next[p]+int64(i), v); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *stage) transact(p int, values [][]byte) {
	s.t.Helper()
	s.fold(p, values)
	s.parts[p].Close(func(key, value []byte) { s.topics[p].records = append(s.topics[p].records, record{key, value}) })
	if err := s.parts[p].State().Ledger.Check(); err != nil {
		s.t.Fatal(err)
	}
	s.parts[p].Commit(s.topics[p].end())
	s.next[p] += int64(len(values))
}

// abort folds labels and takes them back, before the records are made or after.
func (s *stage) abort(p int, values [][]byte) {
	s.t.Helper()
	part := s.parts[p]
	before, bytes := part.State(), part.Bytes()
	s.fold(p, values)
	if s.r.IntN(2) == 0 {
		part.Close(func([]byte, []byte) {})
	}
	part.Rollback()
	if d := cmp.Diff(before, part.State()); d != "" {
		s.t.Fatalf("state after a rollback: %s", d)
	}
	if slack := part.Bytes() - bytes; slack > 0 || slack < -bytes/2 {
		s.t.Fatalf("%d bytes after a rollback, %d before", part.Bytes(), bytes)
	}
	if err := part.check(); err != nil {
		s.t.Fatalf("after a rollback: %v", err)
	}
}

// check compares the hash with that of what is in memory.
func (p *Partition) check() error {
	q := Restore(p.cfg, p.state)
	q.cells, q.doubt = p.cells, p.doubt
	return q.Loaded()
}

func (s *stage) rebuild(p int) {
	s.t.Helper()
	was := s.parts[p]
	again := Restore(s.cfg, was.State())
	if err := s.topics[p].load(again, was.State().Rewind); err != nil {
		s.t.Fatalf("rebuild: %v", err)
	}
	if len(again.cells) != len(was.cells) || again.Doubted() != was.Doubted() {
		s.t.Fatalf("rebuilt %d cells and %d doubts, there were %d and %d", len(again.cells), again.Doubted(), len(was.cells), was.Doubted())
	}
	s.parts[p] = again
}

// cells adds up all generations of all partitions, mature or not.
func (s *stage) cells() map[Key]*Value {
	out := map[Key]*Value{}
	for _, t := range s.topics {
		last := map[string][]byte{}
		for _, r := range t.records {
			if r.key != nil && r.key[0] == kindCell {
				last[string(r.key)] = r.value
			}
		}
		for key, value := range last {
			k, _, err := cutGeneration([]byte(key))
			if err != nil {
				s.t.Fatal(err)
			}
			name, err := parseKey(k)
			if err != nil {
				s.t.Fatal(err)
			}
			v, err := decodeValue(value)
			if err != nil {
				s.t.Fatal(err)
			}
			v.settle(0, 1<<60)
			if out[name] == nil {
				out[name] = &Value{}
			}
			o := out[name]
			o.Trusted.add(&v.Trusted, 1)
			o.Suspect.add(&v.Suspect, 1)
			o.widen(v.FirstMS, v.LastMS)
			o.Category = max(o.Category, v.Category)
		}
	}
	for _, v := range out {
		if len(v.Early) == 0 {
			v.Early = nil
		}
	}
	return out
}

// counted is what the oracle counts.
func counted(labels []evidencetest.Label) map[Key]*Value {
	out := map[Key]*Value{}
	for k, c := range evidencetest.CountAll(labels, nil) {
		out[Key(k)] = &Value{
			Category: c.Category, Trusted: Sums(c.Trusted), Suspect: Sums(c.Suspect), FirstMS: c.FirstMS, LastMS: c.LastMS,
		}
	}
	return out
}

func byPartition(l evidencetest.Label) int { return int(l.Partition) }

// What cells hold is what counting the last versions of all labels gives: over corrections, robots, suspects, aborts, rebuilds,
// compactions, and hours that are closed.
func TestAgainstOracle(t *testing.T) {
	for seed := range uint64(12) {
		labels := evidencetest.History(seed, testConfig.times(), 3, 1500, 3*time.Hour)
		s := newStage(t, testConfig, 3, seed)
		s.run(labels, byPartition)
		if d := cmp.Diff(counted(labels), s.cells()); d != "" {
			t.Fatalf("seed %d (-counted +evidence): %s", seed, d)
		}
		var all Ledger
		for _, p := range s.parts {
			all = all.Add(p.State().Ledger)
			if p.state.FloorMS == 0 || p.Cells() == 0 {
				t.Errorf("the history closes no hour, or leaves none open")
			}
		}
		seen := all.Flipped > 0 && all.Withdrawn > 0 && all.Robots > 0 && all.Unreadable > 0 && all.Provisional > 0
		if all.In != uint64(len(labels)) || !seen {
			t.Errorf("the history does not exercise the fold: %+v", all)
		}
		if all.Unsure+all.Reopened+all.Forced > 0 {
			t.Errorf("nothing had to be guessed or closed early: %+v", all)
		}
	}
}

// Short memory closes hours early, at last the present one; nothing is lost by it but certainty over corrections, which is counted.
func TestShortMemory(t *testing.T) {
	for _, kept := range []int{1, 3 * cellBytes, 20 * cellBytes} {
		cfg := testConfig
		cfg.MaxBytes = kept
		labels := evidencetest.History(1, cfg.times(), 2, 3000, 4*time.Hour)
		s := newStage(t, cfg, 2, 5)
		s.run(labels, byPartition)
		want, got := counted(labels), s.cells()
		var unsure, forced uint64
		for _, p := range s.parts {
			unsure, forced = unsure+p.state.Ledger.Unsure, forced+p.state.Ledger.Forced
			if p.Bytes() > kept {
				t.Errorf("%d bytes after a commit, at most %d were allowed", p.Bytes(), kept)
			}
		}
		if forced == 0 || unsure == 0 && kept == 1 {
			t.Errorf("%d hours were forced, %d corrections are unsure", forced, unsure)
		}
		var wanted, found, clicks Sums
		for k := range want {
			wanted.add(&want[k].Trusted, 1)
			found.add(&got[k].Trusted, 1)
			clicks.add(&got[k].Trusted, 1)
			clicks.add(&got[k].Suspect, 1)
		}
		if d := wanted.Clicks - found.Clicks; d < 0 || d > int64(unsure) {
			t.Errorf("%d trusted clicks, counted are %d: %d corrections are unsure, and may only take clicks away",
				found.Clicks, wanted.Clicks, unsure)
		}
	}
}

// The join has begun anew: its labels come a second time, at new offsets.
func TestRefusesLabelsMadeAnew(t *testing.T) {
	labels := evidencetest.History(4, testConfig.times(), 1, 300, time.Hour)
	s := newStage(t, testConfig, 1, 5)
	s.run(labels, byPartition)
	if err := s.parts[0].Add(s.next[0], labels[0].Encode()); !errors.Is(err, ErrAgain) {
		t.Errorf("the first label once more: %v", err)
	}
	s.parts[0].Rollback()
	if err := s.parts[0].Add(s.next[0]-1, labels[len(labels)-1].Encode()); !errors.Is(err, ErrOrder) {
		t.Errorf("an offset twice: %v", err)
	}
}

// Labels before the first one were deleted: a correction of one of them is a click whose impression was never counted.
func TestBeginsInTheMiddle(t *testing.T) {
	p := New(testConfig, 100)
	id := schemas.NewImpressionID(time.UnixMilli(evidencetest.Base), [10]byte{1})
	seen := &eventpb.Impression{Id: id[:], Product: "p"}
	l := evidencetest.Label{ID: id, Seen: seen, Version: 2, WatermarkMS: evidencetest.Base + 90_000}
	l.Kind = eventpb.LabelKind_LABEL_KIND_CORRECTED
	if err := p.Add(100, l.Encode()); err != nil {
		t.Fatal(err)
	}
	if at := p.State().SinceMS; at <= id.UnixMilli() {
		t.Errorf("complete since %d", at)
	}
	if g := p.State().Ledger; g.Unsure != 1 || g.Clicks != 1 {
		t.Errorf("%+v", g)
	}
	for _, c := range p.cells {
		if c.Trusted != (Sums{}) || c.Suspect.Clicks != 1 {
			t.Errorf("%+v", c.Value)
		}
	}
}

// A record that changed, or one that is gone, is found out at the rebuild.
func TestRebuildIsHeldAgainstTheCommit(t *testing.T) {
	labels := evidencetest.History(9, testConfig.times(), 1, 500, 30*time.Minute)
	s := newStage(t, testConfig, 1, 9)
	s.run(labels, byPartition)
	state := s.parts[0].State()
	for i, r := range s.topics[0].records {
		if int64(i) < state.Rewind || r.key == nil || r.key[0] == kindProgress {
			continue
		}
		if r.key[0] == kindDoubt { // of a minute that is forgotten
			if at, _, err := parseDoubtKey(r.key); err != nil || at*minuteMS < state.DoubtMS {
				continue
			}
		}
		if slices.ContainsFunc(s.topics[0].records[i+1:], func(o record) bool { return string(o.key) == string(r.key) }) {
			continue
		}
		s.topics[0].records[i] = record{}
		if err := s.topics[0].load(Restore(testConfig, state), state.Rewind); !errors.Is(err, ErrRebuild) {
			t.Fatalf("without record %d (%q): %v", i, r.key, err)
		}
		s.topics[0].records[i] = r
	}
	older := state
	older.Sequence--
	if err := s.topics[0].load(Restore(testConfig, older), state.Rewind); !errors.Is(err, ErrAhead) {
		t.Errorf("records of a later transaction: %v", err)
	}
}

// Bytes is not less than what the runtime holds, and not twice as much.
func TestBytes(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const cells, ids = 40_000, 100_000
	before := heap()
	p := New(Config{WindowMS: 1 << 40, BucketMS: 1000}, 0)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range int64(cells + ids) {
		var random [10]byte
		for k := range random {
			random[k] = byte(r.Uint32())
		}
		id := schemas.NewImpressionID(time.UnixMilli(evidencetest.Base+i/10), random)
		seen := &eventpb.Impression{Id: id[:], Product: "p", Position: uint32(i) % cells, Placement: "a placement"}
		l := evidencetest.Label{ID: id, Seen: seen, Version: 1, WatermarkMS: evidencetest.Base}
		l.Kind, l.Suspect = eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, i >= cells
		if i < cells {
			l.Kind = eventpb.LabelKind_LABEL_KIND_POSITIVE
		}
		if err := p.Add(i, l.Encode()); err != nil {
			t.Fatal(err)
		}
		if i%1000 == 999 {
			p.Close(func([]byte, []byte) {})
			p.Commit(0)
		}
	}
	took := int(heap() - before)
	if p.Bytes() < took*8/10 || p.Bytes() > 2*took {
		t.Errorf("Bytes says %d, the heap has grown by %d", p.Bytes(), took)
	}
	t.Logf("%d cells and %d suspect negatives: Bytes says %d, the heap has grown by %d", p.Cells(), p.Doubted(), p.Bytes(), took)
}
