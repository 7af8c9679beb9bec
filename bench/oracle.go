package bench

import (
	"ctrloop/internal/stream"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// Wrong counts what is wrong with the labels of a run. All are 0 for a join that works.
type Wrong struct {
	Lost      int64 `json:"lost"`      // impressions without a final label
	Duplicate int64 `json:"duplicate"` // with more than one
	Spurious  int64 `json:"spurious"`  // labels of no impression, or that cannot be read
	Mistaken  int64 `json:"mistaken"`  // clicked in time and labelled negative, or the other way round
}

// Sum of all kinds.
func (w Wrong) Sum() int64 { return w.Lost + w.Duplicate + w.Spurious + w.Mistaken }

// oracle checks labels as they come. It keeps two bits an impression.
type oracle struct {
	traffic  Traffic
	seen     []uint64
	labels   int64 // impressions that have their label
	positive int64
	wrong    Wrong
}

func newOracle(t Traffic) *oracle {
	return &oracle{traffic: t, seen: make([]uint64, (t.Impressions+63)/64)}
}

// verdict takes one final label.
func (o *oracle) verdict(id []byte, positive bool) {
	i, ok := o.traffic.number(id)
	if !ok {
		o.wrong.Spurious++
		return
	}
	if o.seen[i/64]>>(i%64)&1 == 1 {
		o.wrong.Duplicate++
		return
	}
	o.seen[i/64] |= 1 << (i % 64)
	o.labels++
	if positive {
		o.positive++
	}
	if positive != o.traffic.positive(i) {
		o.wrong.Mistaken++
	}
}

// output takes what a joiner produces; audit and late events are no labels.
func (o *oracle) output(r *stream.Record) {
	if r.Topic == schemas.TopicLabels {
		o.label(r)
	}
}

// label takes a record of labels.v1. Corrections and provisional labels are no final ones.
func (o *oracle) label(r *stream.Record) {
	switch labelKind(r.Value) {
	case eventpb.LabelKind_LABEL_KIND_POSITIVE:
		o.verdict(r.Key, true)
	case eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE:
		o.verdict(r.Key, false)
	case eventpb.LabelKind_LABEL_KIND_PROVISIONAL_NEGATIVE, eventpb.LabelKind_LABEL_KIND_CORRECTED:
	default:
		o.wrong.Spurious++
	}
}

// labelKind reads one field of an eventpb.Label: the oracle runs inside the measured time.
func labelKind(b []byte) eventpb.LabelKind {
	var f eventpb.Field
	for at := 0; at < len(b); {
		n := eventpb.Next(b[at:], &f)
		if n == 0 {
			break
		}
		if f.Tag == eventpb.LabelVerdict {
			return eventpb.LabelKind(f.Number)
		}
		at += n
	}
	return eventpb.LabelKind_LABEL_KIND_UNSPECIFIED
}

// finish counts what never came.
func (o *oracle) finish() Wrong {
	o.wrong.Lost = int64(o.traffic.Impressions) - o.labels
	return o.wrong
}
