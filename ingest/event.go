package ingest

import (
	"fmt"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

const (
	schemaVersion = 1
	maxName       = 128 // bytes of a name in an impression
	maxOpaque     = 128 // bytes of request_id and click id, see event.proto
	// minPropensity: the weight of an impression is 1/propensity, and a thousand million times the weight of its neighbours is
	// a unit mistaken or a decision that never happens.
	minPropensity = 1e-9
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

func checkImpression(b []byte) (event, *problem) {
	var v eventpb.ImpressionView
	if err := v.Read(b); err != nil {
		return event{}, reject(schemas.DeadMalformed, "%v", err)
	}
	t, p := checkID(v.ID)
	if p == nil {
		p = checkFields(&v)
	}
	if p != nil {
		return event{}, p
	}
	if !v.Canonical || v.Schema != schemaVersion {
		var m eventpb.Impression
		if p := rewrite(b, &m, func() { m.Schema = schemaVersion }, &b); p != nil {
			return event{}, p
		}
		v.ID = m.Id
	}
	return event{impression, t, v.ID, b}, nil
}

// checkFields checks all of an impression but its id.
func checkFields(v *eventpb.ImpressionView) *problem {
	switch {
	case v.Schema > schemaVersion:
		return reject(schemas.DeadUnknownSchema, "impression of schema %d, this version reads up to %d", v.Schema, schemaVersion)
	case len(v.RequestID) > maxOpaque:
		return reject(schemas.DeadBadField, "request_id has %d bytes: at most %d", len(v.RequestID), maxOpaque)
	case v.Propensity != 0 && !(v.Propensity >= minPropensity && v.Propensity <= 1): // NaN is neither
		return badPropensity(v.Propensity)
	case v.ArmShare != 0 && !(v.ArmShare >= minPropensity && v.ArmShare <= 1):
		return badArmShare(v.ArmShare)
	case len(v.Product) == 0:
		return reject(schemas.DeadBadField, "product is empty")
	case len(v.Creative) == 0:
		return reject(schemas.DeadBadField, "creative is empty")
	}
	for _, n := range [...]struct {
		field string
		value []byte
	}{
		{"product", v.Product}, {"creative", v.Creative}, {"placement", v.Placement}, {"campaign", v.Campaign}, {"category", v.Category},
		{"experiment", v.Experiment}, {"variant", v.Variant}, {"model_version", v.ModelVersion}, {"policy", v.Policy},
	} {
		switch {
		case len(n.value) > maxName:
			return reject(schemas.DeadBadField, "%s has %d bytes: at most %d", n.field, len(n.value), maxName)
		case !utf8.Valid(n.value):
			return reject(schemas.DeadBadField, "%s is not UTF-8", n.field)
		}
	}
	return nil
}

func badPropensity(p float64) *problem {
	return reject(schemas.DeadBadField, "propensity is %v: want a probability, %v to 1, or leave it out", p, minPropensity)
}

func badArmShare(p float64) *problem {
	return reject(schemas.DeadBadField, "arm_share is %v: want the share of the arm in the experiment, %v to 1, or leave it out", p, minPropensity)
}

func checkClick(b []byte) (event, *problem) {
	var v eventpb.ClickView
	if err := v.Read(b); err != nil {
		return event{}, reject(schemas.DeadMalformed, "%v", err)
	}
	shown, p := checkID(v.ImpressionID)
	if p == nil {
		p = checkTime(v.TimeMS)
	}
	switch {
	case p != nil:
		return event{}, p
	case v.TimeMS < shown-schemas.MaxBeforeMS:
		return event{}, reject(
			schemas.DeadBadTime,
			"click at %d, a day or more before its impression at %d: is it in Unix milliseconds?",
			v.TimeMS,
			shown,
		)
	case len(v.ID) > maxOpaque:
		return event{}, reject(schemas.DeadBadField, "click id has %d bytes: at most %d", len(v.ID), maxOpaque)
	case v.Schema > schemaVersion:
		return event{}, reject(schemas.DeadUnknownSchema, "click of schema %d, this version reads up to %d", v.Schema, schemaVersion)
	}
	if !v.Canonical || v.Schema != schemaVersion {
		var m eventpb.Click
		if p := rewrite(b, &m, func() { m.Schema = schemaVersion }, &b); p != nil {
			return event{}, p
		}
		v.ImpressionID = m.ImpressionId
	}
	return event{click, v.TimeMS, v.ImpressionID, b}, nil
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
	if ms <= 0 || ms > schemas.MaxTimeMS {
		return reject(schemas.DeadBadTime, "time %d is not in Unix milliseconds between 1970 and 2100", ms)
	}
	return nil
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
			"%v at %v is later than %v, now and the allowed skew: is the clock of its writer right?",
			e.kind,
			time.UnixMilli(e.timeMS).UTC(),
			latest.UTC().Round(time.Millisecond),
		)
	}
	var m eventpb.Click
	if p := rewrite(e.value, &m, func() { m.TimeMs = limit }, &e.value); p != nil {
		return event{}, p
	}
	e.timeMS = limit
	return e, nil
}
