package stream_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ctrloop/internal/broker/brokertest"
	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

// A topic says how long it keeps records, and how much longer the segment that they are in may live.
func TestTopicRetentions(t *testing.T) {
	b, ctx := streamtest.StartTopics(t, 1), testContext(t)
	topics := []schemas.Topic{
		{Name: "week"},
		{Name: "ever", Retention: -1},
		{Name: "newest", Compacted: true},
		{Name: "hour", Retention: time.Hour},
	}
	if err := stream.EnsureTopics(ctx, b.Config, topics, 1, 7*24*time.Hour); err != nil {
		t.Fatal(err)
	}
	got, err := stream.TopicRetentions(ctx, b.Config, "week", "ever", "newest", "hour")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]stream.TopicRetention{
		"week":   {Bounded: true, Longest: (8*24 + 1) * time.Hour},
		"hour":   {Bounded: true, Longest: 3 * time.Hour},
		"ever":   {},
		"newest": {},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := stream.TopicRetentions(ctx, b.Config, "none"); err == nil {
		t.Error("a topic that is not there has a retention")
	}
}

// The embedded broker begins a new segment with the next day, so that it can delete the day before as a whole; where
// nothing is deleted it need not.
func TestSegmentsRollByAge(t *testing.T) {
	dir, ctx := t.TempDir(), testContext(t)
	e := brokertest.Start(t, dir)
	if err := stream.EnsureTopics(ctx, e.Config(), []schemas.Topic{{Name: "week"}, {Name: "ever", Retention: -1}}, 1,
		7*24*time.Hour); err != nil {
		t.Fatal(err)
	}
	start := time.Now().Add(-50 * time.Hour)
	for i := range 51 {
		for _, topic := range []string{"week", "ever"} {
			streamtest.Produce(t, e.Config(), &stream.Record{Topic: topic, Value: []byte("x"), Timestamp: start.Add(time.Duration(i) * time.Hour)})
		}
	}
	for topic, want := range map[string]int{"week": 3, "ever": 1} {
		found, err := filepath.Glob(filepath.Join(dir, "data", topic+"-0", "*.log"))
		if err != nil || len(found) != want {
			t.Errorf("%s: segments %v, %v: want %d", topic, found, err, want)
		}
	}
}
