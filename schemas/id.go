package schemas

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// ImpressionID is the 16 bytes of a UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then version,
// variant and 74 random bits. Because the id carries its event time, an impression that is sent twice is
// the same id at the same time, and a click finds its impression's time bucket from the id alone.
type ImpressionID [16]byte

// ErrBadID is returned for bytes or text that are not an id with a time.
var ErrBadID = errors.New("not an impression id: want a UUIDv7 (RFC 9562) or a ULID")

// NewImpressionID builds the id of an event at t (millisecond precision) from 80 bits of randomness,
// of which 74 are used. The caller brings the randomness, so that worlds can be drawn from a seed.
func NewImpressionID(t time.Time, random [10]byte) ImpressionID {
	var id ImpressionID
	ms := uint64(t.UnixMilli())
	binary.BigEndian.PutUint16(id[0:], uint16(ms>>32))
	binary.BigEndian.PutUint32(id[2:], uint32(ms))
	copy(id[6:], random[:])
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

// UnixMilli is the event time that the id carries.
func (id ImpressionID) UnixMilli() int64 {
	return int64(uint64(binary.BigEndian.Uint16(id[0:]))<<32 | uint64(binary.BigEndian.Uint32(id[2:])))
}

// Time is the event time that the id carries, in UTC.
func (id ImpressionID) Time() time.Time { return time.UnixMilli(id.UnixMilli()).UTC() }

// Hi and Lo are the id as two big-endian words, the form in which the join's tables hold it.
func (id ImpressionID) Hi() uint64 { return binary.BigEndian.Uint64(id[0:]) }

// Lo is the lower half, see Hi.
func (id ImpressionID) Lo() uint64 { return binary.BigEndian.Uint64(id[8:]) }

// String is the canonical form 8-4-4-4-12.
func (id ImpressionID) String() string {
	const hex = "0123456789abcdef"
	var b [36]byte
	j := 0
	for i, v := range id {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			b[j] = '-'
			j++
		}
		b[j], b[j+1] = hex[v>>4], hex[v&15]
		j += 2
	}
	return string(b[:])
}

// ImpressionIDFromBytes reads the raw form. Any 16 bytes with UUID version 7 are an id.
func ImpressionIDFromBytes(b []byte) (ImpressionID, error) {
	if len(b) != 16 {
		return ImpressionID{}, fmt.Errorf("%w: %d bytes", ErrBadID, len(b))
	}
	id := ImpressionID(b)
	if id[6]>>4 != 7 || id[8]>>6 != 2 {
		return ImpressionID{}, fmt.Errorf("%w: UUID version %d", ErrBadID, id[6]>>4)
	}
	return id, nil
}

// ParseImpressionID reads the text form: a UUIDv7 with or without dashes, or a ULID (26 characters of
// Crockford base32). A ULID becomes the UUIDv7 with the same time and the same bits except the six that
// hold version and variant, so that both spellings of one event are one id.
func ParseImpressionID(s string) (ImpressionID, error) {
	switch len(s) {
	case 36, 32:
		var id ImpressionID
		n := 0
		for i := 0; i < len(s); i++ {
			c := s[i]
			if c == '-' && len(s) == 36 && (i == 8 || i == 13 || i == 18 || i == 23) {
				continue
			}
			v, ok := unhex(c)
			if !ok || n == 32 {
				return ImpressionID{}, fmt.Errorf("%w: %q", ErrBadID, s)
			}
			id[n/2] = id[n/2]<<4 | v
			n++
		}
		if n != 32 {
			return ImpressionID{}, fmt.Errorf("%w: %q", ErrBadID, s)
		}
		return ImpressionIDFromBytes(id[:])
	case 26:
		return parseULID(s)
	}
	return ImpressionID{}, fmt.Errorf("%w: %d characters", ErrBadID, len(s))
}

func unhex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

func parseULID(s string) (ImpressionID, error) {
	const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	var hi, lo uint64 // 130 bits in 26 digits of 5; the first digit may use 3
	for i := 0; i < len(s); i++ {
		c := s[i]
		if 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		v := -1
		for j := range len(alphabet) {
			if alphabet[j] == c {
				v = j
			}
		}
		if v < 0 || i == 0 && v > 7 {
			return ImpressionID{}, fmt.Errorf("%w: %q", ErrBadID, s)
		}
		hi = hi<<5 | lo>>59
		lo = lo<<5 | uint64(v)
	}
	var id ImpressionID
	binary.BigEndian.PutUint64(id[0:], hi)
	binary.BigEndian.PutUint64(id[8:], lo)
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id, nil
}
