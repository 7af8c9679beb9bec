package sink

import (
	"context"
	"maps"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse"
	"ctrloop/schemas"
)

// Join says where the joiner stands: its group, and how a watermark is read out of what it commits (joiner.WatermarkOf).
type Join struct {
	Group     string
	Watermark func(metadata string) (ms int64, ok bool)
}

// Follow makes the service record how far the join has come (view label_horizon). Call it before Run.
func (s *Service) Follow(j Join) { s.join = j }

// progressInterval is how far behind the horizon of the warehouse may be, beside the sink itself.
const progressInterval = time.Second

// progress records how far the join has come, while this process leads.
func (s *Service) progress(ctx context.Context) (progress bool, err error) {
	if s.join.Group == "" {
		<-ctx.Done()
		return false, nil
	}
	f := follower{Service: s}
	for {
		if s.leader.IsLeader() {
			if _, err := f.step(ctx); err != nil {
				return progress, err
			}
			progress = true
		}
		s.work[partProgress].Worked()
		select {
		case <-ctx.Done():
			return progress, nil
		case <-time.After(progressInterval):
		}
	}
}

// RecordProgress records how far the join has come by now, and says whether that is as far as the joiner has committed: everything
// that it has made is in the warehouse then.
func (s *Service) RecordProgress(ctx context.Context) (all bool, err error) {
	if s.join.Group == "" {
		return true, nil
	}
	return (&follower{Service: s}).step(ctx)
}

// follower remembers what waits for the sink.
type follower struct {
	*Service
	topicID string
	waiting map[int32]waiting
	reached map[int32]int64 // watermarks, Unix ms
}

// waiting is a watermark of a partition whose labels may be on their way.
type waiting struct {
	watermarkMS int64
	mark        Mark // of its partition of labels.v1
}

// step reads the joiner's commits, then the ends of labels.v1: what a commit stands for lies before them. A
// watermark is recorded once everything before its end is inserted; under steady traffic, where something always lies before
// the newest end, an older watermark waits and is recorded meanwhile.
func (f *follower) step(ctx context.Context) (all bool, err error) {
	ids, err := stream.TopicIDs(ctx, f.cfg.Kafka, schemas.TopicLabels)
	if err != nil {
		return false, err
	}
	if id := ids[schemas.TopicLabels]; id != f.topicID {
		f.topicID, f.waiting, f.reached = id, map[int32]waiting{}, map[int32]int64{}
	}
	committed, err := stream.CommittedOffsets(ctx, f.cfg.Kafka, f.join.Group, schemas.TopicImpressions)
	if err != nil {
		return false, err
	}
	written, err := stream.WrittenOffsets(ctx, f.cfg.Kafka, schemas.TopicLabels)
	if err != nil {
		return false, err
	}
	marks := Mark{}
	for tp, end := range written {
		ms, ok := f.join.Watermark(committed[stream.TopicPartition{Topic: schemas.TopicImpressions, Partition: tp.Partition}].Metadata)
		if !ok {
			continue
		}
		w, older := f.waiting[tp.Partition]
		if !older && ms > f.reached[tp.Partition] {
			w = waiting{ms, Mark{tp: end}}
			f.waiting[tp.Partition] = w
		}
		maps.Copy(marks, w.mark)
	}
	left, err := f.way.Left(ctx, marks)
	if err != nil {
		return false, err
	}
	moved := false
	for p, w := range f.waiting {
		if left.Labels[p] == 0 {
			f.reached[p], moved = w.watermarkMS, true
			delete(f.waiting, p)
		}
	}
	if moved || len(f.reached) == 0 {
		rows := make([]warehouse.Progress, 0, len(written))
		for tp := range written {
			rows = append(rows, warehouse.Progress{Partition: tp.Partition, WatermarkMS: f.reached[tp.Partition]})
		}
		if err := f.db.InsertProgress(ctx, f.topicID, rows, time.Now()); err != nil {
			return false, err
		}
	}
	return len(f.waiting) == 0, nil
}
