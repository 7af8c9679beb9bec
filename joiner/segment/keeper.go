package segment

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/joiner/window"
)

// Identity says whose state it is. A manifest of another identity is ignored.
type Identity struct {
	TopicIDs  [2]string `json:"topic_ids"` // of imp.v1 and clk.v1: a topic made anew has another
	Partition int32     `json:"partition"`
	WindowMS  int64     `json:"window_ms"`
	BucketMS  int64     `json:"bucket_ms"`
}

// Place says of which commit the state is.
type Place struct {
	Sequence int64    `json:"sequence"`      // of the partition's commit
	Next     [2]int64 `json:"next"`          // first offset of each input that is not in the state
	Epoch    [2]int32 `json:"leader_epochs"` // of the last record of each input, -1 if not known
}

// Options of a keeper.
type Options struct {
	// Interval between manifests: a restart replays at most about this much of the inputs.
	Interval time.Duration
	// Memory is what the partition's state may take, bytes; 0 keeps all in memory.
	Memory int
	Now    func() time.Time
	Log    zerolog.Logger
	Count  *Metrics
}

// batch is how many sealed buckets are written together when nothing presses: few files, and few that stay
// because of one bucket.
const batch = 32

// pressed is batch for a state that has outgrown its memory: it must not hold back much, nor make a file a second.
const pressed = 8

// Keeper keeps the state of one partition. Its methods are called by the goroutine that joins the partition, between
// transactions; only the syncing runs beside it.
type Keeper struct {
	disk disk
	id   Identity
	opt  Options

	files   []*segment
	serial  int
	off     bool      // a write failed: no more of them
	written time.Time // of the last manifest
	last    int64     // its sequence
	job     chan error
	doomed  []*segment // of the manifest that is being written: then nobody needs them
	numbers []int64
	buf     []byte
}

// segment is one file of bases. It is opened at the first read.
type segment struct {
	name   string
	disk   disk
	blocks []block
	synced bool

	mu sync.Mutex
	f  readFile
}

// block is one bucket's base in a file.
type block struct {
	Bucket int64  `json:"b"`
	At     int64  `json:"at"`
	Size   int    `json:"n"`
	CRC    uint32 `json:"crc"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ReadAt implements io.ReaderAt.
func (s *segment) ReadAt(p []byte, at int64) (int, error) {
	s.mu.Lock()
	if s.f == nil {
		f, err := s.disk.open(s.name)
		if err != nil {
			s.mu.Unlock()
			return 0, err
		}
		s.f = f
	}
	f := s.f
	s.mu.Unlock()
	return f.ReadAt(p, at)
}

func (s *segment) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.f != nil {
		s.f.Close() // it was only read
		s.f = nil
	}
}

// Open returns a keeper over a folder, which need not exist.
func Open(dir string, id Identity, opt Options) *Keeper { return open(folder(dir), id, opt) }

func open(d disk, id Identity, opt Options) *Keeper {
	return &Keeper{disk: d, id: id, opt: opt, written: opt.Now()}
}

// Limit changes what the partition's state may take, bytes; 0 keeps all in memory.
func (k *Keeper) Limit(memory int) { k.opt.Memory = memory }

// Keep follows a commit: it writes what was sealed, makes room if the state has outgrown its memory, and starts a
// manifest when it is time. It never fails: what it cannot do it reports and leaves.
func (k *Keeper) Keep(w *window.Window, at Place) {
	k.reap(false)
	if k.off {
		return
	}
	due := k.job == nil && at.Sequence != k.last && k.opt.Now().Sub(k.written) >= k.opt.Interval
	over := k.opt.Memory > 0 && w.Memory() > k.opt.Memory
	if k.numbers = w.Unsaved(k.numbers[:0]); len(k.numbers) > 0 && (due || over && len(k.numbers) >= pressed || len(k.numbers) >= batch) {
		if err := k.save(w); err != nil {
			k.fail(err)
			return
		}
	}
	k.opt.Count.Spills.Add(float64(w.SpillClosed()))
	if over {
		k.opt.Count.Spills.Add(float64(w.Spill(k.opt.Memory)))
	}
	if due {
		k.start(w, at)
	}
}

// save writes sealed buckets to a new file. It is not synced: until a manifest names it, it is worth nothing after a
// crash, and within this process it can be read.
func (k *Keeper) save(w *window.Window) error {
	const flush = 1 << 20
	k.serial++
	s := &segment{disk: k.disk, name: "seg-" + strconv.FormatInt(k.opt.Now().UnixNano(), 36) + "-" + strconv.Itoa(k.serial) + ".dat"}
	f, err := k.disk.create(s.name)
	if err != nil {
		return fmt.Errorf("create segment: %w", err)
	}
	at := int64(0)
	k.buf = k.buf[:0]
	write := func() {
		if err == nil {
			_, err = f.Write(k.buf)
			k.buf = k.buf[:0]
		}
	}
	for _, n := range k.numbers {
		start := len(k.buf)
		k.buf = w.AppendBase(k.buf, n)
		b := block{Bucket: n, At: at, Size: len(k.buf) - start, CRC: crc32.Checksum(k.buf[start:], castagnoli)}
		s.blocks = append(s.blocks, b)
		at += int64(b.Size)
		if len(k.buf) >= flush {
			write()
		}
	}
	write()
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write segment %s: %w", s.name, err), k.disk.remove(s.name))
	}
	for _, b := range s.blocks {
		w.Saved(b.Bucket, s, b.At)
	}
	k.files = append(k.files, s)
	k.opt.Count.Written.Add(float64(at))
	return nil
}

// start takes an image and writes the manifest beside the join.
func (k *Keeper) start(w *window.Window, at Place) {
	job := k.prepare(w, at)
	k.job = make(chan error, 1)
	go func() { k.job <- job() }()
}

// prepare takes the image; what it returns touches nothing of the keeper's but what nobody else changes meanwhile.
func (k *Keeper) prepare(w *window.Window, at Place) func() error {
	k.written, k.last = k.opt.Now(), at.Sequence
	m := manifest{Version: manifestVersion, Identity: k.id, Place: at}
	var live []*segment
	for _, s := range k.files {
		var blocks []block
		for _, b := range s.blocks {
			if w.Holds(b.Bucket, s) {
				blocks = append(blocks, b)
			}
		}
		if len(blocks) == 0 {
			k.doomed = append(k.doomed, s)
			continue
		}
		live = append(live, s)
		m.Files = append(m.Files, fileOf{Name: s.name, Blocks: blocks})
	}
	k.files = live
	image := w.AppendImage(nil)
	return func() error {
		for _, s := range live {
			if err := s.sync(); err != nil {
				return err
			}
		}
		return m.write(k.disk, image)
	}
}

// sync makes a file durable. Opening it again for that is enough: a sync is of the file, not of a descriptor.
func (s *segment) sync() error {
	if s.synced {
		return nil
	}
	s.mu.Lock()
	f := s.f
	s.mu.Unlock()
	if f == nil {
		var err error
		if f, err = s.disk.open(s.name); err != nil {
			return fmt.Errorf("sync segment: %w", err)
		}
		defer f.Close()
	}
	if syncer, ok := f.(interface{ Sync() error }); ok {
		if err := syncer.Sync(); err != nil {
			return fmt.Errorf("sync segment %s: %w", s.name, err)
		}
	}
	s.synced = true
	return nil
}

// reap looks after the manifest that is being written.
func (k *Keeper) reap(wait bool) {
	if k.job == nil {
		return
	}
	var err error
	if wait {
		err = <-k.job
	} else {
		select {
		case err = <-k.job:
		default:
			return
		}
	}
	k.job = nil
	if err != nil {
		k.fail(err)
		return
	}
	k.opt.Count.Manifests.Inc()
	k.sweep()
}

// sweep deletes the files that no manifest names any more.
func (k *Keeper) sweep() {
	for _, s := range k.doomed {
		s.close()
		if err := k.disk.remove(s.name); err != nil && !errors.Is(err, os.ErrNotExist) {
			k.opt.Log.Warn().Err(err).Int32("partition", k.id.Partition).Msg("a segment that nobody needs cannot be deleted")
		}
	}
	k.doomed = nil
}

// fail ends the writing. What is spilled stays readable.
func (k *Keeper) fail(err error) {
	if k.off {
		return
	}
	k.off = true
	k.opt.Count.Failures.Inc()
	k.opt.Log.Error().Err(err).Int32("partition", k.id.Partition).
		Msg(
			"segments are off until this partition is taken again: the join goes on in memory, " +
				"a restart will read the window from the topics; " +
				"look at the space and the health of the disk under joiner.segments.dir",
		)
}

// Close writes a last manifest, of the last commit, and closes the files.
func (k *Keeper) Close(w *window.Window, at Place) {
	k.reap(true)
	if !k.off {
		k.numbers = w.Unsaved(k.numbers[:0])
		var err error
		if len(k.numbers) > 0 {
			err = k.save(w)
		}
		if err == nil {
			err = k.prepare(w, at)()
		}
		if err != nil {
			k.fail(err)
		} else {
			k.opt.Count.Manifests.Inc()
			k.sweep()
		}
	}
	k.Release()
}

// Release closes the files and leaves them as they are.
func (k *Keeper) Release() {
	if k.job != nil {
		_ = <-k.job //nolint:staticcheck // errcheck wants to see it dropped: a manifest that failed now is one that the next start does without
		k.job = nil
	}
	for _, s := range append(k.files, k.doomed...) {
		s.close()
	}
}

// Clear deletes what the keeper does not hold: what a crash left, and all that is of another state. loaded says
// whether the manifest is the one that the state came from.
func (k *Keeper) Clear(loaded bool) {
	held := map[string]bool{}
	for _, s := range append(k.files, k.doomed...) {
		held[s.name] = true
	}
	names, err := k.disk.list()
	for _, name := range names {
		ours := name == manifestName || strings.HasPrefix(name, "seg-") || strings.HasSuffix(name, ".tmp")
		if ours && !held[name] && (name != manifestName || !loaded) {
			err = errors.Join(err, k.disk.remove(name))
		}
	}
	if err != nil {
		k.opt.Log.Warn().Err(err).Int32("partition", k.id.Partition).Msg("old segments cannot be deleted")
	}
}

// readAll reads a stretch of a file and checks its sum.
func (s *segment) check(b block, buf []byte) ([]byte, error) {
	if cap(buf) < b.Size {
		buf = make([]byte, b.Size)
	}
	buf = buf[:b.Size]
	if n, err := s.ReadAt(buf, b.At); n < b.Size {
		return buf, fmt.Errorf("%w: %s is short: %w", errCorrupt, s.name, errors.Join(err, io.ErrUnexpectedEOF))
	}
	if crc32.Checksum(buf, castagnoli) != b.CRC {
		return buf, fmt.Errorf("%w: bucket %d of %s", errCorrupt, b.Bucket, s.name)
	}
	return buf, nil
}
