package window

import (
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// Input is one of the two sides of the join.
type Input uint8

// The two inputs.
const (
	Impressions Input = iota
	Clicks
)

// String is the input's name.
func (i Input) String() string {
	if i == Clicks {
		return "clicks"
	}
	return "impressions"
}

// Label is a verdict on one impression.
type Label struct {
	ID          schemas.ImpressionID
	Kind        eventpb.LabelKind
	Clicked     bool
	DelayMS     int64 // click time - impression time, at least 0; 0 without a click
	Clicks      uint32
	WatermarkMS int64 // None as long as one input is unheard of
	Version     uint32
	Weight      float64 // how many impressions it stands for
	Bot         bool    // a robot's is the click that it rests on

	record []byte
	names  *dictionary
}

// AppendRaw appends the impression as received, byte for byte. It may be called until Commit or Rollback.
func (l *Label) AppendRaw(b []byte) []byte { return l.names.appendRaw(b, l.record, &l.ID) }

// Category is the impression's field of that name, nil if it has none or is not in the order of our schema. It may be
// changed by nobody and read until Commit or Rollback.
func (l *Label) Category() []byte { return l.names.categoryOf(l.record) }

// Late is an event that made no label of its own.
type Late struct {
	Reason      schemas.LateReason
	ID          schemas.ImpressionID
	TimeMS      int64
	WatermarkMS int64
	Input       Input
	Offset      int64
	Value       []byte // as received; valid until Commit or Rollback
}

// ResetOutput forgets Labels and Lates.
func (w *Window) ResetOutput() { w.Labels, w.Lates = w.Labels[:0], w.Lates[:0] }
