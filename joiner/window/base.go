package window

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// base is what a bucket held when it was sealed: memory cut to size, or a stretch of a file.
type base struct {
	data  []byte // nil once it is on disk only
	size  int
	byImp index // stays in memory: a lookup costs at most one read

	// states are those that have changed since the base was written to a file, and all but zero once data is
	// gone. Before that they are changed in place.
	states map[uint32]uint32
	file   io.ReaderAt // nil: not written
	at     int64       // of data in the file

	closing []byte // the records, while the bucket's end may still be undone
}

// readAhead is what is read of a spilled record at first: hardly any is longer.
const readAhead = 256

// ErrSpill wraps every failure of the disk under spilled buckets. The inputs have what is lost.
var ErrSpill = errors.New("read of spilled join state failed")

func (x *base) read(b []byte, off int) error {
	if n, err := x.file.ReadAt(b, x.at+int64(off)); n < len(b) {
		return fmt.Errorf("%w: %w", ErrSpill, err)
	}
	return nil
}

// find returns the position of an impression. head is room for the head of a record.
func (x *base) find(h uint64, id recordID, head []byte) (uint32, bool, error) {
	if x.byImp.n == 0 {
		return 0, false, nil
	}
	slots := x.byImp.slots
	p, n := x.byImp.place(h), uint64(len(slots))
	for slots[p] != 0 {
		if s := slots[p]; s>>32 == h>>32 {
			off := position(s)
			if x.data != nil {
				if idAt(x.data[off:]) == id {
					return off, true, nil
				}
			} else if err := x.read(head, int(off)); err != nil {
				return 0, false, err
			} else if idAt(head) == id {
				return off, true, nil
			}
		}
		if p++; p == n {
			p = 0
		}
	}
	return 0, false, nil
}

func (x *base) state(off uint32) uint32 {
	if s, ok := x.states[off]; ok {
		return s
	}
	if x.data == nil {
		return 0
	}
	return binary.LittleEndian.Uint32(x.data[off:])
}

func (x *base) setState(off, s uint32) {
	if x.file == nil {
		binary.LittleEndian.PutUint32(x.data[off:], s)
		return
	}
	if x.states == nil {
		x.states = map[uint32]uint32{}
	}
	x.states[off] = s
}

// load returns the records.
func (x *base) load() ([]byte, error) {
	if x.data != nil {
		return x.data, nil
	}
	data := make([]byte, x.size)
	return data, x.read(data, 0)
}

// record returns the record at r, and perhaps more behind it.
func (b *bucket) record(r ref) ([]byte, error) {
	switch {
	case !r.inBase:
		return b.arena[r.off:], nil
	case b.base.data != nil:
		return b.base.data[r.off:], nil
	}
	for n := readAhead; ; n *= 8 {
		rec := make([]byte, min(n, b.base.size-int(r.off)))
		if err := b.base.read(rec, int(r.off)); err != nil {
			return nil, err
		}
		var x walk
		if x.read(rec) {
			return rec[:x.size:x.size], nil
		}
		if len(rec) < n {
			return nil, fmt.Errorf("%w: a record is cut off", ErrSpill)
		}
	}
}

// seal moves what the bucket holds into a base of exactly its size and gives its other memory back. Nothing
// changes for the outside: late impressions go to the arena again. It must not be called inside a transaction.
func (w *Window) seal(b *bucket) {
	n, size := b.imps(), len(b.arena)
	x := &base{}
	var old []byte
	if b.base != nil {
		var err error
		if old, err = b.base.load(); err != nil {
			return // it stays as it is; whoever needs the base will report the disk
		}
		size += len(old)
	}
	x.data = append(append(slices.Grow([]byte(nil), size), old...), b.arena...)
	if b.base != nil {
		for off, s := range b.base.states {
			binary.LittleEndian.PutUint32(x.data[off:], s)
		}
	}
	x.size = size
	x.byImp.slots = make([]uint64, n+n/3+1) // load 3/4
	if b.base != nil {
		x.byImp.addAll(b.base.byImp.slots, 0)
	}
	x.byImp.addAll(b.byImp.slots, uint64(len(old)))
	b.base = x
	w.keep(&bucket{arena: b.arena, byImp: b.byImp})
	b.arena, b.byImp = nil, index{}
	if b.waiting == 0 {
		b.clicks, b.clkMem, b.byClick = nil, nil, index{}
	}
}

// sealable says whether to seal a bucket: nothing but stragglers comes any more, and enough of them have come
// since the last time to be worth the copy.
func (w *Window) sealable(b *bucket) bool {
	if b.byImp.n == 0 || b.startMS+w.cfg.BucketMS > w.sealFrom() {
		return false
	}
	return b.base == nil || b.byImp.n*4 >= b.base.byImp.n
}

// sealFrom is the event time before which buckets are sealed: the watermark, or how far a rebuild has read.
func (w *Window) sealFrom() int64 {
	if w.replaying && w.replayedMS != None {
		return min(w.watermark, w.replayedMS-w.cfg.LatenessMS)
	}
	return w.watermark
}
