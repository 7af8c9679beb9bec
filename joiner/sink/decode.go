package sink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"ctrloop/internal/warehouse"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

var errLabel = errors.New("not a label")

// field is one field of a message in wire form: n for numbers, b for bytes.
type field struct {
	tag uint64 // number and wire type
	n   uint64
	b   []byte
}

// tag of a field as it stands before its value.
const (
	varint  = uint64(protowire.VarintType)
	fixed64 = uint64(protowire.Fixed64Type)
	length  = uint64(protowire.BytesType)
)

// next reads the first field of a message and returns what follows it. It is written out because it runs
// twenty times for each label: with protowire's functions it took half of the sink's time.
func next(b []byte, f *field) (rest []byte, err error) {
	tag, n := uvarint(b)
	if n <= 0 || tag>>3 == 0 || tag>>3 > uint64(protowire.MaxValidNumber) {
		return nil, errLabel
	}
	b = b[n:]
	f.tag = tag
	switch tag & 7 {
	case varint:
		f.n, n = uvarint(b)
	case fixed64:
		if n = 8; len(b) < n {
			return nil, errLabel
		}
		f.n = binary.LittleEndian.Uint64(b)
	case length:
		var size uint64
		size, n = uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			return nil, errLabel
		}
		f.b = b[n : n+int(size)]
		n += int(size)
	default:
		n = protowire.ConsumeFieldValue(protowire.Number(tag>>3), protowire.Type(tag&7), b)
	}
	if n <= 0 {
		return nil, errLabel
	}
	return b[n:], nil
}

// uvarint is binary.Uvarint with a short way for one byte.
func uvarint(b []byte) (uint64, int) {
	if len(b) > 0 && b[0] < 0x80 {
		return uint64(b[0]), 1
	}
	return binary.Uvarint(b)
}

// Fields of eventpb.Label and eventpb.Impression. A known number with another wire type is a stranger's.
const (
	labelFields      = 9
	impressionFields = 16
)

// decodeLabel reads an eventpb.Label into row, its names into the dictionaries of block. It does what
// proto.Unmarshal of both messages does (tested), without their garbage.
func decodeLabel(value []byte, row *warehouse.Label, block *warehouse.LabelBlock) (err error) {
	var impression []byte
	var f field
	kind := uint64(0)
	for b := value; len(b) > 0; {
		if b, err = next(b, &f); err != nil {
			return fmt.Errorf("label: %w", err)
		}
		switch f.tag {
		case 1<<3 | length:
			impression = f.b
		case 2<<3 | varint:
			kind = f.n
		case 3<<3 | varint:
			row.Clicked = f.n != 0
		case 4<<3 | varint:
			row.ClickDelayMS = int64(f.n)
		case 5<<3 | varint:
			row.Clicks = uint32(f.n)
		case 6<<3 | varint:
			row.WatermarkMS = int64(f.n)
		case 7<<3 | varint:
			row.Version = uint32(f.n)
		case 8<<3 | fixed64:
			row.Weight = math.Float64frombits(f.n)
		case 9<<3 | varint:
			row.Suspect = f.n != 0
		default:
			if f.tag>>3 <= labelFields {
				return fmt.Errorf("label: field %d: %w", f.tag>>3, errLabel)
			}
		}
	}
	if kind > uint64(eventpb.LabelKind_LABEL_KIND_CORRECTED) {
		return fmt.Errorf("label: unknown kind %d: this sink is older than the joiner", int64(kind))
	}
	row.Kind = int8(kind)
	return decodeImpression(impression, row, block)
}

func decodeImpression(b []byte, row *warehouse.Label, block *warehouse.LabelBlock) (err error) {
	idErr := errLabel
	var f field
	name := func(c warehouse.NameColumn) { row.Names[c] = block.Name(c, f.b) }
	for len(b) > 0 {
		if b, err = next(b, &f); err != nil {
			return fmt.Errorf("impression of a label: %w", err)
		}
		switch f.tag {
		case 1<<3 | length:
			row.Impression, idErr = schemas.ImpressionIDFromBytes(f.b)
		case 2<<3 | length, 15<<3 | varint: // request id, schema: not in the table
		case 3<<3 | fixed64:
			row.User = f.n
		case 4<<3 | length:
			name(warehouse.Product)
		case 5<<3 | length:
			name(warehouse.Creative)
		case 6<<3 | length:
			name(warehouse.Placement)
		case 7<<3 | varint:
			row.Position = warehouse.ClampPosition(uint64(uint32(f.n)))
		case 8<<3 | length:
			name(warehouse.Campaign)
		case 9<<3 | length:
			name(warehouse.Category)
		case 10<<3 | length:
			name(warehouse.Experiment)
		case 11<<3 | length:
			name(warehouse.Variant)
		case 12<<3 | length:
			name(warehouse.ModelVersion)
		case 13<<3 | length:
			name(warehouse.Policy)
		case 14<<3 | fixed64:
			row.Propensity = math.Float64frombits(f.n)
		case 16<<3 | varint:
			row.Bot = f.n != 0
		default:
			if f.tag>>3 <= impressionFields {
				return fmt.Errorf("impression of a label: field %d: %w", f.tag>>3, errLabel)
			}
		}
	}
	if idErr != nil {
		return fmt.Errorf("impression of a label: %w", idErr)
	}
	return nil
}
