package ingest

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// TestRawTopicMadeAnew (R5): a raw topic is deleted and made again while everything runs. The new one is read from its start, and what was
// there of the old one and held back is counted, with words.
func TestRawTopicMadeAnew(t *testing.T) {
	b := streamtest.Start(t, 2)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const start = 1_700_000_000_000
	send := func(ns ...uint64) {
		for _, n := range ns {
			im := testImpression(start+int64(n)*1000, n)
			streamtest.Produce(t, b.Config, &stream.Record{Topic: schemas.TopicRawImpressions, Partition: int32(n % 2), Value: rawValue(t, im)})
		}
	}
	promise := func(ms int64) {
		for _, topic := range rawTopics() {
			for p := range int32(2) {
				value := rawValue(t, &eventpb.Punctuation{LowWatermarkMs: ms})
				streamtest.Produce(t, b.Config, &stream.Record{Topic: topic, Partition: p, Value: value})
			}
		}
	}
	var log bytes.Buffer
	s, reg := newService(t, b, testConfig()) // clock event: what a silent partition could precede is held back
	s.log = zerolog.New(zerolog.SyncWriter(&log))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	routed := func() (n int) {
		for _, rs := range streamtest.Records(t, b.Config, schemas.TopicImpressions) {
			for _, r := range rs {
				if _, is := promiseOf(r); !is {
					n++
				}
			}
		}
		return n
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for !ok() {
			select {
			case err := <-done:
				t.Fatalf("%s: it ended with %v", what, err)
			case <-ctx.Done():
				t.Fatalf("%s: never; buffered %v, routed %d", what, testutil.ToFloat64(s.metrics.buffered), routed())
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	promise(start)
	send(1, 2, 3)
	until("the first events are held back", func() bool { return testutil.ToFloat64(s.metrics.buffered) == 3 })
	if err := stream.DeleteTopics(ctx, b.Config, schemas.TopicRawImpressions); err != nil {
		t.Fatal(err)
	}
	if err := stream.EnsureTopics(ctx, b.Config, []schemas.Topic{{Name: schemas.TopicRawImpressions}}, 2, -1); err != nil {
		t.Fatal(err)
	}
	send(10, 11)
	promise(start + 100_000)
	until("events of the new topic", func() bool { return routed() == 2 })
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	want := map[string]float64{schemas.TopicRawImpressions: 3, schemas.TopicRawClicks: 0}
	for topic, n := range want {
		if got := testutil.ToFloat64(s.metrics.lost.WithLabelValues(topic)); got != n {
			t.Errorf("%v lost records of %s, want %v", got, topic, n)
		}
	}
	if n, err := testutil.GatherAndCount(reg, "ctrloop_ingest_lost_records_total"); err != nil || n != 2 {
		t.Errorf("%d series, %v", n, err)
	}
	if !strings.Contains(log.String(), "raw.impressions\",\"records\":3,\"message\":\"ingest: the topic was deleted and made anew") {
		t.Errorf("the log does not say it:\n%s", log.String())
	}
}
