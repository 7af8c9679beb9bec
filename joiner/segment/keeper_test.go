package segment

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"ctrloop/joiner/window"
	"ctrloop/schemas"
)

// world is one partition: its inputs, the window over them and the keeper. A tick is a second of event time and one
// commit.
type world struct {
	t    *testing.T
	cfg  window.Config
	id   Identity
	opt  Options
	disk disk
	now  time.Time
	r    *rand.Rand

	imps, clks []event
	w          *window.Window
	k          *Keeper
	seq        int64
	labels     int
}

type event struct {
	id schemas.ImpressionID
	at int64
}

const start = 1_790_000_000_000

// newWorld: in a plain folder nothing is really synced, which would only take its time.
func newWorld(t *testing.T, d disk) *world {
	t.Helper()
	if f, ok := d.(folder); ok {
		d = &dying{folder: f, left: math.MaxInt}
	}
	count, err := NewMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	x := &world{
		t: t, disk: d, now: time.UnixMilli(start), r: rand.New(rand.NewPCG(1, 2)),
		cfg: window.Config{WindowMS: 60_000, LatenessMS: 2000, BucketMS: 1000, Seed: 9},
		id:  Identity{TopicIDs: [2]string{"a", "b"}, Partition: 3, WindowMS: 60_000, BucketMS: 1000},
	}
	x.opt = Options{Interval: 5 * time.Second, Now: func() time.Time { return x.now }, Log: zerolog.Nop(), Count: count}
	x.w = window.New(x.cfg)
	x.k = open(d, x.id, x.opt)
	return x
}

func (x *world) place() Place {
	return Place{Sequence: x.seq, Next: [2]int64{int64(len(x.imps)), int64(len(x.clks))}, Epoch: [2]int32{4, 4}}
}

func (x *world) feedImpression(w *window.Window, i int) error {
	return w.Impression(fmt.Appendf(nil, "impression %d", i), x.imps[i].id, int64(i))
}

func (x *world) feedClick(w *window.Window, i int) error {
	return w.Click(fmt.Appendf(nil, "click %d", i), x.clks[i].id, x.clks[i].at, int64(i))
}

// tick writes a second of traffic, joins it and commits. Its error is the window's: a spilled bucket that cannot be read.
func (x *world) tick() error {
	x.now = x.now.Add(time.Second)
	ms := x.now.UnixMilli()
	for range 50 {
		var random [10]byte
		for i := range random {
			random[i] = byte(x.r.Uint32())
		}
		at := ms - x.r.Int64N(1500)
		if x.r.IntN(20) == 0 {
			at -= 30_000 // a straggler, after its bucket was sealed
		}
		x.imps = append(x.imps, event{schemas.NewImpressionID(time.UnixMilli(at), random), at})
		if err := x.feedImpression(x.w, len(x.imps)-1); err != nil {
			return err
		}
	}
	for range 10 {
		e := x.imps[x.r.IntN(len(x.imps))]
		e.at = ms
		x.clks = append(x.clks, e)
		if err := x.feedClick(x.w, len(x.clks)-1); err != nil {
			return err
		}
	}
	if err := x.w.Advance(0); err != nil {
		return err
	}
	x.labels += len(x.w.Labels)
	x.w.Commit()
	x.seq++
	x.k.Keep(x.w, x.place())
	x.k.reap(true) // virtual time must not run ahead of the disk
	return nil
}

func (x *world) ticks(n int) {
	x.t.Helper()
	for range n {
		if err := x.tick(); err != nil {
			x.t.Fatal(err)
		}
	}
}

// snapshot is what the group has committed.
func (x *world) snapshot() window.Snapshot { return x.w.Snapshot(x.place().Next) }

// restart loads what is on disk, replays the rest and reports how many impressions that took, or why the disk was
// not used.
func (x *world) restart(snap window.Snapshot, seq int64) (w *window.Window, replayed int64, err error) {
	k := open(x.disk, x.id, x.opt)
	defer k.Release()
	w, at, err := k.Load(x.cfg, seq, snap, func(p Place) error {
		if p.Epoch != [2]int32{4, 4} {
			return errors.New("another epoch")
		}
		return nil
	})
	if err != nil || w == nil {
		return nil, 0, err
	}
	for i := at.Next[1]; i < snap.NextOffset[1]; i++ {
		err = errors.Join(err, x.feedClick(w, int(i)))
	}
	for i := at.Next[0]; i < snap.NextOffset[0]; i++ {
		err = errors.Join(err, x.feedImpression(w, int(i)))
	}
	if err == nil {
		err = w.Restored(snap)
	}
	return w, snap.NextOffset[0] - at.Next[0], err
}

func (x *world) wantReason(want Reason) {
	x.t.Helper()
	w, _, err := x.restart(x.snapshot(), x.seq)
	var i *Ignored
	if !errors.As(err, &i) || i.Reason != want || w != nil {
		x.t.Errorf("restart gave %v, want it ignored for %s", err, want)
	}
}

func TestRestartReadsWhatIsMissing(t *testing.T) {
	for _, memory := range []int{0, 1, 40_000} {
		t.Run(fmt.Sprint(memory), func(t *testing.T) {
			x := newWorld(t, folder(t.TempDir()))
			x.opt.Memory = memory
			x.k.opt.Memory = memory
			x.ticks(163)
			w, replayed, err := x.restart(x.snapshot(), x.seq)
			if err != nil {
				t.Fatal(err)
			}
			if replayed == 0 || replayed > 6*50 {
				t.Errorf("%d impressions were read again, want at most those of the interval", replayed)
			}
			if w.Ledger() != x.w.Ledger() {
				t.Errorf("ledger %+v, want %+v", w.Ledger(), x.w.Ledger())
			}
			if n, _ := x.w.Spilled(); (memory > 0) != (n > 0) {
				t.Errorf("%d buckets spilled with %d bytes of memory", n, memory)
			}
			names, err := x.disk.list()
			if err != nil || len(names) < 2 || len(names) > 80 {
				t.Errorf("%d files, %v", len(names), err)
			}
			x.labels = 0
			x.ticks(100) // everything that was open closes, out of files where it was spilled
			if x.labels < 100*45 {
				t.Errorf("%d labels of 100 seconds", x.labels)
			}
		})
	}
}

// TestSpilledStateIsTheSame: with all on disk the join gives what it gives in memory.
func TestSpilledStateIsTheSame(t *testing.T) {
	run := func(memory int) (out []string, hash uint64) {
		x := newWorld(t, folder(t.TempDir()))
		x.k.opt.Memory = memory
		for range 200 {
			if err := x.tick(); err != nil {
				t.Fatal(err)
			}
			out = append(out, fmt.Sprintf("%x %+v", x.w.Hash(), x.w.Ledger()))
		}
		return out, x.w.Hash()
	}
	want, _ := run(0)
	got, _ := run(1)
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("tick %d: %s, in memory %s", i, got[i], want[i])
		}
	}
}

func TestStopWritesAManifest(t *testing.T) {
	x := newWorld(t, folder(t.TempDir()))
	x.disk = folder(t.TempDir()) // a real one
	x.k = open(x.disk, x.id, x.opt)
	x.ticks(98)
	x.k.Close(x.w, x.place())
	if _, replayed, err := x.restart(x.snapshot(), x.seq); err != nil || replayed != 0 {
		t.Errorf("%d impressions were read again, %v", replayed, err)
	}
}

func TestNothingThere(t *testing.T) {
	x := newWorld(t, folder(filepath.Join(t.TempDir(), "not yet")))
	if w, _, err := x.restart(x.snapshot(), 0); w != nil || err != nil {
		t.Errorf("%v, %v", w, err)
	}
}

func TestOfAnotherIdentity(t *testing.T) {
	x := newWorld(t, folder(t.TempDir()))
	x.ticks(90)
	was := x.id
	for _, change := range []func(*Identity){
		func(i *Identity) { i.TopicIDs[0] = "made anew" },
		func(i *Identity) { i.TopicIDs[1] = "made anew" },
		func(i *Identity) { i.Partition++ },
		func(i *Identity) { i.WindowMS++ },
		func(i *Identity) { i.BucketMS++ },
	} {
		x.id = was
		change(&x.id)
		x.wantReason(ReasonIdentity)
	}
}

func TestOfAnotherEpoch(t *testing.T) {
	x := newWorld(t, folder(t.TempDir()))
	x.ticks(90)
	at := x.place()
	at.Epoch[1] = 3
	x.k.Close(x.w, at)
	x.wantReason(ReasonEpoch)
}

// TestAheadOfTheGroup: the offsets of the group were set back, or the folder is of another cluster.
func TestAheadOfTheGroup(t *testing.T) {
	x := newWorld(t, folder(t.TempDir()))
	x.ticks(70)
	snap, seq := x.snapshot(), x.seq
	x.ticks(20)
	_, _, err := x.restart(snap, seq)
	var i *Ignored
	if !errors.As(err, &i) || i.Reason != ReasonAhead {
		t.Errorf("%v", err)
	}
}

// TestStaleStateIsNoticed: files that fit in every way but are of other records.
func TestStaleStateIsNoticed(t *testing.T) {
	x := newWorld(t, folder(t.TempDir()))
	x.ticks(90)
	snap := x.snapshot()
	snap.Hash++
	if _, _, err := x.restart(snap, x.seq); !errors.Is(err, window.ErrRebuild) {
		t.Errorf("%v", err)
	}
}

// TestCorrupt: one wrong byte anywhere, or a file that is cut or gone.
func TestCorrupt(t *testing.T) {
	x := newWorld(t, folder(t.TempDir()))
	x.ticks(90)
	if _, _, err := x.restart(x.snapshot(), x.seq); err != nil {
		t.Fatal(err)
	}
	names, err := x.disk.list()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		path := x.disk.(*dying).path(name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			bad := bytes.Clone(good)
			bad[x.r.IntN(len(bad))] ^= byte(1 + x.r.IntN(255))
			put(t, path, bad)
			x.unusable(name)
		}
		put(t, path, good[:len(good)-1])
		x.unusable(name)
		put(t, path, nil)
		x.unusable(name)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if name != manifestName { // without a manifest there is just nothing
			x.unusable(name)
		}
		put(t, path, good)
	}
	if _, _, err := x.restart(x.snapshot(), x.seq); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// unusable: a file that no manifest names any more may be damaged without harm.
func (x *world) unusable(name string) {
	x.t.Helper()
	_, _, err := x.restart(x.snapshot(), x.seq)
	var i *Ignored
	if err == nil && name != manifestName {
		m, _, e := readManifest(x.disk)
		for _, f := range m.Files {
			if f.Name == name {
				e = errors.New("it is used")
			}
		}
		if e == nil {
			return
		}
	}
	if !errors.As(err, &i) || i.Reason != ReasonCorrupt {
		x.t.Errorf("damage to %s: %v", name, err)
	}
}

// dying is a disk whose process dies at its n-th operation: what was not synced is lost, in part or whole.
type dying struct {
	folder
	mu   sync.Mutex
	left int
	full bool // instead: from then on there is no space
}

var errDied = errors.New("the process has died")

func (d *dying) step() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left--
	switch {
	case d.left >= 0:
		return nil
	case d.full:
		return syscall.ENOSPC
	}
	return errDied
}

type dyingFile struct {
	file
	d *dying
}

func (f dyingFile) Write(p []byte) (int, error) {
	if err := f.d.step(); err != nil {
		n, _ := f.file.Write(p[:len(p)/2])
		return n, err
	}
	return f.file.Write(p)
}

func (f dyingFile) Sync() error { return f.d.step() } // a real one would only take its time

type dyingRead struct {
	readFile
	d *dying
}

func (f dyingRead) Sync() error { return f.d.step() }

func (d *dying) open(name string) (readFile, error) {
	f, err := d.folder.open(name)
	return dyingRead{f, d}, err
}

func (d *dying) create(name string) (file, error) {
	if err := d.step(); err != nil {
		return nil, err
	}
	f, err := d.folder.create(name)
	return dyingFile{f, d}, err
}

func (d *dying) rename(from, to string) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.folder.rename(from, to)
}

func (d *dying) remove(name string) error {
	if !d.full {
		if err := d.step(); err != nil {
			return err
		}
	}
	return d.folder.remove(name)
}

func (d *dying) sync() error { return d.step() }

// TestKilledAtEveryStep: a process that dies in the middle of a segment, of a manifest, before or after the rename, or
// while it deletes, leaves a manifest that is whole, or none. What it leaves besides is cleared away.
func TestKilledAtEveryStep(t *testing.T) {
	used := 0
	for n := range 150 {
		dir := folder(t.TempDir())
		d := &dying{folder: dir, left: n}
		x := newWorld(t, d)
		x.k.opt.Interval = 3 * time.Second
		for range 120 {
			if err := x.tick(); err != nil {
				t.Fatal(err)
			}
			if d.left < 0 {
				break
			}
		}
		x.k.Release()
		x.disk = dir
		w, _, err := x.restart(x.snapshot(), x.seq)
		if err != nil {
			t.Fatalf("killed at step %d: %v", n, err)
		}
		if w != nil {
			used++
		}
		k := open(dir, x.id, x.opt)
		k.Clear(false)
		if names, err := dir.list(); err != nil || len(names) > 0 {
			t.Fatalf("killed at step %d: %v are left, %v", n, names, err)
		}
	}
	if used < 75 {
		t.Errorf("only %d of 150 restarts found something", used)
	}
}

// TestDiskFull: the join goes on, says so once, and what is on disk is still of use or ignored.
func TestDiskFull(t *testing.T) {
	for _, n := range []int{0, 1, 5, 40} {
		var log strings.Builder
		d := &dying{folder: folder(t.TempDir()), left: n, full: true}
		x := newWorld(t, d)
		x.k.opt.Memory, x.k.opt.Log = 30_000, zerolog.New(&log)
		x.ticks(150)
		if f := testutil.ToFloat64(x.opt.Count.Failures); f != 1 {
			t.Errorf("%v failures, want 1", f)
		}
		if s := log.String(); strings.Count(s, "segments are off") != 1 || !strings.Contains(s, "no space left") {
			t.Errorf("log: %s", s)
		}
		x.disk = d.folder
		if _, _, err := x.restart(x.snapshot(), x.seq); err != nil {
			t.Errorf("full after %d operations: %v", n, err)
		}
	}
}
