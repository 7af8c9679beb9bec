package eventpb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// Wire types in the low three bits of a tag.
const (
	varint  = uint64(protowire.VarintType)
	fixed64 = uint64(protowire.Fixed64Type)
	text    = uint64(protowire.BytesType)
)

// Tags of the fields of event.proto, number and wire type together as they stand in front of a value, for those who read
// and write messages by hand. A known number with another wire type is no field of ours. TestTags holds them against
// the generated code.
const (
	ImpressionID           = 1<<3 | text
	ImpressionRequestID    = 2<<3 | text
	ImpressionUser         = 3<<3 | fixed64
	ImpressionProduct      = 4<<3 | text
	ImpressionCreative     = 5<<3 | text
	ImpressionPlacement    = 6<<3 | text
	ImpressionPosition     = 7<<3 | varint
	ImpressionCampaign     = 8<<3 | text
	ImpressionCategory     = 9<<3 | text
	ImpressionExperiment   = 10<<3 | text
	ImpressionVariant      = 11<<3 | text
	ImpressionModelVersion = 12<<3 | text
	ImpressionPolicy       = 13<<3 | text
	ImpressionPropensity   = 14<<3 | fixed64
	ImpressionSchema       = 15<<3 | varint
	ImpressionBot          = 16<<3 | varint
	ImpressionArmShare     = 17<<3 | fixed64

	ClickImpressionID = 1<<3 | text
	ClickID           = 2<<3 | text
	ClickTime         = 3<<3 | varint
	ClickSchema       = 4<<3 | varint
	ClickBot          = 5<<3 | varint

	LabelImpression = 1<<3 | text
	LabelVerdict    = 2<<3 | varint
	LabelClicked    = 3<<3 | varint
	LabelClickDelay = 4<<3 | varint
	LabelClicks     = 5<<3 | varint
	LabelWatermark  = 6<<3 | varint
	LabelVersion    = 7<<3 | varint
	LabelWeight     = 8<<3 | fixed64
	LabelSuspect    = 9<<3 | varint
	LabelBot        = 10<<3 | varint
)

// The last tag of each message.
const (
	lastOfImpression = ImpressionArmShare
	lastOfClick      = ClickBot
	lastOfLabel      = LabelBot
)

// ErrWire says that bytes are not a message of event.proto.
var ErrWire = errors.New("malformed protobuf")

// Field is one field of a message.
type Field struct {
	Tag    uint64 // number << 3 | wire type
	Number uint64 // the value of a varint or of 8 fixed bytes
	Bytes  []byte // the value of a bytes field, in the message itself
}

// Next reads the first field of a message and returns its length, 0 if the message does not begin with a whole field.
// It is written out because it runs twenty times for each event and each label: protowire's functions took half of the
// time of their callers.
func Next(b []byte, f *Field) int {
	tag, n := uvarint(b)
	if n <= 0 || tag>>3 == 0 || tag>>3 > uint64(protowire.MaxValidNumber) {
		return 0
	}
	f.Tag = tag
	switch value := b[n:]; tag & 7 {
	case varint:
		v, m := uvarint(value)
		if m <= 0 {
			return 0
		}
		f.Number = v
		return n + m
	case fixed64:
		if len(value) < 8 {
			return 0
		}
		f.Number = binary.LittleEndian.Uint64(value)
		return n + 8
	case text:
		size, m := uvarint(value)
		if m <= 0 || size > uint64(len(value)-m) {
			return 0
		}
		end := m + int(size)
		f.Bytes = value[m:end:end]
		return n + end
	default:
		m := protowire.ConsumeFieldValue(protowire.Number(tag>>3), protowire.Type(tag&7), value)
		if m < 0 {
			return 0
		}
		return n + m
	}
}

// uvarint is binary.Uvarint with a short way for one byte.
func uvarint(b []byte) (uint64, int) {
	if len(b) > 0 && b[0] < 0x80 {
		return uint64(b[0]), 1
	}
	return binary.Uvarint(b)
}

// SkipShort returns what is behind a bytes field of this tag, shorter than 128 bytes, at b[at:], and at itself if there
// is none. It may be behind the end of b, which the caller looks at once for all fields.
func SkipShort(b []byte, at int, tag byte) int {
	if at+1 < len(b) && b[at] == tag && b[at+1] < 0x80 {
		return at + 2 + int(b[at+1])
	}
	return at
}

// ImpressionView is an encoded Impression that was read without copying: texts are parts of the message. Nothing is
// checked but the wire form: neither the length of the id nor that names are UTF-8.
type ImpressionView struct {
	ID, RequestID                             []byte
	Product, Creative, Placement              []byte
	Campaign, Category                        []byte
	Experiment, Variant, ModelVersion, Policy []byte
	User                                      uint64
	Propensity, ArmShare                      float64
	Position, Schema                          uint32
	Bot                                       bool
	// Canonical: all fields are known, and each stands once, in the order of its number, as our own writer has them.
	Canonical bool
}

// Read reads a whole message. It fails with ErrWire where the library does, and where a known field has a wire type that
// is not its own; the library takes those for unknown fields.
func (v *ImpressionView) Read(b []byte) error {
	*v = ImpressionView{Canonical: true}
	var f Field
	last := uint64(0)
	for at := 0; at < len(b); {
		n := Next(b[at:], &f)
		if n == 0 {
			return broken("impression", at)
		}
		at += n
		v.Canonical = v.Canonical && f.Tag > last
		last = f.Tag
		switch f.Tag {
		case ImpressionID:
			v.ID = f.Bytes
		case ImpressionRequestID:
			v.RequestID = f.Bytes
		case ImpressionUser:
			v.User = f.Number
		case ImpressionProduct:
			v.Product = f.Bytes
		case ImpressionCreative:
			v.Creative = f.Bytes
		case ImpressionPlacement:
			v.Placement = f.Bytes
		case ImpressionPosition:
			v.Position = uint32(f.Number)
		case ImpressionCampaign:
			v.Campaign = f.Bytes
		case ImpressionCategory:
			v.Category = f.Bytes
		case ImpressionExperiment:
			v.Experiment = f.Bytes
		case ImpressionVariant:
			v.Variant = f.Bytes
		case ImpressionModelVersion:
			v.ModelVersion = f.Bytes
		case ImpressionPolicy:
			v.Policy = f.Bytes
		case ImpressionPropensity:
			v.Propensity = math.Float64frombits(f.Number)
		case ImpressionSchema:
			v.Schema = uint32(f.Number)
		case ImpressionBot:
			v.Bot = f.Number != 0
		case ImpressionArmShare:
			v.ArmShare = math.Float64frombits(f.Number)
		default:
			if f.Tag>>3 <= lastOfImpression>>3 {
				return wrongType("impression", f.Tag)
			}
			v.Canonical = false
		}
	}
	return nil
}

// ClickView is an encoded Click that was read without copying.
type ClickView struct {
	ImpressionID, ID []byte
	TimeMS           int64
	Schema           uint32
	Bot              bool
	Canonical        bool // as in ImpressionView
}

// Read reads a whole message, see ImpressionView.Read.
func (v *ClickView) Read(b []byte) error {
	*v = ClickView{Canonical: true}
	var f Field
	last := uint64(0)
	for at := 0; at < len(b); {
		n := Next(b[at:], &f)
		if n == 0 {
			return broken("click", at)
		}
		at += n
		v.Canonical = v.Canonical && f.Tag > last
		last = f.Tag
		switch f.Tag {
		case ClickImpressionID:
			v.ImpressionID = f.Bytes
		case ClickID:
			v.ID = f.Bytes
		case ClickTime:
			v.TimeMS = int64(f.Number)
		case ClickSchema:
			v.Schema = uint32(f.Number)
		case ClickBot:
			v.Bot = f.Number != 0
		default:
			if f.Tag>>3 <= lastOfClick>>3 {
				return wrongType("click", f.Tag)
			}
			v.Canonical = false
		}
	}
	return nil
}

// LabelView is an encoded Label that was read without copying. Impression is a message of its own.
type LabelView struct {
	Impression   []byte
	ClickDelayMS int64
	WatermarkMS  int64
	Weight       float64
	Kind         LabelKind
	Clicks       uint32
	Version      uint32
	Clicked      bool
	Suspect      bool
	Bot          bool
}

// Read reads a whole message, see ImpressionView.Read.
func (v *LabelView) Read(b []byte) error {
	*v = LabelView{}
	var f Field
	for at := 0; at < len(b); {
		n := Next(b[at:], &f)
		if n == 0 {
			return broken("label", at)
		}
		at += n
		switch f.Tag {
		case LabelImpression:
			v.Impression = f.Bytes
		case LabelVerdict:
			v.Kind = LabelKind(f.Number)
		case LabelClicked:
			v.Clicked = f.Number != 0
		case LabelClickDelay:
			v.ClickDelayMS = int64(f.Number)
		case LabelClicks:
			v.Clicks = uint32(f.Number)
		case LabelWatermark:
			v.WatermarkMS = int64(f.Number)
		case LabelVersion:
			v.Version = uint32(f.Number)
		case LabelWeight:
			v.Weight = math.Float64frombits(f.Number)
		case LabelSuspect:
			v.Suspect = f.Number != 0
		case LabelBot:
			v.Bot = f.Number != 0
		default:
			if f.Tag>>3 <= lastOfLabel>>3 {
				return wrongType("label", f.Tag)
			}
		}
	}
	return nil
}

func broken(message string, at int) error {
	return fmt.Errorf("%s: %w: no whole field at byte %d", message, ErrWire, at)
}

func wrongType(message string, tag uint64) error {
	return fmt.Errorf("%s: %w: field %d has wire type %d", message, ErrWire, tag>>3, tag&7)
}
