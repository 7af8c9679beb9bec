package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// ErrCopies is wrapped by what CheckCopies returns for a cluster that may lose what it has acknowledged.
var ErrCopies = errors.New("acknowledged records could be lost with one broker")

// ownTopics are where the brokers keep offsets and transactions: the joiner's place is in them. They are there from
// their first use on.
var ownTopics = []string{"__consumer_offsets", "__transaction_state"}

// CheckCopies makes sure that two brokers or more have what the cluster acknowledges. Clients here write with acks=all,
// which waits for the replicas that are in sync, and how many those must be is the cluster's min.insync.replicas: 1
// unless somebody has set it, so that a record may be acknowledged, and be followed by a commit, with one copy.
//
// It looks at these topics and at the brokers' own ones. A topic with more copies demanded than it has is refused
// everywhere, since nothing could ever be written to it. A cluster of one broker has one copy of everything, which is
// what development wants: it is a warning, and so is a user who may not read the configuration of topics.
func CheckCopies(ctx context.Context, c Config, topics ...string) (warning string, err error) {
	err = admin(ctx, c, func(ctx context.Context, adm *kadm.Client) error {
		listed, err := adm.ListTopicsWithInternal(ctx, slices.Concat(topics, ownTopics)...)
		if err != nil {
			return fmt.Errorf("copies of topics: %w", err)
		}
		brokers, err := adm.ListBrokers(ctx)
		if err != nil {
			return fmt.Errorf("brokers of the cluster: %w", err)
		}
		copies := map[string]int{}
		for name, d := range listed {
			switch {
			case errors.Is(d.Err, kerr.UnknownTopicOrPartition), errors.Is(d.Err, kerr.TopicAuthorizationFailed) && slices.Contains(ownTopics, name):
				continue // not there yet, or the user has no business with it
			case d.Err != nil:
				return fmt.Errorf("copies of topic %s: %w", name, d.Err)
			}
			for _, p := range d.Partitions {
				if n, ok := copies[name]; !ok || len(p.Replicas) < n {
					copies[name] = len(p.Replicas)
				}
			}
		}
		need, err := minInSync(ctx, adm, copies)
		if errors.Is(err, kerr.TopicAuthorizationFailed) {
			warning = fmt.Sprintf("whether two brokers have what the cluster acknowledges is not known: this user may not DescribeConfigs: %v", err)
			return nil
		}
		if err != nil {
			return err
		}
		var few, stuck []string
		for name, n := range copies {
			text := fmt.Sprintf("%s (%d copies, min.insync.replicas %d)", name, n, need[name])
			switch {
			case need[name] > n:
				stuck = append(stuck, text)
			case min(n, need[name]) < 2:
				few = append(few, text)
			}
		}
		slices.Sort(few)
		slices.Sort(stuck)
		switch {
		case len(stuck) > 0:
			return fmt.Errorf(
				"topics %s can never be written to: raise their replication factor (`kafka-reassign-partitions.sh`) or lower min.insync.replicas",
				strings.Join(stuck, ", "),
			)
		case len(few) > 0 && len(brokers) == 1:
			warning = "the cluster has one broker: what it acknowledges is on one disk"
		case len(few) > 0:
			return fmt.Errorf(
				"%w: topics %s: have three copies of each and set min.insync.replicas to 2 "+
					"(`kafka-configs.sh --alter --entity-type topics --entity-name NAME --add-config min.insync.replicas=2`; docs/operations.md)",
				ErrCopies,
				strings.Join(few, ", "),
			)
		}
		return nil
	})
	return warning, err
}

// minInSync asks how many replicas a write to each of the topics waits for.
func minInSync(ctx context.Context, adm *kadm.Client, topics map[string]int) (map[string]int, error) {
	names := make([]string, 0, len(topics))
	for name := range topics {
		names = append(names, name)
	}
	answers, err := adm.DescribeTopicConfigs(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("read the configuration of topics: %w", err)
	}
	out := map[string]int{}
	for _, a := range answers {
		if a.Err != nil {
			return nil, fmt.Errorf("read the configuration of topic %s: %w", a.Name, a.Err)
		}
		for _, conf := range a.Configs {
			if conf.Key != "min.insync.replicas" {
				continue
			}
			if out[a.Name], err = strconv.Atoi(conf.MaybeValue()); err != nil {
				return nil, fmt.Errorf("topic %s: min.insync.replicas: %w", a.Name, err)
			}
		}
	}
	return out, nil
}
