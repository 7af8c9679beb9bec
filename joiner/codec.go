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

// decodeImpression reads the id and checks that every field is well formed, so that a truncated message never
// becomes a label.
func decodeImpression(b []byte) (schemas.ImpressionID, error) {
	var v eventpb.ImpressionView
	if err := v.Read(b); err != nil {
		return schemas.ImpressionID{}, err
	}
	return eventID(v.ID)
}

// decodeClick reads the impression's id and the time of the click, ms.
func decodeClick(b []byte) (id schemas.ImpressionID, timeMS int64, err error) {
	var v eventpb.ClickView
	if err := v.Read(b); err != nil {
		return id, 0, err
	}
	if id, err = eventID(v.ImpressionID); err == nil && v.TimeMS <= 0 {
		err = fmt.Errorf("%w: click time %d", errTime, v.TimeMS)
	}
	return id, v.TimeMS, err
}

// errTime says that a click has no usable time.
var errTime = errors.New("bad time")

// eventID reads the id of an impression. The zero id is none: schemas refuses it, as it has no version.
func eventID(b []byte) (schemas.ImpressionID, error) {
	if len(b) == 0 {
		return schemas.ImpressionID{}, fmt.Errorf("%w: missing", schemas.ErrBadID)
	}
	return schemas.ImpressionIDFromBytes(b)
}

// appendLabel appends the encoded eventpb.Label. It writes what proto.Marshal writes, at a tenth of the cost
// and without garbage: it runs once per impression. An unknown watermark is written as 0.
func appendLabel(b []byte, l *window.Label, suspect bool) []byte {
	b = appendImpression(b, l)
	b = appendVarintField(b, eventpb.LabelVerdict, uint64(l.Kind))
	if l.Clicked {
		b = append(b, byte(eventpb.LabelClicked), 1)
	}
	b = appendVarintField(b, eventpb.LabelClickDelay, uint64(l.DelayMS))
	b = appendVarintField(b, eventpb.LabelClicks, uint64(l.Clicks))
	b = appendVarintField(b, eventpb.LabelWatermark, uint64(knownTime(l.WatermarkMS)))
	b = appendVarintField(b, eventpb.LabelVersion, uint64(l.Version))
	b = append(b, byte(eventpb.LabelWeight))
	b = protowire.AppendFixed64(b, math.Float64bits(l.Weight))
	if suspect {
		b = append(b, byte(eventpb.LabelSuspect), 1)
	}
	if l.Bot {
		b = append(b, byte(eventpb.LabelBot), 1)
	}
	return b
}

// appendImpression appends the label's field 1. The length in front of it is known only behind it: two bytes of room
// are right for nearly all.
func appendImpression(b []byte, l *window.Label) []byte {
	const room = 2
	start := len(b)
	b = l.AppendRaw(append(b, byte(eventpb.LabelImpression), 0, 0))
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

// appendVarintField appends a field whose tag is one byte, nothing for 0.
func appendVarintField(b []byte, tag, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(append(b, byte(tag)), v)
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
