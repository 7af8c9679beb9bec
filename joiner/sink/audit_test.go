package sink

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/proto"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/internal/warehouse"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// commitWatermark is a joiner that commits its watermark.
func commitWatermark(t *testing.T, b *streamtest.Broker, partition int32, metadata string) {
	t.Helper()
	assigned := false
	c, err := stream.NewConsumer(b.Config, stream.ConsumerConfig{
		Group: "joiner", Topics: []string{schemas.TopicImpressions}, MaxPoll: 1,
		OnAssigned: func(context.Context, map[string][]int32) { assigned = true },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for !assigned {
		if _, err := c.Poll(t.Context(), 100*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	tp := stream.TopicPartition{Topic: schemas.TopicImpressions, Partition: partition}
	if err := c.Commit(t.Context(), map[stream.TopicPartition]stream.Committed{tp: {LeaderEpoch: -1, Metadata: metadata}}); err != nil {
		t.Fatal(err)
	}
}

func millis(metadata string) (int64, bool) {
	at, err := time.Parse(time.RFC3339, metadata)
	return at.UnixMilli(), err == nil
}

func horizon(t *testing.T, db *warehouse.DB) (at time.Time, partitions uint64) {
	t.Helper()
	if err := db.QueryRow(t.Context(), "SELECT horizon, partitions FROM label_horizon").Scan(&at, &partitions); err != nil {
		t.Fatal(err)
	}
	return at.UTC(), partitions
}

// S4, A7: the horizon follows the joiner in the partitions of the topic that is there now. Neither rows of a topic that had more
// of them nor a partition whose labels carry no watermark hold it for ever.
func TestHorizonOfTheTopicThatIsThere(t *testing.T) {
	b := streamtest.Start(t, 2)
	db := database(t, engine(t))
	old := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	row := func(at time.Time, partition int32, watermark time.Time) warehouse.LabelRow {
		return warehouse.LabelRow{
			Impression: schemas.NewImpressionID(at, [10]byte{byte(partition)}), Version: 1, Product: "p", Weight: 1,
			Partition: partition, WatermarkMS: watermark.UnixMilli(),
		}
	}
	if err := db.InsertLabels(t.Context(), "former", []warehouse.LabelRow{row(old, 9, old.Add(time.Hour))}); err != nil {
		t.Fatal(err)
	}
	records, _ := labels(rand.New(rand.NewPCG(1, 9)), 2, 2000)
	streamtest.Produce(t, b.Config, records...)
	s := newService(t, testConfig(b), db)
	s.Follow(Join{"joiner", millis})
	now := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	commitWatermark(t, b, 0, now.Format(time.RFC3339))
	if all, err := s.RecordProgress(t.Context()); err != nil || all {
		t.Fatalf("nothing is inserted, and all is recorded: %v %v", all, err)
	}
	if at, n := horizon(t, db); at.Unix() != 0 || n != 2 {
		t.Errorf("horizon %v of %d partitions before anything was inserted: want none of 2", at, n)
	}
	stop := start(t, s)
	drain(t, s)
	if all, err := s.RecordProgress(t.Context()); err != nil || !all {
		t.Fatalf("%v %v", all, err)
	}
	// A partition in which the joiner has no watermark holds the other one up no longer: its own labels are left out.
	want := now.Add(-30*time.Minute - time.Second)
	timeless := func() (n uint64) {
		t.Helper()
		if err := db.QueryRow(t.Context(), "SELECT timeless FROM label_horizon").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if at, _ := horizon(t, db); !at.Equal(want) || timeless() != 1 {
		t.Errorf("horizon %v, want %v with one partition left out", at, want)
	}
	var counted uint64
	if err := db.QueryRow(t.Context(), "SELECT countIf(partition = 1) FROM labels_mature").Scan(&counted); err != nil || counted != 0 {
		t.Errorf("%d labels of partition 1 are mature, %v", counted, err)
	}
	commitWatermark(t, b, 1, now.Add(time.Minute).Format(time.RFC3339))
	wait(t, "the horizon", func() bool { at, _ := horizon(t, db); return at.Equal(want) && timeless() == 0 })
	stop()
	var shown uint64
	if err := db.QueryRow(t.Context(), "SELECT count() FROM freshness").Scan(&shown); err != nil || shown != 2 {
		t.Errorf("freshness shows %d partitions, %v: the former topic's is gone", shown, err)
	}
}

// Labels that are on their way hold the horizon up: the watermark says that they are complete.
func TestHorizonWaitsForLabelsOnTheirWay(t *testing.T) {
	b := streamtest.Start(t, 1)
	db := database(t, engine(t))
	s := newService(t, testConfig(b), db)
	s.Follow(Join{"joiner", millis})
	first, second := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC), time.Date(2026, 3, 2, 13, 0, 0, 0, time.UTC)
	commitWatermark(t, b, 0, first.Format(time.RFC3339))
	f := &follower{Service: s}
	step := func(want bool) {
		t.Helper()
		if all, err := f.step(t.Context()); err != nil || all != want {
			t.Fatalf("all %v, %v: want %v", all, err, want)
		}
	}
	step(true)
	records, _ := labels(rand.New(rand.NewPCG(1, 9)), 1, 200)
	streamtest.Produce(t, b.Config, records...)
	commitWatermark(t, b, 0, second.Format(time.RFC3339))
	step(false)
	if at, _ := horizon(t, db); !at.Equal(first.Add(-30*time.Minute - time.Second)) {
		t.Errorf("horizon %v", at)
	}
	stop := start(t, s)
	drain(t, s)
	stop()
	step(true)
	if at, _ := horizon(t, db); !at.Equal(second.Add(-30*time.Minute - time.Second)) {
		t.Errorf("horizon %v", at)
	}
}

// R6: labels whose audit has come and which have not are on their way, for as long as that takes; they are no alarm, and
// `ctrloop audit` says how many they are. Once they have come, or are known to be lost, it is exact.
func TestAuditKnowsWhatIsOnItsWay(t *testing.T) {
	b := streamtest.Start(t, 2)
	db := database(t, engine(t))
	records, _ := labels(rand.New(rand.NewPCG(31, 30)), 2, 2000)
	var audit, rest []*stream.Record
	for _, r := range records {
		if r.Topic == schemas.TopicAudit {
			audit = append(audit, r)
		} else {
			rest = append(rest, r)
		}
	}
	streamtest.Produce(t, b.Config, append(rest, audit...)...)
	u := &unreliable{DB: db, fail: func(bool) error { return errFault }} // the sink cannot insert labels, the mirror works
	s := newService(t, testConfig(b), u)
	stop := start(t, s)
	wait(t, "the audit", func() bool { at, err := db.NewestAudited(t.Context()); return err == nil && !at.IsZero() })
	wait(t, "the end of the mirror", func() bool {
		n, err := s.behind.Lag(t.Context(), s.mirrorGroup(), schemas.TopicAudit)
		return err == nil && n == 0
	})
	var before *look
	var err error
	for i := range 5 {
		if before, err = s.look(t.Context(), before); err != nil {
			t.Fatal(err)
		}
		if n := testutil.ToFloat64(s.metrics.mismatched); n != 0 {
			t.Fatalf("look %d: an alarm over %v minutes whose labels are on their way", i, n)
		}
	}
	if len(before.differed) == 0 {
		t.Fatal("nothing differs: the test proves nothing")
	}
	way := func() (*Way, error) { return NewWay(s.cfg), nil }
	differ, left, err := AuditOnce(t.Context(), db, way, time.Time{}, 0)
	if err != nil || len(differ) == 0 || left.Rows() < int64(len(rest)) {
		t.Errorf("%d minutes differ, %d rows on their way, %v: want %d rows", len(differ), left.Rows(), err, len(rest))
	}
	stop()
	s = newService(t, testConfig(b), db)
	stop = start(t, s)
	differ, left, err = AuditOnce(t.Context(), db, way, time.Time{}, time.Minute)
	if err != nil || len(differ) != 0 || left.Rows() != 0 {
		t.Errorf("when the sink goes on: %d minutes differ, %d rows on their way, %v", len(differ), left.Rows(), err)
	}
	drain(t, s)
	stop()
	exec1(t, db, "DELETE FROM labels WHERE impression_id = (SELECT min(impression_id) FROM labels)")
	differ, left, err = AuditOnce(t.Context(), db, way, time.Time{}, time.Minute)
	if err != nil || len(differ) != 1 || left.Rows() != 0 {
		t.Errorf("a lost label: %v, %d rows on their way, %v", differ, left.Rows(), err)
	}
}

type nobody struct{}

func (nobody) IsLeader() bool { return false }

// One process audits and retires; the others do not look at the tables.
func TestOnlyTheLeaderAudits(t *testing.T) {
	b := streamtest.Start(t, 1)
	s := newService(t, testConfig(b), database(t, engine(t)))
	s.cfg.AuditInterval = time.Millisecond
	s.LeadAudit(nobody{})
	stop := start(t, s)
	records, _ := labels(rand.New(rand.NewPCG(1, 9)), 1, 1000)
	streamtest.Produce(t, b.Config, records...)
	drain(t, s)
	stop()
	if n := testutil.ToFloat64(s.metrics.audits); n != 0 {
		t.Errorf("%v looks without the lease", n)
	}
}

// S22: what nobody could use is in a table, with its reason, its place, its id and the beginning of what was sent.
func TestDeadLettersAreInTheWarehouse(t *testing.T) {
	b := streamtest.Start(t, 1)
	db := database(t, engine(t))
	keyed, named := schemas.NewImpressionID(time.UnixMilli(1e12), [10]byte{1}), schemas.NewImpressionID(time.UnixMilli(4e12), [10]byte{2})
	for i, d := range []*eventpb.DeadLetter{
		{Reason: string(schemas.DeadBadTime), Detail: "ahead", Topic: "raw.impressions", Partition: 3, Offset: 7, Key: keyed[:],
			Value: make([]byte, 2000)},
		{Reason: string(schemas.DeadBadTime), Topic: "raw.clicks", Value: []byte(`{"id":"` + named.String() + `","user":"alice"}`)},
		{Reason: string(schemas.DeadMalformed), Topic: "raw.clicks", Offset: 9, Value: []byte("\xff\xfe garbage, user bob")},
	} {
		raw, err := proto.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		streamtest.Produce(t, b.Config, &stream.Record{
			Topic: schemas.TopicDeadLetters, Key: []byte{}, Value: raw, Timestamp: time.UnixMilli(int64(1000 * i)),
		})
	}
	s := newService(t, testConfig(b), db)
	stop := start(t, s)
	drain(t, s)
	stop()
	var got []struct {
		Reason string    `ch:"reason"`
		ID     uuid.UUID `ch:"impression_id"`
		Offset int64     `ch:"offset"`
		Bytes  uint32    `ch:"bytes"`
		Sample uint64    `ch:"n"`
	}
	err := db.Select(t.Context(), &got, "SELECT reason, impression_id, offset, bytes, length(sample) AS n FROM rejected ORDER BY time")
	if err != nil || len(got) != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	if got[0].ID != uuid.UUID(keyed) || got[0].Offset != 7 || got[0].Bytes != 2000 || got[0].Sample != 500 || got[1].ID != uuid.UUID(named) ||
		got[2].ID != uuid.Nil {
		t.Errorf("%+v", got)
	}
	rows, err := db.RefusedOf(t.Context(), named)
	if err != nil || len(rows) != 1 || rows[0].Reason != string(schemas.DeadBadTime) || rows[0].Kind != "dead letter" {
		t.Errorf("trace finds %+v, %v", rows, err)
	}
	for name, want := range map[string]uint64{"alice": 1, "bob": 1, "lice": 0} { // V9: they may name people
		e, err := db.Erase(t.Context(), warehouse.Person{User: 1, Text: name}, time.Now().Add(time.Hour))
		if errors.Is(err, warehouse.ErrNobody) != (want == 0) || want > 0 && (err != nil || e.Rows() != want) {
			t.Errorf("erase %s: %d rows, %v", name, e.Rows(), err)
		}
	}
}
