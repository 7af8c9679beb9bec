package ingest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// TestRawTopicGrows: partitions that are added to a raw topic are read while everything runs, and promised for; the two raw
// topics and the topics of the join may have different numbers.
func TestRawTopicGrows(t *testing.T) {
	const partitions = 2 // of all topics
	b := streamtest.Start(t, partitions)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const start = 1_700_000_000_000
	send := func(partition int32, n uint64) {
		im := testImpression(start+int64(n)*1000, n)
		streamtest.Produce(t, b.Config, &stream.Record{Topic: schemas.TopicRawImpressions, Partition: partition, Value: rawValue(t, im)})
	}
	promise := func(ms int64) {
		counts, err := stream.PartitionCounts(ctx, b.Config, rawTopics()...)
		if err != nil {
			t.Fatal(err)
		}
		for topic, n := range counts {
			for p := range n {
				value := rawValue(t, &eventpb.Punctuation{LowWatermarkMs: ms})
				streamtest.Produce(t, b.Config, &stream.Record{Topic: topic, Partition: p, Value: value})
			}
		}
	}
	s, _ := newService(t, b, testConfig())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	await := func(parts uint32, ms int64) {
		t.Helper()
		err := stream.Tail(ctx, b.Config, schemas.TopicClicks, 0, -1, func(r *stream.Record) error {
			var p eventpb.Punctuation
			if err := proto.Unmarshal(r.Value, &p); err != nil {
				return err
			}
			if p.Parts == parts && len(p.Covers) == int(parts) && p.LowWatermarkMs == ms {
				return errFound
			}
			return nil
		})
		if !errors.Is(err, errFound) {
			t.Fatalf("no promise of %d for %d raw partitions: %v", ms, parts, err)
		}
	}
	send(0, 1)
	promise(start + 100_000)
	await(4, start+100_000)

	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Config.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if _, err := kadm.NewClient(cl).CreatePartitions(ctx, 1, schemas.TopicRawImpressions); err != nil {
		t.Fatal(err)
	}
	send(2, 200)
	promise(start + 300_000)
	await(5, start+300_000)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	n := 0
	for p, rs := range streamtest.Records(t, b.Config, schemas.TopicImpressions) {
		for i, r := range rs {
			var first eventpb.Punctuation
			_, isPunctuation := promiseOf(r)
			if !isPunctuation {
				n++
			}
			if i == 0 && (!isPunctuation || proto.Unmarshal(r.Value, &first) != nil || first.Parts != 4 || len(first.Covers) != 0) {
				t.Errorf("imp.v1/%d does not begin with the number of raw partitions: %v", p, &first)
			}
		}
	}
	if n != 2 {
		t.Errorf("%d impressions, want 2", n)
	}
}

func promiseOf(r *stream.Record) (*eventpb.Punctuation, bool) {
	for _, h := range r.Headers {
		if h.Key == schemas.HeaderPunctuation {
			var p eventpb.Punctuation
			return &p, proto.Unmarshal(r.Value, &p) == nil
		}
	}
	return nil, false
}
