package trace

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"google.golang.org/protobuf/proto"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/joiner"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

const (
	partitions = 3
	window     = time.Minute
	group      = "joiner"
)

var base = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func id(n byte) schemas.ImpressionID { return schemas.NewImpressionID(base, [10]byte{n, 9: n}) }

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// world writes one impression in each state, and noise.
func world(t *testing.T) stream.Config {
	t.Helper()
	b := streamtest.Start(t, partitions)
	var rs []*stream.Record
	add := func(topic string, i schemas.ImpressionID, at time.Time, value []byte) {
		rs = append(rs, &stream.Record{Topic: topic, Key: i[:], Timestamp: at, Value: value})
	}
	imp := func(n byte) {
		i := id(n)
		add(
			schemas.TopicImpressions,
			i,
			base,
			encode(t, &eventpb.Impression{Id: i[:], Product: "lamp", Creative: "c-1", Propensity: 0.5, Schema: 1}),
		)
	}
	click := func(n byte, delay time.Duration) {
		i := id(n)
		add(
			schemas.TopicClicks,
			i,
			base.Add(delay),
			encode(t, &eventpb.Click{ImpressionId: i[:], Id: []byte("k"), TimeMs: base.Add(delay).UnixMilli(), Schema: 1}),
		)
	}
	late := func(n byte, reason schemas.LateReason, topic string) {
		i := id(n)
		add(
			schemas.TopicLate,
			i,
			base,
			encode(t, &eventpb.Late{Reason: string(reason), ImpressionId: i[:], TimeMs: base.UnixMilli(), Topic: topic}),
		)
	}
	for n := byte(100); n < 200; n++ { // noise around it
		imp(n)
		click(n, time.Second)
	}
	imp(1) // labelled, then corrected by a click beyond the window
	click(1, 2*window)
	i := id(1)
	for v, kind := range []eventpb.LabelKind{eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, eventpb.LabelKind_LABEL_KIND_CORRECTED} {
		add(
			schemas.TopicLabels,
			i,
			base,
			encode(t, &eventpb.Label{Kind: kind, Version: uint32(v + 1), Clicked: v == 1, WatermarkMs: base.UnixMilli()}),
		)
	}
	imp(2)                                                    // open, or waiting
	late(3, schemas.LateImpression, schemas.TopicImpressions) // came late
	imp(3)                                                    //
	click(4, time.Second)                                     // orphan
	late(4, schemas.LateOrphan, schemas.TopicClicks)          //
	text := []byte(`{"type":"impression","id":"` + strings.ToUpper(id(5).String()) + `"}`)
	rs = append(
		rs,
		&stream.Record{Topic: schemas.TopicRawImpressions, Key: []byte("anything"), Timestamp: base.Add(time.Second), Value: text},
	) // received
	i = id(6)
	rs = append(rs, &stream.Record{Topic: schemas.TopicDeadLetters, Key: []byte("anything"), Timestamp: base, // rejected
		Value: encode(
			t,
			&eventpb.DeadLetter{
				Reason: string(schemas.DeadBadField),
				Detail: "propensity 7",
				Topic:  schemas.TopicRawImpressions,
				Value:  []byte(`{"id":"` + i.String() + `"}`),
			},
		)})
	// Received at another time than its event's: a replayed log.
	rs = append(
		rs,
		&stream.Record{Topic: schemas.TopicRawImpressions, Key: []byte("x"), Timestamp: base.AddDate(1, 0, 0), Value: []byte(id(7).String())},
	)
	streamtest.Produce(t, b.Config, rs...)
	return b.Config
}

func TestEveryState(t *testing.T) {
	kafka := world(t)
	f := Finder{Kafka: kafka, Group: group, Window: window, Slack: time.Hour}
	for _, test := range []struct {
		n     byte
		state State
		steps []string
		says  string
	}{
		{1, Labelled, []string{"impression", "click", "label final negative", "label corrected"}, "version 2"},
		{2, Waiting, []string{"impression"}, "has not come to"},
		{3, Late, []string{"impression", "late: impression after close"}, "after its window had closed"},
		{4, Orphan, []string{"click", "late: click without impression"}, "no impression"},
		{5, Received, []string{"impression received"}, "ingest has not come to it"},
		{6, Rejected, []string{"dead letter"}, "propensity 7"},
		{7, Unknown, nil, "nothing in the topics"},
		{8, Unknown, nil, "nothing in the topics"},
	} {
		rep, err := f.Trace(t.Context(), id(test.n))
		if err != nil {
			t.Fatal(err)
		}
		var steps []string
		for _, s := range rep.Steps {
			steps = append(steps, s.What)
		}
		if rep.State != test.state || strings.Join(steps, ", ") != strings.Join(test.steps, ", ") ||
			!strings.Contains(rep.Explanation, test.says) {
			t.Errorf("%d: %s (%s), steps %q; want %s, %q", test.n, rep.State, rep.Explanation, steps, test.state, test.steps)
		}
	}
	f.Everywhere = true
	if rep, err := f.Trace(t.Context(), id(7)); err != nil || rep.State != Received || !rep.From.IsZero() {
		t.Errorf("everywhere: %+v, %v", rep, err)
	}
}

// TestOpen: what the joiner's group has committed decides between waiting and open.
func TestOpen(t *testing.T) {
	kafka := world(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	k, err := stream.NewConsumer(kafka, stream.ConsumerConfig{Group: group, Topics: []string{schemas.TopicImpressions}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Poll(ctx, time.Minute); err != nil {
		t.Fatal(err)
	}
	ends, err := stream.EndOffsets(ctx, kafka, schemas.TopicImpressions)
	if err != nil {
		t.Fatal(err)
	}
	places := map[stream.TopicPartition]stream.Committed{}
	for tp, at := range ends {
		places[tp] = stream.Committed{Offset: at, LeaderEpoch: -1}
	}
	if err := k.Commit(ctx, places); err != nil {
		t.Fatal(err)
	}
	k.Close()
	i := id(2)
	rep, err := Finder{Kafka: kafka, Group: group, Window: window}.Trace(ctx, i)
	if err != nil || rep.State != Open || !rep.ClosesAt.Equal(base.Add(window)) || len(rep.Steps) != 1 {
		t.Fatalf("%+v, %v", rep, err)
	}
	step := rep.Steps[0]
	if step.Topic != schemas.TopicImpressions || step.Partition != stream.PartitionOf(i[:], partitions) || step.Detail["product"] != "lamp" {
		t.Errorf("%+v", step)
	}
}

// TestBesideAJoiner follows impressions through a joiner that gives provisional labels, spills its windows to disk and
// keeps a sample of the negatives.
func TestBesideAJoiner(t *testing.T) {
	for name, keep := range map[string]int{"all negatives": 1, "a sample": 1000} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			b := streamtest.Start(t, 1)
			cfg := joiner.Default()
			cfg.Kafka, cfg.Window, cfg.Lateness, cfg.Observe, cfg.KeepOneNegativeIn, cfg.CommitInterval = b.Config, window, 0, 10*time.Second,
				keep, 0
			cfg.Segments.Dir, cfg.Segments.Interval, cfg.MemoryLimit = t.TempDir(), time.Nanosecond, 1
			j, err := joiner.New(cfg, zerolog.Nop(), prometheus.NewRegistry())
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			jctx, stop := context.WithCancel(ctx)
			go func() { ended <- j.Run(jctx) }()
			defer func() {
				stop()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}()
			f := Finder{Kafka: b.Config, Group: cfg.Group, Window: window, Bucket: cfg.Bucket, KeepOneNegativeIn: keep}
			i := id(2)
			streamtest.Produce(
				t,
				b.Config,
				&stream.Record{Topic: schemas.TopicImpressions, Key: i[:], Timestamp: base, Value: encode(t, &eventpb.Impression{Id: i[:], Schema: 1})},
			)
			now := func(at time.Time) {
				for _, topic := range []string{schemas.TopicImpressions, schemas.TopicClicks} {
					streamtest.Produce(t, b.Config, &stream.Record{
						Topic: topic, Timestamp: at, Headers: []stream.RecordHeader{{Key: schemas.HeaderPunctuation}},
						Value: encode(t, &eventpb.Punctuation{LowWatermarkMs: at.UnixMilli()}),
					})
				}
			}
			until := func(state State, says string) {
				t.Helper()
				for ; ; <-time.After(20 * time.Millisecond) {
					rep, err := f.Trace(ctx, i)
					if err != nil {
						t.Fatalf("waiting for %s, %q: %v", state, says, err)
					}
					if rep.State == state && strings.Contains(rep.Explanation, says) {
						return
					}
				}
			}
			now(base.Add(30 * time.Second))
			if keep == 1 {
				until(Open, "it has a provisional negative; the joiner holds it")
			}
			until(Open, "it stands at "+base.Add(30*time.Second).Format(time.RFC3339))
			now(base.Add(2 * window))
			if keep == 1 {
				until(Labelled, "label final negative, version 2")
			} else {
				until(Closed, "only one in 1000 gets a label")
			}
		})
	}
}
