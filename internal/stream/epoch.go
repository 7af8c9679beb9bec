package stream

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
)

// EpochEnd returns the offset behind the last record that the partition has of a leader epoch or an earlier one, -1
// if the broker does not know the epoch. Records read under an epoch and beyond its end are gone: another leader
// has written others in their place.
func EpochEnd(ctx context.Context, c Config, topic string, partition, epoch int32) (end int64, err error) {
	err = admin(ctx, c, func(ctx context.Context, adm *kadm.Client) error {
		var req kadm.OffsetForLeaderEpochRequest
		req.Add(topic, partition, epoch)
		answers, err := adm.OffsetForLeaderEpoch(ctx, req)
		if err != nil {
			return fmt.Errorf("end of epoch %d of %s/%d: %w", epoch, topic, partition, err)
		}
		a, ok := answers[topic][partition]
		if !ok || a.Err != nil {
			return fmt.Errorf("end of epoch %d of %s/%d: answered %v: %w", epoch, topic, partition, ok, a.Err)
		}
		if end = a.EndOffset; a.LeaderEpoch < 0 {
			end = -1
		}
		return nil
	})
	return end, err
}
