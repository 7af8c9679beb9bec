package ingest

import (
	"fmt"
	"math"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

const (
	schemaVersion = 1
	maxName       = 128 // bytes of a name in an impression
	maxOpaque     = 32  // bytes of request_id and click id, see event.proto
	// maxTimeMS is the year 2100: a time beyond it is a unit mistaken, not an event.
	maxTimeMS = 4_102_444_800_000
	// maxBeforeMS is how far before its impression a click may claim to be. Clocks differ by seconds, which
	// is the join's business; a day is a wrong unit.
	maxBeforeMS = 24 * 60 * 60 * 1000
)

type kind uint8

const (
	impression kind = iota
	click
	watermark
)

func (k kind) String() string { return [...]string{"impression", "click", "watermark"}[k] }

func (k kind) topic() string {
	if k == click {
		return schemas.TopicClicks
	}
	return schemas.TopicImpressions
}

// event is a valid event: its time, its impression id (16 bytes, none for a watermark) and its encoded
// message. id and value may point into the record that it was read from.
type event struct {
	kind   kind
	timeMS int64
	id     []byte
	value  []byte
}

// problem says why an event cannot be used.
type problem struct {
	reason schemas.DeadLetterReason
	detail string
}

func (p *problem) Error() string { return string(p.reason) + ": " + p.detail }

func reject(reason schemas.DeadLetterReason, format string, args ...any) *problem {
	return &problem{reason, fmt.Sprintf(format, args...)}
}

// checkMessage validates an encoded message. The usual case, a message in the form that we would write
// ourselves, is passed on byte for byte: decoding into a struct and back costs ten times as much.
func checkMessage(k kind, b []byte) (event, *problem) {
	switch k {
	case impression:
		return checkImpression(b)
	case click:
		return checkClick(b)
	default:
		return checkWatermark(b)
	}
}

// consumeField reads the field at the start of b: its text or its number, by its wire type, and its whole
// length; a negative length is an error of protowire.
func consumeField(b []byte) (num protowire.Number, typ protowire.Type, text []byte, v uint64, n int) {
	num, typ, tag := protowire.ConsumeTag(b)
	if tag < 0 {
		return num, typ, nil, 0, tag
	}
	switch value := b[tag:]; typ {
	case protowire.BytesType:
		text, n = protowire.ConsumeBytes(value)
	case protowire.VarintType:
		v, n = protowire.ConsumeVarint(value)
	case protowire.Fixed64Type:
		v, n = protowire.ConsumeFixed64(value)
	default:
		n = protowire.ConsumeFieldValue(num, typ, value)
	}
	if n < 0 {
		return num, typ, nil, 0, n
	}
	return num, typ, text, v, tag + n
}

func checkImpression(b []byte) (event, *problem) {
	var id, product, creative []byte
	var schema uint64
	canonical, last := true, protowire.Number(0)
	for rest := b; len(rest) > 0; {
		num, typ, text, v, n := consumeField(rest)
		if n < 0 {
			return event{}, malformed("impression", n)
		}
		rest = rest[n:]
		canonical = canonical && num > last
		last = num
		want := protowire.BytesType
		switch num {
		case 1:
			id = text
		case 2:
			if len(text) > maxOpaque {
				return event{}, reject(schemas.DeadBadField, "request_id has %d bytes: at most %d", len(text), maxOpaque)
			}
		case 3, 14:
			want = protowire.Fixed64Type
			if p := math.Float64frombits(v); num == 14 && !(p > 0 && p <= 1) {
				return event{}, reject(schemas.DeadBadField, "propensity is %v: want a probability in (0,1], or leave it out", p)
			}
		case 4, 5, 6, 8, 9, 10, 11, 12, 13:
			if len(text) > maxName {
				return event{}, reject(schemas.DeadBadField, "field %d (%s) has %d bytes: at most %d", num, impressionField(num), len(text), maxName)
			}
			if !utf8.Valid(text) {
				return event{}, reject(schemas.DeadBadField, "field %d (%s) is not UTF-8", num, impressionField(num))
			}
			switch num {
			case 4:
				product = text
			case 5:
				creative = text
			}
		case 7, 16:
			want = protowire.VarintType
		case 15:
			want, schema = protowire.VarintType, v
		default:
			want, canonical = typ, false // a field of a newer writer: dropped when written again
		}
		if typ != want {
			return event{}, reject(schemas.DeadMalformed, "field %d of an impression has wire type %d, want %d", num, typ, want)
		}
	}
	t, p := checkID(id)
	switch {
	case p != nil:
		return event{}, p
	case schema > schemaVersion:
		return event{}, reject(schemas.DeadUnknownSchema, "impression of schema %d, this version reads up to %d", schema, schemaVersion)
	case len(product) == 0:
		return event{}, reject(schemas.DeadBadField, "product is empty")
	case len(creative) == 0:
		return event{}, reject(schemas.DeadBadField, "creative is empty")
	}
	if !canonical || schema != schemaVersion {
		var m eventpb.Impression
		if p := rewrite(b, &m, func() { m.Schema = schemaVersion }, &b); p != nil {
			return event{}, p
		}
		id = m.Id
	}
	return event{impression, t, id, b}, nil
}

func impressionField(n protowire.Number) string {
	return string((&eventpb.Impression{}).ProtoReflect().Descriptor().Fields().ByNumber(n).Name())
}

func checkClick(b []byte) (event, *problem) {
	var id []byte
	var t int64
	var schema uint64
	canonical, last := true, protowire.Number(0)
	for rest := b; len(rest) > 0; {
		num, typ, text, v, n := consumeField(rest)
		if n < 0 {
			return event{}, malformed("click", n)
		}
		rest = rest[n:]
		canonical = canonical && num > last
		last = num
		want := protowire.VarintType
		switch num {
		case 1:
			want, id = protowire.BytesType, text
		case 2:
			want = protowire.BytesType
			if len(text) > maxOpaque {
				return event{}, reject(schemas.DeadBadField, "click id has %d bytes: at most %d", len(text), maxOpaque)
			}
		case 3:
			t = int64(v)
		case 4:
			schema = v
		default:
			want, canonical = typ, false
		}
		if typ != want {
			return event{}, reject(schemas.DeadMalformed, "field %d of a click has wire type %d, want %d", num, typ, want)
		}
	}
	shown, p := checkID(id)
	if p == nil {
		p = checkTime(t)
	}
	if p == nil && t < shown-maxBeforeMS {
		p = reject(schemas.DeadBadTime, "click at %d, a day or more before its impression at %d: is it in Unix milliseconds?", t, shown)
	}
	if p != nil {
		return event{}, p
	}
	if schema > schemaVersion {
		return event{}, reject(schemas.DeadUnknownSchema, "click of schema %d, this version reads up to %d", schema, schemaVersion)
	}
	if !canonical || schema != schemaVersion {
		var m eventpb.Click
		if p := rewrite(b, &m, func() { m.Schema = schemaVersion }, &b); p != nil {
			return event{}, p
		}
		id = m.ImpressionId
	}
	return event{click, t, id, b}, nil
}

func checkWatermark(b []byte) (event, *problem) {
	var m eventpb.Punctuation
	if err := proto.Unmarshal(b, &m); err != nil {
		return event{}, reject(schemas.DeadMalformed, "watermark: %v", err)
	}
	if p := checkTime(m.LowWatermarkMs); p != nil {
		return event{}, p
	}
	return event{kind: watermark, timeMS: m.LowWatermarkMs, value: b}, nil
}

func checkID(id []byte) (timeMS int64, p *problem) {
	v, err := schemas.ImpressionIDFromBytes(id)
	if err != nil {
		return 0, reject(schemas.DeadBadID, "%v", err)
	}
	return v.UnixMilli(), checkTime(v.UnixMilli())
}

func checkTime(ms int64) *problem {
	if ms <= 0 || ms > maxTimeMS {
		return reject(schemas.DeadBadTime, "time %d is not in Unix milliseconds between 1970 and 2100", ms)
	}
	return nil
}

func malformed(what string, n int) *problem {
	return reject(schemas.DeadMalformed, "%s: %v", what, protowire.ParseError(n))
}

// rewrite brings a message into the form that we write ourselves.
func rewrite(b []byte, m proto.Message, change func(), out *[]byte) *problem {
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, m); err != nil {
		return reject(schemas.DeadMalformed, "%v", err)
	}
	change()
	enc, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return reject(schemas.DeadMalformed, "%v", err)
	}
	*out = enc
	return nil
}

// limitFuture applies the rule for events from the future, see the package documentation.
func limitFuture(e event, latest time.Time) (event, *problem) {
	limit := latest.UnixMilli()
	if e.timeMS <= limit {
		return e, nil
	}
	if e.kind != click {
		return event{}, reject(
			schemas.DeadBadTime,
			"%v at %v is beyond the allowed skew, %v",
			e.kind,
			time.UnixMilli(e.timeMS).UTC(),
			latest.UTC(),
		)
	}
	var m eventpb.Click
	if p := rewrite(e.value, &m, func() { m.TimeMs = limit }, &e.value); p != nil {
		return event{}, p
	}
	e.timeMS = limit
	return e, nil
}
