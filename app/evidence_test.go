package app

import (
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/internal/warehouse"
	"ctrloop/internal/warehouse/warehousetest"
	sums "ctrloop/pairer/evidence"
	"ctrloop/pairer/evidence/evidencetest"
	"ctrloop/pairer/evidence/stage"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// auditedHistory is a history of labels whose last one in each partition comes long after the others, so that all of it is settled.
func auditedHistory(partitions int32) []evidencetest.Label {
	times := evidencetest.Times{WindowMS: 60_000, CorrectionMS: 60_000, BucketMS: 1_000}
	labels := evidencetest.History(51, times, partitions, 6000, 5*time.Hour)
	for i := range labels {
		labels[i].Partition = stream.PartitionOf(labels[i].ID[:], partitions)
	}
	end := labels[len(labels)-1].WatermarkMS + 2*3_600_000
	for i := range byte(40) {
		id := schemas.NewImpressionID(time.UnixMilli(end-61_000), [10]byte{i})
		labels = append(labels, evidencetest.Label{
			ID: id, Seen: &eventpb.Impression{Id: id[:], Bot: true}, Kind: eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, Version: 1,
			WatermarkMS: end, Partition: stream.PartitionOf(id[:], partitions),
		})
	}
	return labels
}

// rowsOf are the labels as the sink inserts them.
func rowsOf(labels []evidencetest.Label) (rows []warehouse.LabelRow) {
	for i, l := range labels {
		if l.Unreadable {
			continue
		}
		rows = append(rows, warehouse.LabelRow{
			Impression: l.ID, Version: l.Version, User: uint64(1 + l.ID[15]%16), Product: l.Seen.Product, Creative: l.Seen.Creative,
			Placement: l.Seen.Placement, Position: l.Seen.Position, Category: l.Seen.Category, Propensity: l.Seen.Propensity,
			Bot: l.Seen.Bot || l.Bot, Kind: l.Kind, Clicked: l.Clicked(), Weight: 1, Partition: l.Partition, Offset: int64(i),
			WatermarkMS: l.WatermarkMS, Suspect: l.Suspect,
		})
	}
	return rows
}

// Evidence equals the warehouse's sums, hour by hour and to the last bit; what is missing in one of them is found, and a warehouse that
// is away is said to be.
func TestEvidenceEqualsTheWarehouse(t *testing.T) {
	const partitions = 3
	given, db := warehousetest.Start(t, warehouse.Options{Window: time.Minute, Bucket: time.Second})
	b := streamtest.Start(t, partitions)
	labels := auditedHistory(partitions)
	var rs []*stream.Record
	for _, l := range labels {
		rs = append(rs, &stream.Record{Topic: schemas.TopicLabels, Key: l.ID[:], Value: l.Encode(), Timestamp: l.ID.Time()})
	}
	streamtest.Produce(t, b.Config, rs...)
	rows := rowsOf(labels)
	const late = 50 // come later
	if err := db.InsertLabels(t.Context(), "a", append(append([]warehouse.LabelRow{}, rows[:2000]...), rows[2000+late:]...)); err != nil {
		t.Fatal(err)
	}
	cfg := stage.Default()
	cfg.Kafka, cfg.CommitInterval = b.Config, 0
	cfg.Join = stage.Join{Window: time.Minute, Correction: time.Minute, Lateness: 5 * time.Second, Bucket: time.Second}
	reg := prometheus.NewRegistry()
	s, err := stage.New(cfg, zerolog.Nop(), reg, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(time.Minute); s.Ledger().Total.In < uint64(len(labels)); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not counted: %+v", s.Ledger())
		}
	}
	a, err := stage.NewAuditor(cfg, evidence{db}, func() bool { return true }, zerolog.Nop(), reg)
	if err != nil {
		t.Fatal(err)
	}
	look := func() stage.AuditStatus {
		t.Helper()
		s, err := a.Look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := look(); !s.Known || s.ToMS-s.FromMS < 5*3_600_000 || len(s.Different) > 0 {
		t.Fatalf("the first look tells nobody: %+v", s)
	}
	if s := look(); len(s.Different) == 0 || s.Problem() == "" {
		t.Errorf("%d labels are not in the warehouse: %+v", late, s)
	}
	if err := db.InsertLabels(t.Context(), "b", rows[2000:2000+late]); err != nil {
		t.Fatal(err)
	}
	look()
	if s := look(); !s.Known || len(s.Different) > 0 {
		t.Errorf("evidence is not what the warehouse has: %s", s.Problem())
	}
	hours, err := evidence{db}.Hours(t.Context(), evidencetest.Base, evidencetest.Base+24*3_600_000)
	if err != nil || len(hours) < 5 || hours[1].Impressions == 0 || hours[1].ClickedInverse == 0 {
		t.Errorf("%+v, %v: nothing was compared", hours, err)
	}

	// A review counts on both sides.
	was := sums.Hour{}
	for _, h := range hours {
		was.Impressions += h.Impressions
	}
	which := warehouse.Suspects{Product: "product-1"}
	cells, err := db.Suspect(t.Context(), which)
	if err != nil || len(cells) == 0 {
		t.Fatal(err)
	}
	if _, err := db.Review(t.Context(), which, warehouse.VerdictCleared, "ada", "a campaign began"); err != nil {
		t.Fatal(err)
	}
	look()
	if s := look(); len(s.Different) == 0 {
		t.Error("a review that evidence has not heard of is not found")
	}
	producer, err := stream.NewProducer(b.Config, stream.ProducerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	if err := stage.TellReviews(t.Context(), producer, cells, warehouse.VerdictCleared); err != nil {
		t.Fatal(err)
	}
	settles(t, look)

	// So does an erasure.
	told := 0
	_, err = db.EraseAndTell(t.Context(), warehouse.Person{User: 7}, time.Now().Add(time.Hour),
		func(ctx context.Context, erasure string, cells []warehouse.ErasedEvidence) error {
			told = len(cells)
			if err := stage.TellErasure(ctx, producer, erasure, cells); err != nil {
				return err
			}
			return stage.TellErasure(ctx, producer, erasure, cells) // again changes nothing
		})
	if err != nil || told == 0 {
		t.Fatalf("%d cells of the user, %v", told, err)
	}
	settles(t, look)

	stop, cancelStop := context.WithTimeout(t.Context(), time.Minute)
	defer cancelStop()
	if err := given.Stop(stop); err != nil {
		t.Fatal(err)
	}
	if s, err := a.Look(t.Context()); err == nil || s.Known {
		t.Errorf("the warehouse is away, and the look says %+v", s)
	}
}

// settles looks until two looks in a row find nothing: evidence.v1 is followed beside.
func settles(t *testing.T, look func() stage.AuditStatus) {
	t.Helper()
	var s stage.AuditStatus
	for range 100 {
		look()
		if s = look(); s.Known && len(s.Different) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("evidence is not what the warehouse has: %s", s.Problem())
}
