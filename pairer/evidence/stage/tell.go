package stage

import (
	"context"
	"fmt"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse"
	"ctrloop/pairer/evidence"
	"ctrloop/schemas"
)

// Publisher writes records; *stream.Producer does.
type Publisher interface {
	Produce(ctx context.Context, rs ...*stream.Record) error
}

// TellReviews says on evidence.v1 what a person has said of suspect labels in the warehouse. It may be said again.
func TellReviews(ctx context.Context, p Publisher, cells []warehouse.SuspectCell, v warehouse.Verdict) error {
	rs := make([]*stream.Record, len(cells))
	for i, c := range cells {
		k := evidence.ReviewKey{Product: c.Product, Placement: c.Placement, HourMS: c.Hour.UnixMilli(), Partition: int32(c.Partition)}
		rs[i] = record(evidence.Review(k, string(v)), c.Hour)
	}
	if err := p.Produce(ctx, rs...); err != nil {
		return fmt.Errorf("tell the evidence of a review: %w", err)
	}
	return nil
}

// TellErasure takes the labels of a person out of evidence.v1. erasure names the run: the same one may be told again, with the same
// cells.
func TellErasure(ctx context.Context, p Publisher, erasure string, cells []warehouse.ErasedEvidence) error {
	type place struct {
		partition int32
		key       evidence.Key
	}
	var order []place
	of := map[place]*[2]evidence.Sums{} // trusted, suspect
	for _, c := range cells {
		at := place{int32(c.Partition), evidence.Key{
			Product: c.Product, Placement: c.Placement, Creative: c.Creative, HourMS: c.HourMS, Position: c.Position,
		}}
		if of[at] == nil {
			of[at] = &[2]evidence.Sums{}
			order = append(order, at)
		}
		of[at][min(c.Suspect, 1)] = evidence.Sums{
			Impressions: c.Impressions, Clicks: c.Clicks, Inverse: c.Inverse, ClickedInverse: c.ClickedInverse, Capped: c.Capped,
			Unweighted: c.Unweighted, UnweightedClicks: c.UnweightedClicks,
		}
	}
	rs := make([]*stream.Record, len(order))
	for i, at := range order {
		rs[i] = record(evidence.Erasure(erasure, at.partition, at.key, of[at][0], of[at][1]), time.UnixMilli(at.key.HourMS))
	}
	if err := p.Produce(ctx, rs...); err != nil {
		return fmt.Errorf("tell the evidence of an erasure: %w", err)
	}
	return nil
}

func record(r evidence.Record, at time.Time) *stream.Record {
	return &stream.Record{Topic: schemas.TopicEvidence, Partition: r.Partition, Key: r.Key, Value: r.Value, Timestamp: at}
}
