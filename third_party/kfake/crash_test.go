package kfake

// Not part of upstream. Run it from the repository's root with
//
//	go test github.com/twmb/franz-go/pkg/kfake

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// disk counts what changes it and stops at a chosen change: from then on
// it stays as kill -9 at that moment would leave it.
type disk struct {
	fs
	mu   sync.Mutex
	done int  // changes so far
	stop int  // the change that does not happen any more, -1: none
	torn bool // half of it happens, if it is a write
	dead bool
	died func()
	// wrote is told of every write, with its number.
	wrote func(n int, name string, b []byte)
}

var errDead = errors.New("the process is dead")

// step reports whether a change happens, and whether half of it does.
func (d *disk) step() (ok, half bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return false, false
	}
	if d.done == d.stop {
		d.dead = true
		if d.died != nil {
			d.died()
		}
		return false, d.torn
	}
	d.done++
	return true, false
}

func (d *disk) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.done
}

func (d *disk) change(fn func() error) error {
	if ok, _ := d.step(); !ok {
		return errDead
	}
	return fn()
}

func (d *disk) OpenFile(name string, flag int, perm os.FileMode) (file, error) {
	if flag&(os.O_CREATE|os.O_TRUNC) != 0 {
		if ok, _ := d.step(); !ok {
			return nil, errDead
		}
	}
	f, err := d.fs.OpenFile(name, flag, perm)
	return diskFile{f, d, name}, err
}

func (d *disk) Rename(from, to string) error {
	return d.change(func() error { return d.fs.Rename(from, to) })
}
func (d *disk) Remove(name string) error {
	return d.change(func() error { return d.fs.Remove(name) })
}
func (d *disk) RemoveAll(path string) error {
	return d.change(func() error { return d.fs.RemoveAll(path) })
}
func (d *disk) MkdirAll(path string, perm os.FileMode) error {
	return d.change(func() error { return d.fs.MkdirAll(path, perm) })
}

type diskFile struct {
	file
	d    *disk
	name string
}

func (f diskFile) Write(b []byte) (int, error) {
	ok, half := f.d.step()
	if half {
		f.file.Write(b[:len(b)/2])
	}
	if !ok {
		return 0, errDead
	}
	if f.d.wrote != nil {
		f.d.wrote(f.d.count()-1, f.name, b)
	}
	return f.file.Write(b)
}

func (f diskFile) Truncate(size int64) error {
	return f.d.change(func() error { return f.file.Truncate(size) })
}

func (m *memFS) clone() *memFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := newMemFS()
	for name, d := range m.files {
		out.files[name] = &memFileData{data: slices.Clone(d.data), modTime: d.modTime}
	}
	maps.Copy(out.dirs, m.dirs)
	return out
}

func crashBroker(t *testing.T, fsys fs, opts ...Opt) (*Cluster, error) {
	t.Helper()
	c, err := NewCluster(append([]Opt{NumBrokers(1), DataDir("/data"), withFS(fsys), SeedTopics(2, "out"), SeedTopics(1, "raw")}, opts...)...)
	if c != nil {
		t.Cleanup(c.Close)
	}
	return c, err
}

func crashClient(t *testing.T, addrs []string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(addrs...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// crashTopicID returns the id of topic "out".
func crashTopicID(ctx context.Context, cl *kgo.Client) ([16]byte, error) {
	req := kmsg.NewPtrMetadataRequest()
	rt := kmsg.NewMetadataRequestTopic()
	rt.Topic = kmsg.StringPtr("out")
	req.Topics = append(req.Topics, rt)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return [16]byte{}, err
	}
	return resp.Topics[0].TopicID, nil
}

// outcome is what a client knows of its transactions when its broker dies.
type outcome struct {
	committed []string // acknowledged
	maybe     string   // EndTxn was sent and not answered
	raw       []string // acknowledged outside any transaction
}

// crashTransaction writes name to both partitions of "out" and, with offsets,
// commits offset n for both partitions, in one transaction.
func crashTransaction(ctx context.Context, cl *kgo.Client, name string, n int64, end kgo.TransactionEndTry, o *outcome) error {
	if err := cl.BeginTransaction(); err != nil {
		return err
	}
	for p := range int32(2) {
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "out", Partition: p, Value: []byte(name)}).FirstErr(); err != nil {
			return err
		}
	}
	id, epoch, err := cl.ProducerID(ctx)
	if err != nil {
		return err
	}
	req := kmsg.NewPtrTxnOffsetCommitRequest()
	req.Group, req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Generation = "g", "t", id, epoch, -1
	rt := kmsg.NewTxnOffsetCommitRequestTopic()
	rt.Topic = "out"
	if rt.TopicID, err = crashTopicID(ctx, cl); err != nil {
		return err
	}
	for p := range int32(2) {
		rp := kmsg.NewTxnOffsetCommitRequestTopicPartition()
		rp.Partition, rp.Offset, rp.Metadata = p, n, kmsg.StringPtr(name)
		rt.Partitions = append(rt.Partitions, rp)
	}
	req.Topics = append(req.Topics, rt)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return err
	}
	for _, p := range resp.Topics[0].Partitions {
		if p.ErrorCode != 0 {
			return fmt.Errorf("offset commit: %d", p.ErrorCode)
		}
	}
	if end == kgo.TryCommit {
		o.maybe = name
	}
	if err := cl.EndTransaction(ctx, end); err != nil {
		return err
	}
	if end == kgo.TryCommit {
		o.committed, o.maybe = append(o.committed, name), ""
	}
	return nil
}

// crashWork is what runs while the broker dies: commit, abort, commit, a
// transaction that is left open, and records outside transactions between.
func crashWork(ctx context.Context, t *testing.T, addrs []string, o *outcome) error {
	tx, plain := crashClient(t, addrs, kgo.TransactionalID("t")), crashClient(t, addrs)
	defer tx.Close()
	defer plain.Close()
	for i, end := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort, kgo.TryCommit} {
		name := strconv.Itoa(i)
		if err := plain.ProduceSync(ctx, &kgo.Record{Topic: "raw", Value: []byte(name)}).FirstErr(); err != nil {
			return err
		}
		o.raw = append(o.raw, name)
		if err := crashTransaction(ctx, tx, name, int64(i+1), end, o); err != nil {
			return err
		}
	}
	if err := tx.BeginTransaction(); err != nil {
		return err
	}
	return tx.ProduceSync(ctx, &kgo.Record{Topic: "out", Value: []byte("open")}).FirstErr()
}

// crashRead returns the committed values of a partition.
func crashRead(ctx context.Context, t *testing.T, addrs []string, topic string, p int32) ([]string, error) {
	cl := crashClient(t, addrs, kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.FetchMaxWait(10*time.Millisecond),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {p: kgo.NewOffset().AtStart()}}))
	defer cl.Close()
	req := kmsg.NewPtrListOffsetsRequest()
	req.IsolationLevel = 1
	rt, rp := kmsg.NewListOffsetsRequestTopic(), kmsg.NewListOffsetsRequestTopicPartition()
	rt.Topic, rp.Partition, rp.Timestamp = topic, p, -1
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return nil, err
	}
	var out []string
	for end, at := resp.Topics[0].Partitions[0].Offset, int64(0); at < end; {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return out, fmt.Errorf("%s/%d ends at %d; %q were read up to %d: %w", topic, p, end, out, at, ctx.Err())
		}
		for it := fetches.RecordIter(); !it.Done(); {
			r := it.Next()
			if at = r.Offset + 1; !r.Attrs.IsControl() {
				out = append(out, string(r.Value))
			}
		}
	}
	return out, nil
}

// crashCheck holds a broker that has been started again against what a
// client knows, and returns the transactions it has committed.
func crashCheck(ctx context.Context, t *testing.T, c *Cluster, o outcome) ([]string, error) {
	var parts [2][]string
	var err error
	for p := range parts {
		if parts[p], err = crashRead(ctx, t, c.ListenAddrs(), "out", int32(p)); err != nil {
			return nil, err
		}
	}
	committed := o.committed
	if o.maybe != "" && slices.Contains(parts[0], o.maybe) {
		committed = append(slices.Clone(committed), o.maybe)
	}
	for p, got := range parts {
		if !slices.Equal(got, committed) {
			return nil, fmt.Errorf("partition %d has %q, committed are %q (acknowledged %q, perhaps %q)", p, got, committed, o.committed, o.maybe)
		}
	}
	cl := crashClient(t, c.ListenAddrs())
	defer cl.Close()
	req := kmsg.NewPtrOffsetFetchRequest()
	rg, rt := kmsg.NewOffsetFetchRequestGroup(), kmsg.NewOffsetFetchRequestGroupTopic()
	rt.Topic, rt.Partitions = "out", []int32{0, 1}
	if rt.TopicID, err = crashTopicID(ctx, cl); err != nil {
		return nil, err
	}
	rg.Group = "g"
	rg.Topics = append(rg.Topics, rt)
	req.Groups = append(req.Groups, rg)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return nil, err
	}
	want := ""
	if len(committed) > 0 {
		want = committed[len(committed)-1]
	}
	var got [2]string // nothing where the group is not known
	for _, t := range resp.Groups[0].Topics {
		for _, p := range t.Partitions {
			if p.Metadata != nil {
				got[p.Partition] = *p.Metadata
			}
		}
	}
	if got != [2]string{want, want} {
		return nil, fmt.Errorf("the partitions' offsets are of the transactions %q, the last committed one is %q", got, want)
	}
	raw, err := crashRead(ctx, t, c.ListenAddrs(), "raw", 0)
	if err == nil && (len(raw) < len(o.raw) || !slices.Equal(raw[:len(o.raw)], o.raw)) {
		err = fmt.Errorf("raw records %q, acknowledged were %q", raw, o.raw)
	}
	return committed, err
}

// crashRun runs the work until the disk stops at a change, starts the broker
// again on what is left (first so that it dies again after `again` changes,
// unless that is negative), checks, commits one more transaction under the
// same id, and checks once more after one more crash. It returns the number of
// changes the work and the recovery made.
func crashRun(t *testing.T, stop, again int, torn bool) (work, recovery int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	image := newMemFS()
	first := &disk{fs: image, stop: -1, torn: torn}
	c, err := crashBroker(t, first)
	if err != nil {
		return 0, 0, err
	}
	start := first.count()
	working, died := context.WithCancel(ctx)
	first.mu.Lock()
	first.died = died
	if stop >= 0 {
		first.stop = start + stop
	}
	first.mu.Unlock()
	var o outcome
	err = crashWork(working, t, c.ListenAddrs(), &o)
	work = first.count() - start
	if err != nil && working.Err() == nil {
		return work, 0, fmt.Errorf("the work failed by itself: %w", err)
	}
	first.mu.Lock()
	first.dead = true
	first.mu.Unlock()
	image = image.clone()
	died()
	c.Close()

	if again >= 0 {
		second := &disk{fs: image, stop: again, torn: torn}
		if c, _ := NewCluster(NumBrokers(1), DataDir("/data"), withFS(second)); c != nil {
			second.mu.Lock()
			second.dead = true
			second.mu.Unlock()
			c.Close()
		}
		image = image.clone()
	}
	third := &disk{fs: image, stop: -1}
	if c, err = crashBroker(t, third); err != nil {
		return work, 0, fmt.Errorf("start after the crash: %w", err)
	}
	recovery = third.count()
	o.committed, err = crashCheck(ctx, t, c, o)
	if err != nil {
		return work, recovery, fmt.Errorf("after the crash: %w", err)
	}
	o.maybe = ""
	tx := crashClient(t, c.ListenAddrs(), kgo.TransactionalID("t"))
	if err := crashTransaction(ctx, tx, "last", 100, kgo.TryCommit, &o); err != nil {
		return work, recovery, fmt.Errorf("a transaction after the crash: %w", err)
	}
	if _, err := crashCheck(ctx, t, c, o); err != nil {
		return work, recovery, fmt.Errorf("after one more transaction: %w", err)
	}
	image = image.clone()
	tx.Close()
	c.Close()
	if c, err = crashBroker(t, image); err != nil {
		return work, recovery, fmt.Errorf("second start: %w", err)
	}
	defer c.Close()
	if _, err := crashCheck(ctx, t, c, o); err != nil {
		return work, recovery, fmt.Errorf("after one more crash: %w", err)
	}
	return work, recovery, nil
}

// TestCrashAtEveryChange lets the broker die before every single change it
// makes on disk, and in the middle of every write: each transaction is
// committed in all partitions and groups or in none, for good, and what was
// acknowledged is there.
func TestCrashAtEveryChange(t *testing.T) {
	work, _, err := crashRun(t, -1, -1, false)
	if err != nil {
		t.Fatal(err)
	}
	failed := 0
	fail := func(format string, args ...any) {
		if failed++; failed <= 20 {
			t.Errorf(format, args...)
		}
	}
	for stop := range work + 1 {
		for _, torn := range []bool{false, true} {
			_, recovery, err := crashRun(t, stop, -1, torn)
			if err != nil {
				fail("stop before change %d of %d (torn: %v): %v", stop, work, torn, err)
				continue
			}
			for again := range recovery {
				if (stop+again)%8 != 0 && !testing.Verbose() {
					continue // an eighth of the pairs; all of them with -v
				}
				if _, _, err := crashRun(t, stop, again, torn); err != nil {
					fail("stop before change %d of %d and change %d of the recovery (torn: %v): %v", stop, work, again, torn, err)
				}
			}
		}
	}
	t.Logf("%d changes, %d failures", work, failed)
}

// TestKillNineInsideEndTxn kills a broker in a process of its own with
// SIGKILL between each two of the writes that commit a transaction.
func TestKillNineInsideEndTxn(t *testing.T) {
	const dirEnv, stopEnv = "KFAKE_TEST_CRASH_DIR", "KFAKE_TEST_CRASH_STOP"
	if dir := os.Getenv(dirEnv); dir != "" { // the child
		stop, err := strconv.Atoi(os.Getenv(stopEnv))
		if err != nil {
			t.Fatal(err)
		}
		d := &disk{fs: osFS{}, stop: stop, died: func() { syscall.Kill(os.Getpid(), syscall.SIGKILL) }}
		c, err := crashBroker(t, d, DataDir(dir))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println(c.ListenAddrs()[0])
		select {} // until it is killed
	}
	// The writes of the first commit: from the first marker, the third write
	// to a log of "out", to the entry that says it has ended.
	var from, to, logs int
	dry := &disk{fs: newMemFS(), stop: -1, wrote: func(n int, name string, b []byte) {
		if strings.Contains(name, "/out-") && strings.HasSuffix(name, ".dat") {
			if logs++; logs == 3 {
				from = n
			}
		}
		if to == 0 && bytes.Contains(b, []byte(`"type":"endtx"`)) {
			to = n
		}
	}}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := crashBroker(t, dry)
	if err != nil {
		t.Fatal(err)
	}
	if err := crashWork(ctx, t, c.ListenAddrs(), new(outcome)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if to-from < 5 {
		t.Fatalf("changes %d to %d commit a transaction: fewer than two markers and two offsets", from, to)
	}
	for stop := from; stop <= to; stop++ {
		t.Run(fmt.Sprintf("change %d of %d to %d", stop, from, to), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKillNineInsideEndTxn$")
			child.Env = append(os.Environ(), dirEnv+"="+dir, stopEnv+"="+strconv.Itoa(stop))
			out, err := child.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(out)
			if !lines.Scan() {
				t.Fatal("the broker did not start")
			}
			working, died := context.WithCancel(t.Context())
			go func() {
				_ = child.Wait()
				died()
			}()
			var o outcome
			if err := crashWork(working, t, []string{lines.Text()}, &o); err == nil || o.maybe == "" {
				t.Fatalf("the crash did not happen inside a commit: %v, %+v", err, o)
			}
			c, err := crashBroker(t, osFS{}, DataDir(dir))
			if err != nil {
				t.Fatal(err)
			}
			short, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			if _, err := crashCheck(short, t, c, o); err != nil {
				t.Error(err)
			}
			cancel()
			c.Close()
		})
	}
}

// TestCrashInsideCompaction lets the broker die before every change that the
// compaction of a topic makes: the last value of every key is there.
func TestCrashInsideCompaction(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	image := newMemFS()
	c, err := crashBroker(t, image)
	if err != nil {
		t.Fatal(err)
	}
	cl := crashClient(t, c.ListenAddrs())
	for i := range 10 {
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "raw", Key: []byte{byte('a' + i%2)}, Value: []byte(strconv.Itoa(i))}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	image = image.clone() // as of a kill
	for stop := 0; ; stop++ {
		d := &disk{fs: image.clone(), stop: -1}
		c, err := crashBroker(t, d)
		if err != nil {
			t.Fatal(err)
		}
		d.mu.Lock()
		d.stop = d.done + stop
		d.mu.Unlock()
		c.admin(func() {
			pd, _ := c.data.tps.getp("raw", 0)
			c.compact(pd, "raw")
		})
		d.mu.Lock()
		done := !d.dead
		d.dead = true
		d.mu.Unlock()
		left := d.fs.(*memFS).clone()
		c.Close()
		if c, err = crashBroker(t, left); err != nil {
			t.Fatal(err)
		}
		got, err := crashRead(ctx, t, c.ListenAddrs(), "raw", 0)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) < 2 || got[len(got)-1] != "9" || !slices.Contains(got, "8") {
			t.Errorf("stopped before change %d of a compaction: %q is left", stop, got)
		}
		c.Close()
		if done {
			if len(got) == 10 || stop < 5 {
				t.Fatalf("nothing was compacted, in %d changes: %q", stop, got)
			}
			return
		}
	}
}

// TestCrashKeepsSequences sends a batch again that the broker had written
// when it died: it is in the log once.
func TestCrashKeepsSequences(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	image := newMemFS()
	c, err := crashBroker(t, image)
	if err != nil {
		t.Fatal(err)
	}
	var sent *kmsg.ProduceRequest
	c.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		sent = r.(*kmsg.ProduceRequest)
		return nil, nil, false
	})
	cl := crashClient(t, c.ListenAddrs())
	for i := range 3 {
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "raw", Value: []byte(strconv.Itoa(i))}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	image = image.clone()
	cl.Close()
	c.Close()
	if c, err = crashBroker(t, image); err != nil {
		t.Fatal(err)
	}
	again, err := sent.RequestWith(ctx, crashClient(t, c.ListenAddrs()))
	if err != nil || again.Topics[0].Partitions[0].ErrorCode != 0 || again.Topics[0].Partitions[0].BaseOffset != 2 {
		t.Fatalf("%v: %+v", err, again)
	}
	if got, err := crashRead(ctx, t, c.ListenAddrs(), "raw", 0); err != nil || !slices.Equal(got, []string{"0", "1", "2"}) {
		t.Errorf("%v: %q", err, got)
	}
}
