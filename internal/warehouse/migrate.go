package warehouse

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"ctrloop/internal/stats"
	"ctrloop/schemas/table"
)

// Options of Migrate.
type Options struct {
	// Cluster is the name in remote_servers; tables become Replicated... with a Distributed table in
	// front. Empty: one server.
	Cluster string
	// Window and Bucket of the join, for the mature horizon (view label_horizon); 0 keeps what the
	// warehouse has (30 min and 1 s in a new one).
	Window, Bucket time.Duration
	// SaltCheck stands for the salt of users (ingest.SaltCheck), so that an erasure under another one is noticed; 0 keeps what
	// the warehouse has.
	SaltCheck int64
	// Accept are numbers of applied files whose text has changed and may: the new checksum is recorded, the file is not
	// run again.
	Accept []uint32

	// unreplicated leaves out what needs Keeper (replication, ON CLUSTER), for tests with several embedded engines:
	// each of them is migrated by itself.
	unreplicated bool
}

func (o Options) dialect() dialect { return dialect{o.Cluster, o.unreplicated} }

// StepState is what Migrate would do about a file.
type StepState string

// States of a Step.
const (
	StepApplied  StepState = "applied"  // nothing to do
	StepNew      StepState = "new"      // will be run
	StepReplaced StepState = "replaced" // a file of views whose text has changed: will be run again
	StepAccepted StepState = "accepted" // changed after it was applied, and Options.Accept has it: recorded, not run
	StepRefused  StepState = "refused"  // changed after it was applied, or unknown to this binary: nothing will be run at all
)

// Step is one file of schemas/table beside what the database says about it.
type Step struct {
	Version  uint32    `json:"version"`
	Name     string    `json:"name"`
	State    StepState `json:"state"`
	Why      string    `json:"why"`
	Checksum string    `json:"checksum,omitempty"` // SHA-256 of the rendered text, hex; empty: the binary has no such file
	Applied  string    `json:"applied,omitempty"`  // checksum of what was applied; empty: never
	SQL      []string  `json:"sql,omitempty"`      // what will be run
}

// migration is one file of schemas/table.
type migration struct {
	Version uint32
	Name    string
	View    bool // only views: applied again whenever the text has changed
	SQL     []string
	Sum     string // of the rendered text
}

// ErrRefused is wrapped by Migrate when the database and this binary do not belong together.
var ErrRefused = errors.New("migration refused")

// Migrate brings the database to the schema of this binary. It is idempotent. Files of tables are applied
// once and must not change after that; files of views (name starts with "view_") follow their text.
func (db *DB) Migrate(ctx context.Context, opt Options) error {
	db.dialect = opt.dialect()
	steps, err := db.Plan(ctx, opt)
	if err != nil {
		return err
	}
	for _, s := range steps {
		if s.State == StepRefused {
			return fmt.Errorf("%w: %04d_%s %s", ErrRefused, s.Version, s.Name, s.Why)
		}
	}
	if err := db.Exec(ctx, migrationsTable(opt.dialect())); err != nil {
		return err
	}
	for _, s := range steps {
		if s.State == StepApplied {
			continue
		}
		if err := db.apply(ctx, s); err != nil {
			return err
		}
	}
	return db.setParameters(ctx, opt)
}

// Plan says what Migrate would do, and changes nothing. Steps are in the order of their numbers.
func (db *DB) Plan(ctx context.Context, opt Options) ([]Step, error) {
	all, err := migrations(table.Files, opt.dialect())
	if err != nil {
		return nil, err
	}
	applied, err := db.applied(ctx)
	if err != nil {
		return nil, err
	}
	return plan(all, applied, opt.Accept), nil
}

// plan holds the files against what was applied.
func plan(all []migration, applied map[uint32]appliedFile, accept []uint32) []Step {
	steps := make([]Step, 0, len(all))
	for _, m := range all {
		was, done := applied[m.Version]
		delete(applied, m.Version)
		s := Step{Version: m.Version, Name: m.Name, Checksum: m.Sum, Applied: was.Sum}
		switch {
		case !done:
			s.State, s.Why, s.SQL = StepNew, "was never applied", m.SQL
		case was.Sum == m.Sum:
			s.State, s.Why = StepApplied, "is as it was applied"
		case m.View:
			s.State, s.Why, s.SQL = StepReplaced, "has views whose text has changed", m.SQL
		case slices.Contains(accept, m.Version):
			s.State, s.Why = StepAccepted, "has changed since it was applied, which was accepted: its checksum will be recorded"
		default:
			s.State = StepRefused
			s.Why = fmt.Sprintf(
				"has changed since it was applied to this database (%.12s then, %.12s now), so this binary and the data may not belong together: "+
					"use the version that wrote the data, or a new directory, or, if the new text is known to make the same tables, `ctrloop migrate "+
					"--accept %04d`",
				was.Sum,
				m.Sum,
				m.Version,
			)
		}
		steps = append(steps, s)
	}
	for v, was := range applied {
		steps = append(steps, Step{Version: v, Name: was.Name, State: StepRefused, Applied: was.Sum,
			Why: "was applied by a newer version of ctrloop, and this one does not know it: use that version or a newer one"})
	}
	slices.SortStableFunc(steps, func(a, b Step) int { return cmp.Compare(a.Version, b.Version) })
	return steps
}

// appliedFile is a row of schema_migrations.
type appliedFile struct{ Name, Sum string }

// applied reads schema_migrations; without the table nothing was applied.
func (db *DB) applied(ctx context.Context) (map[uint32]appliedFile, error) {
	out := map[uint32]appliedFile{}
	var there uint8
	if err := db.QueryRow(ctx, "EXISTS TABLE schema_migrations").Scan(&there); err != nil || there == 0 {
		return out, err
	}
	rows, err := db.Query(ctx, "SELECT version, name, sha256 FROM schema_migrations FINAL")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var v uint32
		var f appliedFile
		if err := rows.Scan(&v, &f.Name, &f.Sum); err != nil {
			return nil, fmt.Errorf("read schema_migrations: %w", err)
		}
		out[v] = f
	}
	return out, rows.Err()
}

func (db *DB) apply(ctx context.Context, s Step) error {
	for i, q := range s.SQL {
		if err := db.Exec(ctx, q); err != nil {
			return fmt.Errorf("migration %04d_%s, statement %d: %w", s.Version, s.Name, i+1, err)
		}
	}
	return db.Exec(
		ctx,
		"INSERT INTO schema_migrations (version, name, sha256) SETTINGS async_insert = 0 VALUES (?, ?, ?)",
		s.Version,
		s.Name,
		s.Checksum,
	)
}

func (db *DB) setParameters(ctx context.Context, opt Options) error {
	for _, p := range []struct {
		name  string
		value int64
	}{{windowParameter, opt.Window.Milliseconds()}, {"bucket_ms", opt.Bucket.Milliseconds()}, {saltParameter, opt.SaltCheck}} {
		if p.value == 0 {
			continue
		}
		if err := db.Exec(ctx, "INSERT INTO parameters (name, value) SETTINGS async_insert = 0 VALUES (?, ?)", p.name, p.value); err != nil {
			return err
		}
	}
	return nil
}

const (
	windowParameter = "window_ms"
	saltParameter   = "salt_check"
)

// Window is the join's window as the processes that fill the warehouse have it; 0: none has said.
func (db *DB) Window(ctx context.Context) (time.Duration, error) {
	ms, err := db.parameter(ctx, windowParameter)
	return time.Duration(ms) * time.Millisecond, err
}

// SaltCheck is what Options.SaltCheck was; 0: nobody has said.
func (db *DB) SaltCheck(ctx context.Context) (int64, error) { return db.parameter(ctx, saltParameter) }

func (db *DB) parameter(ctx context.Context, name string) (value int64, err error) {
	err = db.QueryRow(ctx, "SELECT sum(value) FROM parameters FINAL WHERE name = ?", name).Scan(&value)
	return value, err
}

func migrationsTable(d dialect) string {
	return "CREATE TABLE IF NOT EXISTS schema_migrations " + d.onCluster() +
		"(version UInt32, name String, sha256 String, applied DateTime64(3, 'UTC') DEFAULT now64(3)) ENGINE = " +
		d.engine("ReplacingMergeTree", "applied") + " ORDER BY version"
}

// migrations renders NNNN_name.sql in order of their numbers.
func migrations(files fs.FS, d dialect) ([]migration, error) {
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var out []migration
	for _, name := range names {
		number, rest, ok := strings.Cut(strings.TrimSuffix(path.Base(name), ".sql"), "_")
		v, err := strconv.ParseUint(number, 10, 32)
		if !ok || err != nil || len(number) != 4 {
			return nil, fmt.Errorf("schemas/table/%s: want NNNN_name.sql", name)
		}
		if n := len(out); n > 0 && out[n-1].Version == uint32(v) {
			return nil, fmt.Errorf("schemas/table/%s: number %s is taken by %s", name, number, out[n-1].Name)
		}
		raw, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		text, err := d.render(name, string(raw))
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256([]byte(text))
		out = append(
			out,
			migration{
				Version: uint32(v),
				Name:    rest,
				View:    strings.HasPrefix(rest, "view_"),
				SQL:     statements(text),
				Sum:     hex.EncodeToString(sum[:]),
			},
		)
	}
	return out, nil
}

// statements splits at semicolons that end a line of code; a statement of comments only is none.
func statements(text string) []string {
	var out []string
	var lines []string
	code := false
	end := func() {
		if code {
			out = append(out, strings.TrimSpace(strings.Join(lines, "\n")))
		}
		lines, code = nil, false
	}
	for line := range strings.SplitSeq(text, "\n") {
		if trimmed := strings.TrimSpace(line); trimmed == "" || strings.HasPrefix(trimmed, "--") {
			lines = append(lines, line)
			continue
		}
		body, last := strings.CutSuffix(line, ";")
		code = code || strings.TrimSpace(body) != ""
		lines = append(lines, body)
		if last {
			end()
		}
	}
	end()
	return out
}

// dialect is the difference between one server and a cluster, as functions of the DDL templates.
type dialect struct {
	cluster      string
	unreplicated bool
}

func (d dialect) render(name, text string) (string, error) {
	t, err := template.New(name).Funcs(template.FuncMap{
		"cluster": d.onCluster, "local": d.local, "engine": d.engine, "dedup": d.dedup, "distributed": d.distributed,
		"dict": dict, "arm": func() string { return armKey }, "version_key": versionKey, "has_time": func() string { return hasTime },
		"trusted": func() string { return trusted },
		"least_units": func() int { return stats.LeastUnits }, "least_clicks": func() int { return stats.LeastClicks },
		"rounding": func() string { return strconv.FormatFloat(stats.RoundingOfSquares, 'g', -1, 64) },
	}).Parse(text)
	if err != nil {
		return "", fmt.Errorf("schemas/table: %w", err)
	}
	var b strings.Builder
	if err := t.Execute(&b, nil); err != nil {
		return "", fmt.Errorf("schemas/table: %w", err)
	}
	return b.String(), nil
}

// dict is the map of its arguments, key, value, key, value: what a {{template}} with several parameters needs.
func dict(pairs ...string) map[string]string {
	m := make(map[string]string, len(pairs)/2)
	for i := 0; i+1 < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

// onCluster follows the name in a CREATE.
func (d dialect) onCluster() string {
	if d.cluster == "" || d.unreplicated {
		return ""
	}
	return "ON CLUSTER " + quoteName(d.cluster) + " "
}

// local is the name of the table that holds the data.
func (d dialect) local(name string) string {
	if d.cluster == "" {
		return name
	}
	return name + "_local"
}

// engine is a MergeTree engine with its arguments.
func (d dialect) engine(kind string, args ...string) string {
	if d.cluster != "" && !d.unreplicated {
		kind = "Replicated" + kind
		args = append([]string{"'/clickhouse/tables/{shard}/{database}/{table}'", "'{replica}'"}, args...)
	}
	return kind + "(" + strings.Join(args, ", ") + ")"
}

// dedup is the setting of the window, in blocks, in which an insert token is remembered.
func (d dialect) dedup(blocks int) string {
	if d.cluster != "" && !d.unreplicated {
		return fmt.Sprintf("replicated_deduplication_window = %d, replicated_deduplication_window_seconds = 604800", blocks)
	}
	return fmt.Sprintf("non_replicated_deduplication_window = %d", blocks)
}

// distributed puts a table over all shards; rows with the same key must meet on one shard for FINAL.
func (d dialect) distributed(name, key string) string {
	if d.cluster == "" {
		return ""
	}
	return fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s %sAS %s ENGINE = Distributed(%s, currentDatabase(), %s, %s);\n",
		name, d.onCluster(), d.local(name), quoteName(d.cluster), d.local(name), key)
}
