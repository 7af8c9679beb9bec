package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"ctrloop/schemas"
)

// ErrPartitionCount is returned when a topic exists with another number of partitions than configured.
var ErrPartitionCount = errors.New("partition count differs from the configuration")

// ErrBroker is returned by CheckBroker.
var ErrBroker = errors.New("broker not supported")

// admin runs fn with a client for administrative calls.
func admin(ctx context.Context, c Config, fn func(context.Context, *kadm.Client) error) error {
	return connect(ctx, c, func(ctx context.Context, cl *kgo.Client) error { return fn(ctx, kadm.NewClient(cl)) })
}

func connect(ctx context.Context, c Config, fn func(context.Context, *kgo.Client) error) error {
	opts, err := c.options()
	if err != nil {
		return err
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return fn(ctx, cl)
}

// UnregisterBroker takes a broker that is gone off the books of a controller, which is asked at its own address (KIP-919):
// partitions that it led have no leader then. A broker that is not on the books is no error.
func UnregisterBroker(ctx context.Context, controller string, id int32) error {
	c := Default()
	c.Brokers = []string{controller}
	return connect(ctx, c, func(ctx context.Context, cl *kgo.Client) error {
		req := kmsg.NewPtrUnregisterBrokerRequest()
		req.BrokerID = id
		raw, err := cl.SeedBrokers()[0].Request(ctx, req)
		if err == nil {
			err = kerr.ErrorForCode(raw.(*kmsg.UnregisterBrokerResponse).ErrorCode)
		}
		if err != nil && !errors.Is(err, kerr.BrokerIDNotRegistered) {
			return fmt.Errorf("unregister broker %d at the controller %s: %w", id, controller, err)
		}
		return nil
	})
}

// CheckBroker makes sure that the brokers speak transactions of version 2 (KIP-890, Apache Kafka 4.0).
// Before it a late transactional write can land in the next transaction and break exactly-once
// (KAFKA-17754); the protocol gives a client no way to defend itself. The level is one for the whole cluster, so that
// it is enough if one broker answers: one that has just died is listed for seconds.
func CheckBroker(ctx context.Context, c Config) error {
	const feature, want = "transaction.version", 2
	return admin(ctx, c, func(ctx context.Context, adm *kadm.Client) error {
		versions, err := adm.ApiVersions(ctx)
		if err != nil {
			return fmt.Errorf("ask brokers %v for their versions: %w", c.Brokers, err)
		}
		var silent []error
		for _, v := range versions {
			if v.Err != nil {
				silent = append(silent, fmt.Errorf("ask broker %d for its version: %w", v.NodeID, v.Err))
				continue
			}
			level, err := finalizedFeature(v.Raw(), feature)
			if err != nil {
				return err
			}
			if level < want {
				return fmt.Errorf(
					"broker %d (%s) has %s %d: %w: exactly-once needs Apache Kafka 4.0 or newer with %s %d (`kafka-features.sh upgrade --feature %s=%d`)",
					v.NodeID,
					v.VersionGuess(),
					feature,
					level,
					ErrBroker,
					feature,
					want,
					feature,
					want,
				)
			}
		}
		if len(silent) == len(versions) {
			return errors.Join(silent...)
		}
		return nil
	})
}

func finalizedFeature(r *kmsg.ApiVersionsResponse, name string) (int16, error) {
	if r == nil {
		return 0, fmt.Errorf("%w: it did not answer ApiVersions", ErrBroker)
	}
	for _, f := range r.FinalizedFeatures {
		if f.Name == name {
			return f.MaxVersionLevel, nil
		}
	}
	return 0, nil
}

// EnsureTopics creates the topics that are missing and checks those that exist. partitions and retention
// fill in what a topic leaves open (see schemas.Topic); a negative retention keeps everything, which
// event times of the past need: the broker's limit goes by record time. It is safe to call from several
// processes at once.
func EnsureTopics(ctx context.Context, c Config, topics []schemas.Topic, partitions int32, retention time.Duration) error {
	if partitions < 1 {
		return fmt.Errorf("create topics: %d partitions: want at least 1", partitions)
	}
	return admin(ctx, c, func(ctx context.Context, adm *kadm.Client) error {
		var errs []error
		for _, t := range topics {
			want := t.Partitions
			if want == 0 {
				want = partitions
			}
			if err := ensureTopic(ctx, adm, t, want, retention); err != nil {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}

func ensureTopic(ctx context.Context, adm *kadm.Client, t schemas.Topic, partitions int32, retention time.Duration) error {
	_, err := adm.CreateTopic(ctx, partitions, -1, topicConfigs(t, retention), t.Name) // -1: the cluster's replication factor
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return fmt.Errorf("create topic %s: %w", t.Name, err)
	}
	for { // a fresh topic may need a moment to show in the metadata
		details, err := adm.ListTopics(ctx, t.Name)
		if err != nil {
			return fmt.Errorf("look at topic %s: %w", t.Name, err)
		}
		d := details[t.Name]
		if n := int32(len(d.Partitions)); d.Err == nil && n > 0 {
			if n != partitions && !t.AnyCount {
				return fmt.Errorf(
					"topic %s has %d partitions, the configuration says %d: %w: set partitions to %d, "+
						"or start with fresh topics (keys would move to other partitions and the join would lose their partners)",
					t.Name,
					n,
					partitions,
					ErrPartitionCount,
					n,
				)
			}
			return nil
		}
		if d.Err != nil && !errors.Is(d.Err, kerr.UnknownTopicOrPartition) && !errors.Is(d.Err, kerr.LeaderNotAvailable) {
			return fmt.Errorf("look at topic %s: %w", t.Name, d.Err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("topic %s was created but does not show up: %w", t.Name, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// DeleteTopics deletes topics with all their records, and returns when they are gone. Those that do not exist are
// no error. It is for tests and benchmarks.
func DeleteTopics(ctx context.Context, c Config, topics ...string) error {
	return admin(ctx, c, func(ctx context.Context, adm *kadm.Client) error {
		deleted, err := adm.DeleteTopics(ctx, topics...)
		if err != nil {
			return fmt.Errorf("delete topics %v: %w", topics, err)
		}
		for _, r := range deleted {
			if r.Err != nil && !errors.Is(r.Err, kerr.UnknownTopicOrPartition) {
				return fmt.Errorf("delete topic %s: %w", r.Topic, r.Err)
			}
		}
		for {
			left := 0
			details, err := adm.ListTopics(ctx, topics...)
			if err != nil {
				return fmt.Errorf("look at topics %v: %w", topics, err)
			}
			for _, d := range details {
				if !errors.Is(d.Err, kerr.UnknownTopicOrPartition) {
					left++
				}
			}
			if left == 0 {
				return nil
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%d of the topics %v are still there: %w", left, topics, ctx.Err())
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
}

func topicConfigs(t schemas.Topic, retention time.Duration) map[string]*string {
	if t.Retention != 0 {
		retention = t.Retention
	}
	conf := map[string]*string{"message.timestamp.type": new("CreateTime")} // record time is event time
	switch {
	case t.Compacted:
		conf["cleanup.policy"] = new("compact")
	case retention < 0:
		conf["retention.ms"] = new("-1")
	default:
		conf["retention.ms"] = new(strconv.FormatInt(retention.Milliseconds(), 10))
		// Brokers delete whole segments. By default one lasts a week: records would live up to a week longer than they may.
		conf["segment.ms"] = new(strconv.FormatInt(min(retention, maxSegment).Milliseconds(), 10))
	}
	return conf
}

// maxSegment is the span of record time in a segment at most.
const maxSegment = 24 * time.Hour

// sweep is how long a broker may take to look for what has expired: the embedded one an hour, Apache Kafka 5 minutes
// unless log.retention.check.interval.ms says otherwise.
const sweep = time.Hour

// TopicRetention is how long a topic keeps records, by the configuration that its broker really has.
type TopicRetention struct {
	// Bounded: the topic deletes records by age.
	Bounded bool
	// Longest time from a record's timestamp until the last byte of it is gone, for partitions that are written to or that
	// are as old as their newest record: the retention, the span of a segment, and the broker's pause between two looks.
	Longest time.Duration
}

// TopicRetentions asks the brokers.
func TopicRetentions(ctx context.Context, c Config, topics ...string) (map[string]TopicRetention, error) {
	out := map[string]TopicRetention{}
	err := admin(ctx, c, func(ctx context.Context, adm *kadm.Client) error {
		answers, err := adm.DescribeTopicConfigs(ctx, topics...)
		if err != nil {
			return fmt.Errorf("read the configuration of topics: %w", err)
		}
		for _, a := range answers {
			if a.Err != nil {
				return fmt.Errorf("read the configuration of topic %s: %w", a.Name, a.Err)
			}
			ms := map[string]int64{}
			policy := ""
			for _, conf := range a.Configs {
				switch conf.Key {
				case "cleanup.policy":
					policy = conf.MaybeValue()
				case "retention.ms", "segment.ms":
					if ms[conf.Key], err = strconv.ParseInt(conf.MaybeValue(), 10, 64); err != nil {
						return fmt.Errorf("topic %s: %s: %w", a.Name, conf.Key, err)
					}
				}
			}
			keep, ok := ms["retention.ms"]
			r := TopicRetention{Bounded: ok && keep >= 0 && strings.Contains(policy, "delete")}
			if r.Bounded {
				r.Longest = time.Duration(keep+ms["segment.ms"])*time.Millisecond + sweep
			}
			out[a.Name] = r
		}
		return nil
	})
	return out, err
}

// Committed is a group's place in one partition.
type Committed struct {
	Offset      int64 // the next record to read
	LeaderEpoch int32 // -1: unknown
	Metadata    string
}

// CommittedOffsets returns what a group has committed, in these topics, or in all. It waits for transactions that are
// being decided, so that the answer is never about to change by itself. That holds for topics that are named: when asked
// for all, a broker leaves out partitions whose first commit is still being decided.
func CommittedOffsets(ctx context.Context, c Config, group string, topics ...string) (map[TopicPartition]Committed, error) {
	var out map[TopicPartition]Committed
	err := connect(ctx, c, func(ctx context.Context, cl *kgo.Client) (err error) {
		adm := kadm.NewClient(cl)
		if len(topics) > 0 {
			if err := awaitDecided(ctx, cl, adm, group, topics); err != nil {
				return err
			}
		}
		if out, err = stableOffsets(ctx, adm, group); err != nil || len(topics) == 0 {
			return err
		}
		maps.DeleteFunc(out, func(tp TopicPartition, _ Committed) bool { return !slices.Contains(topics, tp.Topic) })
		return nil
	})
	return out, err
}

// awaitDecided asks for every partition of the topics by name until no answer is that a transaction is being decided.
func awaitDecided(ctx context.Context, cl *kgo.Client, adm *kadm.Client, group string, topics []string) error {
	listed, err := adm.ListTopics(ctx, topics...)
	if err != nil {
		return fmt.Errorf("look at topics %v: %w", topics, err)
	}
	req := kmsg.NewPtrOffsetFetchRequest()
	req.RequireStable = true
	rg := kmsg.NewOffsetFetchRequestGroup()
	rg.Group = group
	for _, topic := range topics {
		rt := kmsg.NewOffsetFetchRequestGroupTopic()
		rt.Topic, rt.TopicID = topic, listed[topic].ID
		for p := range listed[topic].Partitions {
			rt.Partitions = append(rt.Partitions, p)
		}
		rg.Topics = append(rg.Topics, rt)
	}
	req.Groups = append(req.Groups, rg)
	for {
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return fmt.Errorf("committed offsets of group %s: %w", group, err)
		}
		undecided := false
		for _, g := range resp.Groups {
			for _, t := range g.Topics {
				for _, p := range t.Partitions {
					undecided = undecided || p.ErrorCode == kerr.UnstableOffsetCommit.Code
				}
			}
		}
		if !undecided {
			return nil // whatever else is wrong, the next request says
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("committed offsets of group %s: a transaction is being decided: %w", group, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// unsettled are answers that become others by themselves: a transaction is being decided, or the group's
// coordinator is on its way. The first question about groups that a fresh cluster ever gets makes it create the
// topic where it keeps their offsets.
var unsettled = []error{kerr.UnstableOffsetCommit, kerr.CoordinatorNotAvailable, kerr.CoordinatorLoadInProgress, kerr.NotCoordinator}

func stableOffsets(ctx context.Context, adm *kadm.Client, group string) (map[TopicPartition]Committed, error) {
	for {
		out, err := committedOffsets(ctx, adm, group)
		if err == nil || !slices.ContainsFunc(unsettled, func(e error) bool { return errors.Is(err, e) }) {
			return out, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func committedOffsets(ctx context.Context, adm *kadm.Client, group string) (map[TopicPartition]Committed, error) {
	out := map[TopicPartition]Committed{}
	offsets, err := adm.FetchOffsets(kadm.RequireStable(ctx), group)
	if errors.Is(err, kerr.GroupIDNotFound) {
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("committed offsets of group %s: %w", group, err)
	}
	for topic, ps := range offsets {
		for p, o := range ps {
			if o.Err != nil {
				return nil, fmt.Errorf("committed offset of group %s in %s/%d: %w", group, topic, p, o.Err)
			}
			if o.At >= 0 {
				out[TopicPartition{topic, p}] = Committed{o.At, o.LeaderEpoch, o.Metadata}
			}
		}
	}
	return out, nil
}

// StartOffsets returns the first offset that each partition still holds.
func StartOffsets(ctx context.Context, c Config, topics ...string) (map[TopicPartition]int64, error) {
	return connectAndList(ctx, c, "start", topics, (*kadm.Client).ListStartOffsets)
}

// EndOffsets returns the end of what a read_committed reader can see in each partition: the last stable
// offset.
func EndOffsets(ctx context.Context, c Config, topics ...string) (map[TopicPartition]int64, error) {
	return connectAndList(ctx, c, "end", topics, (*kadm.Client).ListCommittedOffsets)
}

// WrittenOffsets are EndOffsets without regard to transactions: they are higher where one is open, or where the broker
// has not yet told all partitions that it has ended, which it does after its answer.
func WrittenOffsets(ctx context.Context, c Config, topics ...string) (map[TopicPartition]int64, error) {
	return connectAndList(ctx, c, "written", topics, (*kadm.Client).ListEndOffsets)
}

// list is a method of kadm.Client that says one offset of each partition.
type list func(*kadm.Client, context.Context, ...string) (kadm.ListedOffsets, error)

func connectAndList(ctx context.Context, c Config, what string, topics []string, offsets list) (out map[TopicPartition]int64, err error) {
	err = admin(ctx, c, func(ctx context.Context, adm *kadm.Client) (err error) {
		out, err = listOffsets(ctx, adm, what, topics, offsets)
		return err
	})
	return out, err
}

func listOffsets(ctx context.Context, adm *kadm.Client, what string, topics []string, offsets list) (map[TopicPartition]int64, error) {
	var listed kadm.ListedOffsets
	for {
		var err error
		if listed, err = offsets(adm, ctx, topics...); err == nil {
			err = listed.Error()
		}
		if err == nil {
			break
		}
		if !leaderless(err) {
			return nil, fmt.Errorf("%s offsets of %v: %w", what, topics, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s offsets of %v: %w", what, topics, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
	out := map[TopicPartition]int64{}
	listed.Each(func(o kadm.ListedOffset) { out[TopicPartition{o.Topic, o.Partition}] = o.Offset })
	return out, nil
}

// leaderless says whether an answer lacks partitions that will have another leader: one of several brokers has died, and
// the others take it for alive until its session is over, 9 s by default. With no broker left it is false: then already
// the question who leads what fails.
func leaderless(err error) bool {
	if _, ok := errors.AsType[*kadm.ShardErrors](err); ok {
		return true
	}
	// The last one is what a new leader says until a replica has told it how far the old one was.
	for _, e := range []error{kerr.NotLeaderForPartition, kerr.LeaderNotAvailable, kerr.OffsetNotAvailable} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// OffsetForTime returns the offset of the first record whose time is ms (Unix milliseconds) or later, or
// the end of the partition when there is none. "First" is by offset: with records out of order in time,
// older ones may follow.
func OffsetForTime(ctx context.Context, c Config, topic string, partition int32, ms int64) (int64, error) {
	at := int64(-1)
	err := admin(ctx, c, func(ctx context.Context, adm *kadm.Client) error {
		listed, err := adm.ListOffsetsAfterMilli(ctx, ms, topic)
		if err != nil {
			return fmt.Errorf("offset of time %d in %s/%d: %w", ms, topic, partition, err)
		}
		o, ok := listed.Lookup(topic, partition)
		if !ok {
			return fmt.Errorf("offset of time %d: no partition %s/%d", ms, topic, partition)
		}
		if o.Err != nil {
			return fmt.Errorf("offset of time %d in %s/%d: %w", ms, topic, partition, o.Err)
		}
		at = o.Offset
		return nil
	})
	return at, err
}

// HasTopic says whether a topic exists.
func HasTopic(ctx context.Context, c Config, topic string) (has bool, err error) {
	err = admin(ctx, c, func(ctx context.Context, adm *kadm.Client) error {
		details, err := adm.ListTopics(ctx, topic)
		if err != nil {
			return fmt.Errorf("look at topic %s: %w", topic, err)
		}
		d := details[topic]
		if has = d.Err == nil; has || errors.Is(d.Err, kerr.UnknownTopicOrPartition) {
			return nil
		}
		return fmt.Errorf("look at topic %s: %w", topic, d.Err)
	})
	return has, err
}

// PartitionCounts returns how many partitions each topic has.
func PartitionCounts(ctx context.Context, c Config, topics ...string) (map[string]int32, error) {
	out := make(map[string]int32, len(topics))
	err := admin(ctx, c, func(ctx context.Context, adm *kadm.Client) error {
		details, err := adm.ListTopics(ctx, topics...)
		if err != nil {
			return fmt.Errorf("partitions of %v: %w", topics, err)
		}
		for _, t := range topics {
			d := details[t]
			if d.Err != nil {
				return fmt.Errorf("partitions of %s: %w", t, d.Err)
			}
			out[t] = int32(len(d.Partitions))
		}
		return nil
	})
	return out, err
}
