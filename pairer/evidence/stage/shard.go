package stage

import (
	"errors"
	"fmt"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/pairer/evidence"
	"ctrloop/schemas"
)

// shard is one partition: everything that is done for it except talking to the broker. One goroutine at a time uses it.
type shard struct {
	partition int32
	fold      *evidence.Partition
	meta      metadata // of the last commit; its State is what the fold stands for
	records   []*stream.Record
	labels    int   // of the running transaction; 0: the partition is not in it
	behind    int64 // labels between what was read and the end
}

// errState says that the client and the state have come apart: the session must be built anew.
var errState = errors.New("evidence and consumed offsets have come apart")

// process folds the polled labels and hands the records that come of them to produce, which may keep them until the commit.
func (s *shard) process(batches []stream.PartitionBatch, produce func(*stream.Record)) error {
	for _, b := range batches {
		for _, r := range b.Records {
			if err := s.fold.Add(r.Offset, r.Value); err != nil {
				if errors.Is(err, evidence.ErrAgain) {
					return stream.Final(refuse("%s/%d: %w", schemas.TopicLabels, s.partition, err), freshStart)
				}
				return fmt.Errorf("%s/%d: %w: %w", schemas.TopicLabels, s.partition, errState, err)
			}
			s.labels++
		}
		if n := len(b.Records); n > 0 {
			s.behind = b.HighWatermark - b.Records[n-1].Offset - 1
		}
	}
	if s.labels == 0 {
		return nil
	}
	s.fold.Close(func(key, value []byte) {
		at := max(s.fold.State().WatermarkMS, 1) // records carry the time of labels; compaction does not go by it
		r := &stream.Record{
			Topic: schemas.TopicEvidence, Partition: s.partition, Key: key, Value: value, Timestamp: time.UnixMilli(at),
		}
		s.records = append(s.records, r)
		produce(r)
	})
	return nil
}

// propose is the metadata for the commit of the running transaction; false: the partition is not in it.
func (s *shard) propose() (string, bool) {
	if s.labels == 0 {
		return "", false
	}
	m := s.meta
	m.State = s.fold.State()
	return m.String(), true
}

// commit follows a committed transaction.
func (s *shard) commit() {
	if s.labels == 0 {
		return
	}
	end := int64(0)
	for _, r := range s.records {
		end = max(end, r.Offset+1)
	}
	s.meta.State = s.fold.State()
	s.fold.Commit(end)
	s.reset()
}

// rollback follows an aborted one.
func (s *shard) rollback() error {
	s.fold.Rollback()
	s.reset()
	if now := s.fold.State(); now != s.meta.State {
		return fmt.Errorf("partition %d: after an abort the state is not that of the last commit: %w", s.partition, errState)
	}
	return nil
}

func (s *shard) reset() {
	clear(s.records)
	s.records, s.labels = s.records[:0], 0
}
