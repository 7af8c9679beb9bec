package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ConsumerConfig configures a Consumer; zero numbers take the defaults of TxConfig.
type ConsumerConfig struct {
	Group      string
	InstanceID string
	Topics     []string
	MaxPoll    int
	// FetchMaxBytes bounds one fetch from one broker, FetchMaxPartitionBytes each partition in it.
	FetchMaxBytes          int32
	FetchMaxPartitionBytes int32
	// RebalanceTimeout is how long the group waits for this member when others come or go. Default
	// DefaultRebalanceTimeout; more than the time between two polls.
	RebalanceTimeout time.Duration
	OnAssigned       AssignedFunc
	OnLost           LostFunc
}

// Consumer is a member of a group that commits by hand, with metadata: for sinks whose other side is not
// Kafka. Its group is cooperative: a rebalance takes only the partitions that move, and each topic is spread by itself. All
// methods but Wake belong to one goroutine.
type Consumer struct{ member }

// ErrRebalanced is returned by Commit when the partitions no longer belong to this member: another one
// has them, and goes on from the last commit. Poll again to hear which went.
var ErrRebalanced = errors.New("the group has rebalanced: the commit was refused")

// NewConsumer joins the group in the background.
func NewConsumer(c Config, cc ConsumerConfig) (*Consumer, error) {
	if cc.Group == "" || len(cc.Topics) == 0 {
		return nil, errors.New("consumer: group and topics are required")
	}
	opts, err := c.options()
	if err != nil {
		return nil, err
	}
	k := &Consumer{newMember(c, cc.Group, cc.InstanceID, cc.MaxPoll, cc.OnAssigned, cc.OnLost)}
	k.cooperative = true
	opts = append(opts, k.member.options(cc.Topics, cc.RebalanceTimeout)...)
	opts = append(opts, c.observe(cc.Group)...)
	k.cl, err = kgo.NewClient(append(opts,
		kgo.FetchMaxBytes(orDefault(cc.FetchMaxBytes, 16<<20)),
		kgo.FetchMaxPartitionBytes(orDefault(cc.FetchMaxPartitionBytes, 2<<20)),
		kgo.FetchMaxWait(250*time.Millisecond),
	)...)
	if err != nil {
		return nil, fmt.Errorf("consumer of group %s: %w", cc.Group, err)
	}
	return k, nil
}

// Poll waits for records; see Tx.Poll.
func (k *Consumer) Poll(ctx context.Context, wait time.Duration) (Batch, error) {
	return k.poll(ctx, wait, nil)
}

// Commit commits exactly these places and texts; other partitions stay as they are. It returns when the broker has answered,
// and refuses with ErrRebalanced what is not this member's. The broker alone would not: it checks that the member is
// one of the group's present generation, not which partitions are its own. So both are checked here, in this order: the
// generation that the request carries, by the broker; the partition, by this client, which loses it before the
// next generation begins.
func (k *Consumer) Commit(ctx context.Context, places map[TopicPartition]Committed) error {
	offsets := map[string]map[int32]kgo.EpochOffset{}
	for tp, p := range places {
		if offsets[tp.Topic] == nil {
			offsets[tp.Topic] = map[int32]kgo.EpochOffset{}
		}
		offsets[tp.Topic][tp.Partition] = kgo.EpochOffset{Epoch: p.LeaderEpoch, Offset: p.Offset}
	}
	ctx = kgo.PreCommitFnContext(ctx, func(r *kmsg.OffsetCommitRequest) error {
		if err := k.checkOwned(places); err != nil {
			return err
		}
		for i := range r.Topics {
			for j := range r.Topics[i].Partitions {
				p := &r.Topics[i].Partitions[j]
				p.Metadata = new(places[TopicPartition{r.Topics[i].Topic, p.Partition}].Metadata)
			}
		}
		return nil
	})
	var errs []error
	k.cl.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, r *kmsg.OffsetCommitResponse, err error) {
		if err != nil {
			errs = append(errs, err)
			return
		}
		for _, t := range r.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					errs = append(errs, fmt.Errorf("%s/%d: %w", t.Topic, p.Partition, err))
				}
			}
		}
	})
	err := errors.Join(errs...)
	switch {
	case err == nil:
		k.committed(places)
		return nil
	case errors.Is(err, ErrRebalanced):
		return err
	case errors.Is(err, kerr.IllegalGeneration), errors.Is(err, kerr.UnknownMemberID), errors.Is(err, kerr.RebalanceInProgress):
		return fmt.Errorf("%w: %w", ErrRebalanced, err)
	}
	return fmt.Errorf("commit offsets: %w", err)
}

// checkOwned fails when one of the partitions has gone.
func (k *Consumer) checkOwned(places map[TopicPartition]Committed) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for tp := range places {
		if !k.owned[tp] {
			return fmt.Errorf("%w: %s belongs to another member", ErrRebalanced, tp)
		}
	}
	return nil
}

func (k *Consumer) committed(places map[TopicPartition]Committed) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for tp, p := range places {
		if pos := k.positions[tp]; pos != nil {
			pos.committed, pos.metadata = kgo.EpochOffset{Epoch: p.LeaderEpoch, Offset: p.Offset}, p.Metadata
		}
	}
}

// Rewind sets every partition back to its last commit.
func (k *Consumer) Rewind() { k.rewind() }

// Close ends this member; nothing is committed. A dynamic one leaves the group, a static one keeps its place for its next life.
func (k *Consumer) Close() { k.cl.CloseAllowingRebalance() }

// Leave is Close for a member that is not expected back soon; see Tx.Leave.
func (k *Consumer) Leave(ctx context.Context) error { return k.leave(ctx) }
