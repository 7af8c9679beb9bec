package eventlog

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/klauspost/compress/zstd"

	"ctrloop/schemas"
)

const header = ",timestamp,item_id,position,click,propensity_score,user_feature_0,user_feature_1,user-item_affinity_0\n"

func banditLog(rows int, clickEvery int, start time.Time) string {
	var b strings.Builder
	b.WriteString(header)
	for i := range rows {
		click := 0
		if i%clickEvery == 0 {
			click = 1
		}
		fmt.Fprintf(
			&b,
			"%d,%s,%d,%d,%d,0.25,u%d,v,0.0\n",
			i,
			start.Add(time.Duration(i)*7*time.Second).Format("2006-01-02 15:04:05.000000-07:00"),
			i%46,
			i%3+1,
			click,
			i%5,
		)
	}
	return b.String()
}

func file(t *testing.T, name, text string, zip bool) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	b := []byte(text)
	if zip {
		var buf bytes.Buffer
		z := gzip.NewWriter(&buf)
		_, _ = z.Write(b)
		_ = z.Close()
		b = buf.Bytes()
	}
	if err := os.WriteFile(p, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func all(t *testing.T, opt Options, paths ...string) []Line {
	t.Helper()
	r, err := Open(paths, opt)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var out []Line
	for {
		l, err := r.Next()
		if errors.Is(err, io.EOF) {
			if p := r.Progress(); p != 1 {
				t.Errorf("progress at the end is %v", p)
			}
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, l)
	}
}

var start = time.Date(2019, 11, 24, 0, 3, 24, 0, time.UTC)

func TestOpenBanditBecomesImpressionsAndDelayedClicks(t *testing.T) {
	opt := Options{Seed: 1, Delay: DefaultDelay()}
	lines := all(t, opt, file(t, "random/log.csv.gz", banditLog(5000, 10, start), true))
	imps := map[string]int64{}
	clicks := 0
	last := int64(0)
	for _, l := range lines {
		if l.TimeMS < last {
			t.Fatalf("time runs back: %d after %d", l.TimeMS, last)
		}
		last = l.TimeMS
		var e event
		if err := json.Unmarshal(l.JSON, &e); err != nil {
			t.Fatal(err)
		}
		if !l.Click {
			id, err := schemas.ParseImpressionID(e.ID)
			if err != nil || id.UnixMilli() != l.TimeMS {
				t.Fatalf("%s: %v", l.JSON, err)
			}
			imps[e.ID] = l.TimeMS
			continue
		}
		clicks++
		at, ok := imps[e.ImpressionID]
		if !ok {
			t.Fatalf("a click precedes its impression in the stream: %s", l.JSON)
		}
		if d := time.Duration(e.TimeMS-at) * time.Millisecond; d < 0 || d > opt.Delay.Max {
			t.Errorf("delay %v", d)
		}
	}
	if len(imps) != 5000 || clicks != 500 {
		t.Errorf("%d impressions, %d clicks of 5000, 500", len(imps), clicks)
	}
	var e event
	if err := json.Unmarshal(lines[0].JSON, &e); err != nil {
		t.Fatal(err)
	}
	if e.Product != "item-0" || e.Campaign != "random" || e.Position != 1 || e.Propensity != 0.25 {
		t.Errorf("first row: %s", lines[0].JSON)
	}
}

func TestReplayIsTheSameEventsWhateverTheName(t *testing.T) {
	text := banditLog(300, 7, start)
	opt := Options{Seed: 3, Delay: DefaultDelay()}
	a := all(t, opt, file(t, "x/log.csv", text, false))
	b := all(t, opt, file(t, "x/other.csv.gz", text, true))
	if d := cmp.Diff(a, b, cmpopts.IgnoreFields(Line{}, "File")); d != "" {
		t.Error(d)
	}
	opt.Seed = 4
	if cmp.Equal(a, all(t, opt, file(t, "x/log.csv", text, false))) {
		t.Error("another seed gave the same delays")
	}
}

func TestLogsAreMergedByTime(t *testing.T) {
	opt := Options{Delay: DefaultDelay()}
	lines := all(
		t,
		opt,
		file(t, "a/log.csv", banditLog(3000, 9, start), false),
		file(t, "b/log.csv", banditLog(3000, 9, start.Add(3*time.Second)), false),
	)
	last := int64(0)
	for _, l := range lines {
		if l.TimeMS < last {
			t.Fatal("two logs of the same week must come as one stream in time")
		}
		last = l.TimeMS
	}
}

func TestJSONLinesPassThrough(t *testing.T) {
	id := schemas.NewImpressionID(start, [10]byte{1}).String()
	text := `{"type":"impression","id":"` + id + `","product":"p"}` + "\n\n" + `{"type":"click","impression_id":"` + id + `","time_ms":` +
		fmt.Sprint(start.UnixMilli()+5) + "}\n"
	lines := all(t, Options{Delay: DefaultDelay()}, file(t, "events.jsonl", text, false))
	if len(lines) != 2 || lines[0].Click || !lines[1].Click || lines[0].TimeMS != start.UnixMilli() {
		t.Errorf("%+v", lines)
	}
}

func TestErrorsSayWhere(t *testing.T) {
	row := func(s string) string { return header + banditLog(1, 2, start)[len(header):] + s }
	for name, tc := range map[string]struct{ text, want string }{
		"empty":      {"", "EOF"},
		"utf-16":     {"\xff\xfe{\x00", "iconv"},
		"archive":    {"PK\x03\x04....", "unpack it first"},
		"future":     {row("1,2101-01-01 00:00:00.000000+00:00,3,1,0,0.5,a,b,0\n"), "between 1970 and 2100"},
		"item":       {row("1,2019-11-24 00:03:24.688993+00:00,NULL,1,0,0.5,a,b,0\n"), `line 3: item_id "NULL" names no item`},
		"latin-1":    {row("1,2019-11-24 00:03:24.688993+00:00,caf\xe9,1,0,0.5,a,b,0\n"), "line 3: the row is not UTF-8"},
		"long":       {"{\"type\":\"" + strings.Repeat("x", maxLine) + "\n", "line 1: the line has more than 1048576 bytes"},
		"array":      {"[{\"type\":\"view\"}", `line 1: type "view"`},
		"header":     {"a,b,c\n1,2,3\n", "lacks timestamp, item_id, position, click, propensity_score"},
		"time":       {row("1,yesterday,3,1,0,0.5,a,b,0\n"), `line 3: timestamp "yesterday"`},
		"click":      {row("1,2019-11-24 00:03:24.688993+00:00,3,1,2,0.5,a,b,0\n"), `line 3: click "2"`},
		"propensity": {row("1,2019-11-24 00:03:24.688993+00:00,3,1,0,NaN,a,b,0\n"), `line 3: propensity_score "NaN"`},
		"fields":     {row("1,2\n"), "wrong number of fields"},
		"json":       {"{\"type\":\"impression\"}\n", "not an impression id"},
		"json type":  {"{\"type\":\"view\"}\n", `type "view"`},
	} {
		r, err := Open([]string{file(t, "x/"+strings.ReplaceAll(name, " ", "-"), tc.text, false)}, Options{Delay: DefaultDelay()})
		for err == nil {
			_, err = r.Next()
		}
		if !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q in it", name, err, tc.want)
		}
	}
	if _, err := Open(nil, Options{}); err == nil {
		t.Error("a delay distribution without a median was accepted")
	}
}

// impressionLine is a JSON line of an impression so long after start.
func impressionLine(after time.Duration, n byte) string {
	return `{"type":"impression","id":"` + schemas.NewImpressionID(start.Add(after), [10]byte{n}).String() + `","product":"p"}` + "\n"
}

func clickLine(shown, clicked time.Duration, n byte) string {
	return fmt.Sprintf(`{"type":"click","impression_id":"%s","time_ms":%d}`+"\n",
		schemas.NewImpressionID(start.Add(shown), [10]byte{n}), start.Add(clicked).UnixMilli())
}

// TestHowALogBegins: marks, blank lines, arrays, members and padding change nothing of what is read.
func TestHowALogBegins(t *testing.T) {
	text := impressionLine(0, 1) + impressionLine(time.Second, 2) + clickLine(0, 2*time.Second, 1)
	opt := Options{Delay: DefaultDelay()}
	want := all(t, opt, file(t, "log.jsonl", text, false))
	zip := func(text string) string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write([]byte(text))
		_ = z.Close()
		return b.String()
	}
	zst, _ := zstd.NewWriter(nil)
	for name, text := range map[string]string{
		"mark":    "\xef\xbb\xbf" + text,
		"blank":   "\n \r\n" + text,
		"array":   "[" + strings.ReplaceAll(strings.TrimSpace(text), "\n", ",\n") + "]\n",
		"members": zip(text[:40]) + zip(text[40:]),
		"padded":  zip(text) + strings.Repeat("\x00", 700),
		"zstd":    string(zst.EncodeAll([]byte(text), nil)),
	} {
		got := all(t, opt, file(t, name, text, false))
		if d := cmp.Diff(want, got, cmpopts.IgnoreFields(Line{}, "File", "Row")); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	opt.Stdin = strings.NewReader(text)
	r, err := Open([]string{"-"}, opt)
	if err != nil {
		t.Fatal(err)
	}
	if l, err := r.Next(); err != nil || l.File != "standard input" || r.Progress() >= 0 {
		t.Errorf("standard input: %+v, %v, progress %v", l, err, r.Progress())
	}
	if _, err := Open([]string{file(t, "cut.gz", zip(text)+"rubbish", false)}, opt); err != nil {
		t.Fatal(err)
	}
}

// TestForms of the same Open Bandit log are the same events.
func TestForms(t *testing.T) {
	text := "timestamp,item_id,position,click,propensity_score\n2026-03-01 10:00:00+00:00,7,1,1,0.25\n2026-03-01 10:00:07.5+00:00,8,2,0,0.25\n"
	opt := Options{Delay: DefaultDelay()}
	strip := func(lines []Line) (out []string) {
		for _, l := range lines {
			var e event
			if err := json.Unmarshal(l.JSON, &e); err != nil {
				t.Fatal(err)
			}
			if !l.Click {
				out = append(out, fmt.Sprint(l.TimeMS, e.Product, e.Position, e.Propensity))
			}
		}
		return append(out, fmt.Sprint(len(lines)))
	}
	want := strip(all(t, opt, file(t, "x/log.csv", text, false)))
	for name, form := range map[string]string{
		"mark":  "\xef\xbb\xbf" + text,
		"upper": strings.ToUpper(text[:strings.Index(text, "\n")]) + text[strings.Index(text, "\n"):],
		"semi":  strings.ReplaceAll(text, ",", ";"),
		"iso":   strings.NewReplacer("01 10", "01T10", "+00:00", "Z").Replace(text),
		"float": strings.NewReplacer(",1,1,", ",1,1.0,", ",2,0,", ",2,false,").Replace(text),
		"blank": "\n\n" + text,
	} {
		if d := cmp.Diff(want, strip(all(t, opt, file(t, "x/"+name, form, false)))); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// TestReadingGoesOnBehindABadRow and counts it among the rows.
func TestReadingGoesOnBehindABadRow(t *testing.T) {
	csv := header + banditLog(3, 9, start)[len(header):] + "1,2\n" + banditLog(1, 9, start.Add(time.Hour))[len(header):]
	lines := impressionLine(0, 1) + "{\n" + strings.Repeat("x", 2*maxLine) + "\n\n" + impressionLine(time.Second, 2)
	for name, tc := range map[string]struct {
		text       string
		good, rows int64
		bad        string
	}{
		"csv": {csv, 4, 5, "[log, line 5: wrong number of fields]"},
		"jsonl": {lines, 2, 4, "[log, line 2: not a JSON object: unexpected end of JSON input log, line 3: the line has more than " +
			"1048576 bytes]"},
	} {
		r, err := Open([]string{file(t, name+"/log", tc.text, false)}, Options{Delay: DefaultDelay()})
		if err != nil {
			t.Fatal(err)
		}
		var good int64
		var bad []*RowError
		for {
			l, err := r.Next()
			var row *RowError
			switch {
			case errors.Is(err, io.EOF):
			case errors.As(err, &row):
				bad = append(bad, row)
				continue
			case err != nil:
				t.Fatal(err)
			case !l.Click:
				good++
				continue
			default:
				continue
			}
			break
		}
		if good != tc.good || r.Rows() != tc.rows || fmt.Sprint(bad) != tc.bad {
			t.Errorf("%s: %d good of %d, %v", name, good, r.Rows(), bad)
		}
	}
}

// TestAClickBesideItsImpression does not keep the rows behind it from being read in time.
func TestAClickBesideItsImpression(t *testing.T) {
	var b strings.Builder
	for i := range 3 * reorderRows {
		at := time.Duration(i) * time.Second
		b.WriteString(impressionLine(at, byte(i)))
		b.WriteString(clickLine(at, at+20*time.Minute, byte(i)))
	}
	if got := all(t, Options{Delay: DefaultDelay(), Disorder: time.Second}, file(t, "log", b.String(), false)); len(got) != 6*reorderRows {
		t.Errorf("%d events", len(got))
	}
	var clicks strings.Builder
	for i := range 3 * reorderRows {
		clicks.WriteString(clickLine(0, time.Duration(i)*time.Second, 1))
	}
	r, err := Open([]string{file(t, "clicks", clicks.String(), false)}, Options{Delay: DefaultDelay()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(); err != nil || len(r.heap) >= 2*reorderRows {
		t.Errorf("%d clicks are held, %v", len(r.heap), err)
	}
}

// TestALogOutOfOrder names the line, and Sort brings it into order, in memory and by files.
func TestALogOutOfOrder(t *testing.T) {
	var b strings.Builder
	n := 2 * reorderRows
	for i := range n {
		b.WriteString(impressionLine(time.Duration(n-i)*time.Minute, byte(i)))
	}
	path := file(t, "log", b.String(), false)
	opt := Options{Delay: DefaultDelay(), Disorder: 30 * time.Second}
	r, err := Open([]string{path}, opt)
	for err == nil {
		_, err = r.Next()
	}
	var unsorted *UnsortedError
	if !errors.As(err, &unsorted) || unsorted.Line != reorderRows+1 {
		t.Errorf("%v", err)
	}
	opt.Disorder = 0
	for _, limit := range []int{runBytes, 20_000} {
		r, err := Open([]string{path}, opt)
		if err != nil {
			t.Fatal(err)
		}
		s, err := sortRuns(r.Next, t.TempDir(), limit)
		if err != nil {
			t.Fatal(err)
		}
		var last, got int64
		for {
			l, err := s.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil || l.TimeMS < last || l.File != "log" || l.Row == 0 || len(l.JSON) == 0 {
				t.Fatalf("%+v after %d: %v", l, last, err)
			}
			last = l.TimeMS
			got++
		}
		if got != int64(n) || s.Close() != nil {
			t.Errorf("%d of %d events in runs of %d bytes", got, n, limit)
		}
	}
}

// TestARecordedEventIsNotOfTheFuture: one such row would close the windows of everything behind it.
func TestARecordedEventIsNotOfTheFuture(t *testing.T) {
	opt := Options{Delay: DefaultDelay(), Latest: start.Add(time.Minute)}
	path := file(t, "log", impressionLine(0, 1)+impressionLine(2*time.Minute, 2)+clickLine(0, -30*time.Hour, 1), false)
	r, err := Open([]string{path}, opt)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for {
		_, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if row := (*RowError)(nil); errors.As(err, &row) {
			got = append(got, string(row.Reason), row.Error())
		}
	}
	want := []string{
		"bad_time", "log, line 2: 2019-11-24T00:05:24Z is in the future: a recorded event cannot be",
		"bad_time", "log, line 3: the click is a day or more before its impression: time_ms is in Unix milliseconds, not seconds",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
