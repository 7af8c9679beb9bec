package window

import (
	"encoding/binary"
	"fmt"
)

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

// ref is where an impression is: in a bucket's base or in its arena.
type ref struct {
	inBase bool
	off    uint32
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

// held is the size of the records in both places.
func (b *bucket) held() int {
	if b.base != nil {
		return len(b.arena) + b.base.size
	}
	return len(b.arena)
}

// memory of what a bucket keeps when it is used again, in bytes.
func (b *bucket) memory() int {
	return cap(b.arena) + 8*cap(b.byImp.slots) + 56*cap(b.clicks) + 8*cap(b.byClick.slots) + cap(b.clkMem)
}

// findHot returns the position of an impression in the arena, or the slot that an entry for it goes to, which is there
// if the index is not full.
func (b *bucket) findHot(h uint64, id recordID) (off uint32, found bool, at uint64) {
	slots := b.byImp.slots
	n := uint64(len(slots))
	if n == 0 {
		return 0, false, 0
	}
	p := b.byImp.place(h)
	for slots[p] != 0 {
		if s := slots[p]; s>>32 == h>>32 {
			if off := position(s); idAt(b.arena[off:]) == id {
				return off, true, p
			}
		}
		if p++; p == n {
			p = 0
		}
	}
	return 0, false, p
}

// findClick returns the position of the head of an id's chain of waiting clicks, -1 if there is none.
func (b *bucket) findClick(h uint64, id recordID) int {
	if b.byClick.n == 0 {
		return -1
	}
	slots := b.byClick.slots
	p, n := b.byClick.place(h), uint64(len(slots))
	for slots[p] != 0 {
		if s := slots[p]; s>>32 == h>>32 {
			if i := int(position(s)); b.clicks[i].id == id {
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
