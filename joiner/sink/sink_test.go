package sink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"google.golang.org/protobuf/proto"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/internal/warehouse"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/schemas/eventpb"
)

var errFault = errors.New("planned fault")

// unreliable is a warehouse whose network fails.
type unreliable struct {
	*warehouse.DB
	mu sync.Mutex
	// fail is asked before an insert and after it was applied.
	fail func(applied bool) error
}

func (u *unreliable) ask(applied bool) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.fail(applied)
}

func (u *unreliable) InsertLabelBlock(ctx context.Context, token string, b *warehouse.LabelBlock, n int) error {
	if err := u.ask(false); err != nil {
		return err
	}
	if err := u.DB.InsertLabelBlock(ctx, token, b, n); err != nil {
		return err
	}
	return u.ask(true)
}

// Every step fails at random, again and again, with half of the inserts unanswered.
func TestFaultsAtRandom(t *testing.T) {
	b := streamtest.Start(t, 3)
	db := database(t, engine(t))
	records, want := labels(rand.New(rand.NewPCG(1, 1)), 3, 30_000)
	streamtest.Produce(t, b.Config, records...)
	rng := rand.New(rand.NewPCG(2, 2))
	u := &unreliable{DB: db}
	hits := map[string]int{}
	u.fail = func(applied bool) error {
		if rng.IntN(4) == 0 {
			hits[fmt.Sprintf("insert, applied: %v", applied)]++
			return errFault
		}
		return nil
	}
	s := newService(t, testConfig(b), u)
	breakOff(s, func(at step) error {
		u.mu.Lock()
		defer u.mu.Unlock()
		if rng.IntN(4) == 0 {
			hits[string(at)]++
			return errFault
		}
		return nil
	})
	stop := start(t, s)
	drain(t, s)
	stop()
	check(t, db, want)
	u.mu.Lock()
	defer u.mu.Unlock()
	t.Log(hits)
	for _, k := range []string{"intent", "inserted", "committed", "insert, applied: true", "insert, applied: false"} {
		if hits[k] == 0 {
			t.Errorf("the fault %q never came: the test proves nothing about it", k)
		}
	}
}

// The process dies right after each step; another one, which knows nothing, goes on.
func TestCrashAfterEachStep(t *testing.T) {
	for _, at := range []step{stepIntent, stepInserted, stepCommitted} {
		t.Run(string(at), func(t *testing.T) {
			b := streamtest.Start(t, 1)
			db := database(t, engine(t))
			records, want := labels(rand.New(rand.NewPCG(3, 3)), 1, 2500)
			streamtest.Produce(t, b.Config, records...)
			crashed := make(chan struct{})
			first := newService(t, testConfig(b), db)
			first.backoff = time.Hour // dead
			var once sync.Once
			breakOff(first, func(now step) error {
				if now != at {
					return nil
				}
				once.Do(func() { close(crashed) })
				return errFault
			})
			stop := start(t, first)
			<-crashed
			stop()
			committed, err := stream.CommittedOffsets(t.Context(), b.Config, Default().Group)
			if err != nil {
				t.Fatal(err)
			}
			c := committed[stream.TopicPartition{Topic: schemas.TopicLabels}]
			if pending := strings.HasPrefix(c.Metadata, "pending="); pending != (at != stepCommitted) {
				t.Errorf("metadata %q after %s", c.Metadata, at)
			}
			var there uint64
			if err := db.QueryRow(t.Context(), "SELECT count() FROM labels").Scan(&there); err != nil {
				t.Fatal(err)
			}
			if (there > 0) != (at != stepIntent) {
				t.Errorf("%d rows after %s", there, at)
			}
			second := newService(t, testConfig(b), db)
			stop = start(t, second)
			drain(t, second)
			stop()
			check(t, db, want)
		})
	}
}

// The warehouse is away over several sessions while the backlog is many times the memory that is allowed.
func TestWarehouseDown(t *testing.T) {
	b := streamtest.Start(t, 3)
	db := database(t, engine(t))
	records, want := labels(rand.New(rand.NewPCG(10, 10)), 3, 30_000)
	streamtest.Produce(t, b.Config, records...)
	down := true
	u := &unreliable{DB: db}
	cfg := testConfig(b)
	s := newService(t, cfg, u)
	most := 0.0
	u.fail = func(bool) error {
		most = max(most, testutil.ToFloat64(s.metrics.buffered))
		if down {
			return errFault
		}
		return nil
	}
	stop := start(t, s)
	wait(t, "failed sessions", func() bool { return testutil.ToFloat64(s.metrics.sessions) >= 3 })
	if lag, err := s.Lag(t.Context()); err != nil || lag < 30_000 {
		t.Errorf("lag %d while nothing can be inserted, %v", lag, err)
	}
	u.mu.Lock()
	down = false
	u.mu.Unlock()
	drain(t, s)
	stop()
	check(t, db, want)
	if limit := float64(cfg.MaxBufferedRows + cfg.MaxRows); most == 0 || most > limit {
		t.Errorf("%g rows in memory, want at most %g", most, limit)
	}
}

// The engine is killed in the middle of inserts and comes back on the same address.
func TestEngineKilledDuringInserts(t *testing.T) {
	engine(t) // skips or fails without the library
	e, err := warehouse.StartEngine(t.Context(), warehouse.EngineConfig{Lib: warehouse.LibPath(), Dir: t.TempDir()}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := e.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	db := database(t, e)
	b := streamtest.Start(t, 3)
	records, want := labels(rand.New(rand.NewPCG(4, 4)), 3, 40_000)
	streamtest.Produce(t, b.Config, records...)
	u := &unreliable{DB: db}
	inserts, kills := 0, 0
	u.fail = func(applied bool) error {
		if applied {
			return nil
		}
		if inserts++; inserts%8 == 0 && kills < 3 {
			kills++
			pid := e.PID()
			time.AfterFunc(time.Duration(kills)*time.Millisecond, func() { kill(pid) })
		}
		return nil
	}
	s := newService(t, testConfig(b), u)
	stop := start(t, s)
	drain(t, s)
	stop()
	wait(t, "the engine's return", func() bool { return db.Ping(t.Context()) == nil })
	check(t, db, want)
	if e.Restarts() == 0 {
		t.Error("the engine was never killed: the test proves nothing")
	}
	t.Logf("%d kills", e.Restarts())
}

// Two instances share the partitions while one of them comes and goes.
func TestInstancesComeAndGo(t *testing.T) {
	b := streamtest.Start(t, 5)
	db := database(t, engine(t))
	records, want := labels(rand.New(rand.NewPCG(5, 5)), 5, 30_000)
	cfg := testConfig(b)
	cfg.InstanceID = ""
	stay := newService(t, cfg, db)
	stop := start(t, stay)
	for _, part := range [][]*stream.Record{records[:10_000], records[10_000:20_000], records[20_000:]} {
		guest := newService(t, cfg, db)
		leave := start(t, guest)
		streamtest.Produce(t, b.Config, part...)
		leave()
	}
	drain(t, stay)
	stop()
	check(t, db, want)
}

// A row that is missing and one that is there twice raise the alarm at the second look, and not before.
func TestAuditAlarm(t *testing.T) {
	for name, damage := range map[string]string{
		"missing": "DELETE FROM labels WHERE impression_id = (SELECT min(impression_id) FROM labels)",
		"duplicate": "INSERT INTO labels SELECT * REPLACE (version + 7 AS version) FROM labels WHERE impression_id = (SELECT " +
			"min(impression_id) FROM labels) LIMIT 1",
	} {
		t.Run(name, func(t *testing.T) {
			b := streamtest.Start(t, 2)
			db := database(t, engine(t))
			records, _ := labels(rand.New(rand.NewPCG(30, 30)), 2, 2000)
			streamtest.Produce(t, b.Config, records...)
			s := newService(t, testConfig(b), db)
			s.log = zerolog.Nop() // the alarm is an error
			stop := start(t, s)
			drain(t, s)
			stop()
			audit := func(before *look) *look {
				t.Helper()
				now, err := s.look(t.Context(), before)
				if err != nil {
					t.Fatal(err)
				}
				return now
			}
			alarm := func() float64 { return testutil.ToFloat64(s.metrics.mismatched) }
			before := audit(audit(nil))
			if len(before.differed) != 0 || alarm() != 0 {
				t.Fatalf("alarm without a reason: %v", before.differed)
			}
			exec1(t, db, damage)
			if seen := audit(before); name == "missing" && len(seen.differed) != 0 {
				t.Errorf("sums of blocks show that a row was lost later: %v", seen.differed)
			}
			s.auditRows = 0 // the rows themselves at each look
			seen := audit(before)
			if len(seen.differed) != 1 || alarm() != 0 {
				t.Fatalf("%d minutes differ, alarm %v: want 1 and none yet", len(seen.differed), alarm())
			}
			s.auditRows = auditRows
			var line strings.Builder
			s.log = zerolog.New(&line)
			for range 2 { // it is not forgotten where sums do not show it
				seen = audit(seen)
				if alarm() != 1 || !strings.Contains(line.String(), `"level":"error"`) || !strings.Contains(line.String(), `"missing":`) {
					t.Errorf("alarm %v, log %q", alarm(), line.String())
				}
				line.Reset()
			}
			for m := range seen.differed {
				if want := map[string]int64{"missing": 1, "duplicate": -1}[name]; m.Missing() != want {
					t.Errorf("missing %d, want %d", m.Missing(), want)
				}
			}
		})
	}
}

// retiring hears of retirements.
type retiring struct {
	*warehouse.DB
	keep chan time.Duration
}

func (r retiring) Retire(_ context.Context, keep time.Duration) ([]time.Time, error) {
	r.keep <- keep
	return nil, nil
}

func TestRetentionFollowsConfig(t *testing.T) {
	b := streamtest.Start(t, 1)
	cfg := testConfig(b)
	cfg.Retention = 48 * time.Hour
	heard := make(chan time.Duration, 1)
	s := newService(t, cfg, retiring{database(t, engine(t)), heard})
	s.cfg.AuditInterval = time.Millisecond
	start(t, s)
	if got := <-heard; got != cfg.Retention {
		t.Errorf("%v is kept, want %v", got, cfg.Retention)
	}
}

func TestSameTokenChangesNothing(t *testing.T) {
	db := database(t, engine(t))
	rows := make([]warehouse.LabelRow, 100)
	for i := range rows {
		rows[i] = warehouse.LabelRow{
			Impression: schemas.NewImpressionID(time.UnixMilli(int64(i)*3_600_000), [10]byte{byte(i)}),
			Version:    1,
			Product:    "p",
			Weight:     1,
		}
	}
	for range 3 {
		if err := db.InsertLabels(t.Context(), "t", rows); err != nil { // over five days: a part per day
			t.Fatal(err)
		}
	}
	var n uint64
	if err := db.QueryRow(t.Context(), "SELECT count() FROM labels").Scan(&n); err != nil || n != 100 {
		t.Errorf("%d rows, %v: want 100", n, err)
	}
	if db.InsertLabels(t.Context(), "", rows) == nil {
		t.Error("an insert without a token is accepted")
	}
}

func TestMirror(t *testing.T) {
	b := streamtest.Start(t, 2)
	db := database(t, engine(t))
	j := func(v any) []byte {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	command := func(id string, typ control.Type, entity string, data any) *stream.Record {
		e, err := control.NewEvent(id, typ, entity, -1, "me", "", time.Unix(100, 0), data)
		if err != nil {
			t.Fatal(err)
		}
		return &stream.Record{Topic: schemas.TopicControl, Key: []byte(entity), Value: j(e)}
	}
	late, err := proto.Marshal(&eventpb.Late{Reason: string(schemas.LateOrphan), TimeMs: 7})
	if err != nil {
		t.Fatal(err)
	}
	streamtest.Produce(t, b.Config,
		&stream.Record{Topic: schemas.TopicCreatives, Key: []byte("c-1"), Value: j(schemas.Creative{ID: "c-1", Product: "p"})},
		&stream.Record{Topic: schemas.TopicCreatives, Key: []byte("c-1"), Value: j(schemas.Creative{ID: "c-1", Product: "p", Blocked: "ugly"})},
		&stream.Record{Topic: schemas.TopicCreatives, Key: []byte("c-1"), Value: nil},
		&stream.Record{Topic: schemas.TopicPairs, Key: []byte("p"), Value: j(schemas.Pair{ID: "pair", Product: "p"})},
		&stream.Record{Topic: schemas.TopicPairs, Key: []byte("p"), Value: []byte("{garbage")},
		&stream.Record{Topic: schemas.TopicLate, Value: late},
		&stream.Record{Topic: schemas.TopicLabels, Value: []byte{0xff}},
		command("1", control.ModelRegistered, "model/m", control.Model{Version: "m", Logical: "prompt"}),
		command("2", control.ModelRegistered, "model/m", control.Model{Version: "m", Logical: "prompt"}),
	)
	counts := "SELECT toString(tuple((SELECT countIf(blocked = 'ugly') FROM creatives FINAL), (SELECT count() FROM pairs FINAL), " +
		"(SELECT count() FROM late FINAL), (SELECT count() FROM control_log FINAL), " +
		"(SELECT countIf(rejected != '') FROM control_log FINAL), (SELECT count() FROM model_versions FINAL)))"
	read := func() (got string) {
		if err := db.QueryRow(t.Context(), counts).Scan(&got); err != nil {
			t.Fatal(err)
		}
		return got
	}
	for range 2 { // the second run reads control.v1 again
		cfg := testConfig(b)
		s := newService(t, cfg, db)
		s.log = zerolog.Nop() // of the garbage
		stop := start(t, s)
		wait(t, "the mirror", func() bool { return read() == "(1,1,1,2,1,1)" })
		stop()
	}
	s := newService(t, testConfig(b), db)
	s.log = zerolog.Nop()
	stop := start(t, s)
	streamtest.Produce(t, b.Config, command("3", control.ModelRegistered, "model/n", control.Model{Version: "n", Logical: "prompt"}))
	wait(t, "the third command", func() bool { return read() == "(1,1,1,3,1,2)" })
	stop()
}

func TestDecodeEqualsProto(t *testing.T) {
	records, _ := labels(rand.New(rand.NewPCG(6, 6)), 1, 200)
	block := &warehouse.LabelBlock{}
	for _, r := range records {
		if r.Topic != schemas.TopicLabels {
			continue
		}
		var l eventpb.Label
		var i eventpb.Impression
		if err := errors.Join(proto.Unmarshal(r.Value, &l), proto.Unmarshal(l.Impression, &i)); err != nil {
			t.Fatal(err)
		}
		want := warehouse.Label{
			Impression: schemas.ImpressionID(i.Id), Version: l.Version, User: i.User, Position: uint16(i.Position), Propensity: i.Propensity, ArmShare: i.ArmShare,
			Bot: i.Bot, Suspect: l.Suspect, Kind: int8(l.Kind), Clicked: l.Clicked, ClickDelayMS: l.ClickDelayMs, Clicks: l.Clicks, Weight: l.Weight,
			WatermarkMS: l.WatermarkMs,
		}
		for c, v := range map[warehouse.NameColumn]string{
			warehouse.Product: i.Product, warehouse.Creative: i.Creative, warehouse.Placement: i.Placement, warehouse.Campaign: i.Campaign,
			warehouse.Category:   i.Category,
			warehouse.Experiment: i.Experiment, warehouse.Variant: i.Variant, warehouse.ModelVersion: i.ModelVersion, warehouse.Policy: i.Policy,
		} {
			want.Names[c] = block.Name(c, []byte(v))
		}
		var got warehouse.Label
		if err := decodeLabel(r.Value, &got, block); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		for n := range len(r.Value) {
			_ = decodeLabel(r.Value[:n], &got, block) // cut anywhere: no panic
		}
	}
}

func FuzzDecode(f *testing.F) {
	records, _ := labels(rand.New(rand.NewPCG(7, 7)), 1, 3)
	for _, r := range records {
		f.Add(r.Value)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var row warehouse.Label
		_ = decodeLabel(b, &row, &warehouse.LabelBlock{})
	})
}

// A block ends between two watermarks when it can, so that the mature horizon never counts half a group.
func TestCutKeepsGroups(t *testing.T) {
	rows := func(watermarks ...int64) *part {
		p := &part{}
		for _, w := range watermarks {
			p.block.Rows = append(p.block.Rows, warehouse.Label{WatermarkMS: w})
		}
		return p
	}
	for _, c := range []struct {
		name  string
		p     *part
		limit int
		idle  bool
		want  int
	}{
		{"the last group waits", rows(1, 1, 2, 2), 10, false, 2},
		{"the last group has waited", rows(1, 1, 2, 2), 10, true, 4},
		{"one group alone waits", rows(1, 1), 10, false, 0},
		{"one group alone has waited", rows(1, 1), 10, true, 2},
		{"limit inside a group", rows(1, 1, 2, 2, 2), 4, false, 2},
		{"limit between groups", rows(1, 1, 2, 2), 2, false, 2},
		{"a group above the limit is cut", rows(1, 1, 1, 1), 3, false, 3},
	} {
		if got := c.p.cut(c.limit, c.idle); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}
