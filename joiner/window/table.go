package window

import (
	"math/bits"

	"ctrloop/schemas"
)

// index is an open-addressing table of (32-bit tag | 32-bit position + 1), linear probing, load at most 0.8.
// It holds no keys: the caller compares the record at the position. Entries are removed only in the reverse
// order of insertion (undo), which for linear probing needs no tombstones: whatever probed past the entry
// came later and is gone already.
type index struct {
	slots []uint64
	n     int
}

const minSlots = 16

// reset empties the index and keeps its memory.
func (x *index) reset() {
	clear(x.slots)
	x.n = 0
}

// full says whether one more entry needs a larger table.
func (x *index) full() bool { return (x.n+1)*5 > len(x.slots)*4 }

// resize makes room for at least n entries and forgets all of them; the caller puts them again.
func (x *index) resize(n int) {
	size := minSlots
	if n > 0 {
		size = max(size, 1<<bits.Len(uint(n)*5/4))
	}
	x.slots, x.n = make([]uint64, size), 0
}

// put adds position i under hash h. The caller has made room.
func (x *index) put(h uint64, i int) {
	mask := uint64(len(x.slots) - 1)
	p := h & mask
	for x.slots[p] != 0 {
		p = (p + 1) & mask
	}
	x.slots[p] = h&^0xffffffff | uint64(i+1)
	x.n++
}

// remove takes back the entry of position i under hash h, which must be the last one put.
func (x *index) remove(h uint64, i int) {
	mask := uint64(len(x.slots) - 1)
	p := h & mask
	for uint32(x.slots[p]) != uint32(i+1) {
		p = (p + 1) & mask
	}
	x.slots[p] = 0
	x.n--
}

// impression is an impression in an open bucket: 32 bytes, no pointers.
type impression struct {
	hi, lo uint64
	off    uint32 // of the encoded impression in the bucket's arena
	size   uint32
	clicks uint32 // clicks inside the window; > 0 means labelled positive
	late   uint32 // 1 + position in the bucket's corrections, 0 without clicks beyond the window
}

// correction is what is known of the clicks beyond the window of one impression.
type correction struct {
	delayMS int64 // of the first one
	clicks  uint32
}

// pendingClick waits for its impression. Clicks of one id form a chain in order of arrival, whose head is indexed.
type pendingClick struct {
	hi, lo  uint64
	timeMS  int64
	offset  int64
	off     uint32 // of the encoded click in the bucket's click arena
	size    uint32
	next    uint32 // 1 + position of the chain's next click, 0 at the end
	tail    uint32 // at the head: 1 + position of the chain's last click
	settled bool   // its impression came
}

// bucket is one slice of event time.
type bucket struct {
	number int64 // event time / bucket width

	imps  []impression
	byImp index
	arena []byte
	corr  []correction

	clicks  []pendingClick
	byClick index
	clkMem  []byte
	waiting int // unsettled clicks
	open    int // impressions without a label

	hash             uint64 // sum of the hashes of everything in it
	firstImp, firstC int64  // first offset of each input that shaped this bucket, -1 without

	epoch uint64 // of the transaction that touched it last
	mark  mark
}

// mark is how a bucket was when the transaction first touched it.
type mark struct {
	created                           bool
	imps, arena, corr, clicks, clkMem int
	waiting, open                     int
	hash                              uint64
	firstImp, firstC                  int64
}

func (b *bucket) reset(number int64) {
	b.number = number
	b.imps, b.arena, b.corr = b.imps[:0], b.arena[:0], b.corr[:0]
	b.clicks, b.clkMem = b.clicks[:0], b.clkMem[:0]
	b.byImp.reset()
	b.byClick.reset()
	b.waiting, b.open, b.hash = 0, 0, 0
	b.firstImp, b.firstC = -1, -1
	b.epoch = 0
}

// find returns the position of an impression, -1 if it is not here.
func (b *bucket) find(h, hi, lo uint64) int {
	if b.byImp.n == 0 {
		return -1
	}
	mask := uint64(len(b.byImp.slots) - 1)
	for p := h & mask; b.byImp.slots[p] != 0; p = (p + 1) & mask {
		s := b.byImp.slots[p]
		if (s^h)>>32 == 0 {
			i := int(uint32(s)) - 1
			if r := &b.imps[i]; r.hi == hi && r.lo == lo {
				return i
			}
		}
	}
	return -1
}

// findClick returns the position of the head of an id's chain of waiting clicks, -1 if there is none.
func (b *bucket) findClick(h, hi, lo uint64) int {
	if b.byClick.n == 0 {
		return -1
	}
	mask := uint64(len(b.byClick.slots) - 1)
	for p := h & mask; b.byClick.slots[p] != 0; p = (p + 1) & mask {
		s := b.byClick.slots[p]
		if (s^h)>>32 == 0 {
			i := int(uint32(s)) - 1
			if c := &b.clicks[i]; c.hi == hi && c.lo == lo {
				return i
			}
		}
	}
	return -1
}

func (b *bucket) raw(i int) []byte {
	r := &b.imps[i]
	return b.arena[r.off : r.off+r.size : r.off+r.size]
}

func (b *bucket) rawClick(c *pendingClick) []byte {
	return b.clkMem[c.off : c.off+c.size : c.off+c.size]
}

func idOf(hi, lo uint64) (id schemas.ImpressionID) {
	for i := range 8 {
		id[i] = byte(hi >> (56 - 8*i))
		id[8+i] = byte(lo >> (56 - 8*i))
	}
	return id
}

// mix is the finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that spreads every bit.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
