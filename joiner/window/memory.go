package window

import (
	"encoding/binary"
	"slices"
)

// maxFree and maxFreeBytes bound the memory of sealed and dropped buckets that is kept for new ones. In steady state a
// few cover batches that cross several seconds; a backlog crosses dozens of small buckets a batch.
const (
	maxFree      = 8
	maxFreeBytes = 4 << 20
)

// keep puts a bucket's memory aside for a new one, if there is not enough already.
func (w *Window) keep(b *bucket) {
	n := b.memory()
	if len(w.free) < maxFree || w.freeBytes+n <= maxFreeBytes {
		w.free = append(w.free, b)
		w.freeBytes += n
	}
}

func (w *Window) recycle(b *bucket) {
	b.base = nil
	if cap(b.arena) > 0 { // a sealed one has given its memory back already
		w.keep(b)
	}
}

// releaseAll takes the records of an arena out of the dictionary's counts.
func (w *Window) releaseAll(arena []byte) {
	for off := 0; off < len(arena); {
		off += w.names.releaseRecord(arena[off:])
	}
}

// forget gives back what a bucket holds.
func (w *Window) forget(b *bucket) {
	if b.base != nil {
		w.releaseAll(b.base.closing)
	}
	w.releaseAll(b.arena)
	w.recycle(b)
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
