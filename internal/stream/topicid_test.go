package stream_test

import (
	"context"
	"testing"
	"time"

	"ctrloop/internal/broker/brokertest"
	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

// The sink's insert tokens name the topic's id: it must outlive a restart of the embedded broker.
func TestTopicIDsSurviveARestart(t *testing.T) {
	b := brokertest.Start(t, t.TempDir())
	ids := func() string {
		c := b.Config()
		if err := stream.EnsureTopics(t.Context(), c, schemas.Topics(), 1, -1); err != nil {
			t.Fatal(err)
		}
		m, err := stream.TopicIDs(t.Context(), c, schemas.TopicLabels, schemas.TopicAudit)
		if err != nil {
			t.Fatal(err)
		}
		if m[schemas.TopicLabels] == m[schemas.TopicAudit] {
			t.Errorf("two topics with one id %s", m[schemas.TopicLabels])
		}
		return m[schemas.TopicLabels]
	}
	first := ids()
	brokertest.Crash(t, b)
	if second := ids(); first != second || len(first) != 32 {
		t.Errorf("id %q before and %q after a restart", first, second)
	}
}

// TestProducerFindsATopicMadeAnew: a topic that was deleted and made again has another id, under which its producers must go on.
func TestProducerFindsATopicMadeAnew(t *testing.T) {
	topic := schemas.Topic{Name: "raw"}
	b, ctx := streamtest.StartTopics(t, 2, topic), testContext(t)
	p, err := stream.NewProducer(b.Config, stream.ProducerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	send := func(most time.Duration) error {
		ctx, cancel := context.WithTimeout(ctx, most)
		defer cancel()
		return p.Produce(ctx, &stream.Record{Topic: "raw", Key: []byte("k"), Value: []byte("v")})
	}
	if err := send(time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := stream.DeleteTopics(ctx, b.Config, "raw"); err != nil {
		t.Fatal(err)
	}
	if err := stream.EnsureTopics(ctx, b.Config, []schemas.Topic{topic}, 2, -1); err != nil {
		t.Fatal(err)
	}
	for try := 1; ; try++ {
		err := send(5 * time.Second)
		if err == nil {
			break
		}
		if try == 5 {
			t.Fatalf("still, after %d tries: %v", try, err)
		}
		t.Logf("try %d: %v", try, err)
	}
	end, err := stream.EndOffsets(ctx, b.Config, "raw")
	if err != nil || end[stream.TopicPartition{Topic: "raw"}]+end[stream.TopicPartition{Topic: "raw", Partition: 1}] != 1 {
		t.Errorf("%v, %v", end, err)
	}
}
