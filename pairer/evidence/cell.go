package evidence

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"ctrloop/schemas/eventpb"
)

// Value is what a record says of a cell.
type Value struct {
	Category        string // the last one by name
	Trusted         Sums
	Suspect         Sums    // labels that were made while a breaker was open
	FirstMS, LastMS int64   // impression times that were ever counted
	Early           []Early // by minute, ascending
}

// Early is what is known of a minute whose windows may still be open: clicks, and the impressions that they are of.
type Early struct {
	Minute           uint8 // of the hour
	Trusted, Suspect Sums
}

// cell is a Value in a Partition.
type cell struct {
	key        string
	generation int64
	hour       int64
	Value
	hash  uint64 // of the record of the last commit
	saved int    // place of its undo record in the running transaction + 1; 0: not touched
}

// early is the entry of a minute.
func (v *Value) early(minute uint8) *Early {
	i, ok := slices.BinarySearchFunc(v.Early, minute, func(e Early, m uint8) int { return int(e.Minute) - int(m) })
	if !ok {
		v.Early = slices.Insert(v.Early, i, Early{Minute: minute})
	}
	return &v.Early[i]
}

// settle takes the minutes into the sums that are mature. hourMS is the start of the hour, and minutes that end by matureMS are
// mature.
func (v *Value) settle(startMS, matureMS int64) {
	n := 0
	for ; n < len(v.Early) && startMS+(int64(v.Early[n].Minute)+1)*minuteMS <= matureMS; n++ {
		v.Trusted.add(&v.Early[n].Trusted, 1)
		v.Suspect.add(&v.Early[n].Suspect, 1)
	}
	v.Early = slices.Delete(v.Early, 0, n)
}

// span widens the span of impression times, and takes the last category by name.
func (v *Value) widen(firstMS, lastMS int64) {
	if v.FirstMS == 0 || firstMS < v.FirstMS {
		v.FirstMS = firstMS
	}
	v.LastMS = max(v.LastMS, lastMS)
}

// encode is the wire form, an eventpb.EvidenceCell. It is written by hand because it runs once for each cell and transaction: with
// the library, a fold of many cells took a third longer.
func (v *Value) encode() []byte {
	b := make([]byte, 0, 128+len(v.Category)+64*len(v.Early))
	if v.Category != "" {
		b = protowire.AppendString(protowire.AppendTag(b, 1, protowire.BytesType), v.Category)
	}
	b = v.Suspect.append(v.Trusted.append(b, 2), 3)
	b = appendNumber(b, 4, uint64(v.FirstMS))
	b = appendNumber(b, 5, uint64(v.LastMS))
	for i := range v.Early {
		e := &v.Early[i]
		var room [2 * sumsRoom]byte
		minute := e.Suspect.append(e.Trusted.append(appendNumber(room[:0], 1, uint64(e.Minute)), 2), 3)
		b = protowire.AppendBytes(protowire.AppendTag(b, 6, protowire.BytesType), minute)
	}
	return b
}

// appendNumber appends a field, nothing for 0.
func appendNumber(b []byte, field protowire.Number, n uint64) []byte {
	if n == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
}

// marshal cannot fail: there are no strings in our messages that could be ill-formed but a verdict, which is a constant.
func marshal(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("evidence: encode %T: %v", m, err))
	}
	return b
}

func decodeValue(b []byte) (Value, error) {
	var m eventpb.EvidenceCell
	if err := proto.Unmarshal(b, &m); err != nil {
		return Value{}, fmt.Errorf("evidence cell: %w: %w", eventpb.ErrWire, err)
	}
	v := Value{
		Category: string(m.Category), Trusted: sumsOf(m.Trusted), Suspect: sumsOf(m.Suspect), FirstMS: m.FirstMs, LastMS: m.LastMs,
	}
	for i, e := range m.Early {
		if e.Minute >= 60 || i > 0 && e.Minute <= m.Early[i-1].Minute {
			return Value{}, fmt.Errorf("evidence cell: %w: minute %d", eventpb.ErrWire, e.Minute)
		}
		v.Early = append(v.Early, Early{Minute: uint8(e.Minute), Trusted: sumsOf(e.Trusted), Suspect: sumsOf(e.Suspect)})
	}
	return v, nil
}

// digest is a hash of a record's key and value. It is over the bytes of the record, which only one release writes the same: a
// rebuild hashes the bytes that it read.
func digest(key, value []byte) uint64 {
	const basis, prime = 14695981039346656037, 1099511628211 // FNV-1a
	h := basis ^ uint64(len(key))*prime
	for _, b := range [2][]byte{key, value} {
		for _, c := range b {
			h = (h ^ uint64(c)) * prime
		}
	}
	return mix(h) // sums of the hashes of many records must not cancel out
}
