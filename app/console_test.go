package app

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/ingest"
	"ctrloop/internal/stream"
	"ctrloop/internal/telemetry"
	"ctrloop/internal/warehouse"
	"ctrloop/joiner"
	"ctrloop/joiner/sink"
	"ctrloop/joiner/window"
	"ctrloop/serving/console"
	"ctrloop/serving/console/overview"
	"ctrloop/serving/creatives"
	"ctrloop/serving/decide"
)

// The names are a contract with services that do not know of it.
func TestTheCountersExist(t *testing.T) {
	reg, log := prometheus.NewRegistry(), zerolog.Nop()
	kafka := stream.Config{Brokers: []string{"127.0.0.1:1"}}
	if _, err := ingest.New(ingest.Default(), kafka, log, reg); err != nil {
		t.Fatal(err)
	}
	edge, err := ingest.NewEdge(ingest.Default(), kafka, log, reg)
	if err != nil {
		t.Fatal(err)
	}
	defer edge.Close()
	service, err := decide.New(decide.Default(), creatives.NewLibrary(), nil, log, reg)
	if err != nil {
		t.Fatal(err)
	}
	service.Decide([]decide.Request{{Product: "none"}}, nil)
	// Vectors without a child are not gathered; registering a second one of the name is refused if it is there.
	for name, label := range overview.Counters() {
		probe := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: "probe"}, []string{label})
		if err := reg.Register(probe); err == nil {
			t.Errorf("no service registers the counter %s", name)
		} else if !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(overview.Counters()); n != 5 {
		t.Errorf("%d counters: want those of ingest, the edge and decide", n)
	}
}

func TestJoinAsThePageShowsIt(t *testing.T) {
	got := joinOf(joiner.Ledger{
		Partitions: []joiner.PartitionLedger{{WatermarkMS: 30, MaxImpressionMS: 40, MaxClickMS: 45}, {Partition: 1, Problem: "1 in, 2 out"}},
		Total: window.Ledger{ImpressionsIn: 15, Positive: 1, FinalNegative: 2, Duplicate: 3, LateImpressions: 4, Open: 5, Corrected: 1,
			Repeated: 10, OrphanExpired: 20, LateClicks: 30},
	})
	want := overview.Join{
		Partitions: []overview.Partition{{WatermarkMS: 30, NewestMS: 45}, {Number: 1, Problem: "1 in, 2 out"}},
		Ledger:     console.Ledger{Received: 15, Positive: 1, Negative: 2, Open: 5, Duplicate: 3, Late: 4},
		Labels:     4, Dropped: 66,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("join (-want +got):\n%s", diff)
	}
}

func TestPresenceOfServices(t *testing.T) {
	a := &App{opt: Options{Targets: []Target{Serving, Pairer, Trainer}}, ready: telemetry.NewReadiness()}
	a.ready.Gate(string(Serving)).Healthy()
	a.ready.Gate(string(Pairer)).Unhealthy("starting")
	for part, want := range map[overview.Part]overview.Presence{
		overview.Serving: overview.Up, overview.Pairer: overview.Starting, overview.Trainer: overview.Starting,
		overview.Ingest: overview.Elsewhere,
	} {
		if got := a.presence(part); got != want {
			t.Errorf("%s: %d, want %d", part, got, want)
		}
	}
	// The names of the parts are those of the targets.
	for _, s := range targets {
		if !slices.Contains([]overview.Part{
			overview.Ingest, overview.Joiner, overview.Sink, overview.Pairer, overview.Trainer, overview.Serving,
		}, overview.Part(s.name)) {
			t.Errorf("the page knows no part %s", s.name)
		}
	}
}

// R6: the page counts a difference where nothing is on its way that could explain it, as the sink's audit does.
func TestAuditOnThePage(t *testing.T) {
	at := time.Unix(6000, 0)
	two := []warehouse.Mismatch{{Minute: at, WantLabels: 5}, {Minute: at.Add(time.Hour), WantLabels: 5}}
	if n, err := differing(two, sink.Left{}, 6060); n != 1 || err != nil {
		t.Errorf("%d, %v, want the one of before", n, err)
	}
	if n, err := differing(two, sink.Left{Audit: 3}, 6060); n != 0 || err == nil || !strings.Contains(err.Error(), "3 rows are on their way") {
		t.Errorf("with rows on their way: %d, %v", n, err)
	}
	if n, err := differing(two, sink.Left{Audit: 3}, 6000); n != 0 || err != nil {
		t.Errorf("nothing of it is old enough: %d, %v", n, err)
	}
}
