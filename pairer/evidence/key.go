package evidence

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// The first byte of a key of evidence.v1 says what the record is.
const (
	kindCell     = 'c'
	kindProgress = 'p'
	kindDoubt    = 'd'
	kindReview   = 'r'
	kindErasure  = 'e'
)

const (
	hourMS   = 3_600_000
	minuteMS = 60_000
)

// Key names a cell. HourMS is the start of an hour of impression time, Unix milliseconds.
type Key struct {
	Product, Placement, Creative string
	HourMS                       int64
	Position                     uint16
}

// errKey says that the key of a record is none of evidence.v1.
var errKey = errors.New("not a key of evidence.v1")

// appendCell appends the key of a cell without its generation: hour and position with the larger byte first, product and placement
// behind their lengths, the creative as the rest.
func appendCell(b []byte, hour int64, position uint16, product, placement, creative []byte) []byte {
	b = append(b, kindCell)
	b = binary.BigEndian.AppendUint32(b, uint32(hour))
	b = binary.BigEndian.AppendUint16(b, position)
	b = binary.AppendUvarint(b, uint64(len(product)))
	b = append(b, product...)
	b = binary.AppendUvarint(b, uint64(len(placement)))
	b = append(b, placement...)
	return append(b, creative...)
}

func (k Key) append(b []byte) []byte {
	return appendCell(b, k.HourMS/hourMS, k.Position, []byte(k.Product), []byte(k.Placement), []byte(k.Creative))
}

// generationSize is what a generation takes behind the key of its cell.
const generationSize = 8

func appendGeneration(b []byte, generation int64) []byte {
	return binary.BigEndian.AppendUint64(b, uint64(generation))
}

// cutGeneration splits the key of a cell's record.
func cutGeneration(key []byte) (cell []byte, generation int64, err error) {
	n := len(key) - generationSize
	if n < 1 || key[0] != kindCell {
		return nil, 0, fmt.Errorf("%w: %q", errKey, key)
	}
	return key[:n], int64(binary.BigEndian.Uint64(key[n:])), nil
}

// parseKey reads the key of a cell without its generation.
func parseKey(b []byte) (Key, error) {
	if len(b) < 7 || b[0] != kindCell {
		return Key{}, fmt.Errorf("%w: %q", errKey, b)
	}
	k := Key{HourMS: int64(binary.BigEndian.Uint32(b[1:])) * hourMS, Position: binary.BigEndian.Uint16(b[5:])}
	rest := b[7:]
	for _, name := range []*string{&k.Product, &k.Placement} {
		size, n := binary.Uvarint(rest)
		if n <= 0 || size > uint64(len(rest)-n) {
			return Key{}, fmt.Errorf("%w: %q", errKey, b)
		}
		*name, rest = string(rest[n:n+int(size)]), rest[n+int(size):]
	}
	k.Creative = string(rest)
	return k, nil
}

// progressKey is that of the one progress record of a partition.
var progressKey = []byte{kindProgress}

// doubtKey names suspect negatives of one minute that one transaction brought.
func doubtKey(minute int64, c chunk) []byte {
	b := binary.BigEndian.AppendUint32([]byte{kindDoubt}, uint32(minute))
	b = binary.BigEndian.AppendUint64(b, uint64(c.sequence))
	return binary.BigEndian.AppendUint16(b, c.part)
}

func parseDoubtKey(b []byte) (minute int64, c chunk, err error) {
	if len(b) != 15 || b[0] != kindDoubt {
		return 0, c, fmt.Errorf("%w: %q", errKey, b)
	}
	c = chunk{int64(binary.BigEndian.Uint64(b[5:])), binary.BigEndian.Uint16(b[13:])}
	return int64(binary.BigEndian.Uint32(b[1:])), c, nil
}

// ReviewKey names the labels that a review of suspect ones is about: an hour of impression time of a product in a placement, in one
// partition of labels.v1.
type ReviewKey struct {
	Product, Placement string
	HourMS             int64
	Partition          int32
}

func (k ReviewKey) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(append(b, kindReview), uint32(k.HourMS/hourMS))
	b = binary.AppendUvarint(b, uint64(len(k.Product)))
	return append(append(b, k.Product...), k.Placement...)
}

func parseReviewKey(partition int32, b []byte) (ReviewKey, error) {
	if len(b) >= 6 && b[0] == kindReview {
		if size, n := binary.Uvarint(b[5:]); n > 0 && size <= uint64(len(b)-5-n) {
			at := 5 + n
			return ReviewKey{
				Product: string(b[at : at+int(size)]), Placement: string(b[at+int(size):]),
				HourMS: int64(binary.BigEndian.Uint32(b[1:])) * hourMS, Partition: partition,
			}, nil
		}
	}
	return ReviewKey{}, fmt.Errorf("%w: %q", errKey, b)
}

// erasureName is the length of the name of an erasure in a key.
const erasureName = 16

// cutErasure splits the key of an erasure's record.
func cutErasure(key []byte) (cell []byte, err error) {
	if len(key) < 1+erasureName || key[0] != kindErasure {
		return nil, fmt.Errorf("%w: %q", errKey, key)
	}
	return key[1+erasureName:], nil
}

// clampPosition is the position as the warehouse has it.
func clampPosition(p uint32) uint16 { return uint16(min(p, math.MaxUint16)) }
