package sink

import (
	"context"
	"fmt"
	"slices"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse"
	"ctrloop/schemas"
)

// Reached says how far a warehouse is known to be filled: every record before these offsets is in it. A backup of a
// running instance holds it, because there the offsets that the broker has committed are ahead of the tables.
type Reached struct {
	Topics  map[string]string          `json:"topics"`  // id of each topic
	Offsets map[string]map[int32]int64 `json:"offsets"` // by topic and partition; one that is missing has not been begun
}

// ReachedBy reads the present commits of a sink. What is inserted later is not in them: ask before the tables are
// copied.
func ReachedBy(ctx context.Context, cfg Config) (Reached, error) {
	topics := append([]string{schemas.TopicLabels}, mirrorTopics...)
	r := Reached{Offsets: map[string]map[int32]int64{}}
	var err error
	if r.Topics, err = stream.TopicIDs(ctx, cfg.Kafka, topics...); err != nil {
		return r, err
	}
	for group, topics := range map[string][]string{cfg.Group: {schemas.TopicLabels}, cfg.mirrorGroup(): mirrorTopics} {
		committed, err := stream.CommittedOffsets(ctx, cfg.Kafka, group, topics...)
		if err != nil {
			return r, err
		}
		for tp, c := range committed {
			if r.Offsets[tp.Topic] == nil {
				r.Offsets[tp.Topic] = map[int32]int64{}
			}
			r.Offsets[tp.Topic][tp.Partition] = c.Offset
		}
	}
	return r, nil
}

// Refilled is what a refill did.
type Refilled struct {
	Labels   int64    // inserted
	There    int64    // labels that were there already
	Mirrored int64    // records of the other topics
	Lost     []string // ranges that the topics do not hold any more, in words
}

// Refill reads again what lies between a state that the warehouse has gone back to and the commits, and inserts
// what is missing: a label that is there is not inserted a second time, not even for the moment until a merge. Run
// goes on behind it, and a block that it finds begun is treated alike, because the warehouse may have forgotten its
// token. A refill may be killed and run again, and run beside sinks that go on behind the commits.
func (s *Service) Refill(ctx context.Context, from Reached) (Refilled, error) {
	var done Refilled
	to, err := ReachedBy(ctx, s.cfg)
	if err != nil {
		return done, err
	}
	s.refilled = true
	for _, topic := range append([]string{schemas.TopicLabels}, mirrorTopics...) {
		if id, ok := from.Topics[topic]; ok && id != to.Topics[topic] {
			done.Lost = append(done.Lost, fmt.Sprintf("%s was made anew since: nothing of it is read again", topic))
			continue
		}
		start, err := stream.StartOffsets(ctx, s.cfg.Kafka, topic)
		if err != nil {
			return done, err
		}
		for partition, end := range to.Offsets[topic] {
			first := start[stream.TopicPartition{Topic: topic, Partition: partition}]
			begin, ok := from.Offsets[topic][partition]
			if ok && begin < first && begin < end {
				done.Lost = append(
					done.Lost,
					fmt.Sprintf("%s/%d, offsets %d to %d: the broker has deleted them", topic, partition, begin, min(first, end)),
				)
			}
			begin = max(begin, first)
			if topic == schemas.TopicLabels {
				err = s.refillLabels(ctx, to.Topics[topic], partition, begin, end, &done)
			} else {
				err = s.refillMirror(ctx, topic, to.Topics[topic], partition, begin, end, &done)
			}
			if err != nil {
				return done, fmt.Errorf("refill from %s/%d, offsets %d to %d: %w", topic, partition, begin, end, err)
			}
		}
	}
	return done, nil
}

func (s *Service) refillLabels(ctx context.Context, topicID string, partition int32, from, to int64, done *Refilled) error {
	w := s.Session(nil, topicID)
	rows := &warehouse.LabelBlock{}
	flush := func(next int64) error {
		err := w.insertMissing(ctx, block{partition: partition, from: from, to: next, rows: rows}, done)
		rows.Drop(len(rows.Rows))
		from = next
		return err
	}
	err := stream.ReadRange(ctx, s.cfg.Kafka, schemas.TopicLabels, partition, from, to, func(r *stream.Record) error {
		if w.decode(r, rows); len(rows.Rows) >= s.cfg.MaxRows {
			return flush(r.Offset + 1)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return flush(to)
}

// insertMissing inserts what is missing of a block, and makes the days of all of it be rolled up anew: a row may have come
// into labels and not into the tables that are fed by it.
func (w *Session) insertMissing(ctx context.Context, b block, done *Refilled) error {
	all := b.rows.Rows
	if len(all) == 0 {
		return nil
	}
	there, err := w.db.LabelKeys(ctx, b.partition, b.from, b.to)
	if err != nil {
		return err
	}
	days := map[time.Time]struct{}{}
	for _, l := range all {
		days[l.Impression.Time().UTC().Truncate(24*time.Hour)] = struct{}{}
	}
	b.rows.Rows = slices.DeleteFunc(all, func(l warehouse.Label) bool {
		_, ok := there[warehouse.LabelKey{Impression: l.Impression, Version: l.Version}]
		return ok
	})
	b.n = len(b.rows.Rows)
	done.There += int64(len(all) - b.n)
	done.Labels += int64(b.n)
	// The name tells what is left of the block too: another attempt may find other rows there.
	if err := w.insertAs(ctx, fmt.Sprintf("%s/refill-%d", token(w.topicID, b), b.n), b); err != nil {
		return err
	}
	for day := range days {
		if err := w.db.Touch(ctx, day); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) refillMirror(ctx context.Context, topic, topicID string, partition int32, from, to int64, done *Refilled) error {
	var m mirrored
	n := 0
	flush := func() error {
		err := s.insertMirrored(ctx, &m)
		done.Mirrored += int64(n)
		m, n = mirrored{}, 0
		return err
	}
	err := stream.ReadRange(ctx, s.cfg.Kafka, topic, partition, from, to, func(r *stream.Record) error {
		if err := m.add(r, topicID); err != nil {
			return nil // left out as by the mirror, which has counted and logged it
		}
		if n++; n >= s.cfg.MaxRows {
			return flush()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}
