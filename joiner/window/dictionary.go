package window

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

// reference names a group of field values in a dictionary.
type reference uint32

const (
	refEmpty  reference = iota // no bytes
	refInline                  // not in the dictionary: the record carries the bytes
	refFirst
)

const (
	// maxChunk is the longest value that a dictionary takes; longer ones are rare and stay in their record.
	maxChunk = 256
	// cellStep is the granularity of its memory: a value of n bytes takes a cell of the next multiple.
	cellStep = 16
	// maxEntries bounds a dictionary. Beyond it, which means a million distinct values alive in one partition, new
	// values stay in their records: the memory is then the one without a dictionary.
	maxEntries = 1 << 20
)

// dictionary interns bytes that many records share. It counts the records that refer to an entry and forgets
// the entry with the last one, so that it holds what open impressions name and nothing else, however many
// names come by. It has no pointers inside, whatever its size.
type dictionary struct {
	seed    uint64 // odd, see hash
	entries []entry
	free    []reference // entries without references, to be used again
	slots   []uint64    // (upper 32 bits of the hash | position + 1), linear probing
	live    int
	cells   [maxChunk/cellStep + 1][]byte   // by size class: class k has cells of k*cellStep bytes
	unused  [maxChunk/cellStep + 1][]uint32 // cells without content, by class
}

func newDictionary(seed uint64) *dictionary {
	return &dictionary{seed: mix(seed+0x9e3779b97f4a7c15) | 1}
}

// entry is one value.
type entry struct {
	count uint32 // records that refer to it
	cell  uint32
	size  uint16
}

func class(size int) int { return (size + cellStep - 1) / cellStep }

func (d *dictionary) at(r reference) *entry { return &d.entries[r-refFirst] }

// bytes that a reference stands for. They may move with the next take.
func (d *dictionary) bytes(r reference) []byte {
	e := d.at(r)
	k := class(int(e.size))
	start := int(e.cell) * k * cellStep
	return d.cells[k][start : start+int(e.size)]
}

// take counts one more record with this value.
func (d *dictionary) take(value []byte) reference {
	if len(value) == 0 {
		return refEmpty
	}
	if len(value) > maxChunk {
		return refInline
	}
	if (d.live+1)*4 > len(d.slots)*3 {
		d.grow()
	}
	h := d.hash(value)
	mask := uint64(len(d.slots) - 1)
	p := h & mask
	for ; d.slots[p] != 0; p = (p + 1) & mask {
		if s := d.slots[p]; (s^h)>>32 == 0 {
			if r := reference(uint32(s)-1) + refFirst; bytes.Equal(d.bytes(r), value) {
				d.at(r).count++
				return r
			}
		}
	}
	if d.live >= maxEntries {
		return refInline
	}
	r := d.add(value)
	d.slots[p] = h&^0xffffffff | uint64(r-refFirst+1)
	return r
}

func (d *dictionary) add(value []byte) reference {
	k := class(len(value))
	var cell uint32
	if n := len(d.unused[k]); n > 0 {
		cell, d.unused[k] = d.unused[k][n-1], d.unused[k][:n-1]
		copy(d.cells[k][int(cell)*k*cellStep:], value)
	} else {
		cell = uint32(len(d.cells[k]) / (k * cellStep))
		d.cells[k] = append(d.cells[k], value...)
		var zero [cellStep]byte
		d.cells[k] = append(d.cells[k], zero[:k*cellStep-len(value)]...)
	}
	e := entry{count: 1, cell: cell, size: uint16(len(value))}
	d.live++
	if n := len(d.free); n > 0 {
		r := d.free[n-1]
		d.free = d.free[:n-1]
		*d.at(r) = e
		return r
	}
	d.entries = append(d.entries, e)
	return reference(len(d.entries)-1) + refFirst
}

// release counts one record less, and forgets the value with the last.
func (d *dictionary) release(r reference) {
	if r < refFirst {
		return
	}
	e := d.at(r)
	if e.count--; e.count > 0 {
		return
	}
	d.remove(r)
	k := class(int(e.size))
	d.unused[k] = append(d.unused[k], e.cell)
	d.free = append(d.free, r)
	d.live--
	*e = entry{}
}

// remove takes an entry out of the index and moves up what probed past it.
func (d *dictionary) remove(r reference) {
	mask := uint64(len(d.slots) - 1)
	p := d.hash(d.bytes(r)) & mask
	for uint32(d.slots[p]) != uint32(r-refFirst+1) {
		p = (p + 1) & mask
	}
	for q := (p + 1) & mask; d.slots[q] != 0; q = (q + 1) & mask {
		home := d.hash(d.bytes(reference(uint32(d.slots[q])-1)+refFirst)) & mask
		if (q-home)&mask >= (q-p)&mask {
			d.slots[p] = d.slots[q]
			p = q
		}
	}
	d.slots[p] = 0
}

func (d *dictionary) grow() {
	d.index(max(64, 2*len(d.slots)))
}

// index makes the table anew.
func (d *dictionary) index(size int) {
	d.slots = make([]uint64, size)
	mask := uint64(size - 1)
	for i, e := range d.entries {
		if e.count == 0 {
			continue
		}
		h := d.hash(d.bytes(reference(i) + refFirst))
		p := h & mask
		for d.slots[p] != 0 {
			p = (p + 1) & mask
		}
		d.slots[p] = h&^0xffffffff | uint64(i+1)
	}
}

// memory in bytes.
func (d *dictionary) memory() int {
	n := cap(d.entries)*12 + cap(d.free)*4 + cap(d.slots)*8
	for k := range d.cells {
		n += cap(d.cells[k]) + cap(d.unused[k])*4
	}
	return n
}

// hash is eight bytes a step through the full product of two words, as in wyhash (Wang Yi): the names come from outside,
// so the seed goes into every step.
func (d *dictionary) hash(b []byte) uint64 {
	h := d.seed ^ uint64(len(b))*0x9e3779b97f4a7c15
	for len(b) >= 8 {
		hi, lo := bits.Mul64(h^binary.LittleEndian.Uint64(b), d.seed)
		h = hi ^ lo ^ 0xa0761d6478bd642f
		b = b[8:]
	}
	var last uint64
	for i, c := range b {
		last |= uint64(c) << (8 * i)
	}
	return mix(h ^ last*0xe7037ed1a0b428db)
}
