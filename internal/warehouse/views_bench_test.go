package warehouse

import "testing"

// BenchmarkViews: go test ./internal/warehouse -run - -bench Views; each view over 5 million labels of 200,000
// users, 3 versions in a thousand, some parts not merged.
func BenchmarkViews(b *testing.B) {
	db := database(b)
	for part := range 5 {
		q := `INSERT INTO labels (impression_id, event_time, version, user, product, creative, placement, category,
				experiment, variant, model_version, kind, clicked, click_delay_ms, watermark, partition, offset)
			WITH number + 1000000 * toUInt64(` + string(rune('0'+part)) + `) AS i, sipHash64(i) AS h,
				toDateTime64('2026-03-01 00:00:00', 3, 'UTC') + i % 250000 AS t
			SELECT reinterpretAsUUID(concat(reinterpretAsString(h), reinterpretAsString(i))), t, 1 + (h % 333 = 0), sipHash64(h % 200000),
				concat('p', toString(h % 176)), concat('c', toString(h % 1760)), 'feed',
				concat('d/', toString(h % 44)), concat('x', toString(h % 4)), ['control', 'treatment'][1 + h % 200000 % 2],
				concat('m', toString(h % 5)), ['final_negative', 'positive'][1 + (h % 31 = 0)], h % 31 = 0, h % 60000,
				t + 1801, h % 8, i
			FROM numbers(1000000)`
		if err := db.Exec(b.Context(), q); err != nil {
			b.Fatal(err)
		}
	}
	for _, view := range []string{"labels_latest", "label_horizon", "ctr_by_creative", "ctr_by_category", "pair_evidence", "experiment_lift",
		"model_timeline", "click_delay", "freshness", "audit_mismatch"} {
		b.Run(view, func(b *testing.B) {
			for b.Loop() {
				var n uint64
				if err := db.QueryRow(b.Context(), "SELECT count() FROM (SELECT * FROM "+view+")").Scan(&n); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
