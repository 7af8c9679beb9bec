package sink

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

// A warehouse goes back to an earlier state, as a restore of a backup leaves it: some of what came behind the recorded
// offsets is there, of other blocks only a part, and the tokens are remembered or not. The broker's commits are ahead.
// A refill brings back what is missing, once, whenever it dies and is run again, and the sink goes on.
func TestRefill(t *testing.T) {
	for _, tokens := range []string{"remembered", "forgotten"} {
		t.Run("tokens "+tokens, func(t *testing.T) {
			b := streamtest.Start(t, 2)
			db := database(t, engine(t))
			records, want := labels(rand.New(rand.NewPCG(21, 1)), 2, 12_000)
			slices.SortStableFunc(records, func(a, b *stream.Record) int { return strings.Compare(a.Topic, b.Topic) }) // the audit first
			half := len(records) / 2
			s := newService(t, testConfig(b), db)
			run := func(upTo int) {
				t.Helper()
				streamtest.Produce(t, b.Config, records[:upTo]...)
				records = records[upTo:]
				stop := start(t, s)
				drain(t, s)
				stop()
			}
			run(half)
			from, err := ReachedBy(t.Context(), s.cfg)
			if err != nil {
				t.Fatal(err)
			}
			run(half / 4)
			// The sink dies with blocks that are inserted and not committed.
			died := errors.New("died")
			dead := newService(t, testConfig(b), db)
			dead.backoff = time.Hour
			begun := make(chan struct{})
			var once sync.Once
			breakOff(dead, func(at step) error {
				if at != stepInserted {
					return nil
				}
				once.Do(func() { close(begun) })
				return died
			})
			streamtest.Produce(t, b.Config, records[:half/4]...)
			records = records[half/4:]
			stop := start(t, dead)
			<-begun
			stop()
			if tokens == "forgotten" {
				for _, table := range []string{"labels", "label_hours", "label_partitions"} {
					exec1(t, db, "ALTER TABLE "+table+" MODIFY SETTING non_replicated_deduplication_window = 0")
				}
			}
			exec1(
				t,
				db,
				"ALTER TABLE labels DELETE WHERE partition = 0 AND offset >= 3500 OR partition = 1 AND offset >= 3100 AND offset % 3 = 0 SETTINGS "+
					"mutations_sync = 2",
			)
			exec1(t, db, "TRUNCATE TABLE audit")
			from.Offsets[schemas.TopicAudit] = nil // nothing of it was begun

			left := 1
			dying := &unreliable{DB: db, fail: func(bool) error {
				if left--; left < 0 {
					return died
				}
				return nil
			}}
			first := newService(t, testConfig(b), dying)
			if _, err := first.Refill(t.Context(), from); !errors.Is(err, died) {
				t.Fatalf("the refill did not die: %v", err)
			}
			done, err := s.Refill(t.Context(), from)
			if err != nil || done.Labels == 0 || done.There == 0 || done.Mirrored == 0 || len(done.Lost) != 0 {
				t.Fatalf("%+v, %v", done, err)
			}
			if again, err := s.Refill(t.Context(), from); err != nil || again.Labels != 0 || again.There != done.Labels+done.There {
				t.Errorf("again: %+v, %v: want nothing new", again, err)
			}
			run(len(records))
			check(t, db, want)
			if n := testutil.ToFloat64(s.metrics.recovered); n == 0 {
				t.Error("no block was begun: the test proves nothing about them")
			}
		})
	}
}

// What cannot be read again is said, and the rest is.
func TestRefillWithLoss(t *testing.T) {
	b := streamtest.Start(t, 1)
	db := database(t, engine(t))
	records, _ := labels(rand.New(rand.NewPCG(22, 1)), 1, 2000)
	streamtest.Produce(t, b.Config, records...)
	s := newService(t, testConfig(b), db)
	stop := start(t, s)
	drain(t, s)
	stop()
	exec1(t, db, "TRUNCATE TABLE labels")
	streamtest.DeleteRecords(t, b.Config, schemas.TopicLabels, 0, 500)
	from := Reached{
		Topics:  map[string]string{schemas.TopicLate: "another"},
		Offsets: map[string]map[int32]int64{schemas.TopicLabels: {0: 100}},
	}
	done, err := s.Refill(t.Context(), from)
	if err != nil || len(done.Lost) != 2 {
		t.Fatalf("%+v, %v: want the deleted range and the other topic to be named", done, err)
	}
	var n, oldest int64
	if err := db.QueryRow(t.Context(), "SELECT toInt64(count()), min(offset) FROM labels").Scan(&n, &oldest); err != nil {
		t.Fatal(err)
	}
	if oldest != 500 || n != done.Labels || n == 0 {
		t.Errorf("%d labels from offset %d, want %d from 500", n, oldest, done.Labels)
	}
}
