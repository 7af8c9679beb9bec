package joiner

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	"ctrloop/joiner/window"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// Field numbers of event.proto that the joiner reads and writes by hand: it needs two fields of a message it
// otherwise passes on byte for byte. TestCodecMatchesProto holds them against the generated code.
const (
	fieldImpressionID = 1 // Impression.id and Click.impression_id
	fieldClickTime    = 3 // Click.time_ms
)

// errWire says that bytes are not a well-formed message.
var errWire = errors.New("malformed protobuf")

// decodeImpression reads the id and checks that every field is well formed, so that a truncated message never
// becomes a label.
func decodeImpression(b []byte) (id schemas.ImpressionID, err error) {
	err = fields(b, func(num protowire.Number, typ protowire.Type, v []byte) (err error) {
		if num == fieldImpressionID && typ == protowire.BytesType {
			id, err = fieldID(v)
		}
		return err
	})
	if err == nil && id == (schemas.ImpressionID{}) {
		err = fmt.Errorf("%w: missing", schemas.ErrBadID)
	}
	return id, err
}

// decodeClick reads the impression's id and the time of the click, ms.
func decodeClick(b []byte) (id schemas.ImpressionID, timeMS int64, err error) {
	err = fields(b, func(num protowire.Number, typ protowire.Type, v []byte) (err error) {
		switch {
		case num == fieldImpressionID && typ == protowire.BytesType:
			id, err = fieldID(v)
		case num == fieldClickTime && typ == protowire.VarintType:
			u, _ := protowire.ConsumeVarint(v)
			timeMS = int64(u)
		}
		return err
	})
	switch {
	case err != nil:
	case id == (schemas.ImpressionID{}):
		err = fmt.Errorf("%w: missing", schemas.ErrBadID)
	case timeMS <= 0:
		err = fmt.Errorf("%w: click time %d", errTime, timeMS)
	}
	return id, timeMS, err
}

// errTime says that a click has no usable time.
var errTime = errors.New("bad time")

// fieldID reads an id from the value of a bytes field, its length included.
func fieldID(v []byte) (schemas.ImpressionID, error) {
	s, _ := protowire.ConsumeBytes(v)
	return schemas.ImpressionIDFromBytes(s)
}

// fields walks over a message. v begins at the field's value.
func fields(b []byte, visit func(num protowire.Number, typ protowire.Type, v []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.Number(b[0]>>3), protowire.Type(b[0]&7), 1
		if num == 0 || b[0] >= 0x80 {
			if num, typ, n = protowire.ConsumeTag(b); n < 0 {
				return fmt.Errorf("%w: %w", errWire, protowire.ParseError(n))
			}
		}
		b = b[n:]
		var m int
		switch { // nearly all fields are one of the first two
		case typ == protowire.BytesType && len(b) > 0 && b[0] < 0x80 && int(b[0]) < len(b):
			m = 1 + int(b[0])
		case typ == protowire.Fixed64Type && len(b) >= 8:
			m = 8
		default:
			m = protowire.ConsumeFieldValue(num, typ, b)
		}
		if m < 0 {
			return fmt.Errorf("%w: field %d: %w", errWire, num, protowire.ParseError(m))
		}
		if err := visit(num, typ, b[:m]); err != nil {
			return err
		}
		b = b[m:]
	}
	return nil
}

// appendLabel appends the encoded eventpb.Label. It writes what proto.Marshal writes, at a tenth of the cost
// and without garbage: it runs once per impression. An unknown watermark is written as 0.
func appendLabel(b []byte, l *window.Label, suspect bool) []byte {
	b = appendImpression(b, l)
	b = appendVarintField(b, 2, uint64(l.Kind))
	if l.Clicked {
		b = append(b, 3<<3, 1)
	}
	b = appendVarintField(b, 4, uint64(l.DelayMS))
	b = appendVarintField(b, 5, uint64(l.Clicks))
	b = appendVarintField(b, 6, uint64(knownTime(l.WatermarkMS)))
	b = appendVarintField(b, 7, uint64(l.Version))
	b = append(b, 8<<3|1)
	b = protowire.AppendFixed64(b, math.Float64bits(l.Weight))
	if suspect {
		b = append(b, 9<<3, 1)
	}
	return b
}

// appendImpression appends the label's field 1. The length in front of it is known only behind it: two bytes of room
// are right for nearly all.
func appendImpression(b []byte, l *window.Label) []byte {
	const room = 2
	start := len(b)
	b = l.AppendRaw(append(b, 1<<3|2, 0, 0))
	n := len(b) - start - 1 - room
	var length [protowireMax]byte
	size := protowire.AppendVarint(length[:0], uint64(n))
	switch {
	case n == 0:
		return b[:start]
	case len(size) != room:
		b = slices.Replace(b, start+1, start+1+room, size...)
	default:
		copy(b[start+1:], size)
	}
	return b
}

// protowireMax is the longest varint.
const protowireMax = 10

func appendVarintField(b []byte, num byte, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(append(b, num<<3), v)
}

// knownTime is a time as messages carry it: 0 for one that is not known.
func knownTime(ms int64) int64 {
	if ms == window.None {
		return 0
	}
	return ms
}

func deadLetter(
	reason schemas.DeadLetterReason,
	detail error,
	topic string,
	partition int32,
	offset int64,
	key, value []byte,
) *eventpb.DeadLetter {
	const maxValue = 1 << 20 // event.proto: the original bytes, cut at 1 MiB
	return &eventpb.DeadLetter{
		Reason: string(reason), Detail: detail.Error(), Topic: topic, Partition: partition, Offset: offset,
		Key: key, Value: value[:min(len(value), maxValue)],
	}
}

// deadReason classifies a decoding error.
func deadReason(err error) schemas.DeadLetterReason {
	switch {
	case errors.Is(err, schemas.ErrBadID):
		return schemas.DeadBadID
	case errors.Is(err, errTime):
		return schemas.DeadBadTime
	}
	return schemas.DeadMalformed
}
