package stream_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/internal/telemetry"
	"ctrloop/schemas"
)

// Every client that stays has its figures and its voice; several of one kind have one name each, and give it back.
func TestClientsAreObserved(t *testing.T) {
	b := streamtest.StartTopics(t, 1, schemas.Topic{Name: "in"})
	reg := prometheus.NewRegistry()
	var log bytes.Buffer
	c := b.Config
	c.Metrics, c.Log = reg, telemetry.NewThrottle(zerolog.New(zerolog.SyncWriter(&log)), time.Hour, time.Now)
	streamtest.Produce(t, b.Config, inputs("in", 0, 5)...)
	for range 2 {
		var ps []*stream.Producer
		for range 2 {
			p, err := stream.NewProducer(c, stream.ProducerConfig{})
			if err != nil {
				t.Fatal(err)
			}
			ps = append(ps, p)
		}
		k, err := stream.NewConsumer(c, stream.ConsumerConfig{Group: "g", Topics: []string{"in"}})
		if err != nil {
			t.Fatal(err)
		}
		if batch, err := k.Poll(t.Context(), time.Minute); err != nil || batch.Len() != 5 {
			t.Fatal(batch.Len(), err)
		}
		if n, err := testutil.GatherAndCount(reg, "ctrloop_kafka_buffered_fetch_records_total"); err != nil || n != 3 {
			t.Errorf("%d clients have figures, want 3: %v", n, err)
		}
		k.Close()
		for _, p := range ps {
			p.Close()
		}
		if n, err := testutil.GatherAndCount(reg); err != nil || n != 0 {
			t.Errorf("%d series are left of clients that have gone, %v", n, err)
		}
	}
	if !strings.Contains(log.String(), "new group session begun") {
		t.Errorf("the log has nothing of the group:\n%s", log.String())
	}
}

// Readers of single partitions come and go: they have figures together, which stay.
func TestReadersHaveFiguresTogether(t *testing.T) {
	b := streamtest.StartTopics(t, 1, schemas.Topic{Name: "in"})
	reg := prometheus.NewRegistry()
	c := b.Config
	c.Metrics = reg
	records := inputs("in", 0, 5)
	size := 0
	for _, r := range records {
		size += len(r.Key) + len(r.Value)
	}
	streamtest.Produce(t, b.Config, records...)
	for range 2 {
		n := 0
		if err := stream.ReadRange(t.Context(), c, "in", 0, 0, 5, func(*stream.Record) error { n++; return nil }); err != nil || n != 5 {
			t.Fatal(n, err)
		}
	}
	got := map[string]float64{}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		m := f.GetMetric()[0]
		got[f.GetName()] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	want := map[string]float64{"ctrloop_kafka_reader_bytes_total": float64(2 * size), "ctrloop_kafka_reader_records_total": 10,
		"ctrloop_kafka_reader_failures_total": 0, "ctrloop_kafka_readers": 0}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("figures (-want +got):\n%s", d)
	}
}
