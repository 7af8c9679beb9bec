package sink

import (
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"ctrloop/internal/warehouse"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// interner gives equal strings one copy. Labels repeat a few thousand names; a string of their own each
// would be most of the cost of decoding.
type interner map[string]string

// maxInterned bounds the memory; beyond it the table starts anew.
const maxInterned = 1 << 16

func (in interner) get(b []byte) string {
	if s, ok := in[string(b)]; ok { // the compiler makes no copy for the look-up
		return s
	}
	if len(in) >= maxInterned {
		clear(in)
	}
	s := string(b)
	in[s] = s
	return s
}

var errLabel = errors.New("not a label")

// field is one field of a message in wire form: n for numbers, b for bytes.
type field struct {
	num protowire.Number
	typ protowire.Type
	n   uint64
	b   []byte
}

// fields calls fn with each field of a message.
func fields(b []byte, fn func(field) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		f := field{num: num, typ: typ}
		switch typ {
		case protowire.VarintType:
			f.n, n = protowire.ConsumeVarint(b)
		case protowire.Fixed64Type:
			f.n, n = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			f.b, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := fn(f); err != nil {
			return err
		}
	}
	return nil
}

// wire types of the fields of eventpb.Label and eventpb.Impression, for a check against strangers.
var (
	labelTypes      = [...]protowire.Type{1: protowire.BytesType, 2: protowire.VarintType, 3: protowire.VarintType, 4: protowire.VarintType, 5: protowire.VarintType, 6: protowire.VarintType, 7: protowire.VarintType, 8: protowire.Fixed64Type, 9: protowire.VarintType}
	impressionTypes = [...]protowire.Type{1: protowire.BytesType, 2: protowire.BytesType, 3: protowire.Fixed64Type, 4: protowire.BytesType, 5: protowire.BytesType, 6: protowire.BytesType, 7: protowire.VarintType,
		8: protowire.BytesType, 9: protowire.BytesType, 10: protowire.BytesType, 11: protowire.BytesType, 12: protowire.BytesType, 13: protowire.BytesType, 14: protowire.Fixed64Type, 15: protowire.VarintType, 16: protowire.VarintType}
)

func mistyped(f field, types []protowire.Type) bool {
	return int(f.num) < len(types) && f.num > 0 && types[f.num] != f.typ
}

// decodeLabel reads an eventpb.Label into row, strings interned. It does what proto.Unmarshal of both
// messages does (tested), without their garbage.
func decodeLabel(value []byte, row *warehouse.LabelRow, in interner) error {
	var impression []byte
	err := fields(value, func(f field) error {
		if mistyped(f, labelTypes[:]) {
			return errLabel
		}
		switch f.num {
		case 1:
			impression = f.b
		case 2:
			row.Kind = eventpb.LabelKind(f.n)
		case 3:
			row.Clicked = f.n != 0
		case 4:
			row.ClickDelayMS = int64(f.n)
		case 5:
			row.Clicks = uint32(f.n)
		case 6:
			row.WatermarkMS = int64(f.n)
		case 7:
			row.Version = uint32(f.n)
		case 8:
			row.Weight = math.Float64frombits(f.n)
		case 9:
			row.Suspect = f.n != 0
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("label: %w", err)
	}
	if row.Kind < eventpb.LabelKind_LABEL_KIND_UNSPECIFIED || row.Kind > eventpb.LabelKind_LABEL_KIND_CORRECTED {
		return fmt.Errorf("label: unknown kind %d: this sink is older than the joiner", row.Kind)
	}
	return decodeImpression(impression, row, in)
}

func decodeImpression(b []byte, row *warehouse.LabelRow, in interner) error {
	idErr := errLabel
	err := fields(b, func(f field) error {
		if mistyped(f, impressionTypes[:]) {
			return errLabel
		}
		switch f.num {
		case 1:
			row.Impression, idErr = schemas.ImpressionIDFromBytes(f.b)
		case 3:
			row.User = f.n
		case 4:
			row.Product = in.get(f.b)
		case 5:
			row.Creative = in.get(f.b)
		case 6:
			row.Placement = in.get(f.b)
		case 7:
			row.Position = uint32(f.n)
		case 8:
			row.Campaign = in.get(f.b)
		case 9:
			row.Category = in.get(f.b)
		case 10:
			row.Experiment = in.get(f.b)
		case 11:
			row.Variant = in.get(f.b)
		case 12:
			row.ModelVersion = in.get(f.b)
		case 13:
			row.Policy = in.get(f.b)
		case 14:
			row.Propensity = math.Float64frombits(f.n)
		case 16:
			row.Bot = f.n != 0
		}
		return nil
	})
	if err = errors.Join(err, idErr); err != nil {
		return fmt.Errorf("impression of a label: %w", err)
	}
	return nil
}
