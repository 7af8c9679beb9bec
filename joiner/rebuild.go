package joiner

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/joiner/segment"
	"ctrloop/joiner/window"
	"ctrloop/schemas"
)

// ErrRefused is wrapped by errors after which the joiner does not start, because going on would lose or repeat
// labels. The message has the reason and the way out; a restart alone does not help.
var ErrRefused = errors.New("the joiner refuses to start")

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrRefused, fmt.Errorf(format, args...))
}

// freshStart is the way out of every refusal that has no better one.
const freshStart = "to give up the old state, stop the joiner, empty labels.v1, audit.v1 and late.v1 " +
	"(or point everything at fresh topics) and set another joiner.group: " +
	"all labels are then made again from the start of the inputs"

// checkTopics makes sure that partition p means the same in both inputs and the output.
func checkTopics(ctx context.Context, c stream.Config) error {
	topics := []string{inputTopic[0], inputTopic[1], schemas.TopicLabels}
	offsets, err := stream.StartOffsets(ctx, c, topics...)
	if err != nil {
		return err
	}
	n := map[string]int32{}
	for tp := range offsets {
		n[tp.Topic]++
	}
	a, b, l := n[topics[0]], n[topics[1]], n[topics[2]]
	if a == 0 || b == 0 || l == 0 || a != b || a != l {
		return refuse(
			"%s has %d partitions, %s %d, %s %d: the join is partition by partition, so they must be the same: "+
				"create the topics with one count (`ctrloop migrate`)",
			topics[0],
			a,
			topics[1],
			b,
			topics[2],
			l,
		)
	}
	return nil
}

// plan is how a partition's state comes back.
type plan struct {
	fresh bool
	reset bool // there are committed offsets without a state: somebody has set them
	meta  metadata
	next  [2]int64 // where consumption goes on
	of    int64    // partitions of each input
}

// planRebuild reads the committed offsets and metadata of one partition. start is the first retained offset.
func planRebuild(
	cfg Config,
	partition int32,
	committed map[stream.TopicPartition]stream.Committed,
	start map[stream.TopicPartition]int64,
) (plan, error) {
	p := plan{fresh: true}
	for tp := range start {
		if tp.Topic == inputTopic[0] {
			p.of++
		}
	}
	if err := checkCount(cfg, p.of, committed); err != nil {
		return p, err
	}
	var at [2]stream.Committed
	var has [2]bool
	for in, topic := range inputTopic {
		tp := stream.TopicPartition{Topic: topic, Partition: partition}
		at[in], has[in] = committed[tp]
		p.next[in] = start[tp]
		p.reset = p.reset || has[in] && at[in].Metadata == ""
		if !has[in] || at[in].Offset == 0 {
			has[in] = false
			continue
		}
		m, err := parseMetadata(at[in].Metadata)
		if err != nil {
			return p, refuse(
				"group %s has committed offset %d of %s, but %w: somebody moved the group's offsets, or another program uses the group; %s",
				cfg.Group,
				at[in].Offset,
				tp,
				err,
				freshStart,
			)
		}
		if p.fresh || m.Sequence > p.meta.Sequence {
			p.fresh, p.meta = false, m
		}
	}
	if p.fresh {
		return p, nil
	}
	for in, topic := range inputTopic {
		tp := stream.TopicPartition{Topic: topic, Partition: partition}
		if has[in] && at[in].Offset != p.meta.NextOffset[in] {
			return p, refuse(
				"group %s has committed offset %d of %s, its join state stands at %d: the offsets were moved by hand; move them back to %d, or %s",
				cfg.Group,
				at[in].Offset,
				tp,
				p.meta.NextOffset[in],
				p.meta.NextOffset[in],
				freshStart,
			)
		}
		if p.meta.RewindOffset[in] < p.meta.NextOffset[in] && start[tp] > p.meta.RewindOffset[in] {
			return p, refuse(
				"%s starts at offset %d, but open windows need it from %d on: the topic's retention is shorter than window + correction + outage; "+
					"raise retention.ms above that for the next time, and %s",
				tp,
				start[tp],
				p.meta.RewindOffset[in],
				freshStart,
			)
		}
	}
	p.next = p.meta.NextOffset
	return p, p.meta.matches(cfg)
}

// checkCount refuses inputs that got more partitions: ids are in others now, so clicks would miss the impressions that
// are open, and partitions that are new would look like a fresh start.
func checkCount(cfg Config, of int64, committed map[stream.TopicPartition]stream.Committed) error {
	for tp, c := range committed {
		m, err := parseMetadata(c.Metadata)
		if err != nil || m.Partitions == of {
			continue // what cannot be read is judged with its partition
		}
		return refuse(
			"%s and %s have %d partitions each, the state of group %s was made with %d (%s): "+
				"impressions that are open and their clicks would no longer meet; make topics with %d partitions again, or %s",
			inputTopic[0],
			inputTopic[1],
			of,
			cfg.Group,
			m.Partitions,
			tp,
			m.Partitions,
			freshStart,
		)
	}
	return nil
}

// matches holds the configuration against the one that the state was made with.
func (m metadata) matches(cfg Config) error {
	if was := time.Duration(m.WindowMS) * time.Millisecond; was != cfg.Window {
		return refuse(
			"the window is %s, the state was made with %s: open impressions would close too early or be forgotten; "+
				"set joiner.window back to %s, or %s",
			cfg.Window,
			was,
			was,
			freshStart,
		)
	}
	if was := time.Duration(m.BucketMS) * time.Millisecond; was != cfg.Bucket {
		return refuse("the bucket is %s, the state was made with %s: set joiner.bucket back to %s, or %s", cfg.Bucket, was, was, freshStart)
	}
	if was := time.Duration(m.ObserveMS) * time.Millisecond; was != cfg.Observe {
		return refuse(
			"the observation is %s, the state was made with %s, and it decides the version of the labels: set joiner.observe back to %s, or %s",
			cfg.Observe,
			was,
			was,
			freshStart,
		)
	}
	return nil
}

// checkUnlabelled refuses a partition that has labels but no committed offsets: the broker forgets the offsets of
// a group that was away for long (offsets.retention.minutes, 7 days by default), and starting over would make
// every label a second time.
func checkUnlabelled(ctx context.Context, cfg Config, partition int32, reset bool) error {
	tp := stream.TopicPartition{Topic: schemas.TopicLabels, Partition: partition}
	start, err := stream.StartOffsets(ctx, cfg.Kafka, tp.Topic)
	if err != nil {
		return err
	}
	end, err := stream.EndOffsets(ctx, cfg.Kafka, tp.Topic)
	if err != nil {
		return err
	}
	// Offsets alone do not tell: what a crash before the first commit left is aborted and invisible.
	err = stream.ReadRange(ctx, cfg.Kafka, tp.Topic, partition, start[tp], end[tp], func(r *stream.Record) error {
		if reset {
			return refuse("%s holds labels (one at offset %d), but the offsets of group %s were set to the start by hand: all of them would be made "+
				"a second time, and what is older than the join remembers would come into late.v1; %s", tp, r.Offset, cfg.Group, freshStart)
		}
		return refuse("%s holds labels (one at offset %d), but group %s has no committed offsets: somebody has deleted them, they have expired "+
			"(offsets.retention.minutes), or the group was renamed: set joiner.group back to the old name, or %s", tp, r.Offset, cfg.Group, freshStart)
	})
	if err != nil {
		return fmt.Errorf("look for labels of partition %d: %w", partition, err)
	}
	return nil
}

// rebuild makes the shard of one partition by replaying its inputs.
func rebuild(ctx context.Context, cfg Config, b broker, g *guard, seed uint64, partition int32, p plan) (*Shard, error) {
	if p.fresh {
		if err := checkUnlabelled(ctx, cfg, partition, p.reset); err != nil {
			return nil, err
		}
		return NewShard(g.suspicion(), partition, window.New(cfg.WindowConfig(seed)), p.next, 0), nil
	}
	w := window.Restore(cfg.WindowConfig(seed), p.meta.Snapshot)
	if err := replay(ctx, b, w, partition, p, p.meta.RewindOffset); err != nil {
		return nil, err
	}
	if err := w.Restored(p.meta.Snapshot); err != nil {
		return nil, refuse(
			"rebuild of partition %d from %s [%d, %d) and %s [%d, %d): %w: records of the inputs have changed or gone; %s",
			partition,
			inputTopic[0],
			p.meta.RewindOffset[0],
			p.meta.NextOffset[0],
			inputTopic[1],
			p.meta.RewindOffset[1],
			p.meta.NextOffset[1],
			err,
			freshStart,
		)
	}
	return NewShard(g.suspicion(), partition, w, p.next, p.meta.Sequence), nil
}

// settleEvery bounds what a replay keeps to undo, which it never does: at this pace the window seals what it has read.
const settleEvery = 50_000

// replay feeds a window what the inputs have from some offsets up to the committed ones.
func replay(ctx context.Context, b broker, w *window.Window, partition int32, p plan, start [2]int64) error {
	n := 0
	for _, in := range []window.Input{window.Impressions, window.Clicks} {
		from, to := start[in], p.meta.NextOffset[in]
		err := b.read(ctx, inputTopic[in], partition, from, to, func(r *stream.Record) error {
			if _, _, err := apply(w, in, r); err != nil {
				if _, fatal := recordError(err); fatal != nil {
					return fatal // what was a dead letter then is one now
				}
			}
			if n++; n%settleEvery == 0 {
				w.Commit()
			}
			return nil
		})
		if errors.Is(err, stream.ErrDataLoss) {
			return stream.Final(refuse("rebuild of partition %d: %w", partition, err), freshStart)
		}
		if err != nil {
			return fmt.Errorf("rebuild of partition %d: replay %s from %d to %d: %w", partition, inputTopic[in], from, to, err)
		}
	}
	return nil
}

// restore makes the shard of one partition: from the segments on disk if they fit, and from the inputs alone if not.
func (se *session) restore(ctx context.Context, partition int32, share int, p plan) (*Shard, error) {
	if !se.cfg.Segments.on() {
		return rebuild(ctx, se.cfg, se.broker, se.guard, se.seed, partition, p)
	}
	keeper := se.keeper(partition, share)
	if !p.fresh {
		sh, err := se.load(ctx, keeper, partition, p)
		var i *segment.Ignored
		switch {
		case err == nil && sh != nil:
			keeper.Clear(true)
			se.kept.Loads.Inc()
			return sh, nil
		case errors.As(err, &i):
			se.kept.Ignored.WithLabelValues(string(i.Reason)).Inc()
			se.log.Warn().Err(err).Int32("partition", partition).Msg("the state is rebuilt from the topics instead")
		case err != nil:
			keeper.Release()
			return nil, err
		}
		keeper.Release()
		keeper = se.keeper(partition, share)
	}
	keeper.Clear(false)
	sh, err := rebuild(ctx, se.cfg, se.broker, se.guard, se.seed, partition, p)
	if err != nil {
		return nil, err
	}
	sh.keep(keeper)
	return sh, nil
}

func (se *session) keeper(partition int32, share int) *segment.Keeper {
	return segment.Open(filepath.Join(se.cfg.Segments.Dir, strconv.Itoa(int(partition))), segment.Identity{
		TopicIDs: [2]string{se.topicIDs[inputTopic[0]], se.topicIDs[inputTopic[1]]}, Partition: partition,
		WindowMS: se.cfg.Window.Milliseconds(), BucketMS: se.cfg.Bucket.Milliseconds(),
	}, segment.Options{
		Interval: se.cfg.Segments.Interval, Memory: int(se.cfg.MemoryLimit / int64(share)), Now: time.Now, Log: se.log, Count: se.kept,
	})
}

// load returns nil without an error when there is nothing on disk.
func (se *session) load(ctx context.Context, keeper *segment.Keeper, partition int32, p plan) (*Shard, error) {
	w, at, err := keeper.Load(se.cfg.WindowConfig(se.seed), p.meta.Sequence, p.meta.Snapshot, func(at segment.Place) error {
		for in, topic := range inputTopic {
			if at.Epoch[in] < 0 {
				continue // nothing was read of it, or by a broker without epochs: the hash alone must do
			}
			end, err := stream.EpochEnd(ctx, se.cfg.Kafka, topic, partition, at.Epoch[in])
			if err != nil {
				return err
			}
			if end < at.Next[in] {
				return fmt.Errorf(
					"%s/%d ended at offset %d in leader epoch %d, they were made of records up to %d",
					topic,
					partition,
					end,
					at.Epoch[in],
					at.Next[in],
				)
			}
		}
		return nil
	})
	if err != nil || w == nil {
		return nil, err
	}
	if err := replay(ctx, se.broker, w, partition, p, at.Next); err != nil {
		if errors.Is(err, window.ErrSpill) {
			return nil, &segment.Ignored{Reason: segment.ReasonCorrupt, Err: err}
		}
		return nil, err
	}
	if err := w.Restored(p.meta.Snapshot); err != nil {
		return nil, &segment.Ignored{Reason: segment.ReasonHash, Err: err}
	}
	sh := NewShard(se.guard.suspicion(), partition, w, p.next, p.meta.Sequence)
	sh.keep(keeper)
	return sh, nil
}
