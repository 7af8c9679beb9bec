package warehouse

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"

	"ctrloop/internal/loopback"
)

// codeNoShard is ClickHouse's error ALL_CONNECTION_TRIES_FAILED.
const codeNoShard = 279

// startShards starts engines that know each other as the shards of the cluster "shards".
func startShards(t *testing.T, n int) (engines []*Engine, configs []EngineConfig) {
	t.Helper()
	needLib(t)
	var cluster strings.Builder
	for range n {
		cfg := EngineConfig{Dir: t.TempDir(), MaxMemoryBytes: 1 << 30}
		for _, port := range []*int{&cfg.TCPPort, &cfg.HTTPPort} {
			var err error
			if *port, err = loopback.FreePort(); err != nil {
				t.Fatal(err)
			}
		}
		creds, err := loadCredentials(filepath.Join(cfg.Dir, "credentials.json"), "")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(
			&cluster,
			"<shard><internal_replication>true</internal_replication>"+
				"<replica><host>127.0.0.1</host><port>%d</port><user>%s</user><password>%s</password></replica></shard>",
			cfg.TCPPort,
			appUser,
			creds.App,
		)
		configs = append(configs, cfg)
	}
	for i := range configs {
		configs[i].remoteServers = "<shards>" + cluster.String() + "</shards>"
		engines = append(engines, startEngine(t, configs[i]))
	}
	return engines, configs
}

// Three engines as shards: the same DDL, views and rollups over Distributed tables; a shard that is down is an error
// and not a smaller figure; an insert that met it is repeated by its token, one that was queued arrives.
func TestShards(t *testing.T) {
	engines, configs := startShards(t, 3)
	opt := Options{Cluster: "shards", unreplicated: true, Window: testWindow, Bucket: testBucket}
	dbs := make([]*DB, len(engines))
	for i := range engines {
		dbs[i] = connect(t, engines[i].DSN())
	}
	// ON CLUSTER runs a statement everywhere before the next. Here the shards go one after the other, and a statement
	// that reads all of them fails until the last has its tables: so once more for each of the files that have one.
	var err error
	for range 3 {
		err = nil
		for _, d := range dbs {
			err = errors.Join(err, d.Migrate(t.Context(), opt))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	db := dbs[0]
	rows := world(rand.New(rand.NewPCG(9, 9)), 4000)
	blocks := [][]LabelRow{rows[:1000], rows[1000:2000], rows[2000:2500], rows[2500:]}
	insert := func(i int) error { return db.InsertLabels(t.Context(), fmt.Sprint("block-", i), blocks[i]) }
	for range 2 { // with its token a second time
		if err := errors.Join(insert(0), insert(1)); err != nil {
			t.Fatal(err)
		}
	}
	total := uint64(0)
	for i, d := range dbs {
		n := count(t, d, "SELECT count() FROM labels_local")
		if n < 500 {
			t.Errorf("shard %d has %d rows of 2000", i, n)
		}
		total += n
		if all := count(t, d, "SELECT count() FROM labels"); all != 2000 {
			t.Errorf("shard %d sees %d rows, want 2000", i, all)
		}
	}
	if total != 2000 {
		t.Errorf("the shards have %d rows together, want 2000", total)
	}

	stop(t, engines[2])
	var n uint64
	err = db.QueryRow(t.Context(), "SELECT count() FROM labels").Scan(&n)
	if ex := new(clickhouse.Exception); !errors.As(err, &ex) || ex.Code != codeNoShard {
		t.Errorf("a shard is down: %d rows, %v; want error %d", n, err, codeNoShard)
	}
	partial := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"skip_unavailable_shards": 1}))
	if err := db.QueryRow(partial, "SELECT count() FROM labels").Scan(&n); err != nil || n == 0 || n >= 2000 {
		t.Errorf("without the dead shard: %d rows, %v", n, err)
	}
	if err := insert(2); err == nil {
		t.Error("an insert succeeds though a part of it cannot be stored")
	} else if Permanent(err) {
		t.Errorf("%v is called permanent: the sink would not try again", err)
	}
	// Queued for the dead shard: what a writer gets that does not wait.
	queued := clickhouse.Context(
		t.Context(),
		clickhouse.WithSettings(clickhouse.Settings{"distributed_foreground_insert": 0, "prefer_localhost_replica": 0}),
	)
	if err := db.conn.Exec(queued, "INSERT INTO products (id, title) SELECT toString(number), 'queued' FROM numbers(300)"); err != nil {
		t.Fatal(err)
	}

	startEngine(t, configs[2])
	eventually(t, "reconnection to the shard", func() bool {
		return db.QueryRow(t.Context(), "SELECT count() FROM labels").Scan(&n) == nil
	})
	if err := insert(2); err != nil {
		t.Fatal(err)
	}
	if n := count(t, db, "SELECT count() FROM labels"); n != 2500 {
		t.Errorf("%d rows after the retry, want 2500: each once", n)
	}
	exec1(t, db, "SYSTEM FLUSH DISTRIBUTED products")
	if n := count(t, db, "SELECT count() FROM products FINAL"); n != 300 {
		t.Errorf("%d products, want the 300 that were queued", n)
	}

	if err := insert(3); err != nil {
		t.Fatal(err)
	}
	good, _ := mature(rows)
	if n := rollupsEqualScan(t, db, "all inserts"); n != uint64(len(good)) {
		t.Errorf("%d mature impressions, want %d", n, len(good))
	}
	rollUp(t, dbs[1]) // any of them may do it
	for i, d := range dbs[:2] {
		if n := rollupsEqualScan(t, d, fmt.Sprint("the rollup, at shard ", i)); n != uint64(len(good)) {
			t.Errorf("%d mature impressions, want %d", n, len(good))
		}
		if raw := count(t, d, "SELECT count() FROM labels_unrolled"); raw >= uint64(len(good)) {
			t.Errorf("shard %d reads all %d from labels: the rollup is not used", i, raw)
		}
	}
	for view, query := range viewExamples(t) {
		if err := db.conn.Exec(context.Background(), query); err != nil {
			t.Errorf("%s over shards: %s: %v", view, query, err)
		}
	}
}
