package console

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// fixed is a Source whose answer a test sets.
type fixed struct {
	mu    sync.Mutex
	o     Overview
	err   error
	calls atomic.Int64
}

func (f *fixed) set(o Overview, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.o, f.err = o, err
}

func (f *fixed) Overview(context.Context) (Overview, error) {
	f.calls.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.o, f.err
}

func newService(t testing.TB, src Source, change func(*Config)) *Service {
	t.Helper()
	cfg := Default()
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg, src, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestOverviewIsCompletedAndShared(t *testing.T) {
	src := &fixed{o: Overview{
		Stages:    []Stage{{Name: Serve, State: Idle}, {Name: Ingest, State: Running}},
		Creatives: append(make([]Creative, 30), Creative{}),
		Ledger:    Ledger{Received: 10, Positive: 1, Negative: 5, Open: 2, Duplicate: 1},
		CTR:       []CTRPoint{{Impressions: 1000, Clicks: 40}, {}},
	}}
	src.o.Creatives[0] = Creative{ID: "c-1", Impressions: 100, Clicks: 10}
	s := newService(t, src, func(c *Config) { c.Refresh = time.Hour })
	for range 3 {
		rec := httptest.NewRecorder()
		s.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", "/api/overview", nil))
		var o Overview
		if err := json.Unmarshal(rec.Body.Bytes(), &o); err != nil || rec.Code != 200 {
			t.Fatalf("%d %v", rec.Code, err)
		}
		var names []StageName
		for _, st := range o.Stages {
			names = append(names, st.Name)
		}
		if !reflect.DeepEqual(names, []StageName{Ingest, Join, Pair, Train, Serve}) || o.Stages[1].State != Stopped {
			t.Errorf("stages %v", o.Stages)
		}
		c := o.Creatives[0]
		if c.Image != "/v1/creatives/c-1.png" || *c.CTR != 0.1 || math.Abs(*c.Low-0.0552) > 1e-4 || math.Abs(*c.High-0.1744) > 1e-4 {
			t.Errorf("creative %+v", c)
		}
		if len(o.Creatives) != maxCreatives || o.Ledger.Difference != 1 || o.CTR[1].CTR != nil {
			t.Errorf("%d creatives, difference %d, %v", len(o.Creatives), o.Ledger.Difference, o.CTR[1])
		}
	}
	if n := src.calls.Load(); n != 1 {
		t.Errorf("the source was asked %d times within one refresh", n)
	}
}

func TestOverviewErrorIsSaid(t *testing.T) {
	s := newService(t, &fixed{err: errors.New("warehouse gone")}, nil)
	rec := httptest.NewRecorder()
	s.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", "/api/overview", nil))
	if rec.Code != 503 || !strings.Contains(rec.Body.String(), "warehouse gone") || !strings.Contains(rec.Body.String(), "hint") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

// nextEvent reads one server-sent event.
func nextEvent(t *testing.T, r *bufio.Reader) (name, data string) {
	t.Helper()
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("stream: %v", err)
		}
		line = strings.TrimSuffix(line, "\n")
		if v, ok := strings.CutPrefix(line, "event: "); ok {
			name = v
		} else if v, ok := strings.CutPrefix(line, "data: "); ok {
			data = v
		} else if line == "" {
			return name, data
		}
	}
}

func TestLive(t *testing.T) {
	src := &fixed{o: Overview{Instance: Instance{Name: "one"}}}
	s := newService(t, src, func(c *Config) { c.Refresh, c.MaxStreams = 50*time.Millisecond, 1 })
	srv := httptest.NewServer(s.Handler())
	defer srv.Close()
	resp, err := http.Get(srv.URL + "/api/live")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body := bufio.NewReader(resp.Body)
	if name, data := nextEvent(t, body); name != "overview" || !strings.Contains(data, `"one"`) {
		t.Fatalf("first event %s %s", name, data)
	}
	src.set(Overview{}, errors.New("gone"))
	for name := ""; name != "problem"; {
		var data string
		if name, data = nextEvent(t, body); name == "problem" && !strings.Contains(data, "gone") {
			t.Fatalf("problem %s", data)
		}
	}
	src.set(Overview{Instance: Instance{Name: "two"}}, nil)
	for data := ""; !strings.Contains(data, `"two"`); {
		_, data = nextEvent(t, body)
	}
	// V18: one viewer too many ends the oldest stream and gets its place.
	second, err := http.Get(srv.URL + "/api/live")
	if err != nil {
		t.Fatal(err)
	}
	defer second.Body.Close()
	if name, data := nextEvent(t, bufio.NewReader(second.Body)); name != "overview" || !strings.Contains(data, `"two"`) {
		t.Errorf("the newest viewer gets %s %s", name, data)
	}
	for name := ""; name != "full"; {
		name, _ = nextEvent(t, body)
	}
	if _, err := body.ReadByte(); err == nil {
		t.Error("the oldest stream goes on")
	}
	srv.CloseClientConnections()
}

func TestAssets(t *testing.T) {
	h := newService(t, &fixed{}, nil).Handler()
	get := func(path, tag string) *httptest.ResponseRecorder {
		req := httptest.NewRequestWithContext(t.Context(), "GET", path, nil)
		req.Header.Set("If-None-Match", tag)
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, req)
		return rec
	}
	page := get("/", "")
	if page.Code != 200 || !strings.HasPrefix(page.Header().Get("Content-Type"), "text/html") {
		t.Fatalf("page: %d %v", page.Code, page.Header())
	}
	csp := page.Header().Get("Content-Security-Policy")
	if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
		t.Errorf("policy %q", csp)
	}
	for _, p := range []string{"/assets/app.js", "/assets/app.css", "/assets/icon.svg"} {
		rec := get(p, "")
		if rec.Code != 200 || rec.Header().Get("ETag") == "" {
			t.Errorf("%s: %d", p, rec.Code)
		}
		if again := get(p, rec.Header().Get("ETag")); again.Code != http.StatusNotModified {
			t.Errorf("%s again: %d", p, again.Code)
		}
		if s := rec.Body.String(); strings.Contains(s, "http://") && !strings.Contains(s, "http://www.w3.org/2000/svg") ||
			strings.Contains(s, "https://") {
			t.Errorf("%s names another host", p)
		}
	}
	for _, p := range []string{"/nothing", "/assets/none.js", "/assets/index.html", "/assets/../service.go"} {
		if rec := get(p, ""); rec.Code == 200 {
			t.Errorf("%s: %d", p, rec.Code)
		}
	}
}

// types.ts names every field of the document, so that a renamed field cannot go blank on the page unnoticed.
func TestTypesOfThePage(t *testing.T) {
	raw, err := os.ReadFile("ui/src/types.ts")
	if err != nil {
		t.Fatal(err)
	}
	ts := string(raw)
	seen := map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(ty reflect.Type) {
		switch ty.Kind() {
		case reflect.Pointer, reflect.Slice:
			walk(ty.Elem())
		case reflect.Struct:
			if seen[ty] || ty == reflect.TypeFor[time.Time]() {
				return
			}
			seen[ty] = true
			for f := range ty.Fields() {
				if name := f.Tag.Get("json"); name != "" && !strings.Contains(ts, " "+name+": ") {
					t.Errorf("types.ts lacks %s of %s", name, ty.Name())
				} else if name == "" && !f.Anonymous {
					t.Errorf("%s.%s has no json name", ty.Name(), f.Name)
				}
				walk(f.Type)
			}
		}
	}
	walk(reflect.TypeFor[Overview]())
	if len(seen) < 12 {
		t.Errorf("only %d types were looked at", len(seen))
	}
}

func TestConfigNamesEveryProblem(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Fatal(err)
	}
	err := Config{}.Validate()
	for _, path := range []string{"refresh", "timeout", "max_streams"} {
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s is missing in: %v", path, err)
		}
	}
}
