package evidence

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ctrloop/pairer/evidence/evidencetest"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// foldAll reads all topics of a stage, partitions in turns.
func foldAll(t *testing.T, topics []*topic) *Fold {
	t.Helper()
	f := NewFold()
	for n, topic := range topics {
		for _, r := range topic.records {
			if r.key != nil {
				if err := f.Apply(int32(n), r.key, r.value); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return f
}

// rowsOf are the rows that the oracle's counts make.
func rowsOf(counts map[evidencetest.Key]evidencetest.Count) []Row {
	var out []Row
	for k, c := range counts {
		r := Row{
			Key: Key(k), Category: c.Category, Counted: Sums(c.Trusted), Held: Sums(c.Suspect), FirstMS: c.FirstMS, LastMS: c.LastMS,
		}
		if r.Counted != (Sums{}) || r.Held != (Sums{}) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b Row) int { return compareKeys(a.Key, b.Key) })
	return out
}

// The same labels in 20 orders, over 1, 3 and 7 partitions, in other transactions each time: one digest. The versions of one
// impression stay in their order, as they do in a topic.
func TestOneDigest(t *testing.T) {
	labels := evidencetest.History(11, testConfig.times(), 1, 1200, 2*time.Hour)
	want := ""
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 5))
		group := map[schemas.ImpressionID]int{}
		for _, l := range labels {
			group[l.ID] = r.Int()
		}
		// Another order of impressions: as if each had come at another time of the join, within what it allows.
		mixed := slices.Clone(labels)
		slices.SortStableFunc(mixed, func(a, b evidencetest.Label) int { return group[a.ID] - group[b.ID] })
		for i := range mixed {
			mixed[i].WatermarkMS = labels[0].WatermarkMS
		}
		for _, partitions := range []int{1, 3, 7} {
			s := newStage(t, testConfig, partitions, seed)
			s.run(mixed, func(l evidencetest.Label) int { return int(l.ID[15]) % partitions })
			got := foldAll(t, s.topics).Digest()
			if want == "" {
				want = got
			}
			if got != want {
				t.Fatalf("order %d over %d partitions: %s, want %s", seed, partitions, got, want)
			}
		}
	}
	i := slices.IndexFunc(labels, func(l evidencetest.Label) bool {
		return l.Kind == eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE && !l.Seen.Bot
	})
	labels[i].Seen.Propensity = 0.7
	s := newStage(t, testConfig, 1, 1)
	s.run(labels, func(evidencetest.Label) int { return 0 })
	if foldAll(t, s.topics).Digest() == want {
		t.Error("another propensity gives the same digest")
	}
}

// At any time, rows hold the minutes that are mature and nothing of the clicks after them.
func TestRowsAreMature(t *testing.T) {
	labels := evidencetest.History(12, testConfig.times(), 1, 3000, 2*time.Hour)
	for _, n := range []int{len(labels) / 4, len(labels) / 2, len(labels) * 3 / 4, len(labels)} {
		s := newStage(t, testConfig, 1, uint64(n))
		s.run(labels[:n], byPartition)
		f := foldAll(t, s.topics)
		horizon := f.MatureMS() / minuteMS * minuteMS
		var clicks, negatives int64
		counts := evidencetest.CountAll(labels[:n], func(l evidencetest.Label) bool {
			// Negatives, and what corrects them, come when they are mature.
			return l.ID.UnixMilli() < horizon || l.Kind != eventpb.LabelKind_LABEL_KIND_POSITIVE
		})
		for _, r := range rowsOf(counts) {
			clicks += r.Counted.Clicks + r.Held.Clicks
			negatives += r.Counted.Impressions + r.Held.Impressions
		}
		for _, r := range f.Rows() {
			clicks -= r.Counted.Clicks + r.Held.Clicks
			negatives -= r.Counted.Impressions + r.Held.Impressions
		}
		if clicks != 0 || negatives != 0 {
			t.Errorf("after %d labels: %d clicks and %d impressions are missing", n, clicks, negatives)
		}
	}
}

// A transaction counts when its progress has come.
func TestFoldStandsAtACommit(t *testing.T) {
	labels := evidencetest.History(13, testConfig.times(), 1, 400, time.Hour)
	s := newStage(t, testConfig, 1, 13)
	s.run(labels[:len(labels)/2], byPartition)
	f := foldAll(t, s.topics)
	at, digest, before := f.Vector(), f.Digest(), len(s.topics[0].records)
	s.run(labels[len(labels)/2:], byPartition)
	for _, r := range s.topics[0].records[before:] {
		if r.key == nil {
			continue
		}
		if IsProgress(r.key) {
			break
		}
		if err := f.Apply(0, r.key, r.value); err != nil {
			t.Fatal(err)
		}
		if f.Digest() != digest || !cmp.Equal(f.Vector(), at) {
			t.Fatal("a record counts before its transaction")
		}
	}
	if end := foldAll(t, s.topics).Vector()[0]; end != int64(len(labels)) {
		t.Errorf("stands at label %d of %d", end, len(labels))
	}
}

// A review moves the suspect labels of its hour, product, placement and partition; the last word counts.
func TestReviews(t *testing.T) {
	labels := evidencetest.History(14, testConfig.times(), 2, 2000, 2*time.Hour)
	s := newStage(t, testConfig, 2, 14)
	s.run(labels, byPartition)
	f := foldAll(t, s.topics)
	k := ReviewKey{Product: "product-1", Placement: "home", HourMS: evidencetest.Base + hourMS, Partition: 1}
	held := func() (n int64) {
		for _, r := range f.Rows() {
			n += r.Held.Impressions
		}
		return n
	}
	before := held()
	say := func(verdict string) int64 {
		r := Review(k, verdict)
		if err := f.Apply(r.Partition, r.Key, r.Value); err != nil {
			t.Fatal(err)
		}
		return held()
	}
	digest := f.Digest()
	cleared := before - say("cleared")
	var want int64
	for _, l := range latestSuspects(labels) {
		if l.Seen.Product == k.Product && l.Seen.Placement == k.Placement && l.Key().HourMS == k.HourMS && l.Partition == k.Partition {
			want++
		}
	}
	if cleared != want || want == 0 {
		t.Errorf("%d labels were cleared, want %d", cleared, want)
	}
	if f.Digest() != digest {
		t.Error("a review is no evidence, but the digest has changed")
	}
	if say("confirmed") != before || say("cleared") != before-want || say("open") != before {
		t.Error("the last word does not count")
	}
}

// latestSuspects are the impressions whose last label is suspect, without robots.
func latestSuspects(labels []evidencetest.Label) []evidencetest.Label {
	latest := map[schemas.ImpressionID]evidencetest.Label{}
	for _, l := range labels {
		if !l.Unreadable && l.Kind != eventpb.LabelKind_LABEL_KIND_PROVISIONAL_NEGATIVE && l.Version > latest[l.ID].Version {
			latest[l.ID] = l
		}
	}
	var out []evidencetest.Label
	for _, l := range latest {
		if l.Suspect && !l.Bot && !l.Seen.Bot {
			out = append(out, l)
		}
	}
	return out
}

// An erasure takes the labels of a person out: what is left is what counting without the person gives. Said twice, it is done once.
func TestErasures(t *testing.T) {
	labels := evidencetest.History(15, testConfig.times(), 3, 1500, 2*time.Hour)
	s := newStage(t, testConfig, 3, 15)
	s.run(labels, byPartition)
	f := foldAll(t, s.topics)
	of := func(partition int32) (theirs []evidencetest.Label) {
		for _, l := range labels {
			if l.ID[15]%8 == 0 && l.Partition == partition {
				theirs = append(theirs, l)
			}
		}
		return theirs
	}
	for p := range int32(3) {
		for range 2 {
			for k, c := range evidencetest.CountAll(of(p), nil) {
				r := Erasure("erasure 1", p, Key(k), Sums(c.Trusted), Sums(c.Suspect))
				if err := f.Apply(r.Partition, r.Key, r.Value); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	var others []evidencetest.Label
	for _, l := range labels {
		if l.ID[15]%8 != 0 {
			others = append(others, l)
		}
	}
	got, want := f.rows(true), rowsOf(evidencetest.CountAll(others, nil))
	for i := range got { // spans and categories are those that were ever counted
		got[i].FirstMS, got[i].LastMS, got[i].Category = 0, 0, ""
	}
	for i := range want {
		want[i].FirstMS, want[i].LastMS, want[i].Category = 0, 0, ""
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// Suspect negatives of one minute come in records of bounded size, and back.
func TestManySuspectsInOneMinute(t *testing.T) {
	const n = 2*chunkIDs + 100
	s := newStage(t, testConfig, 1, 1)
	var values [][]byte
	for i := range n {
		id := schemas.NewImpressionID(time.UnixMilli(evidencetest.Base+int64(i%minuteMS)), [10]byte{byte(i), byte(i >> 8), byte(i >> 16), 1})
		seen := &eventpb.Impression{Id: id[:], Product: "p"}
		l := evidencetest.Label{ID: id, Seen: seen, Suspect: true, WatermarkMS: evidencetest.Base + 61_000}
		l.Kind = eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE
		values = append(values, l.Encode())
	}
	s.transact(0, values)
	for _, r := range s.topics[0].records {
		if len(r.value) > 17*chunkIDs {
			t.Errorf("a record of %d bytes", len(r.value))
		}
	}
	s.rebuild(0)
	if got := s.parts[0].Doubted(); got < n*9/10 {
		t.Errorf("%d ids are back", got)
	}
}
