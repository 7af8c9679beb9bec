package joiner

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

// joined returns a broker on which a joiner has worked and stopped with windows open.
func joined(t *testing.T) (*streamtest.Broker, Config, *truth) {
	t.Helper()
	b := streamtest.Start(t, 2)
	cfg := testConfig(b)
	tr := newTruth(3, cfg, 2, 500, 3*time.Minute)
	streamtest.Produce(t, b.Config, append(tr.imps, tr.clks...)...)
	i := start(t, cfg, nil)
	settle(t, b.Config, i)
	i.close(t)
	return b, cfg, tr
}

// refusal runs a joiner and returns the error with which it refuses.
func refusal(t *testing.T, cfg Config) string {
	t.Helper()
	s, err := New(cfg, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	err = s.Run(t.Context())
	if !errors.Is(err, ErrRefused) {
		t.Fatalf("Run returned %v, want a refusal", err)
	}
	return err.Error()
}

func wantWords(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("the refusal does not say %q:\n%s", w, text)
		}
	}
}

func admin(t *testing.T, b *streamtest.Broker) *kadm.Client {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Config.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return kadm.NewClient(cl)
}

// setOffsets does what a person does by hand, who waits until the session of the group's last member is over. The test takes the member
// out instead, which keeps its place for its next life.
func setOffsets(t *testing.T, b *streamtest.Broker, cfg Config, os kadm.Offsets) {
	t.Helper()
	adm := admin(t, b)
	left, err := adm.LeaveGroup(t.Context(), kadm.LeaveGroup(cfg.Group).InstanceIDs(cfg.instance()))
	if err != nil {
		t.Fatal(err)
	}
	if err := left.Error(); err != nil && !errors.Is(err, kerr.UnknownMemberID) {
		t.Fatal(err)
	}
	if err := adm.CommitAllOffsets(t.Context(), cfg.Group, os); err != nil {
		t.Fatal(err)
	}
}

func TestRefusesAnotherWindow(t *testing.T) {
	_, cfg, _ := joined(t)
	cfg.Window = 2 * time.Minute
	wantWords(t, refusal(t, cfg), "the window is 2m0s", "made with 1m0s", "set joiner.window back to 1m0s")
	cfg.Window = time.Minute
	cfg.Bucket = 2 * time.Second
	wantWords(t, refusal(t, cfg), "the bucket is 2s", "set joiner.bucket back to 1s")
	cfg.Bucket, cfg.Observe = time.Second, 10*time.Second
	wantWords(t, refusal(t, cfg), "the observation is 10s", "set joiner.observe back to 0s")
}

func TestRefusesMovedOffsetsAndForeignMetadata(t *testing.T) {
	b, cfg, _ := joined(t)
	at, err := stream.CommittedOffsets(t.Context(), b.Config, cfg.Group)
	if err != nil {
		t.Fatal(err)
	}
	commit := func(offset int64, metadata string) {
		var os kadm.Offsets
		os.Add(kadm.Offset{Topic: schemas.TopicImpressions, Partition: 1, At: offset, LeaderEpoch: -1, Metadata: metadata})
		setOffsets(t, b, cfg, os)
	}
	good := at[stream.TopicPartition{Topic: schemas.TopicImpressions, Partition: 1}]
	commit(good.Offset-10, good.Metadata)
	wantWords(t, refusal(t, cfg), "imp.v1/1", "moved by hand", "move them back")
	commit(good.Offset, "")
	wantWords(t, refusal(t, cfg), "imp.v1/1", "metadata is not readable", "set another joiner.group")
	commit(good.Offset, "j9 of the future")
	wantWords(t, refusal(t, cfg), "does not begin with")
	commit(good.Offset, good.Metadata)
	i := start(t, cfg, nil)
	settle(t, b.Config, i) // mended, it starts
}

func TestRefusesShortRetention(t *testing.T) {
	b, cfg, _ := joined(t)
	at, err := stream.CommittedOffsets(t.Context(), b.Config, cfg.Group)
	if err != nil {
		t.Fatal(err)
	}
	var os kadm.Offsets
	tp := stream.TopicPartition{Topic: schemas.TopicImpressions, Partition: 0}
	os.Add(kadm.Offset{Topic: tp.Topic, Partition: tp.Partition, At: at[tp].Offset - 1, LeaderEpoch: -1})
	if _, err := admin(t, b).DeleteRecords(t.Context(), os); err != nil {
		t.Fatal(err)
	}
	wantWords(t, refusal(t, cfg), "imp.v1/0 starts at offset", "retention", "raise retention.ms")
}

func TestRefusesForgottenOffsets(t *testing.T) {
	_, cfg, _ := joined(t)
	cfg.Group = "another-group" // as good as expired offsets
	wantWords(t, refusal(t, cfg), "labels.v1/", "no committed offsets", "offsets.retention.minutes", "set joiner.group back")
}

// R10: after a reset by hand nothing has expired, and the refusal does not say so.
func TestRefusesOffsetsSetToTheStart(t *testing.T) {
	b, cfg, _ := joined(t)
	var os kadm.Offsets
	for _, topic := range inputTopic {
		for p := range int32(2) {
			os.Add(kadm.Offset{Topic: topic, Partition: p, At: 0, LeaderEpoch: -1})
		}
	}
	setOffsets(t, b, cfg, os)
	text := refusal(t, cfg)
	wantWords(t, text, "labels.v1/", "set to the start by hand", "late.v1", "set another joiner.group")
	if strings.Contains(text, "expired") {
		t.Errorf("nothing has expired:\n%s", text)
	}
}

func TestRefusesDifferentPartitionCounts(t *testing.T) {
	b := streamtest.StartTopics(
		t,
		2,
		schemas.Topic{Name: schemas.TopicImpressions},
		schemas.Topic{Name: schemas.TopicLabels},
		schemas.Topic{Name: schemas.TopicClicks, Partitions: 3},
	)
	wantWords(t, refusal(t, testConfig(b)), "imp.v1 has 2 partitions, clk.v1 3, labels.v1 2")
}

func TestRefusesStateThatDoesNotComeBack(t *testing.T) {
	b, cfg, _ := joined(t)
	at, err := stream.CommittedOffsets(t.Context(), b.Config, cfg.Group)
	if err != nil {
		t.Fatal(err)
	}
	var os kadm.Offsets
	for tp, c := range at {
		if tp.Partition == 0 {
			m, err := parseMetadata(c.Metadata)
			if err != nil {
				t.Fatal(err)
			}
			m.Hash++ // as if a record of the inputs had changed
			os.Add(kadm.Offset{Topic: tp.Topic, Partition: 0, At: c.Offset, LeaderEpoch: -1, Metadata: m.String()})
		}
	}
	setOffsets(t, b, cfg, os)
	wantWords(t, refusal(t, cfg), "rebuild of partition 0", "differs from the committed one")
}

func TestConfigNamesEveryProblem(t *testing.T) {
	err := Config{Window: time.Second, Lateness: -1, Bucket: time.Minute, CommitInterval: time.Hour, Workers: -1}.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	wantWords(
		t,
		err.Error(),
		"kafka: ",
		"group: ",
		"transactional_id: ",
		"window: ",
		"lateness: ",
		"bucket: ",
		"max_lead: ",
		"commit_interval: ",
		"max_poll: ",
		"workers: ",
	)
	if err := Default().Validate(); err != nil {
		t.Error(err)
	}
}

func TestLedgerPageAndMetrics(t *testing.T) {
	b := streamtest.Start(t, 1)
	cfg := testConfig(b)
	tr := newTruth(4, cfg, 1, 300, 5*time.Minute)
	streamtest.Produce(t, b.Config, append(append(tr.imps, tr.clks...), tr.punctuation(tr.endMS)...)...)
	i := start(t, cfg, nil)
	l := settle(t, b.Config, i)
	w := httptest.NewRecorder()
	i.LedgerHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/joiner/ledger", nil))
	body, err := io.ReadAll(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	var page Ledger
	if err := json.Unmarshal(body, &page); err != nil || !page.Balanced || page.Total != l.Total || l.Total.ImpressionsIn == 0 {
		t.Errorf("page %s, %v; want %+v", body, err, l.Total)
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(&i.ledgers)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	n, err := testutil.GatherAndCount(reg)
	if err != nil || n != 18 {
		t.Errorf("%d series of the ledger, want 5 + 5 outcomes, open, pending, watermark, lag, state, spilled, rebuilding, broken: %v", n, err)
	}
	if got := testutil.ToFloat64(i.metrics.labels.WithLabelValues("positive")); got != float64(l.Total.Positive) {
		t.Errorf("labels_total of positives is %v, the ledger says %d", got, l.Total.Positive)
	}
	if got := testutil.ToFloat64(i.metrics.lates.WithLabelValues(string(schemas.LateOrphan))); got != float64(l.Total.OrphanExpired) {
		t.Errorf("late_total of orphans is %v, the ledger says %d", got, l.Total.OrphanExpired)
	}
}

// Records are deleted before they were read while no window is open, so that no rebuild notices: the joiner ends and says what to
// do, instead of starting over for ever.
func TestRefusesInputThatIsGone(t *testing.T) {
	streamtest.NeedFake(t)
	b := streamtest.Start(t, 1)
	cfg := testConfig(b)
	tr := newTruth(3, cfg, 1, 300, 3*time.Minute)
	streamtest.Produce(t, b.Config, append(append(tr.imps, tr.clks...), tr.punctuation(tr.endMS)...)...)
	i := start(t, cfg, nil)
	if l := settle(t, b.Config, i); l.Total.Open != 0 {
		t.Fatalf("%d impressions are open", l.Total.Open)
	}
	i.close(t)
	more := newTruth(4, cfg, 1, 300, 3*time.Minute)
	streamtest.Produce(t, b.Config, append(more.imps, more.clks...)...)
	ends, err := stream.EndOffsets(t.Context(), b.Config, inputTopic[:]...)
	if err != nil {
		t.Fatal(err)
	}
	for _, topic := range inputTopic {
		streamtest.DeleteRecords(t, b.Config, topic, 0, ends[stream.TopicPartition{Topic: topic}]-1)
	}
	wantWords(t, refusal(t, cfg), "lost records that were not read yet", "set another joiner.group")
}
