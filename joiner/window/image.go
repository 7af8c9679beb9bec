package window

import (
	"encoding/binary"
	"errors"
	"io"
)

// This file is what a cache on disk needs of a window. Sealed bases are written once, each as one stretch of a file
// (AppendBase, Saved); all else, which is little, is an image of the moment (AppendImage). Both belong together:
// a record in a base names things by references into the dictionary, which is in the image.
//
// A cache may be wrong in any way without harm, as long as its bytes are those that were written, which the caller
// checks by sums: Load drops what the committed watermark has closed, the replay adds what has come since the
// image, and Restored compares the result with the committed hash.

// Unsaved appends the numbers of the sealed buckets whose records are in no file, oldest first.
func (w *Window) Unsaved(numbers []int64) []int64 {
	for _, b := range w.order {
		if b.base != nil && b.base.file == nil {
			numbers = append(numbers, b.number)
		}
	}
	return numbers
}

// AppendBase appends what a file has to hold of a sealed bucket: its records and its index.
func (w *Window) AppendBase(dst []byte, number int64) []byte {
	x := w.buckets[number].base
	dst = append(dst, x.data...)
	for _, s := range x.byImp.slots {
		dst = binary.LittleEndian.AppendUint64(dst, s)
	}
	return dst
}

// Saved says that what AppendBase gave lies at a place of a file. From now on it may be dropped from memory; file
// must stay readable until Holds says that the bucket is gone. Call it between transactions.
func (w *Window) Saved(number int64, file io.ReaderAt, at int64) {
	x := w.buckets[number].base
	x.file, x.at = file, at
}

// Holds says whether the bucket is there and its base is the one in this file.
func (w *Window) Holds(number int64, file io.ReaderAt) bool {
	b := w.buckets[number]
	return b != nil && b.base != nil && b.base.file == file
}

// Memory is what the state takes, in bytes.
func (w *Window) Memory() int {
	const perBucket = 512 // the bucket itself and its places in maps and lists
	n := w.names.memory()
	for _, b := range w.order {
		n += perBucket + b.memory() + 16*cap(b.extra)
		if x := b.base; x != nil {
			n += cap(x.data) + 8*cap(x.byImp.slots) + 16*len(x.states)
		}
	}
	return n + w.freeBytes
}

// Spill drops saved records from memory, those of the oldest buckets first, because clicks come soon after their
// impression, until the state takes at most limit bytes or nothing is left to drop. Clicks are then joined
// by reading the file, and a bucket is read as a whole when it closes. Call it between transactions.
func (w *Window) Spill(limit int) (buckets int) {
	have := w.Memory()
	for _, b := range w.order {
		if have <= limit {
			break
		}
		if b.spillable() {
			have -= cap(b.base.data)
			b.base.spill()
			buckets++
		}
	}
	return buckets
}

// SpillClosed is Spill for all that is kept for corrections only: few of its records are ever read again.
func (w *Window) SpillClosed() (buckets int) {
	for _, b := range w.order[:w.firstOpen(w.watermark)] {
		if b.spillable() {
			b.base.spill()
			buckets++
		}
	}
	return buckets
}

func (b *bucket) spillable() bool {
	return b.base != nil && b.base.file != nil && b.base.data != nil
}

func (x *base) spill() {
	x.keepStates()
	x.data = nil
}

// Spilled is how many buckets and bytes are on disk only.
func (w *Window) Spilled() (buckets, bytes int) {
	for _, b := range w.order {
		if b.base != nil && b.base.data == nil {
			buckets++
			bytes += b.base.size
		}
	}
	return buckets, bytes
}

// ErrImage says that an image cannot be read.
var ErrImage = errors.New("image of join state is not readable")

// Places of a bucket's base.
const (
	baseNone  = iota
	baseHere  // in the image
	baseSaved // in a file
)

// AppendImage appends all that the state is besides saved bases. Call it between transactions.
func (w *Window) AppendImage(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, w.cfg.Seed)
	dst = w.names.appendImage(dst)
	dst = binary.AppendUvarint(dst, uint64(len(w.order)))
	for _, b := range w.order {
		dst = b.appendImage(dst)
	}
	return dst
}

func (d *dictionary) appendImage(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(d.entries)))
	for i, e := range d.entries {
		dst = binary.AppendUvarint(dst, uint64(e.count))
		if e.count > 0 {
			dst = appendBytes(dst, d.bytes(reference(i)+refFirst))
		}
	}
	return dst
}

func appendBytes(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

func (b *bucket) appendImage(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, b.hash)
	for _, v := range []int64{b.number, int64(b.open), int64(b.waiting), b.firstImp, b.firstC} {
		dst = binary.AppendVarint(dst, v)
	}
	dst = appendBytes(dst, b.arena)
	dst = binary.AppendUvarint(dst, uint64(len(b.extra)))
	for _, e := range b.extra {
		dst = binary.AppendUvarint(dst, uint64(e.clicks))
		dst = binary.AppendUvarint(dst, uint64(e.late))
		dst = binary.AppendVarint(dst, e.delay)
	}
	dst = appendBytes(dst, b.clkMem)
	dst = binary.AppendUvarint(dst, uint64(len(b.clicks)))
	for i := range b.clicks {
		c := &b.clicks[i]
		dst = binary.LittleEndian.AppendUint64(dst, c.id.tail)
		settled := uint64(0)
		if c.settled {
			settled = 1
		}
		for _, v := range []uint64{uint64(c.id.head), uint64(c.off), uint64(c.size), uint64(c.next), uint64(c.tail), settled} {
			dst = binary.AppendUvarint(dst, v)
		}
		dst = binary.AppendVarint(dst, c.timeMS)
		dst = binary.AppendVarint(dst, c.offset)
	}
	return b.base.appendImage(dst)
}

func (x *base) appendImage(dst []byte) []byte {
	switch {
	case x == nil:
		return append(dst, baseNone)
	case x.file == nil:
		return appendBytes(append(dst, baseHere), x.data)
	}
	dst = append(dst, baseSaved)
	dst = binary.AppendUvarint(dst, uint64(x.size))
	dst = binary.AppendUvarint(dst, uint64(x.byImp.n))
	dst = binary.AppendUvarint(dst, uint64(len(x.byImp.slots)))
	dst = binary.AppendUvarint(dst, uint64(len(x.states)))
	for off, s := range x.states {
		dst = binary.LittleEndian.AppendUint32(dst, off)
		dst = binary.LittleEndian.AppendUint32(dst, s)
	}
	return dst
}

// Bases says where the base of a bucket lies: size bytes at a place of a file.
type Bases func(number int64, size int) (file io.ReaderAt, at int64, err error)

// Load makes the window of an image in the middle of a rebuild: as after Restore of the snapshot, and with everything in
// it that the image's inputs brought and the snapshot's watermark leaves open. Feed it what the inputs have from the
// image's offsets on, then call Restored. keep says whether saved records are kept in memory. The seed is the image's.
func Load(cfg Config, s Snapshot, image []byte, bases Bases, keep bool) (*Window, error) {
	r := &reader{b: image}
	cfg.Seed = r.word()
	w := Restore(cfg, s)
	w.names.load(r)
	for range r.uvarint() {
		if r.failed {
			break
		}
		b, err := w.loadBucket(r, bases, keep)
		if err != nil {
			return nil, err
		}
		if b == nil {
			break
		}
		if w.gone(b.number) {
			err = w.discard(b)
		} else {
			w.adopt(b)
		}
		if err != nil {
			return nil, err
		}
	}
	if r.failed || len(r.b) > 0 {
		return nil, ErrImage
	}
	return w, nil
}

// discard takes back what a bucket holds that has closed since the image.
func (w *Window) discard(b *bucket) error {
	if b.base != nil {
		data, err := b.base.load()
		if err != nil {
			return err
		}
		w.releaseAll(data)
	}
	w.releaseAll(b.arena)
	return nil
}

// adopt puts a bucket behind those that are there.
func (w *Window) adopt(b *bucket) {
	w.buckets[b.number] = b
	w.order = append(w.order, b)
	if b.base == nil {
		w.unsealed = append(w.unsealed, b)
	}
	if !w.closed(b.number) {
		w.ledger.Open += uint64(b.open)
		w.ledger.Pending += uint64(b.waiting)
	}
	w.hash += b.hash
}

func (d *dictionary) load(r *reader) {
	for range r.uvarint() {
		e := entry{count: uint32(r.uvarint())}
		if r.failed {
			return
		}
		if e.count == 0 {
			d.free = append(d.free, reference(len(d.entries))+refFirst)
			d.entries = append(d.entries, e)
			continue
		}
		value := r.bytes()
		if len(value) == 0 || len(value) > maxChunk {
			r.failed = true
			return
		}
		// The place in the list is what records refer to, so the free list must not be used here.
		free := d.free
		d.free = nil
		d.add(value)
		d.free = free
		d.entries[len(d.entries)-1].count = e.count
	}
	size := 64
	for size*3 < (d.live+1)*4 {
		size *= 2
	}
	d.index(size)
}

func (w *Window) loadBucket(r *reader, bases Bases, keep bool) (*bucket, error) {
	b := &bucket{}
	hash, number := r.word(), r.varint()
	b.reset(number, number*w.cfg.BucketMS)
	b.hash, b.open, b.waiting, b.firstImp, b.firstC = hash, int(r.varint()), int(r.varint()), r.varint(), r.varint()
	b.arena = append(b.arena, r.bytes()...)
	for range r.uvarint() {
		if r.failed {
			return nil, nil
		}
		b.extra = append(b.extra, extra{clicks: uint32(r.uvarint()), late: uint32(r.uvarint()), delay: r.varint()})
	}
	b.clkMem = append(b.clkMem, r.bytes()...)
	heads := 0
	for range r.uvarint() {
		if r.failed {
			return nil, nil
		}
		c := pendingClick{id: recordID{tail: r.word()}}
		c.id.head, c.off, c.size, c.next, c.tail = uint32(
			r.uvarint(),
		), uint32(
			r.uvarint(),
		), uint32(
			r.uvarint(),
		), uint32(
			r.uvarint(),
		), uint32(
			r.uvarint(),
		)
		c.settled = r.uvarint() == 1
		c.timeMS, c.offset = r.varint(), r.varint()
		b.clicks = append(b.clicks, c)
		if c.tail != 0 {
			heads++
		}
	}
	if err := w.loadBase(b, r, bases, keep && !w.closed(number)); err != nil || r.failed {
		return nil, err
	}
	if n := countRecords(b.arena); n > 0 {
		b.byImp.grow(n)
		w.fill(b, &b.byImp, b.arena)
	}
	if heads > 0 {
		b.byClick.grow(heads)
		for i := range b.clicks {
			if c := &b.clicks[i]; c.tail != 0 {
				b.byClick.put(w.hashRecord(b, c.id), uint32(i))
			}
		}
	}
	return b, nil
}

func countRecords(arena []byte) (n int) {
	for off := 0; off < len(arena); off += recordSize(arena[off:]) {
		n++
	}
	return n
}

func (w *Window) loadBase(b *bucket, r *reader, bases Bases, keep bool) error {
	switch r.byte() {
	case baseNone:
	case baseHere:
		x := &base{data: append([]byte(nil), r.bytes()...)}
		x.size = len(x.data)
		n := countRecords(x.data)
		x.byImp.slots = make([]uint64, n+n/3+1)
		w.fill(b, &x.byImp, x.data)
		b.base = x
	case baseSaved:
		x := &base{size: int(r.uvarint())}
		n, slots := int(r.uvarint()), int(r.uvarint())
		if states := r.uvarint(); states > 0 {
			x.states = map[uint32]uint32{}
			for range states {
				if r.failed {
					return nil
				}
				off := r.half()
				x.states[off] = r.half()
			}
		}
		if r.failed || x.size <= 0 || slots <= n {
			r.failed = true
			return nil
		}
		b.base = x
		return x.loadSaved(b.number, n, slots, bases, keep)
	default:
		r.failed = true
	}
	return nil
}

// loadSaved reads a base's index and, to keep them or to find what clicks had come, its records.
func (x *base) loadSaved(number int64, n, slots int, bases Bases, keep bool) error {
	file, at, err := bases(number, x.size+8*slots)
	if err != nil {
		return err
	}
	x.file, x.at = file, at
	slotBytes := make([]byte, 8*slots)
	x.data = make([]byte, x.size)
	if err := errors.Join(x.read(x.data, 0), x.read(slotBytes, x.size)); err != nil {
		return err
	}
	x.byImp.n = n
	x.byImp.slots = make([]uint64, slots)
	for i := range x.byImp.slots {
		x.byImp.slots[i] = binary.LittleEndian.Uint64(slotBytes[8*i:])
	}
	if !keep {
		x.keepStates()
		x.data = nil
	}
	return nil
}

// keepStates notes the states that are not zero, before data goes.
func (x *base) keepStates() {
	for off := 0; off < len(x.data); off += recordSize(x.data[off:]) {
		if s := x.state(uint32(off)); s != 0 {
			x.setState(uint32(off), s)
		}
	}
}

// reader takes an image apart; after its end it returns zeros and has failed.
type reader struct {
	b      []byte
	failed bool
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.failed, r.b = true, nil
		return make([]byte, min(max(n, 0), 8))
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) byte() byte   { return r.take(1)[0] }
func (r *reader) half() uint32 { return binary.LittleEndian.Uint32(r.take(4)) }
func (r *reader) word() uint64 { return binary.LittleEndian.Uint64(r.take(8)) }

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.failed, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	u := r.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

func (r *reader) bytes() []byte {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.failed, r.b = true, nil
		return nil
	}
	return r.take(int(n))
}

// fill puts the records of an arena into an index with room for them.
func (w *Window) fill(b *bucket, x *index, arena []byte) {
	for off := 0; off < len(arena); off += recordSize(arena[off:]) {
		x.put(w.hashRecord(b, idAt(arena[off:])), uint32(off))
	}
}
