package sink

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/schemas/eventpb"
)

var mirrorTopics = []string{schemas.TopicAudit, schemas.TopicLate, schemas.TopicDeadLetters, schemas.TopicCreatives, schemas.TopicPairs}

// mirrored is one batch of rows, by table.
type mirrored struct {
	audit     []warehouse.AuditRow
	late      []warehouse.LateRow
	dead      []warehouse.DeadLetterRow
	creatives []schemas.Creative
	pairs     []schemas.Pair
}

// mirror is one session: read, insert, commit. A crash in between inserts again, and rows replace themselves.
func (s *Service) mirror(ctx context.Context) (progress bool, err error) {
	ids, err := stream.TopicIDs(ctx, s.cfg.Kafka, mirrorTopics...)
	if err != nil {
		return progress, err
	}
	instance := s.cfg.InstanceID
	if instance != "" {
		instance += "-mirror"
	}
	consumer, err := stream.NewConsumer(
		s.cfg.Kafka,
		stream.ConsumerConfig{Group: s.mirrorGroup(), InstanceID: instance, Topics: mirrorTopics, MaxPoll: s.cfg.MaxRows},
	)
	if err != nil {
		return progress, err
	}
	defer consumer.Close()
	for {
		batch, err := consumer.Poll(ctx, s.cfg.FlushInterval)
		if err != nil {
			return progress, err
		}
		if batch.Len() == 0 {
			s.work[partMirror].Alive()
			continue
		}
		if err := s.mirrorBatch(ctx, consumer, batch, ids); err != nil {
			return progress, err
		}
		progress = true
		s.work[partMirror].Worked()
		// Let records gather: a few larger inserts a second instead of one per transaction of the joiner.
		if batch.Len() < s.cfg.MaxRows/2 {
			select {
			case <-ctx.Done():
				return progress, ctx.Err()
			case <-time.After(s.cfg.FlushInterval / 2):
			}
		}
	}
}

func (s *Service) mirrorBatch(ctx context.Context, consumer *stream.Consumer, batch stream.Batch, ids map[string]string) error {
	var m mirrored
	places := map[stream.TopicPartition]stream.Committed{}
	for _, p := range batch.Partitions {
		for _, r := range p.Records {
			if err := m.add(r, ids[r.Topic]); err != nil {
				s.metrics.undecodable.WithLabelValues(r.Topic).Inc()
				s.log.Error().Err(
					err,
				).Str(
					"topic",
					r.Topic,
				).Int32(
					"partition",
					r.Partition,
				).Int64(
					"offset",
					r.Offset,
				).Msg(
					"record left out of the mirror",
				)
			}
		}
		last := p.Records[len(p.Records)-1]
		places[stream.TopicPartition{Topic: p.Topic, Partition: p.Partition}] = stream.Committed{
			Offset:      last.Offset + 1,
			LeaderEpoch: last.LeaderEpoch,
		}
	}
	if err := s.insertMirrored(ctx, &m); err != nil {
		return err
	}
	if err := consumer.Commit(ctx, places); err != nil {
		return err
	}
	for _, p := range batch.Partitions {
		s.metrics.mirrored.WithLabelValues(p.Topic).Add(float64(len(p.Records)))
	}
	return nil
}

func (s *Service) insertMirrored(ctx context.Context, m *mirrored) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.InsertTimeout)
	defer cancel()
	if err := s.db.InsertAudit(ctx, m.audit); err != nil {
		return err
	}
	if err := s.db.InsertLate(ctx, m.late); err != nil {
		return err
	}
	if err := s.db.InsertDeadLetters(ctx, m.dead); err != nil {
		return err
	}
	if err := s.db.InsertCreatives(ctx, m.creatives); err != nil {
		return err
	}
	return s.db.InsertPairs(ctx, m.pairs)
}

// add decodes one record.
func (m *mirrored) add(r *stream.Record, topicID string) error {
	place := warehouse.Place{TopicID: topicID, Partition: r.Partition, Offset: r.Offset}
	switch r.Topic {
	case schemas.TopicAudit:
		a := &eventpb.AuditMinute{}
		if err := proto.Unmarshal(r.Value, a); err != nil {
			return err
		}
		m.audit = append(m.audit, warehouse.AuditRow{AuditMinute: a, Place: place})
	case schemas.TopicLate:
		l := &eventpb.Late{}
		if err := proto.Unmarshal(r.Value, l); err != nil {
			return err
		}
		m.late = append(m.late, warehouse.LateRow{Late: l, Place: place})
	case schemas.TopicDeadLetters:
		d := &eventpb.DeadLetter{}
		if err := proto.Unmarshal(r.Value, d); err != nil {
			return err
		}
		m.dead = append(m.dead, warehouse.DeadLetterRow{DeadLetter: d, Place: place, TimeMS: r.Timestamp.UnixMilli()})
	case schemas.TopicCreatives:
		if r.Value == nil {
			return nil // deleted from the compacted topic; the table keeps its history
		}
		var c schemas.Creative
		if err := json.Unmarshal(r.Value, &c); err != nil {
			return err
		}
		m.creatives = append(m.creatives, c)
	case schemas.TopicPairs:
		var p schemas.Pair
		if err := json.Unmarshal(r.Value, &p); err != nil {
			return err
		}
		m.pairs = append(m.pairs, p)
	default:
		return fmt.Errorf("topic %s is not mirrored", r.Topic)
	}
	return nil
}

// control mirrors control.v1 from its start: first what is there in large blocks, then command by command.
func (s *Service) control(ctx context.Context) (progress bool, err error) {
	ids, err := stream.TopicIDs(ctx, s.cfg.Kafka, schemas.TopicControl)
	if err != nil {
		return progress, err
	}
	tp := stream.TopicPartition{Topic: schemas.TopicControl}
	start, err := stream.StartOffsets(ctx, s.cfg.Kafka, schemas.TopicControl)
	if err != nil {
		return progress, err
	}
	end, err := stream.EndOffsets(ctx, s.cfg.Kafka, schemas.TopicControl)
	if err != nil {
		return progress, err
	}
	state := control.NewState()
	var rows []warehouse.ControlRow
	insert := func() error {
		ictx, cancel := context.WithTimeout(ctx, s.cfg.InsertTimeout)
		defer cancel()
		err := s.db.InsertControl(ictx, rows)
		s.metrics.mirrored.WithLabelValues(schemas.TopicControl).Add(float64(len(rows)))
		rows = rows[:0]
		if progress = err == nil; progress {
			s.work[partControl].Worked()
		}
		return err
	}
	fold := func(r *stream.Record) {
		row := warehouse.ControlRow{Place: warehouse.Place{TopicID: ids[schemas.TopicControl], Partition: r.Partition, Offset: r.Offset}}
		if err := json.Unmarshal(r.Value, &row.Event); err != nil {
			s.metrics.undecodable.WithLabelValues(schemas.TopicControl).Inc()
			s.log.Error().Err(err).Int64("offset", r.Offset).Msg("record of control.v1 left out of the mirror")
			return
		}
		if _, err := state.Apply(r.Offset, row.Event); err != nil {
			row.Rejected = err.Error()
		}
		rows = append(rows, row)
	}
	err = stream.ReadRange(ctx, s.cfg.Kafka, schemas.TopicControl, 0, start[tp], end[tp], func(r *stream.Record) error {
		if fold(r); len(rows) >= s.cfg.MaxRows {
			return insert()
		}
		return nil
	})
	if err == nil {
		err = insert()
	}
	if err != nil {
		return progress, err
	}
	err = stream.Tail(ctx, s.cfg.Kafka, schemas.TopicControl, 0, end[tp], func(r *stream.Record) error {
		fold(r)
		return insert()
	})
	return progress, err
}
