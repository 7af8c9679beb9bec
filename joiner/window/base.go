package window

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
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
