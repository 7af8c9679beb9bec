package window

import (
	"math/bits"
)

// index is an open-addressing table of (32-bit tag | 32-bit position + 1), linear probing, load at most 3/4. The tag is
// the upper half of the hash and gives the slot's place too, so an index moves to another size by itself, without the
// keys, and nearly in the order of its memory. It holds no keys: the caller compares the record at the position.
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

// grow makes room for n entries in all.
func (x *index) grow(n int) {
	old := x.slots
	x.slots, x.n = make([]uint64, max(minSlots, 1<<bits.Len(uint(n)*4/3))), 0
	x.addAll(old, 0)
}

// addAll takes over the slots of another index, whose positions are now by so much higher. The caller has made room.
func (x *index) addAll(slots []uint64, shift uint64) {
	for _, s := range slots {
		if s != 0 {
			x.add(s + shift)
		}
	}
}

func (x *index) place(h uint64) uint64 { return (h >> 32 * uint64(len(x.slots))) >> 32 }

func slot(h uint64, i uint32) uint64 { return h>>32<<32 | uint64(i+1) }

// position in a slot that is not empty.
func position(slot uint64) uint32 { return uint32(slot) - 1 }

func (x *index) add(s uint64) {
	p, n := x.place(s), uint64(len(x.slots))
	for x.slots[p] != 0 {
		if p++; p == n {
			p = 0
		}
	}
	x.slots[p] = s
	x.n++
}

// put adds position i under hash h. The caller has made room.
func (x *index) put(h uint64, i uint32) { x.add(slot(h, i)) }

// remove takes out position i under hash h, which must be there, and moves up what probed past it.
func (x *index) remove(h uint64, i uint32) {
	n := uint64(len(x.slots))
	next := func(p uint64) uint64 {
		if p++; p == n {
			return 0
		}
		return p
	}
	p := x.place(h)
	for uint32(x.slots[p]) != i+1 {
		p = next(p)
	}
	for q := next(p); x.slots[q] != 0; q = next(q) {
		if home := x.place(x.slots[q]); (q+n-home)%n >= (q+n-p)%n {
			x.slots[p] = x.slots[q]
			p = q
		}
	}
	x.slots[p] = 0
	x.n--
}

// mix is the finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that spreads every bit.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
