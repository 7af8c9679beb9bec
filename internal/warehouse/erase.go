package warehouse

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Erasure is the proof that a user's events are gone.
type Erasure struct {
	User   uint64        `json:"user"`  // salted hash
	Until  time.Time     `json:"until"` // rows inserted up to then were erased
	Tables []ErasedTable `json:"tables"`
}

// ErasedTable is one table that carries users.
type ErasedTable struct {
	Table      string `json:"table"`
	RowsBefore uint64 `json:"rows_before"`
	RowsAfter  uint64 `json:"rows_after"`
	Query      string `json:"query"` // counts what is left: anybody with read rights can run it again
}

// Rows erased, over all tables.
func (e Erasure) Rows() (n uint64) {
	for _, t := range e.Tables {
		n += t.RowsBefore - t.RowsAfter
	}
	return n
}

// Person is whose events are erased.
type Person struct {
	// User is the salted hash, or the number that was sent.
	User uint64
	// Text is the id as it was sent; empty: it was sent as a number. Tables that hold what a client said are searched for it.
	Text string
}

// ErrNobody means that no table has a row of the person, or that there is no such person: 0 and the empty id stand for
// everybody who is not named.
var ErrNobody = errors.New("nobody was erased")

// ErrCluster means that a command works on one server only.
var ErrCluster = errors.New("not possible over a cluster")

// eraseStep names a place where an erasure may die.
type eraseStep string

const (
	eraseBegun   eraseStep = "begun"   // the run is recorded
	eraseAudited eraseStep = "audited" // the audit no longer expects the rows
	eraseCounted eraseStep = "counted" // that is recorded: from here on rows may be gone
	eraseDeleted eraseStep = "deleted" // the rows are gone, views may still show them
)

// Erase deletes the rows of a person that were inserted up to a time, in every table that
// carries users, and records the proof in the table erasures. An erasure that was interrupted is finished
// first, whatever `until` says: call again after an error. Nothing may insert rows dated before `until` while it
// runs. Where there is nothing to erase it fails with ErrNobody and records nothing: a proof of nothing proves nothing, and the
// id, the salt or the server is another one than was meant.
//
// What the audit expects is lowered by what goes, as one more record of the audit; rollups are counted anew.
// ClickHouse removes the old parts from the disk some minutes after a mutation, or at its next start.
func (db *DB) Erase(ctx context.Context, who Person, until time.Time) (Erasure, error) {
	return db.EraseAndTell(ctx, who, until, nil)
}

// Tell hears what an erasure takes from evidence, before any row is touched. After an error of it nothing was erased. It may be
// told of the same erasure again, by the same name and with the same figures.
type Tell func(ctx context.Context, erasure string, cells []ErasedEvidence) error

// EraseAndTell is Erase that tells of the evidence.
func (db *DB) EraseAndTell(ctx context.Context, who Person, until time.Time, tell Tell) (Erasure, error) {
	return db.erase(ctx, who, until, tell, func(eraseStep) error { return nil })
}

// ErasedEvidence is what a person's labels add up to in one cell of the evidence. Sums of 1/p are whole numbers of 1/2^20, as in
// evidence.v1.
type ErasedEvidence struct {
	Partition        uint16 `ch:"part"` // of labels.v1
	HourMS           int64  `ch:"hour_ms"`
	Product          string `ch:"ad"`
	Placement        string `ch:"place"`
	Creative         string `ch:"picture"`
	Position         uint16 `ch:"place_no"`
	Suspect          uint8  `ch:"doubted"` // 1: of suspect labels
	Impressions      int64  `ch:"impressions"`
	Clicks           int64  `ch:"clicks"`
	Inverse          int64  `ch:"inverses"`
	ClickedInverse   int64  `ch:"clicked_inverses"`
	Capped           int64  `ch:"capped"`
	Unweighted       int64  `ch:"unweighted"`
	UnweightedClicks int64  `ch:"unweighted_clicks"`
}

// EvidenceOf adds up the labels of a user that were inserted up to a time, as evidence.v1 counts them.
func (db *DB) EvidenceOf(ctx context.Context, user uint64, until time.Time) ([]ErasedEvidence, error) {
	var out []ErasedEvidence
	err := db.Select(ctx, &out, `
		WITH propensity > 0 AND propensity <= 1 AS known, known AND 1 / propensity > 4096 AS cut,
			if(known, toInt64(least(1 / propensity, 4096) * 1048576), 0) AS inverse
		SELECT partition AS part, toInt64(toUnixTimestamp(toStartOfHour(toDateTime(event_time, 'UTC')))) * 1000 AS hour_ms,
			toString(product) AS ad, toString(placement) AS place, toString(creative) AS picture, position AS place_no, suspect AS doubted,
			toInt64(count()) AS impressions, toInt64(sum(clicked)) AS clicks, toInt64(sum(inverse)) AS inverses,
			toInt64(sumIf(inverse, clicked = 1)) AS clicked_inverses, toInt64(countIf(cut)) AS capped, toInt64(countIf(NOT known)) AS unweighted,
			toInt64(countIf(NOT known AND clicked = 1)) AS unweighted_clicks
		FROM labels_latest
		WHERE bot = 0 AND kind IN ('positive', 'final_negative', 'corrected') AND user = ? AND inserted_at <= toDateTime(?, 'UTC')
		GROUP BY part, hour_ms, ad, place, picture, place_no, doubted
		ORDER BY part, hour_ms, ad, place, picture, place_no, doubted`, user, until.Unix())
	if err != nil {
		return nil, fmt.Errorf("add up the labels of user %d: %w", user, err)
	}
	return out, nil
}

func (db *DB) erase(ctx context.Context, who Person, until time.Time, tell Tell, fault func(eraseStep) error) (Erasure, error) {
	user := who.User
	e := Erasure{User: user, Until: until.UTC().Truncate(time.Second)}
	if user == 0 {
		return e, fmt.Errorf("user 0: %w: 0 stands for everybody who was not named", ErrNobody)
	}
	var distributed, counted, unfinished uint64
	if err := db.QueryRow(ctx, "SELECT count() FROM system.tables "+
		"WHERE database = currentDatabase() AND engine = 'Distributed'").Scan(&distributed); err != nil {
		return e, err
	}
	if distributed > 0 {
		return e, fmt.Errorf("erase user %d: %w: run it on the database of each shard's local tables", user, ErrCluster)
	}
	var pending time.Time
	err := db.QueryRow(
		ctx,
		"SELECT count(), max(until), countIf(state = 'counted') FROM erasures FINAL WHERE user = ? AND table = '' AND state != 'done'",
		user,
	).Scan(
		&unfinished,
		&pending,
		&counted,
	)
	if err != nil {
		return e, err
	}
	if unfinished > 0 {
		e.Until = pending.UTC()
	}
	tables, err := db.userTables(ctx, e, who.Text)
	if err != nil {
		return e, err
	}
	e.Tables = tables
	if unfinished == 0 {
		found := uint64(0)
		for i := range e.Tables {
			t := &e.Tables[i]
			if err := db.QueryRow(ctx, t.Query).Scan(&t.RowsBefore); err != nil {
				return e, err
			}
			found += t.RowsBefore
		}
		if found == 0 {
			return e, db.onlyYoung(ctx, e)
		}
	}
	if counted == 0 {
		if err := db.eraseAudit(ctx, &e, tell, fault); err != nil {
			return e, fmt.Errorf("erase user %d: %w", user, err)
		}
	} else if err := db.recordedCounts(ctx, &e); err != nil {
		return e, err
	}
	if err := db.eraseRows(ctx, &e, fault); err != nil {
		return e, fmt.Errorf("erase user %d: %w; call again to finish", user, err)
	}
	return e, nil
}

// onlyYoung is nil where a person has rows, and all of them were inserted after the time up to which is erased: they are for
// another run, and there is nothing to prove yet. It is ErrNobody where there are none.
func (db *DB) onlyYoung(ctx context.Context, e Erasure) error {
	for _, t := range e.Tables {
		var young uint64
		if err := db.QueryRow(ctx, strings.TrimSuffix(t.Query, upTo(e.Until))).Scan(&young); err != nil {
			return err
		}
		if young > 0 {
			return nil
		}
	}
	return fmt.Errorf("user %d: %w: no table has a row", e.User, ErrNobody)
}

// upTo ends the query of a table whose rows are dated.
func upTo(until time.Time) string {
	return fmt.Sprintf(" AND inserted_at <= toDateTime(%d, 'UTC')", until.Unix())
}

// userTables finds every table that carries users; rollups that are added later are found too. Tables that hold what a
// client said are searched for the id by its SHA-256, because the query is kept as the proof, and the proof must not name the person.
func (db *DB) userTables(ctx context.Context, e Erasure, text string) ([]ErasedTable, error) {
	rows, err := db.Query(
		ctx,
		`SELECT table, has(groupArray(name), 'user') AS by_user, has(groupArray(name), 'inserted_at') AS dated FROM system.columns
		WHERE database = currentDatabase()
			AND table IN (SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree')
		GROUP BY table HAVING table != 'erasures' AND (by_user OR table IN ('exposures', 'dead_letters')) ORDER BY table`,
	)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	said := []string{"'" + sha256Hex(strconv.FormatUint(e.User, 10)) + "'"}
	if text != "" {
		said = append(said, "'"+sha256Hex(text)+"'")
	}
	ids := strings.Join(said, ", ")
	var out []ErasedTable
	for rows.Next() {
		var name string
		var byUser, dated uint8
		if err := rows.Scan(&name, &byUser, &dated); err != nil {
			return nil, fmt.Errorf("tables that carry users: %w", err)
		}
		where := "user = " + strconv.FormatUint(e.User, 10)
		switch name {
		case "exposures": // the unit is what its client calls the user: the hash, or the id
			where = "hex(SHA256(unit)) IN (" + ids + ")"
		case "dead_letters": // what could not be read may be anything: its words, and what stands in quotes
			where = `hasAny(arrayMap(w -> hex(SHA256(w)), arrayConcat(` +
				`splitByRegexp('[^[:alnum:]_@.:+-]+', sample), extractAll(sample, '"([^"]*)"'))), [` +
				ids + "])"
		}
		if dated == 1 {
			where += upTo(e.Until)
		}
		out = append(out, ErasedTable{Table: name, Query: "SELECT count() FROM " + quoteName(name) + " WHERE " + where})
	}
	return out, rows.Err()
}

// sha256Hex is what hex(SHA256(...)) says.
func sha256Hex(text string) string {
	sum := sha256.Sum256([]byte(text))
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// InClear counts commands on the control log that name the person as it was given: forced units of older versions, which were not
// hidden yet. Nothing is ever deleted from that log.
func (db *DB) InClear(ctx context.Context, who Person) (n uint64, err error) {
	err = db.QueryRow(ctx, `SELECT count() FROM control_log FINAL
		WHERE type = 'experiment.forced' AND JSONExtractString(data, 'unit') IN (?, ?) AND JSONExtractString(data, 'unit') != ''`,
		who.Text, strconv.FormatUint(who.User, 10)).Scan(&n)
	return n, err
}

func (t ErasedTable) where() string {
	return t.Query[len("SELECT count() FROM "+quoteName(t.Table)+" WHERE "):]
}

// source names the erasure's records in the audit.
func (e Erasure) source() string { return "erasure/" + strconv.FormatInt(e.Until.Unix(), 10) }

// eraseAudit counts what is there and lowers what the audit expects. Until it is recorded as counted no row is
// touched, so that doing it again gives the same records under the same keys.
func (db *DB) eraseAudit(ctx context.Context, e *Erasure, tell Tell, fault func(eraseStep) error) error {
	if err := db.recordErasure(ctx, *e, "begun"); err != nil {
		return err
	}
	if tell != nil {
		cells, err := db.EvidenceOf(ctx, e.User, e.Until)
		if err != nil {
			return err
		}
		if err := tell(ctx, e.source()+"/"+strconv.FormatUint(e.User, 10), cells); err != nil {
			return err
		}
	}
	if err := fault(eraseBegun); err != nil {
		return err
	}
	for i := range e.Tables {
		t := &e.Tables[i]
		if err := db.QueryRow(ctx, t.Query).Scan(&t.RowsBefore); err != nil {
			return err
		}
		if t.Table != "labels" {
			continue
		}
		// Sums of UInt64 wrap around: adding 2^64 - n takes n away.
		err := db.Exec(
			ctx,
			`INSERT INTO audit (partition, minute, labels, positive, hash_xor, hash_sum, source, source_partition, source_offset)
			SETTINGS async_insert = 0
			SELECT partition, toStartOfMinute(toDateTime(event_time, 'UTC')) AS m,
				toUInt64(-count()), toUInt64(-countIf(kind IN ('positive', 'corrected'))),
				groupBitXor(cityHash64(UUIDToNum(impression_id))), toUInt64(-sum(cityHash64(UUIDToNum(impression_id)))),
				?, 0, reinterpretAsInt64(toUInt64(?))
			FROM labels FINAL WHERE `+t.where()+" GROUP BY partition, m",
			e.source(),
			e.User,
		)
		if err != nil {
			return err
		}
		err = db.Exec(
			ctx,
			`INSERT INTO label_blocks (partition, minute, first_offset, last_offset, labels, positive, hash_xor, hash_sum) SETTINGS async_insert = 0
			SELECT partition, toStartOfMinute(toDateTime(event_time, 'UTC')) AS m, -toInt64(?), reinterpretAsInt64(toUInt64(?)),
				toUInt64(-count()), toUInt64(-countIf(kind IN ('positive', 'corrected'))),
				groupBitXor(cityHash64(UUIDToNum(impression_id))), toUInt64(-sum(cityHash64(UUIDToNum(impression_id))))
			FROM labels FINAL WHERE `+t.where()+" GROUP BY partition, m",
			e.Until.Unix(),
			e.User,
		)
		if err != nil {
			return err
		}
	}
	if err := fault(eraseAudited); err != nil {
		return err
	}
	if err := db.recordErasure(ctx, *e, "counted"); err != nil {
		return err
	}
	return fault(eraseCounted)
}

// eraseRows deletes, makes the views count anew, and counts what is left.
func (db *DB) eraseRows(ctx context.Context, e *Erasure, fault func(eraseStep) error) error {
	for _, t := range e.Tables {
		if err := db.Exec(ctx, "ALTER TABLE "+quoteName(t.Table)+" DELETE WHERE "+t.where()+" SETTINGS mutations_sync = 2"); err != nil {
			return err
		}
	}
	if err := fault(eraseDeleted); err != nil {
		return err
	}
	var days []time.Time
	rows, err := db.Query(
		ctx,
		"SELECT DISTINCT toStartOfDay(minute) FROM audit WHERE source = ? AND source_offset = reinterpretAsInt64(toUInt64(?))",
		e.source(),
		e.User,
	)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var d time.Time
		if err := rows.Scan(&d); err != nil {
			return err
		}
		days = append(days, d)
	}
	if err := errors.Join(rows.Err(), db.Touch(ctx, days...)); err != nil {
		return err
	}
	for i := range e.Tables {
		t := &e.Tables[i]
		if err := db.QueryRow(ctx, t.Query).Scan(&t.RowsAfter); err != nil {
			return err
		}
		if t.RowsAfter > 0 {
			return fmt.Errorf("%d rows of %s are still there", t.RowsAfter, t.Table)
		}
	}
	return db.recordErasure(ctx, *e, "done")
}

// recordErasure writes the state of a run: its tables first, so that a run in a state has the counts of it.
func (db *DB) recordErasure(ctx context.Context, e Erasure, state string) error {
	for _, t := range append(append([]ErasedTable(nil), e.Tables...), ErasedTable{}) {
		err := db.Exec(
			ctx,
			"INSERT INTO erasures (user, until, table, state, rows_before, rows_after, query) SETTINGS async_insert = 0 "+
				"VALUES (?, ?, ?, ?, ?, ?, ?)",
			e.User,
			e.Until,
			t.Table,
			state,
			t.RowsBefore,
			t.RowsAfter,
			t.Query,
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// recordedCounts reads what a run that was interrupted had counted.
func (db *DB) recordedCounts(ctx context.Context, e *Erasure) error {
	for i := range e.Tables {
		t := &e.Tables[i]
		err := db.QueryRow(
			ctx,
			"SELECT max(rows_before) FROM erasures FINAL WHERE user = ? AND until = toDateTime(?, 'UTC') AND table = ?",
			e.User,
			e.Until.Unix(),
			t.Table,
		).Scan(
			&t.RowsBefore,
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// Clock is the server's time, which rows are dated by.
func (db *DB) Clock(ctx context.Context) (now time.Time, err error) {
	err = db.QueryRow(ctx, "SELECT now('UTC')").Scan(&now)
	return now, err
}
