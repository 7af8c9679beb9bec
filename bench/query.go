package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"ctrloop/internal/warehouse"
)

// QueryConfig says what labels are made and how often each question is asked.
type QueryConfig struct {
	Labels int64  `json:"labels"` // first versions; one in a thousand gets a correction besides
	Users  int64  `json:"users"`
	Days   int    `json:"days"` // of event time
	Seed   uint64 `json:"seed"`
	Runs   int    `json:"runs"` // of each question; the median counts
}

// QueryReport is the result of `ctrloop bench query`.
type QueryReport struct {
	Machine Machine     `json:"machine"`
	Config  QueryConfig `json:"config"`
	Rows    uint64      `json:"rows"` // of labels, every version
	// InsertSeconds is the making of the labels inside of the engine: no measure of the sink.
	InsertSeconds float64         `json:"insert_seconds"`
	MergeSeconds  float64         `json:"merge_seconds"`   // of all days but the last into one part each
	RollUpSeconds float64         `json:"roll_up_seconds"` // of all days
	Questions     []QuestionCost  `json:"questions"`
	Columns       []ColumnStorage `json:"columns"` // of labels, largest first
	Tables        []TableStorage  `json:"tables"`
	BytesPerLabel float64         `json:"bytes_per_label"` // on disk, labels and all rollups
	Targets       []QueryTarget   `json:"targets"`
}

// QuestionCost is what one question took.
type QuestionCost struct {
	Name        string  `json:"name"`
	SQL         string  `json:"sql"`
	MedianMS    float64 `json:"median_ms"` // at the client
	WorstMS     float64 `json:"worst_ms"`
	CPUMS       float64 `json:"cpu_ms"` // processor time of the server, the least of the runs: for a machine with other work
	ReadRows    uint64  `json:"read_rows"`
	ReadBytes   uint64  `json:"read_bytes"` // uncompressed
	MemoryBytes uint64  `json:"memory_bytes"`
	ResultRows  uint64  `json:"result_rows"`
}

// ColumnStorage is a column of labels on disk.
type ColumnStorage struct {
	Column        string  `json:"column"`
	Type          string  `json:"type"`
	Codec         string  `json:"codec"` // empty: the server's default
	BytesPerLabel float64 `json:"bytes_per_label"`
	Ratio         float64 `json:"ratio"` // uncompressed by compressed
}

// TableStorage is a table on disk with its index and marks.
type TableStorage struct {
	Table string `json:"table"`
	Rows  uint64 `json:"rows"`
	Bytes uint64 `json:"bytes"`
}

// QueryTarget is a promise with what was measured.
type QueryTarget struct {
	Name  string  `json:"name"`
	Want  float64 `json:"want"` // at most
	Got   float64 `json:"got"`
	Scale string  `json:"scale,omitempty"` // why it is no proof, if it is none
	Met   bool    `json:"met"`
}

// Names of the questions that targets speak of.
const (
	questionLift    = "experiment_lift, all experiments"
	questionRawWeek = "raw scan of the largest experiment"
)

// targetLabels is the size that the targets are for.
const targetLabels = 100_000_000

// labelsAtOnce are made by one statement, in seconds: on a machine with other work too it must answer before the client
// gives up (5 minutes).
const labelsAtOnce int64 = 2_500_000

// largest is the experiment with the most traffic in the labels made here.
const largest = "x-1"

// The labels: a shop with 4,000 products of 8 creatives each in 44 categories; users by a square law (a tenth of them
// make a third of the traffic); 3 % of impressions clicked after 4 minutes on average. A user is in one experiment at a
// time: six tenths of them in x-1 for the whole span, the others in x-2, x-3 and x-4 one after the other; one in
// twenty impressions is outside, for exploration. Ids and hashed users are random bits, which no codec can help. A
// propensity is that of a creative in the policy's snapshot of the hour. The first day is a Wednesday, so that seven days lie
// in two calendar weeks, as most do: a user has up to two rows in the totals by week.
const makeLabels = `
INSERT INTO labels (impression_id, event_time, version, user, product, creative, placement, position, campaign, category,
	experiment, variant, model_version, policy, propensity, bot, kind, clicked,
	click_delay_ms, clicks, weight, watermark, partition, offset, inserted_at)
WITH
	toUInt64(%[1]d) AS seed,
	sipHash64(number, seed, 1) AS h1, sipHash64(number, seed, 2) AS h2, sipHash64(number, seed, 3) AS h3,
	toUInt64(toUnixTimestamp64Milli(toDateTime64('2026-03-04 00:00:00', 3, 'UTC'))) + intDiv(number * %[3]d * 86400000, %[2]d) AS ms,
	bitOr(bitOr(bitShiftLeft(ms, 16), 0x7000), bitAnd(h1, 0xfff)) AS high,
	bitOr(bitShiftLeft(toUInt64(1), 63), bitAnd(h2, 0x3fffffffffffffff)) AS low,
	toUInt64(%[4]d * pow(bitShiftRight(h1, 12) / 4503599627370496, 2)) AS person,
	sipHash64(person, seed, 4) AS hashed,
	toUInt32(4000 * pow(bitShiftRight(h2, 32) / 4294967296, 1.5)) AS item,
	bitShiftRight(h3, 8) / 72057594037927936 AS u,
	h3 %% 1000 < 30 AS hit, -- clicked in time
	h3 %% 1000 = 999 AS late, -- clicked after the window: version 2
	toInt64(-240000 * log(1 - u)) AS delay,
	intDiv(h1, 7) %% 8 AS nth, -- creative of the product
	intDiv(ms, 86400000) - 20516 AS day,
	multiIf(h2 %% 20 = 0, '', hashed %% 10 < 6, 'x-1', day < 2, 'x-2', day < 4, 'x-3', 'x-4') AS trial
SELECT
	reinterpretAsUUID(bitShiftLeft(toUInt128(low), 64) + toUInt128(high)), fromUnixTimestamp64Milli(toInt64(ms), 'UTC'), v, hashed,
	concat('product-', toString(item)), concat('c-', substring(lower(hex(sipHash64(item, nth))), 1, 16)),
	['feed', 'side', 'search', 'cart'][1 + h2 %% 4], 1 + h1 %% 12, concat('campaign-', toString(item %% 20)),
	concat('department-', toString(item %% 9), '/category-', toString(item %% 44)),
	trial, if(trial = '', '', if(sipHash64(hashed, trial) %% 2 = 0, 'control', 'treatment')),
	concat('prompt-', substring(lower(hex(sipHash64(nth + day))), 1, 12)), concat('thompson-', toString(intDiv(ms, 3600000))),
	bitShiftRight(sipHash64(item, nth, intDiv(ms, 3600000)), 11) / 9007199254740992, h3 %% 100 = 50,
	multiIf(v = 2, 'corrected', hit, 'positive', 'final_negative'), hit OR v = 2,
	multiIf(v = 2, 1800000 + delay, hit, delay, 0), hit OR v = 2, 1,
	fromUnixTimestamp64Milli(if(hit, toInt64(ms) + delay, toInt64(intDiv(ms, 1000)) * 1000 + 1801000), 'UTC'),
	h2 %% 8, intDiv(number, 8) * 2 + v,
	toDateTime(intDiv(ms, 1000) + if(hit, intDiv(delay, 1000), 1802), 'UTC')
FROM (SELECT number FROM numbers_mt(%[5]d, %[6]d))
ARRAY JOIN if(late, [1, 2], [1]) AS v
SETTINGS max_insert_threads = 2, insert_deduplicate = 0, max_partitions_per_insert_block = 0, max_execution_time = 0`

// rawWeek asks labels itself what experiment_results answers from rollups. By a number of the variant: with its name in
// the key it takes half as long again.
const rawWeek = `SELECT arm, count(), sum(m), sum(d), sum(m * m), sum(d * d), sum(m * d)
FROM (SELECT cityHash64(variant) AS arm, user, toUInt64(sum(clicked)) AS m, toUInt64(count()) AS d FROM labels_mature
	WHERE experiment = '` + largest + `' GROUP BY arm, user)
GROUP BY arm`

// questions are asked in this order.
func questions(id string) [][2]string {
	all := func(view string) string { return "SELECT * FROM " + view + " FORMAT Null" }
	return [][2]string{
		{questionLift, "SELECT * FROM experiment_lift"},
		{"experiment_lift, the largest", "SELECT * FROM experiment_lift WHERE experiment = '" + largest + "'"},
		{"experiment_lift, a later one", "SELECT * FROM experiment_lift WHERE experiment = 'x-4'"},
		{questionRawWeek, rawWeek},
		{"experiment_lift_by_category", "SELECT * FROM experiment_lift_by_category WHERE experiment = '" + largest + "'"},
		{"experiment_results", "SELECT * FROM experiment_results"},
		{"experiment_health", "SELECT * FROM experiment_health"},
		{"experiment_cuped", "SELECT * FROM experiment_cuped(id = 'x-4', days = 14)"},
		{"ctr_by_creative", all("ctr_by_creative")},
		{"ctr_by_creative, one product", "SELECT * FROM ctr_by_creative WHERE product = 'product-7'"},
		{"ctr_by_product_day", all("ctr_by_product_day")},
		{"ctr_by_category", "SELECT * FROM ctr_by_category"},
		{"pair_evidence", all("pair_evidence")},
		{"model_timeline", all("model_timeline")},
		{"creative_fatigue", all("creative_fatigue")},
		{"click_delay", all("click_delay")},
		{"freshness", "SELECT * FROM freshness"},
		{"label_horizon", "SELECT * FROM label_horizon"},
		{"trace_impression", "SELECT * FROM trace_impression(id = '" + id + "')"},
		{"labels_mature, count", "SELECT count(), sum(clicked) FROM labels_mature"},
		{"audit_mismatch", all("audit_mismatch")},
	}
}

// Query makes the labels in an empty migrated database, asks every question and weighs the storage. Progress
// gets a share of the whole and what is being done.
func Query(ctx context.Context, db *warehouse.DB, c QueryConfig, progress func(share float64, what string)) (QueryReport, error) {
	rep := QueryReport{Machine: ThisMachine(), Config: c}
	var there uint64
	if err := db.QueryRow(ctx, "SELECT count() FROM labels").Scan(&there); err != nil {
		return rep, err
	}
	if there > 0 {
		return rep, errors.New("the warehouse has labels already: name an empty folder")
	}
	began := time.Now()
	for day := range int64(c.Days) { // parts of one day each, as from a sink
		end := (day + 1) * c.Labels / int64(c.Days)
		for from := day * c.Labels / int64(c.Days); from < end; from += labelsAtOnce {
			progress(0.5*float64(from)/float64(c.Labels), "making labels")
			if err := db.Exec(ctx, fmt.Sprintf(makeLabels, c.Seed, c.Labels, c.Days, c.Users, from, min(labelsAtOnce, end-from))); err != nil {
				return rep, err
			}
		}
	}
	rep.InsertSeconds = time.Since(began).Seconds()
	began = time.Now()
	if err := merge(ctx, db, progress); err != nil {
		return rep, err
	}
	rep.MergeSeconds = time.Since(began).Seconds()
	progress(0.7, "rolling up")
	began = time.Now()
	if _, err := db.RollUp(ctx, 0); err != nil {
		return rep, err
	}
	rep.RollUpSeconds = time.Since(began).Seconds()
	if err := db.QueryRow(ctx, "SELECT count() FROM labels").Scan(&rep.Rows); err != nil {
		return rep, err
	}
	if err := ask(ctx, db, c, &rep, progress); err != nil {
		return rep, err
	}
	if err := weighColumns(ctx, db, &rep); err != nil {
		return rep, err
	}
	rep.Targets = targets(rep)
	return rep, nil
}

// merge makes one part of each day but the last, as time does.
func merge(ctx context.Context, db *warehouse.DB, progress func(float64, string)) error {
	var days []struct {
		Partition string `ch:"partition"`
	}
	if err := db.Select(ctx, &days, "SELECT DISTINCT partition FROM system.parts "+
		"WHERE database = currentDatabase() AND table = 'labels' AND active ORDER BY partition"); err != nil {
		return err
	}
	for i, d := range days[:max(0, len(days)-1)] {
		progress(0.5+0.2*float64(i)/float64(len(days)), "merging")
		if err := db.Exec(ctx, "OPTIMIZE TABLE labels PARTITION "+d.Partition+" FINAL"); err != nil {
			return err
		}
	}
	return nil
}

// ask times the questions. Rows, bytes and memory are those of the server's query log.
func ask(ctx context.Context, db *warehouse.DB, c QueryConfig, rep *QueryReport, progress func(float64, string)) error {
	var id string
	if err := db.QueryRow(ctx, "SELECT toString(impression_id) FROM labels WHERE version = 2 LIMIT 1").Scan(&id); err != nil {
		return fmt.Errorf("find an impression with a correction: %w", err)
	}
	all := questions(id)
	for i, q := range all {
		progress(0.75+0.25*float64(i)/float64(len(all)), q[0])
		cost := QuestionCost{Name: q[0], SQL: q[1]}
		comment := fmt.Sprintf("bench %d %d", rep.Machine.At.Unix(), i)
		sql := q[1] + " SETTINGS log_comment = '" + comment + "', max_execution_time = 0"
		if head, null := strings.CutSuffix(q[1], " FORMAT Null"); null {
			// Every row is made and looked at, and one comes back.
			sql = "SELECT sum(cityHash64(*)) FROM (" + head + ") SETTINGS log_comment = '" + comment + "', max_execution_time = 0"
		}
		ms := make([]float64, 0, c.Runs)
		for range c.Runs {
			began := time.Now()
			rows, err := db.Query(ctx, sql)
			if err != nil {
				return fmt.Errorf("%s: %w", q[0], err)
			}
			for rows.Next() {
			}
			if err := errors.Join(rows.Err(), rows.Close()); err != nil {
				return fmt.Errorf("%s: %w", q[0], err)
			}
			ms = append(ms, float64(time.Since(began).Microseconds())/1000)
		}
		slices.Sort(ms)
		cost.MedianMS, cost.WorstMS = ms[len(ms)/2], ms[len(ms)-1]
		if err := db.Exec(ctx, "SYSTEM FLUSH LOGS"); err != nil {
			return err
		}
		err := db.QueryRow(
			ctx,
			"SELECT any(read_rows), any(read_bytes), max(memory_usage), any(result_rows), "+
				"toFloat64(min(ProfileEvents['OSCPUVirtualTimeMicroseconds'])) / 1000 "+
				"FROM system.query_log WHERE type = 'QueryFinish' AND log_comment = ?",
			comment,
		).
			Scan(
				&cost.ReadRows,
				&cost.ReadBytes,
				&cost.MemoryBytes,
				&cost.ResultRows,
				&cost.CPUMS,
			)
		if err != nil {
			return err
		}
		rep.Questions = append(rep.Questions, cost)
	}
	return nil
}

// weighColumns reads what is on disk.
func weighColumns(ctx context.Context, db *warehouse.DB, rep *QueryReport) error {
	var columns []struct {
		Column  string  `ch:"column"`
		Type    string  `ch:"kind"`
		Codec   string  `ch:"codec"`
		Bytes   float64 `ch:"bytes"`
		Percent float64 `ch:"ratio"`
	}
	err := db.Select(ctx, &columns, `
		SELECT c.name AS column, c.type AS kind, c.compression_codec AS codec, toFloat64(c.data_compressed_bytes) AS bytes,
			c.data_uncompressed_bytes / greatest(1, c.data_compressed_bytes) AS ratio
		FROM system.columns AS c WHERE c.database = currentDatabase() AND c.table = 'labels'`)
	if err != nil {
		return err
	}
	for _, c := range columns {
		rep.Columns = append(
			rep.Columns,
			ColumnStorage{Column: c.Column, Type: c.Type, Codec: c.Codec, BytesPerLabel: c.Bytes / float64(rep.Rows), Ratio: c.Percent},
		)
	}
	slices.SortFunc(rep.Columns, func(a, b ColumnStorage) int { return cmp.Compare(b.BytesPerLabel, a.BytesPerLabel) })
	var tables []struct {
		Table string `ch:"name"`
		Rows  uint64 `ch:"n"`
		Bytes uint64 `ch:"bytes"`
	}
	err = db.Select(ctx, &tables, `
		SELECT table AS name, sum(rows) AS n, sum(bytes_on_disk) AS bytes
		FROM system.parts WHERE database = currentDatabase() AND active
			AND (table = 'labels' OR startsWith(table, 'rollup') OR startsWith(table, 'label_'))
		GROUP BY table ORDER BY bytes DESC`)
	if err != nil {
		return err
	}
	total := uint64(0)
	for _, t := range tables {
		rep.Tables = append(rep.Tables, TableStorage(t))
		total += t.Bytes
	}
	rep.BytesPerLabel = float64(total) / float64(rep.Rows)
	return nil
}

// targets holds the promises against the report.
func targets(rep QueryReport) []QueryTarget {
	ms := map[string]float64{}
	for _, q := range rep.Questions {
		ms[q.Name] = q.MedianMS
	}
	out := []QueryTarget{
		{Name: "lift through rollups, s", Want: 1, Got: ms[questionLift] / 1000},
		{Name: "raw scan of one experiment-week, s", Want: 5, Got: ms[questionRawWeek] / 1000},
		{Name: "bytes a label row, rollups included", Want: 40, Got: rep.BytesPerLabel},
	}
	for i := range out {
		t := &out[i]
		t.Met = t.Got <= t.Want
		if rep.Config.Labels < targetLabels {
			t.Scale = fmt.Sprintf("at %d labels; the target is for %d", rep.Config.Labels, targetLabels)
		}
	}
	return out
}

// Print writes the tables.
func (r QueryReport) Print(w io.Writer) error {
	fmt.Fprintf(
		w,
		"%d rows of labels over %d days, %d users, seed %d; %s, %d procs\n",
		r.Rows,
		r.Config.Days,
		r.Config.Users,
		r.Config.Seed,
		r.Machine.Platform,
		r.Machine.Procs,
	)
	fmt.Fprintf(w, "made in %.1f s, merged in %.1f s, rolled up in %.1f s\n\n", r.InsertSeconds, r.MergeSeconds, r.RollUpSeconds)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "question\tmedian ms\tworst ms\tCPU ms\trows read\tMB read\tMB memory\trows\t\n")
	for _, q := range r.Questions {
		fmt.Fprintf(
			t,
			"%s\t%.1f\t%.1f\t%.1f\t%d\t%.1f\t%.1f\t%d\t\n",
			q.Name,
			q.MedianMS,
			q.WorstMS,
			q.CPUMS,
			q.ReadRows,
			float64(q.ReadBytes)/1e6,
			float64(q.MemoryBytes)/1e6,
			q.ResultRows,
		)
	}
	fmt.Fprintf(t, "\t\t\t\t\t\t\t\t\ncolumn of labels\tbytes a row\tratio\ttype\tcodec\t\t\t\n")
	for _, c := range r.Columns {
		fmt.Fprintf(t, "%s\t%.2f\t%.1f\t%.30s\t%s\t\t\t\n", c.Column, c.BytesPerLabel, c.Ratio, c.Type, c.Codec)
	}
	fmt.Fprintf(t, "\t\t\t\t\t\t\t\t\ntable\trows\tbytes\tbytes a label\t\t\t\t\n")
	for _, x := range r.Tables {
		fmt.Fprintf(t, "%s\t%d\t%d\t%.2f\t\t\t\t\n", x.Table, x.Rows, x.Bytes, float64(x.Bytes)/float64(r.Rows))
	}
	fmt.Fprintf(t, "\t\t\t\t\t\t\t\t\ntarget\tat most\tmeasured\tmet\t\t\t\t\n")
	for _, x := range r.Targets {
		fmt.Fprintf(t, "%s\t%g\t%.3f\t%v\t%s\t\t\t\n", x.Name, x.Want, x.Got, x.Met, x.Scale)
	}
	return t.Flush()
}
