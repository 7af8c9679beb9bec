package stage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/pairer/evidence"
	"ctrloop/schemas"
)

// ErrRefused is wrapped by errors after which the stage does not start, because going on would lose evidence or count it twice.
// The message has the reason and the way out; a restart alone does not help.
var ErrRefused = errors.New("the evidence stage refuses to start")

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrRefused, fmt.Errorf(format, args...))
}

// freshStart is the way out of every refusal that has no better one.
const freshStart = "to count anew what labels.v1 still holds, stop all pairers, delete the topic evidence.v1 (it is made again at the " +
	"next start) and set another pairer.evidence.group; reviews of suspect labels must be said again"

// places is what the group has committed and where the topics begin and end, asked for once for all partitions of an assignment.
type places struct {
	done      chan struct{} // closed when the answer is there
	committed map[stream.TopicPartition]stream.Committed
	start     map[stream.TopicPartition]int64
	ids       map[string]string
	of        int64
	err       error
}

func (se *session) lookUp() *places {
	at := &places{done: make(chan struct{})}
	se.own.jobs.Go(func() {
		defer close(at.done)
		at.err = at.ask(se.own.ctx, se.cfg)
	})
	return at
}

func (at *places) ask(ctx context.Context, cfg Config) (err error) {
	if at.committed, err = stream.CommittedOffsets(ctx, cfg.Kafka, cfg.Group, schemas.TopicLabels); err != nil {
		return err
	}
	if at.start, err = stream.StartOffsets(ctx, cfg.Kafka, schemas.TopicLabels, schemas.TopicEvidence); err != nil {
		return err
	}
	if at.ids, err = stream.TopicIDs(ctx, cfg.Kafka, schemas.TopicLabels, schemas.TopicEvidence); err != nil {
		return err
	}
	for tp := range at.start {
		if tp.Topic == schemas.TopicLabels {
			at.of++
		}
	}
	return nil
}

// checkTopics makes sure that partition p means the same in both topics.
func checkTopics(ctx context.Context, c stream.Config) error {
	n, err := stream.PartitionCounts(ctx, c, schemas.TopicLabels, schemas.TopicEvidence)
	if err != nil {
		return err
	}
	if l, e := n[schemas.TopicLabels], n[schemas.TopicEvidence]; l == 0 || l != e {
		return refuse("%s has %d partitions, %s %d: evidence goes partition by partition, so they must be the same: create the topics with "+
			"one count (`ctrloop migrate`)", schemas.TopicLabels, l, schemas.TopicEvidence, e)
	}
	return nil
}

// plan is how a partition's state comes back.
type plan struct {
	fresh bool
	meta  metadata // where fresh: a new one
}

// planRebuild reads the committed offset and metadata of one partition.
func planRebuild(cfg Config, partition int32, at *places) (plan, error) {
	tp := stream.TopicPartition{Topic: schemas.TopicLabels, Partition: partition}
	c, ok := at.committed[tp]
	if !ok {
		m := metadata{Partitions: at.of, Labels: at.ids[schemas.TopicLabels], Evidence: at.ids[schemas.TopicEvidence]}
		m.Start, m.Next = at.start[tp], at.start[tp]
		return plan{fresh: true, meta: m}, nil
	}
	m, err := parseMetadata(c.Metadata)
	if err != nil {
		return plan{}, refuse("group %s has committed offset %d of %s, but %w: somebody moved the group's offsets, or another program uses the "+
			"group; %s", cfg.Group, c.Offset, tp, err, freshStart)
	}
	switch {
	case m.Labels != at.ids[tp.Topic]:
		return plan{}, refuse("%s was made anew (id %s, it was %s): its labels would be counted a second time; %s",
			tp.Topic, at.ids[tp.Topic], m.Labels, freshStart)
	case m.Evidence != at.ids[schemas.TopicEvidence]:
		return plan{}, refuse("%s was made anew (id %s, it was %s), and group %s goes on in the middle of the labels: set another "+
			"pairer.evidence.group, so that what %s still holds is counted anew", schemas.TopicEvidence, at.ids[schemas.TopicEvidence],
			m.Evidence, cfg.Group, tp.Topic)
	case m.Partitions != at.of:
		return plan{}, refuse("%s has %d partitions, the evidence of group %s was made with %d: negatives and their corrections would no longer "+
			"meet; make topics with %d partitions again, or %s", tp.Topic, at.of, cfg.Group, m.Partitions, m.Partitions, freshStart)
	case m.Next != c.Offset:
		return plan{}, refuse("group %s has committed offset %d of %s, its evidence stands at %d: the offsets were moved by hand; move them "+
			"back to %d, or %s", cfg.Group, c.Offset, tp, m.Next, m.Next, freshStart)
	case at.start[tp] > c.Offset:
		return plan{}, stream.Final(refuse("%s begins at offset %d, evidence stands at %d: %w: the stage was away for longer than the topic's "+
			"retention", tp, at.start[tp], c.Offset, stream.ErrDataLoss), freshStart)
	}
	return plan{meta: m}, nil
}

// rebuild makes the shard of one partition, one of so many of this instance, by reading what it has written.
func (se *session) rebuild(ctx context.Context, partition int32, of int, p plan) (*shard, error) {
	began := time.Now()
	s := &shard{partition: partition, meta: p.meta}
	to, err := se.settledEnd(ctx, partition)
	if err != nil {
		return nil, err
	}
	if p.fresh {
		if err := se.checkUnheld(ctx, partition, to); err != nil {
			return nil, err
		}
		s.fold = evidence.New(se.cfg.fold(of), p.meta.Next)
	} else {
		s.fold = evidence.Restore(se.cfg.fold(of), p.meta.State)
		err := se.broker.read(ctx, schemas.TopicEvidence, partition, p.meta.Rewind, to, func(r *stream.Record) error {
			return s.fold.Load(r.Key, r.Value, r.Offset)
		})
		if err == nil {
			err = s.fold.Loaded()
		}
		if err != nil {
			return nil, unlikeCommit(partition, p.meta, to, err)
		}
	}
	se.metrics.rebuild.Observe(time.Since(began).Seconds())
	se.log.Info().Int32("partition", partition).Bool("fresh", p.fresh).Int64("labels_at", p.meta.Next).Int("cells", s.fold.Cells()).
		Dur("took", time.Since(began)).Msg("evidence of a partition taken")
	return s, nil
}

// unlikeCommit says what a failed rebuild means.
func unlikeCommit(partition int32, m metadata, to int64, err error) error {
	err = fmt.Errorf("rebuild of partition %d from %s [%d, %d): %w", partition, schemas.TopicEvidence, m.Rewind, to, err)
	switch {
	case errors.Is(err, evidence.ErrRebuild):
		return refuse("%w: records have changed or gone; %s", err, freshStart)
	case errors.Is(err, stream.ErrDataLoss):
		return stream.Final(refuse("%w", err), freshStart)
	}
	return err // evidence.ErrAhead too: somebody has gone on, and the next look at the offsets says so
}

// settledEnd is where the partition of evidence.v1 ends, once all of it is decided: a transaction of an instance that died there
// hides what others have committed behind it, until the broker ends it.
func (se *session) settledEnd(ctx context.Context, partition int32) (int64, error) {
	tp := stream.TopicPartition{Topic: schemas.TopicEvidence, Partition: partition}
	written, err := stream.WrittenOffsets(ctx, se.cfg.Kafka, tp.Topic)
	if err != nil {
		return 0, err
	}
	for {
		end, err := stream.EndOffsets(ctx, se.cfg.Kafka, tp.Topic)
		if err != nil {
			return 0, err
		}
		if end[tp] >= written[tp] {
			return end[tp], nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// checkUnheld refuses a partition that holds evidence although no offset of the group is committed: the broker forgets the offsets
// of a group that was away for long, and counting from the start would count every label a second time.
func (se *session) checkUnheld(ctx context.Context, partition int32, to int64) error {
	tp := stream.TopicPartition{Topic: schemas.TopicEvidence, Partition: partition}
	start, err := stream.StartOffsets(ctx, se.cfg.Kafka, tp.Topic)
	if err != nil {
		return err
	}
	return se.broker.read(ctx, tp.Topic, partition, start[tp], to, func(r *stream.Record) error {
		if evidence.IsProgress(r.Key) {
			return refuse("%s holds evidence (offset %d), but group %s has no committed offsets: they were deleted, they have expired "+
				"(offsets.retention.minutes), or the group was renamed: set pairer.evidence.group back to the old name, or %s",
				tp, r.Offset, se.cfg.Group, freshStart)
		}
		return nil
	})
}
