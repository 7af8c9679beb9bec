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
	if d := cmp.Diff(a, b); d != "" {
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
	text := `{"type":"impression","id":"` + id + `","product":"p"}` + "\n\n" + `{"type":"click","impression_id":"` + id + `","time_ms":` + fmt.Sprint(
		start.UnixMilli()+5,
	) + "}\n"
	lines := all(t, Options{Delay: DefaultDelay()}, file(t, "events.jsonl", text, false))
	if len(lines) != 2 || lines[0].Click || !lines[1].Click || lines[0].TimeMS != start.UnixMilli() {
		t.Errorf("%+v", lines)
	}
}

func TestErrorsSayWhere(t *testing.T) {
	row := func(s string) string { return header + banditLog(1, 2, start)[len(header):] + s }
	for name, tc := range map[string]struct{ text, want string }{
		"empty":      {"", "is empty"},
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
