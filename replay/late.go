package replay

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// judgeLate tells what was late and harmless, because the store has it already, from what was lost.
func (r *run) judgeLate(ctx context.Context) error {
	end, err := stream.EndOffsets(ctx, r.app.Kafka(), schemas.TopicLate)
	if err != nil {
		return err
	}
	j := &judge{run: r}
	for tp, to := range end {
		err := stream.ReadRange(ctx, r.app.Kafka(), tp.Topic, tp.Partition, r.late[tp], to, func(rec *stream.Record) error {
			return j.add(ctx, rec)
		})
		if err != nil {
			return fmt.Errorf("late events: %w", err)
		}
	}
	return j.flush(ctx)
}

type lateEvent struct {
	id      schemas.ImpressionID
	click   bool
	delayMS int64 // of a click
}

// judge gathers late events until they are looked up.
type judge struct {
	run   *run
	batch []lateEvent
}

func (j *judge) add(ctx context.Context, rec *stream.Record) error {
	var m eventpb.Late
	if err := proto.Unmarshal(rec.Value, &m); err != nil {
		return fmt.Errorf("%s/%d offset %d: %w", rec.Topic, rec.Partition, rec.Offset, err)
	}
	id, err := schemas.ImpressionIDFromBytes(m.ImpressionId)
	if err != nil {
		return fmt.Errorf("%s/%d offset %d: %w", rec.Topic, rec.Partition, rec.Offset, err)
	}
	switch schemas.LateReason(m.Reason) {
	case schemas.LateImpression:
		j.batch = append(j.batch, lateEvent{id: id})
	case schemas.LateClickAfterClose:
		j.batch = append(j.batch, lateEvent{id, true, m.TimeMs - id.UnixMilli()})
	case schemas.LateClick: // became a corrected label
	case schemas.LateOrphan: // the ledger counts it
	}
	if len(j.batch) < warehouse.MaxLookup {
		return nil
	}
	return j.flush(ctx)
}

func (j *judge) flush(ctx context.Context) error {
	if len(j.batch) == 0 {
		return nil
	}
	ids := make([]schemas.ImpressionID, len(j.batch))
	for i, e := range j.batch {
		ids[i] = e.id
	}
	clicked, err := j.run.app.Warehouse().ClickedAmong(ctx, ids)
	if err != nil {
		return err
	}
	for _, e := range j.batch {
		j.run.res.count(e, clicked, j.run.opt.Window)
	}
	j.batch = j.batch[:0]
	return nil
}

// count puts a late event where it belongs. clicked has the labels that the warehouse knows.
func (r *Result) count(e lateEvent, clicked map[schemas.ImpressionID]bool, window time.Duration) {
	was, known := clicked[e.id]
	switch {
	case !e.click && known, e.click && was:
		r.Repeated++
	case !e.click:
		r.Lost++
	case !known:
		r.Orphans++
	case e.delayMS <= window.Milliseconds():
		r.Lost++ // a click inside the window of an impression that is stored as not clicked
	}
}
