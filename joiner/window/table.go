package window

import (
	"encoding/binary"
	"math/bits"
)

// index is an open-addressing table of (32-bit tag | 32-bit position + 1), linear probing, load at most 3/4. A slot's
// place comes from the upper half of the hash, its tag is the lower half, so the size need not be a power of two.
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
func (x *index) full() bool { return (x.n+1)*4 > len(x.slots)*3 }

// resize makes room for at least n entries and forgets all of them; the caller puts them again.
func (x *index) resize(n int) {
	size := minSlots
	if n > 0 {
		size = max(size, 1<<bits.Len(uint(n)*4/3))
	}
	x.slots, x.n = make([]uint64, size), 0
}

func (x *index) place(h uint64) uint64 { return (h >> 32 * uint64(len(x.slots))) >> 32 }

// put adds position i under hash h. The caller has made room.
func (x *index) put(h uint64, i uint32) {
	p, n := x.place(h), uint64(len(x.slots))
	for x.slots[p] != 0 {
		if p++; p == n {
			p = 0
		}
	}
	x.slots[p] = h<<32 | uint64(i+1)
	x.n++
}

// remove takes back the entry of position i under hash h, which must be the last one put.
func (x *index) remove(h uint64, i uint32) {
	p, n := x.place(h), uint64(len(x.slots))
	for uint32(x.slots[p]) != i+1 {
		if p++; p == n {
			p = 0
		}
	}
	x.slots[p] = 0
	x.n--
}

// extra is what the state of an impression is when a count of clicks does not say it.
type extra struct {
	clicks uint32 // inside the window
	late   uint32 // beyond it
	delay  int64  // of the first one beyond it, ms
}

// state of a record: the number of clicks inside the window or, with this bit, the position of an extra.
const stateExtra = 1 << 31

// pendingClick waits for its impression. Clicks of one id form a chain in order of arrival, whose head is indexed.
type pendingClick struct {
	id      recordID
	timeMS  int64
	offset  int64
	off     uint32 // of the encoded click in the bucket's click arena
	size    uint32
	next    uint32 // 1 + position of the chain's next click, 0 at the end
	tail    uint32 // at the head: 1 + position of the chain's last click
	settled bool   // its impression came
}

// bucket is one slice of event time. Impressions are in two places: those of before the bucket was sealed
// in its base, later ones in its own arena.
type bucket struct {
	number  int64 // event time / bucket width
	startMS int64

	arena []byte // records in order of arrival
	byImp index  // positions in arena
	base  *base
	extra []extra

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
	created                      bool
	arena, extra, clicks, clkMem int
	waiting, open                int
	hash                         uint64
	firstImp, firstC             int64
}

func (b *bucket) reset(number, startMS int64) {
	b.number, b.startMS = number, startMS
	b.arena, b.extra, b.base = b.arena[:0], b.extra[:0], nil
	b.clicks, b.clkMem = b.clicks[:0], b.clkMem[:0]
	b.byImp.reset()
	b.byClick.reset()
	b.waiting, b.open, b.hash = 0, 0, 0
	b.firstImp, b.firstC = -1, -1
	b.epoch = 0
}

// imps is the number of impressions.
func (b *bucket) imps() int {
	if b.base != nil {
		return b.byImp.n + b.base.byImp.n
	}
	return b.byImp.n
}

// ref is where an impression is: in a bucket's base or in its arena.
type ref struct {
	inBase bool
	off    uint32
}

// findHot returns the position of an impression in the arena.
func (b *bucket) findHot(h uint64, id recordID) (uint32, bool) {
	if b.byImp.n == 0 {
		return 0, false
	}
	slots := b.byImp.slots
	p, n := b.byImp.place(h), uint64(len(slots))
	for slots[p] != 0 {
		if s := slots[p]; uint32(s>>32) == uint32(h) {
			if off := uint32(s) - 1; idAt(b.arena[off:]) == id {
				return off, true
			}
		}
		if p++; p == n {
			p = 0
		}
	}
	return 0, false
}

// findClick returns the position of the head of an id's chain of waiting clicks, -1 if there is none.
func (b *bucket) findClick(h uint64, id recordID) int {
	if b.byClick.n == 0 {
		return -1
	}
	slots := b.byClick.slots
	p, n := b.byClick.place(h), uint64(len(slots))
	for slots[p] != 0 {
		if s := slots[p]; uint32(s>>32) == uint32(h) {
			if i := int(uint32(s)) - 1; b.clicks[i].id == id {
				return i
			}
		}
		if p++; p == n {
			p = 0
		}
	}
	return -1
}

func (b *bucket) rawClick(c *pendingClick) []byte {
	return b.clkMem[c.off : c.off+c.size : c.off+c.size]
}

// state of the impression at r.
func (b *bucket) state(r ref) uint32 {
	if r.inBase {
		return b.base.state(r.off)
	}
	return binary.LittleEndian.Uint32(b.arena[r.off:])
}

func (b *bucket) setState(r ref, s uint32) {
	if r.inBase {
		b.base.setState(r.off, s)
		return
	}
	binary.LittleEndian.PutUint32(b.arena[r.off:], s)
}

// clicksOf is what a state says.
func (b *bucket) clicksOf(state uint32) extra {
	if state&stateExtra != 0 {
		return b.extra[state&^stateExtra]
	}
	return extra{clicks: state}
}

// mix is the finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that spreads every bit.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
