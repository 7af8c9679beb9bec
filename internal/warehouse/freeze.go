package warehouse

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Frozen is what the embedded engine's tables held at one moment, for a backup while it runs. Rollups, which are
// counted anew, and the memory of insert tokens are not part of it: rows that are sent again behind a restore are told
// apart by their keys.
type Frozen struct {
	// Links is a folder of hard links to the parts, with the layout of Store.
	Links string `json:"links"`
	// Keep are the files and folders inside of the engine's folder that belong to a backup beside the parts:
	// definitions, mutations, passwords.
	Keep []string `json:"keep"`

	name string
}

// Store is where the parts of tables lie inside of the engine's folder.
const Store = "data/store"

// ShadowFolder is where ClickHouse puts the links of FREEZE, inside of the engine's folder. A process that is killed leaves
// some, the next start removes them.
const ShadowFolder = "data/shadow"

// ErrBusy means that something is at work which a backup must not fall into.
var ErrBusy = errors.New("rows are being deleted")

// freezeTries is how often a freeze is begun anew because deletions fell into it, freezePause the time between.
const (
	freezeTries = 20
	freezePause = 500 * time.Millisecond
)

// Freeze keeps the present state of the tables of db, which must be the engine's own database. Each table is frozen at
// a moment of its own, labels first; what is inserted between the first and the last is in some and not in others. It
// waits up to 10 s for an erasure or a retention that is at work, and fails with ErrBusy then. Release what was frozen.
func (e *Engine) Freeze(ctx context.Context, db *DB) (f Frozen, err error) {
	for try := 1; ; try++ {
		f, err = e.freeze(ctx, db)
		if err == nil {
			return f, nil
		}
		err = errors.Join(fmt.Errorf("freeze the warehouse: %w", err), f.Release())
		if !errors.Is(err, ErrBusy) || try == freezeTries {
			return f, err
		}
		select {
		case <-ctx.Done():
			return f, ctx.Err()
		case <-time.After(freezePause):
		}
	}
}

// frozenTable is a table as system.tables names it.
type frozenTable struct {
	Name string `ch:"name"`
	Path string `ch:"path"` // of its data, absolute
}

func (e *Engine) freeze(ctx context.Context, db *DB) (Frozen, error) {
	f := Frozen{name: "backup" + rand.Text()}
	f.Links = filepath.Join(e.cfg.Dir, ShadowFolder, f.name, "store")
	before, err := db.deletions(ctx)
	if err != nil {
		return f, err
	}
	var tables []frozenTable
	// Rollups are a cache. Labels go first: Retire, which removes the audit of a day before its labels, then leaves at most
	// labels without an audit, which the next Retire removes; and what labels hold the tables fed by them hold too.
	err = db.Select(ctx, &tables, `SELECT name, data_paths[1] AS path FROM system.tables
		WHERE database = currentDatabase() AND engine LIKE '%MergeTree' AND name NOT LIKE 'rollup%' ORDER BY name != 'labels', name`)
	if err != nil {
		return f, err
	}
	for _, t := range tables {
		if err := db.Exec(ctx, "ALTER TABLE "+quoteName(t.Name)+" FREEZE WITH NAME '"+f.name+"'"); err != nil {
			return f, err
		}
	}
	after, err := db.deletions(ctx)
	if err != nil {
		return f, err
	}
	if !maps.Equal(before, after) {
		return f, ErrBusy
	}
	f.Keep, err = e.definitions(ctx, db)
	return f, err
}

// deletions are the mutations there are, by table. It fails with ErrBusy while one is at work, or an erasure.
func (db *DB) deletions(ctx context.Context) (map[string]string, error) {
	var unfinished uint64
	if err := db.QueryRow(ctx, "SELECT count() FROM erasures FINAL WHERE table = '' AND state != 'done'").Scan(&unfinished); err != nil {
		return nil, err
	}
	if unfinished > 0 {
		return nil, fmt.Errorf("%w: an erasure was begun and is not finished (finish it with `ctrloop erase user`)", ErrBusy)
	}
	rows, err := db.Query(
		ctx,
		"SELECT table, max(mutation_id), min(is_done) FROM system.mutations WHERE database = currentDatabase() GROUP BY table",
	)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	out := map[string]string{}
	for rows.Next() {
		var table, last string
		var done uint8
		if err := rows.Scan(&table, &last, &done); err != nil {
			return nil, err
		}
		if done == 0 {
			return nil, fmt.Errorf("%w from %s", ErrBusy, table)
		}
		out[table] = last
	}
	return out, rows.Err()
}

// definitions are the paths of everything but parts and tokens, of all tables and of the database itself.
func (e *Engine) definitions(ctx context.Context, db *DB) ([]string, error) {
	keep := []string{"credentials.json", "data/metadata/" + Database, "data/metadata/" + Database + ".sql", "data/data/" + Database}
	home, err := filepath.EvalSymlinks(filepath.Join(e.cfg.Dir, "data", "metadata", Database))
	if err != nil {
		return nil, err
	}
	folders := []string{home}
	var tables []frozenTable
	if err := db.Select(ctx, &tables,
		"SELECT name, data_paths[1] AS path FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree'"); err != nil {
		return nil, err
	}
	for _, t := range tables {
		found, err := filepath.Glob(filepath.Join(t.Path, "mutation_*.txt"))
		if err != nil {
			return nil, err
		}
		folders = append(append(folders, found...), filepath.Join(t.Path, "format_version.txt"), filepath.Join(t.Path, "detached"))
	}
	root, err := filepath.EvalSymlinks(e.cfg.Dir)
	if err != nil {
		return nil, err
	}
	for _, path := range folders {
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return nil, err
		}
		name, err := filepath.Rel(root, path)
		if err != nil || !strings.HasPrefix(filepath.ToSlash(name), Store+"/") {
			return nil, errors.Join(fmt.Errorf("%s is not in %s of the engine's folder", path, Store), err)
		}
		keep = append(keep, filepath.ToSlash(name))
	}
	slices.Sort(keep)
	return keep, nil
}

// Release deletes what was frozen, and with it the disk space that nothing else uses.
func (f Frozen) Release() error {
	if f.name == "" {
		return nil
	}
	return os.RemoveAll(filepath.Dir(f.Links))
}
