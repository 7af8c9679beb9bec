package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"ctrloop/internal/warehouse"
	"ctrloop/internal/warehouse/query"
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

// targetLabels is the size that the targets are for.
const targetLabels = 100_000_000

// labelsAtOnce are made by one statement, in seconds: on a machine with other work too it must answer before the client
// gives up (5 minutes).
const labelsAtOnce int64 = 2_500_000

// Query makes the labels in an empty migrated database, asks every question and weighs the storage. Progress
// gets a share of the whole and what is being done.
func Query(ctx context.Context, db *warehouse.DB, c QueryConfig, progress func(share float64, what string)) (QueryReport, error) {
	rep := QueryReport{Machine: ThisMachine(), Config: c}
	var there uint64
	if err := db.QueryRow(ctx, query.Text("labels")).Scan(&there); err != nil {
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
			n := min(labelsAtOnce, end-from)
			if err := db.Exec(ctx, query.Text("bench_labels"), c.Seed, c.Labels, c.Days, c.Users, from, n); err != nil {
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
	if err := db.QueryRow(ctx, query.Text("labels")).Scan(&rep.Rows); err != nil {
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
	if err := db.Select(ctx, &days, query.Text("bench_days")); err != nil {
		return err
	}
	for i, d := range days[:max(0, len(days)-1)] {
		progress(0.5+0.2*float64(i)/float64(len(days)), "merging")
		if err := db.Exec(ctx, query.BenchMergeDay(d.Partition)); err != nil {
			return err
		}
	}
	return nil
}

// ask times the questions. Rows, bytes and memory are those of the server's query log.
func ask(ctx context.Context, db *warehouse.DB, c QueryConfig, rep *QueryReport, progress func(float64, string)) error {
	var id string
	if err := db.QueryRow(ctx, query.Text("bench_corrected")).Scan(&id); err != nil {
		return fmt.Errorf("find an impression with a correction: %w", err)
	}
	all := query.BenchQuestions(id)
	for i, q := range all {
		progress(0.75+0.25*float64(i)/float64(len(all)), q.Name)
		cost := QuestionCost{Name: q.Name, SQL: q.Text}
		comment := fmt.Sprintf("bench %d %d", rep.Machine.At.Unix(), i)
		sql := query.BenchRun(q.Text, comment)
		ms := make([]float64, 0, c.Runs)
		for range c.Runs {
			began := time.Now()
			rows, err := db.Query(ctx, sql)
			if err != nil {
				return fmt.Errorf("%s: %w", q.Name, err)
			}
			for rows.Next() {
			}
			if err := errors.Join(rows.Err(), rows.Close()); err != nil {
				return fmt.Errorf("%s: %w", q.Name, err)
			}
			ms = append(ms, float64(time.Since(began).Microseconds())/1000)
		}
		slices.Sort(ms)
		cost.MedianMS, cost.WorstMS = ms[len(ms)/2], ms[len(ms)-1]
		if err := db.Exec(ctx, query.Text("bench_flush")); err != nil {
			return err
		}
		err := db.QueryRow(ctx, query.Text("bench_cost"), comment).
			Scan(&cost.ReadRows, &cost.ReadBytes, &cost.MemoryBytes, &cost.ResultRows, &cost.CPUMS)
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
	if err := db.Select(ctx, &columns, query.Text("bench_columns")); err != nil {
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
	if err := db.Select(ctx, &tables, query.Text("bench_tables")); err != nil {
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
		{Name: "lift through rollups, s", Want: 1, Got: ms[query.BenchLift] / 1000},
		{Name: "raw scan of one experiment-week, s", Want: 5, Got: ms[query.BenchRawWeek] / 1000},
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
