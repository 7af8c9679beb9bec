package warehouse

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/go-faster/city"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// audited inserts rows with the audit that a joiner would write.
func audited(t *testing.T, db *DB, token string, rows []LabelRow) {
	t.Helper()
	if err := db.InsertLabels(t.Context(), token, rows); err != nil {
		t.Fatal(err)
	}
	minutes := map[int64]*eventpb.AuditMinute{}
	for _, r := range rows {
		ms := r.Impression.UnixMilli() / 60_000 * 60_000
		a := minutes[ms]
		if a == nil {
			a = &eventpb.AuditMinute{MinuteMs: ms, Partition: r.Partition}
			minutes[ms] = a
		}
		h := city.CH64(r.Impression[:])
		a.Labels++
		a.HashXor ^= h
		a.HashSum += h
		if r.Clicked {
			a.Positive++
		}
	}
	var out []AuditRow
	for ms, a := range minutes {
		out = append(out, AuditRow{AuditMinute: a, Place: Place{TopicID: token, Offset: ms}})
	}
	if err := db.InsertAudit(t.Context(), out); err != nil {
		t.Fatal(err)
	}
}

// crowd is 4000 labels of 40 users over two days, corrections among them.
func crowd(seed uint64) (rows []LabelRow) {
	rng := rand.New(rand.NewPCG(seed, seed))
	start := time.Date(2026, 3, 1, 22, 0, 0, 0, time.UTC)
	for i := range 4000 {
		at := start.Add(time.Duration(i) * 4 * time.Second)
		var random [10]byte
		for j := range random {
			random[j] = byte(rng.Uint32())
		}
		clicked := rng.IntN(10) == 0
		r := LabelRow{
			Impression:  schemas.NewImpressionID(at, random),
			Version:     1,
			User:        uint64(1)<<63 + uint64(rng.IntN(40)),
			Product:     "p",
			Creative:    "c",
			Experiment:  "x",
			Variant:     "control",
			Kind:        eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE,
			Weight:      1,
			WatermarkMS: at.Add(time.Hour).UnixMilli(),
		}
		rows = append(rows, r)
		if clicked {
			r.Version, r.Clicked, r.Kind = 2, true, eventpb.LabelKind_LABEL_KIND_CORRECTED
			rows = append(rows, r)
		}
	}
	return rows
}

// An erasure that dies at any step is finished by the next one; others keep every row; the audit and the rollups
// agree with what is left.
func TestErase(t *testing.T) {
	for _, dies := range []eraseStep{"", eraseBegun, eraseAudited, eraseCounted, eraseDeleted} {
		t.Run("dies at "+string(dies), func(t *testing.T) {
			db := database(t)
			rows := crowd(1)
			audited(t, db, "crowd", rows)
			rollUp(t, db)
			user := rows[0].User
			mine, clicks := 0, 0
			for _, r := range rows {
				if r.User == user {
					mine++
				} else if r.Clicked {
					clicks++
				}
			}
			now, err := db.Clock(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if dies != "" {
				planned := errors.New("dies")
				_, err := db.erase(t.Context(), user, now, func(at eraseStep) error {
					if at == dies {
						return planned
					}
					return nil
				})
				if !errors.Is(err, planned) {
					t.Fatalf("got %v", err)
				}
			}
			e, err := db.Erase(t.Context(), user, now.Add(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			if e.Rows() < uint64(mine) || dies != "" && !e.Until.Equal(now) {
				t.Errorf("proof %+v: want at least %d rows, until %v", e, mine, now)
			}
			left := len(rows) - mine
			if n := count(t, db, "SELECT count() FROM labels"); n != uint64(left) {
				t.Errorf("%d rows left, want %d", n, left)
			}
			if n := count(t, db, fmt.Sprintf("SELECT count() FROM rollup_users WHERE user = %d", user)); n != 0 {
				t.Errorf("the rollups know the user in %d rows", n)
			}
			if n := count(t, db, "SELECT count() FROM audit_mismatch"); n != 0 {
				t.Errorf("%d minutes of the audit differ", n)
			}
			if n := count(t, db, "SELECT sum(clicks) FROM ctr_by_creative"); n != uint64(clicks) {
				t.Errorf("the views count %d clicks, want %d", n, clicks)
			}
			rollupsEqualScan(t, db, "the erasure")
			if n := count(t, db, fmt.Sprintf("SELECT sum(rows_before) FROM erasures FINAL WHERE user = %d AND state = 'done' AND table = 'labels'", user)); n != uint64(
				mine,
			) {
				t.Errorf("the stored proof speaks of %d rows, want %d", n, mine)
			}
			for _, tab := range e.Tables {
				if n := count(t, db, tab.Query); n != 0 {
					t.Errorf("%s: %d", tab.Query, n)
				}
			}
			again, err := db.Erase(t.Context(), user, now.Add(2*time.Minute))
			if err != nil || again.Rows() != 0 {
				t.Errorf("again: %d rows, %v", again.Rows(), err)
			}
			if n := count(t, db, "SELECT count() FROM audit_mismatch"); n != 0 {
				t.Errorf("%d minutes of the audit differ after the second run", n)
			}
		})
	}
}
