package bench

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"ctrloop/internal/broker"
	"ctrloop/internal/broker/brokertest"
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
	res, err := Loop(t.Context(), small(), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	// 100 a second with a window of a minute: a good 6,000 are open at the end.
	if res.Wrong != (Wrong{}) || !res.Balanced || res.OpenImpressions < 5000 || res.OpenImpressions > 7000 || res.Cost.Events < 31_000 {
		t.Errorf("%+v", res)
	}
}

// embedded is a place whose broker is started for the test.
func embedded(t *testing.T, partitions int32) Place {
	return Place{Partitions: partitions, Log: zerolog.Nop(), Broker: func(_ context.Context, dir string) (*broker.Broker, error) {
		return brokertest.Start(t, dir), nil
	}}
}

func TestEmbedded(t *testing.T) {
	res, err := Embedded(t.Context(), t.TempDir(), embedded(t, 3), small())
	if err != nil {
		t.Fatal(err)
	}
	if res.Wrong != (Wrong{}) || !res.Balanced || res.OpenImpressions == 0 || res.Cost.Events < 31_000 || res.Rebuild.Events == 0 {
		t.Errorf("%+v", res)
	}
}

func TestLive(t *testing.T) {
	const clicks = 30
	res, err := Live(t.Context(), t.TempDir(), embedded(t, 2), small(), (liveDelay+clicks)*liveTick)
	if err != nil || res.Clicks != clicks*liveClicks || res.P50MS <= 0 || res.P99MS < res.P50MS || res.MaxMS < res.P99MS {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestTargets(t *testing.T) {
	r := Report{
		Loop: &LoopResult{Cost: Cost{WallSeconds: 1, CPUSeconds: 4, Events: 1_500_000}},
		Live: &Latency{P99MS: 2001},
		Kafka: &EndToEnd{Cost: Cost{WallSeconds: 100, CPUSeconds: 2, Events: 1_000_000}, Rebuild: Cost{WallSeconds: 1, Events: 1_000_000},
			Wrong: Wrong{Lost: 2}},
	}
	var got strings.Builder
	if err := printTargets(&got, r.Targets()); err != nil {
		t.Fatal(err)
	}
	want := `target                                    figure           at least  aim      met  aim met
loop alone, one goroutine                 1.50 M events/s  1.00 M    2.00 M   yes  NO
end to end, real broker, per joiner core  500 K events/s   150 K     400 K    yes  yes
cold rebuild, real broker                 100 s per 100 M  <= 120    <= 60    yes  NO
click in to label committed, p99          2001 ms          <= 2000   <= 1000  NO   NO
wrong labels                              2                <= 0      <= 0     NO   NO
`
	if d := cmp.Diff(want, got.String()); d != "" {
		t.Error(d)
	}
}

func TestPeersReport(t *testing.T) {
	side := func(name string, cpu float64, wrong int64) Peer {
		return Peer{Name: name, Cost: Cost{WallSeconds: 2, CPUSeconds: cpu, BrokerCPUSeconds: 1, Events: 1_000_000}, Wrong: Wrong{Lost: wrong}}
	}
	r := PeersReport{Traffic: small(), PerCoreRatio: 40, Rounds: []Round{{side("ctrloop", 2, 0), side("other", 80, 3)}}}
	var got strings.Builder
	if err := r.Print(&got); err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(got.String(), "\n\n")
	want := `                     ctrloop  other  ratio
  events/s per core    500 K   12 K   40.0
           events/s    500 K  500 K    1.0
  CPU s per million     2.00  80.00   40.0
     broker's CPU s     1.00   1.00       
       wrong labels        0      3       

target                                  figure  at least  aim   met  aim met
events/s per core, times Kafka Streams  40      8         8     yes  yes
our wrong labels                        0       <= 0      <= 0  yes  yes
`
	if d := cmp.Diff(want, table); d != "" {
		t.Error(d)
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
