package bench

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

func small() Traffic {
	return Traffic{Impressions: 30_000, Rate: 100, ClickRate: 0.05, MeanDelay: 30 * time.Second, Window: time.Minute, Seed: 3}
}

func TestTrafficIsItsOwnOracle(t *testing.T) {
	tr := small()
	imps, clks, positives := 0, 0, 0
	last := [2]int64{}
	err := tr.chunks(1000, func(is, cs []*stream.Record) error {
		for in, rs := range [][]*stream.Record{is, cs} {
			for _, r := range rs {
				if at := r.Timestamp.UnixMilli(); at < last[in] {
					t.Fatalf("%s goes back in time", r.Topic)
				} else {
					last[in] = at
				}
				i, ok := tr.number(r.Key)
				if !ok {
					t.Fatalf("%x is unknown", r.Key)
				}
				if in == 0 {
					if i != imps {
						t.Fatalf("impression %d came as number %d", imps, i)
					}
					imps++
					continue
				}
				clks++
				inside := r.Timestamp.UnixMilli()-tr.timeMS(i) <= tr.Window.Milliseconds()
				if inside != tr.positive(i) {
					t.Errorf("click on %d: inside %v, the oracle says %v", i, inside, tr.positive(i))
				}
				if inside {
					positives++
				}
			}
		}
		return nil
	})
	if err != nil || imps != tr.Impressions {
		t.Fatal(imps, err)
	}
	if share := float64(clks) / float64(imps); math.Abs(share-tr.ClickRate) > 0.005 || positives == clks || positives == 0 {
		t.Errorf("%d clicks (%.4f), %d inside", clks, share, positives)
	}
	foreign := schemas.NewImpressionID(time.UnixMilli(startMS), [10]byte{9})
	if _, ok := tr.number(foreign[:]); ok {
		t.Error("a foreign id is taken for one of the traffic's")
	}
}

func TestOracleCountsEveryMistake(t *testing.T) {
	tr := small()
	o := newOracle(tr)
	label := func(i int, kind eventpb.LabelKind) {
		id := tr.id(i)
		o.label(&stream.Record{Key: id[:], Value: encode(&eventpb.Label{Impression: []byte("x"), Kind: kind, Version: 1})})
	}
	right := func(i int) eventpb.LabelKind {
		if tr.positive(i) {
			return eventpb.LabelKind_LABEL_KIND_POSITIVE
		}
		return eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE
	}
	for i := range tr.Impressions - 7 { // 7 are lost
		if i > 3 {
			label(i, right(i))
		}
		if i == 9 {
			label(i, right(i)) // twice
			label(i, eventpb.LabelKind_LABEL_KIND_CORRECTED)
		}
	}
	for i := range 4 { // mistaken
		label(i, eventpb.LabelKind_LABEL_KIND_POSITIVE+eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE-right(i))
	}
	foreign := schemas.NewImpressionID(time.UnixMilli(startMS), [10]byte{9})
	o.label(&stream.Record{Key: foreign[:], Value: encode(&eventpb.Label{Kind: eventpb.LabelKind_LABEL_KIND_POSITIVE})})
	o.label(&stream.Record{Key: foreign[:], Value: []byte{0xff}})
	if got, want := o.finish(), (Wrong{Lost: 7, Duplicate: 1, Spurious: 2, Mistaken: 4}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestLoop(t *testing.T) {
	res, err := Loop(t.Context(), small(), nil)
	if err != nil {
		t.Fatal(err)
	}
	// 100 a second with a window of a minute: a good 6,000 are open at the end.
	if res.Wrong != (Wrong{}) || !res.Balanced || res.OpenImpressions < 5000 || res.OpenImpressions > 7000 || res.Cost.Events < 31_000 {
		t.Errorf("%+v", res)
	}
}

func TestEmbedded(t *testing.T) {
	res, err := Embedded(t.Context(), t.TempDir(), Place{Partitions: 3, Log: zerolog.Nop()}, small())
	if err != nil {
		t.Fatal(err)
	}
	if res.Wrong != (Wrong{}) || !res.Balanced || res.OpenImpressions == 0 || res.Cost.Events < 31_000 || res.Rebuild.Events == 0 {
		t.Errorf("%+v", res)
	}
}

func TestLoadRefusesSomebodysTopics(t *testing.T) {
	b := streamtest.Start(t, 2)
	streamtest.Produce(t, b.Config, &stream.Record{Topic: schemas.TopicClicks, Value: []byte("x")})
	err := Load(t.Context(), Place{Kafka: b.Config, Partitions: 2}, small())
	if !errors.Is(err, ErrNotEmpty) {
		t.Error(err)
	}
}
