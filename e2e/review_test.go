package e2e

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// counted is what a replay says of a log: the counts that are not zero.
type counted map[string]int64

// reviewed are logs that an outside review found to be read wrongly, and what is right.
var reviewed = map[string]struct {
	code int
	want counted
	says string // on stderr
}{
	"csv_2100.csv": {4, counted{"rows": 6, "impressions": 5, "clicks": 1, "rejected": 1, "bad_time": 1, "positive": 1,
		"final_negative": 4, "warehouse_rows": 5}, "line 2: bad_time"},
	"csv_bom_first_col_timestamp.csv": {0, small, ""},
	"csv_click_float_true.csv":        {0, counted{"rows": 1, "impressions": 1, "clicks": 1, "positive": 1, "warehouse_rows": 1}, ""},
	"csv_day1.csv":                    {0, day, ""},
	"csv_day2.csv":                    {0, day, ""},
	"csv_empty.csv":                   {1, nil, "hold no row"},
	"csv_item_latin1.csv":             {4, counted{"rows": 2, "rejected": 2, "bad_field": 2}, "not UTF-8"},
	"csv_newest_first_4000.csv":       {1, nil, "--sort"},
	"csv_null_item.csv":               {4, counted{"rows": 3, "rejected": 3, "bad_field": 3}, `item_id "NULL" names no item`},
	"csv_one_row_2099.csv": {4, counted{"rows": 21, "impressions": 20, "clicks": 4, "rejected": 1, "bad_time": 1, "positive": 4,
		"final_negative": 16, "warehouse_rows": 20}, "line 12: bad_time"},
	"csv_ts_iso_T_Z.csv": {0, counted{"rows": 2, "impressions": 2, "clicks": 1, "positive": 1, "final_negative": 1,
		"warehouse_rows": 2}, ""},
	"csv_upper_header.csv":               {0, small, ""},
	"gz_trailing_zeros.csv.gz":           {0, small, ""},
	"zst_log.csv.zst":                    {0, small, ""},
	"jsonl_as_array.json":                {0, events, ""},
	"jsonl_bom.jsonl":                    {0, events, ""},
	"jsonl_leading_blank_line.jsonl":     {0, events, ""},
	"jsonl_bot_click_on_human_imp.jsonl": {0, counted{"rows": 6, "impressions": 3, "clicks": 3, "positive": 3, "warehouse_rows": 3}, ""},
	"jsonl_click_time_micros.jsonl": {4, counted{"rows": 2, "impressions": 1, "rejected": 1, "bad_time": 1, "final_negative": 1,
		"warehouse_rows": 1}, "line 2: bad_time"},
	"jsonl_click_time_seconds.jsonl": {4, counted{"rows": 2, "impressions": 1, "rejected": 1, "bad_time": 1, "final_negative": 1,
		"warehouse_rows": 1}, "Unix milliseconds, not seconds"},
	"jsonl_empty_user_and_null.jsonl": {0, counted{"rows": 6, "impressions": 6, "final_negative": 6, "warehouse_rows": 6}, ""},
	"jsonl_latin1.jsonl":              {4, counted{"rows": 2, "rejected": 2, "bad_field": 2}, "not UTF-8"},
	"jsonl_one_bad_line.jsonl":        {1, nil, "line 6: not a JSON object"},
	"jsonl_rejected_mix.jsonl": {4, counted{"rows": 6, "impressions": 5, "clicks": 1, "rejected": 4, "bad_field": 4, "positive": 1,
		"warehouse_rows": 1}, "line 3: bad_field: propensity is 1.5"},
	"jsonl_unknown_field.jsonl": {4, counted{"rows": 3, "impressions": 2, "clicks": 1, "rejected": 1, "bad_field": 1, "positive": 1,
		"warehouse_rows": 1}, `unknown field "campain"`},
	"jsonl_uuidv4.jsonl": {4, counted{"rows": 3, "impressions": 1, "clicks": 1, "rejected": 1, "bad_id": 1, "positive": 1,
		"warehouse_rows": 1}, "UUID version 4"},
}

var (
	small  = counted{"rows": 20, "impressions": 20, "clicks": 4, "positive": 4, "final_negative": 16, "warehouse_rows": 20}
	events = counted{"rows": 14, "impressions": 10, "clicks": 4, "positive": 4, "final_negative": 6, "warehouse_rows": 10}
	day    = counted{"rows": 600, "impressions": 600, "clicks": 120, "positive": 120, "final_negative": 480, "warehouse_rows": 600}
)

const reviewLogs = "testdata/review/logs"

// TestReviewLogs replays every log of the review. `make review-inputs` runs all, `make test` those that say the most.
func TestReviewLogs(t *testing.T) {
	needEngine(t)
	files, err := os.ReadDir(reviewLogs)
	if err != nil {
		t.Fatal(err)
	}
	short := []string{"csv_one_row_2099.csv", "jsonl_click_time_micros.jsonl", "jsonl_rejected_mix.jsonl", "gz_trailing_zeros.csv.gz"}
	for _, f := range files {
		if os.Getenv("CTRLOOP_REVIEW_INPUTS") != "all" && !slices.Contains(short, f.Name()) {
			continue
		}
		t.Run(f.Name(), func(t *testing.T) {
			want, ok := reviewed[f.Name()]
			if !ok {
				t.Fatal("no right value is known of it")
			}
			got, stderr, code := account(t, filepath.Join(reviewLogs, f.Name()))
			if code != want.code || !strings.Contains(stderr, want.says) {
				t.Errorf("exit %d, want %d, with %q in\n%s", code, want.code, want.says, stderr)
			}
			if d := cmp.Diff(want.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// account replays and returns the counts; nil without a result.
func account(t *testing.T, args ...string) (got counted, stderr string, code int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "result.json")
	_, stderr, code = ctrloop(t, append([]string{"replay", "--json", file}, args...)...)
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, stderr, code
	}
	var r struct {
		Rejects       counted
		LedgerOK      bool  `json:"ledger_ok"`
		AuditMismatch int64 `json:"audit_mismatch"`
	}
	var all map[string]any
	if err := json.Unmarshal(raw, &r); err != nil || json.Unmarshal(raw, &all) != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	if !r.LedgerOK || r.AuditMismatch != 0 {
		t.Errorf("the books are not closed: %s", raw)
	}
	got = r.Rejects
	for _, name := range []string{"rows", "impressions", "clicks", "rejected", "positive", "final_negative", "repeated", "lost", "orphans",
		"waiting", "warehouse_rows"} {
		if v := int64(all[name].(float64)); v != 0 {
			got[name] = v
		}
	}
	return got, stderr, code
}

// TestReplayOfSeveralDays: windows that are left open take the next log, and what would be lost is refused.
func TestReplayOfSeveralDays(t *testing.T) {
	needEngine(t)
	one, two := filepath.Join(reviewLogs, "csv_day1.csv"), filepath.Join(reviewLogs, "csv_day2.csv")
	both := maps.Clone(day)
	both["warehouse_rows"] = 1200

	dir := t.TempDir()
	first, stderr, code := account(t, "--dir", dir, "--keep-open", one)
	if code != 0 || first["warehouse_rows"] >= 600 || first["lost"] != 0 {
		t.Fatalf("exit %d, %v: %s", code, first, stderr)
	}
	second, stderr, code := account(t, "--dir", dir, two)
	if code != 0 || second["warehouse_rows"] != 1200 || second["positive"]+first["positive"] != 240 || second["lost"] != 0 {
		t.Fatalf("exit %d, %v after %v: %s", code, second, first, stderr)
	}
	again, stderr, code := account(t, "--dir", dir, one)
	if d := cmp.Diff(counted{"rows": 600, "impressions": 600, "clicks": 120, "repeated": 720, "warehouse_rows": 1200}, again); d != "" ||
		code != 0 {
		t.Errorf("the first day again: exit %d, %s\n%s", code, d, stderr)
	}

	dir = t.TempDir()
	if _, stderr, code := account(t, "--dir", dir, two); code != 0 {
		t.Fatal(stderr)
	}
	got, stderr, code := account(t, "--dir", dir, one)
	if got != nil || code != 4 || !strings.Contains(stderr, "--keep-open") {
		t.Errorf("a day before what the store has closed: exit %d, %v: %s", code, got, stderr)
	}
	if got := sql(t, dir, "SELECT count() FROM labels"); got != "600" {
		t.Errorf("%s labels after a log that was refused", got)
	}
}

func TestReplayWithOptions(t *testing.T) {
	needEngine(t)
	list := filepath.Join(t.TempDir(), "rejects.jsonl")
	got, stderr, code := account(t, "--skip-bad", "--max-rejects", "10%", "--rejects", list,
		filepath.Join(reviewLogs, "jsonl_one_bad_line.jsonl"))
	want := maps.Clone(events)
	want["rows"], want["rejected"], want["malformed"] = 15, 1, 1
	if d := cmp.Diff(want, got); d != "" || code != 0 {
		t.Errorf("exit %d, %s\n%s", code, d, stderr)
	}
	raw, err := os.ReadFile(list)
	if err != nil || !strings.Contains(string(raw), `"line":6,"reason":"malformed"`) {
		t.Errorf("%v: %s", err, raw)
	}
	got, stderr, code = account(t, "--sort", filepath.Join(reviewLogs, "csv_newest_first_4000.csv"))
	if code != 0 || got["positive"] != 800 || got["final_negative"] != 3200 || got["lost"] != 0 {
		t.Errorf("sorted: exit %d, %v: %s", code, got, stderr)
	}
	if _, stderr, code := account(t, "--max-rejects", "2", list); code != 2 || !strings.Contains(stderr, "share from 0 to 1") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
