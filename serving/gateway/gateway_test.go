package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"ctrloop/serving/backend"
	"ctrloop/serving/backend/vllmfake"
	"ctrloop/serving/experiment/assign"
	"ctrloop/serving/route"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type stage struct {
	gw       *Gateway
	url      string
	table    *route.Table
	replicas []*route.Replica
	servers  []*vllmfake.Server

	mu       sync.Mutex
	suspects []string
}

// newStage routes "prompt" to the base of n fakes, as version prompt-1.
func newStage(t testing.TB, n, limit int, cfg vllmfake.Config, a route.Assigner) *stage {
	t.Helper()
	cfg.Base, cfg.BaseWeights = "prompt-base", "w"
	s := &stage{table: &route.Table{}}
	for range n {
		f, err := vllmfake.Start(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(f.Kill)
		v, err := backend.NewVLLM(backend.DefaultVLLMConfig(f.Address()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(v.Close)
		s.servers, s.replicas = append(s.servers, f), append(s.replicas, route.NewReplica(v, limit))
	}
	s.table.Put("prompt-1", "prompt", "prompt-base", s.replicas)
	s.table.Flip("prompt-1")
	suspect := func(_ *route.Replica, version string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.suspects = append(s.suspects, version)
	}
	var err error
	if s.gw, err = New(Default(), s.table, a, suspect, zerolog.Nop(), prometheus.NewRegistry()); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s.gw)
	t.Cleanup(srv.Close)
	s.url = srv.URL
	return s
}

func body(model, extra string) string {
	return fmt.Sprintf(
		`{"temperature":0.5,"model": %q,"messages":[{"role":"user","content":[{"type":"text","text":"say \"model\":\"x\""}]}]%s}`,
		model,
		extra,
	)
}

func post(t testing.TB, url, b string, headers ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(raw)
}

func TestVersionIsDecidedAtAdmission(t *testing.T) {
	s := newStage(t, 1, 8, vllmfake.Config{}, nil)
	for _, model := range []string{"prompt", "prompt-1"} {
		resp, got := post(t, s.url, body(model, ""))
		if resp.StatusCode != 200 || resp.Header.Get(HeaderVersion) != "prompt-1" || resp.Header.Get(HeaderArmShare) != "1" ||
			resp.Header.Get(HeaderExperiment) != "" {
			t.Fatalf("%s: %d %v %s", model, resp.StatusCode, resp.Header, got)
		}
		if id, _ := identityOf([]byte(got)); id.model != "prompt-base" {
			t.Fatalf("answered by %q", id.model)
		}
	}
	if resp, got := post(t, s.url, body("nope", "")); resp.StatusCode != 404 || !strings.Contains(got, "not_found") {
		t.Fatalf("unknown model: %d %s", resp.StatusCode, got)
	}
	if got := s.gw.Stats(); got != (Stats{Requests: 2}) {
		t.Fatalf("stats %+v", got)
	}
}

type fixed map[string]assign.Assignment

func (f fixed) Assign(_ string, u assign.Unit) (assign.Assignment, bool) {
	a, ok := f[u.User]
	return a, ok
}

func TestExperimentArms(t *testing.T) {
	arms := fixed{
		"ann": {Experiment: "e1", Variant: "treatment", Version: "prompt-1", ArmShare: 0.05},
		"bob": {Experiment: "e1", Variant: "control", Version: "prompt-gone", ArmShare: 0.95},
	}
	s := newStage(t, 1, 8, vllmfake.Config{}, arms)
	resp, _ := post(t, s.url, body("prompt", `,"user":"ann"`))
	want := []string{"prompt-1", "e1", "treatment", "0.05"}
	var got []string
	for _, h := range []string{HeaderVersion, HeaderExperiment, HeaderVariant, HeaderArmShare} {
		got = append(got, resp.Header.Get(h))
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	// An arm whose version is not routable is an error, not another version under the arm's name.
	if resp, _ := post(t, s.url, body("prompt", ""), HeaderUnit, "bob"); resp.StatusCode != 404 {
		t.Errorf("unroutable arm: %d", resp.StatusCode)
	}
}

// Forced and held-out units get their version and are in no experiment; one whose old version is gone gets the
// champion. Answers are timed with the assignment that was made.
func TestUnitsBesideTheExperiment(t *testing.T) {
	s := newStage(t, 1, 8, vllmfake.Config{}, fixed{
		"tester": {Variant: assign.Forced, Version: "prompt-1", ArmShare: 1},
		"held":   {Variant: assign.Holdout, Version: "prompt-1", ArmShare: 1},
		"old":    {Variant: assign.Holdout, Version: "prompt-0", ArmShare: 1},
		"broken": {Variant: assign.Forced, Version: "prompt-0", ArmShare: 1},
	})
	var mu sync.Mutex
	var timed []string
	s.gw.OnAnswer(func(a assign.Assignment, took time.Duration) {
		if took <= 0 {
			t.Errorf("took %v", took)
		}
		mu.Lock()
		defer mu.Unlock()
		timed = append(timed, a.Variant+" "+a.Version)
	})
	for unit, want := range map[string]int{"tester": 200, "held": 200, "old": 200, "broken": 404} {
		resp, got := post(t, s.url, body("prompt", ""), HeaderUnit, unit)
		if resp.StatusCode != want ||
			want == 200 &&
				(resp.Header.Get(HeaderVersion) != "prompt-1" || resp.Header.Get(HeaderVariant) == "" || resp.Header.Get(HeaderExperiment) != "") {
			t.Errorf("%s: %d %v %s", unit, resp.StatusCode, resp.Header, got)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(timed)
	if want := []string{"forced prompt-1", "holdout prompt-1", "holdout prompt-1"}; !slices.Equal(timed, want) {
		t.Errorf("timed %v, want %v", timed, want)
	}
}

func TestFullIs503WithRetryAfter(t *testing.T) {
	s := newStage(t, 2, 1, vllmfake.Config{Latency: time.Minute}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, s.url, strings.NewReader(body("prompt", "")))
			if resp, err := http.DefaultClient.Do(req); err == nil {
				_ = resp.Body.Close()
			}
		})
	}
	for s.replicas[0].InFlight()+s.replicas[1].InFlight() < 2 {
		time.Sleep(time.Millisecond)
	}
	resp, got := post(t, s.url, body("prompt", ""))
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "1" || resp.Header.Get(HeaderVersion) != "prompt-1" {
		t.Errorf("%d %v %s", resp.StatusCode, resp.Header, got)
	}
	if got := s.gw.Stats(); got.Full != 1 || got.Failed != 0 {
		t.Errorf("stats %+v", got)
	}
	cancel()
	wg.Wait()
	for s.replicas[0].InFlight()+s.replicas[1].InFlight() > 0 { // clients that left give their places back
		time.Sleep(time.Millisecond)
	}
}

func TestRetriesOnAnotherReplica(t *testing.T) {
	s := newStage(t, 3, 8, vllmfake.Config{}, nil)
	s.servers[0].Kill()
	s.servers[1].Set(vllmfake.ChatBusy, true)
	for range 20 {
		if resp, got := post(t, s.url, body("prompt", "")); resp.StatusCode != 200 {
			t.Fatalf("%d %s", resp.StatusCode, got)
		}
	}
	if n := s.servers[2].Completions.Load(); n != 20 {
		t.Errorf("the healthy replica answered %d of 20", n)
	}
	s.servers[2].Kill()
	resp, _ := post(t, s.url, body("prompt", ""))
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("nobody left: %d", resp.StatusCode)
	}
	if got := s.gw.Stats(); got.Failed != 1 || got.Requests != 21 {
		t.Errorf("stats %+v", got)
	}
}

func TestWrongVersionIsNeverPassedOn(t *testing.T) {
	for _, stream := range []string{"", `,"stream":true`} {
		s := newStage(t, 2, 8, vllmfake.Config{}, nil)
		s.table.Put("prompt-2", "prompt", "prompt-2", s.replicas)
		dir := t.TempDir() // any folder with an adapter_model.safetensors will do for the fake
		writeAdapter(t, dir)
		for _, r := range s.replicas {
			if err := r.Load(t.Context(), "prompt-2", dir); err != nil {
				t.Fatal(err)
			}
		}
		s.servers[0].Set(vllmfake.WrongModel, true)
		for range 6 {
			resp, got := post(t, s.url, body("prompt-2", stream))
			if resp.StatusCode != 200 || strings.Contains(got, `"prompt-base"`) {
				t.Fatalf("%d %s", resp.StatusCode, got)
			}
		}
		s.servers[1].Set(vllmfake.WrongModel, true)
		if resp, got := post(t, s.url, body("prompt-2", stream)); resp.StatusCode != 503 || strings.Contains(got, "choices") {
			t.Fatalf("%d %s", resp.StatusCode, got)
		}
		if got := s.gw.Stats(); got.WrongVersion < 2 || got.Failed != 1 {
			t.Errorf("stats %+v", got)
		}
		if !slices.Contains(s.suspects, "prompt-2") {
			t.Error("nobody was told")
		}
	}
}

func TestALostAdapterIsReportedAndRetried(t *testing.T) {
	s := newStage(t, 2, 8, vllmfake.Config{}, nil)
	dir := t.TempDir()
	writeAdapter(t, dir)
	if err := s.replicas[1].Load(t.Context(), "prompt-2", dir); err != nil { // replica 0 has restarted without it
		t.Fatal(err)
	}
	s.table.Put("prompt-2", "prompt", "prompt-2", s.replicas)
	resp, got := post(t, s.url, body("prompt-2", ""))
	if resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, got)
	}
	if d := cmp.Diff([]string{"prompt-2"}, s.suspects); d != "" {
		t.Error(d)
	}
}

func TestStreamsPassThrough(t *testing.T) {
	s := newStage(t, 1, 8, vllmfake.Config{}, nil)
	resp, got := post(t, s.url, body("prompt", `,"stream":true`))
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" || resp.Header.Get(HeaderVersion) != "prompt-1" {
		t.Fatalf("headers %v", resp.Header)
	}
	events := strings.Split(strings.TrimSpace(got), "\n\n")
	if len(events) != 5 || events[4] != "data: [DONE]" { // four words
		t.Fatalf("%d events: %s", len(events), got)
	}
}

func TestClientErrorsPassThrough(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"error":{"message":"n too large"}}`)
	}))
	defer up.Close()
	s := newStage(t, 1, 8, vllmfake.Config{}, nil)
	v, err := backend.NewVLLM(backend.DefaultVLLMConfig(up.URL))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	s.table.Put("prompt-1", "prompt", "prompt-base", []*route.Replica{route.NewReplica(v, 4)})
	resp, got := post(t, s.url, body("prompt", ""))
	if resp.StatusCode != 400 || !strings.Contains(got, "n too large") {
		t.Fatalf("%d %s", resp.StatusCode, got)
	}
	if got := s.gw.Stats(); got.Failed != 0 {
		t.Errorf("a client's mistake counted as our failure: %+v", got)
	}
}

// TestOneBadRequestHarmsNobodyElse: what a request does to a replica stays there (review V7, E3, E4, E12).
func TestOneBadRequestHarmsNobodyElse(t *testing.T) {
	for name, tc := range map[string]struct {
		fault   vllmfake.Fault
		extra   string
		status  int
		says    string
		suspect bool
	}{
		"a stream that is an error is the client's": {vllmfake.StreamError, `,"stream":true`, 200, "max_tokens must be at least 1", false},
		"words of a server error":                   {vllmfake.ServerError, "", 500, "list index out of range", false},
		"it ends its connection":                    {vllmfake.Dies, "", 503, "no replica could answer", true},
		"it ends its stream's connection":           {vllmfake.Dies, `,"stream":true`, 503, "no replica could answer", true},
	} {
		s := newStage(t, 4, 8, vllmfake.Config{}, nil)
		for _, f := range s.servers {
			f.Set(tc.fault, true)
		}
		resp, got := post(t, s.url, body("prompt", tc.extra))
		if resp.StatusCode != tc.status || !strings.Contains(got, tc.says) {
			t.Errorf("%s: %d %s", name, resp.StatusCode, got)
		}
		asked := 0
		for _, f := range s.servers {
			if f.Asked.Load() > 0 {
				asked++
			}
		}
		if asked != 1 || (len(s.suspects) > 0) != tc.suspect || slices.Contains(s.suspects, "prompt-1") {
			t.Errorf("%s: %d replicas were asked, suspects %q", name, asked, s.suspects)
		}
		if v, ok := s.table.Version("prompt-1"); !ok || len(v.Replicas) != 4 {
			t.Errorf("%s: the version has lost replicas", name)
		}
	}
}

func TestCommentsBeforeAStream(t *testing.T) {
	s := newStage(t, 1, 8, vllmfake.Config{}, nil)
	s.servers[0].Set(vllmfake.Comments, true)
	resp, got := post(t, s.url, body("prompt", `,"stream":true`))
	if resp.StatusCode != 200 || !strings.HasPrefix(got, ": ping") || !strings.Contains(got, "[DONE]") {
		t.Errorf("%d %s", resp.StatusCode, got)
	}
}

// TestRetriesAreBounded by count and by a share of the requests.
func TestRetriesAreBounded(t *testing.T) {
	s := newStage(t, 8, 8, vllmfake.Config{}, nil)
	for _, f := range s.servers {
		f.Set(vllmfake.ChatBusy, true)
	}
	asked := func() (n int64) {
		for _, f := range s.servers {
			n += f.Asked.Load()
		}
		return n
	}
	if resp, _ := post(t, s.url, body("prompt", "")); resp.StatusCode != 503 || asked() != int64(1+Default().MaxRetries) {
		t.Errorf("status %d, %d replicas asked", resp.StatusCode, asked())
	}
	const n = 50
	for range n {
		post(t, s.url, body("prompt", ""))
	}
	most := float64(1+n) + reserve + Default().RetryShare*(1+n)
	if got := asked(); float64(got) > most || got <= 1+n {
		t.Errorf("%d attempts for %d requests, want at most %.0f", got, 1+n, most)
	}
}

// TestAClientThatLeavesItsStream is no failure of ours (review E11).
func TestAClientThatLeavesItsStream(t *testing.T) {
	left := make(chan struct{})
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, `data: {"model":"prompt-base"}`+"\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(left)
	}))
	defer up.Close()
	s := newStage(t, 1, 8, vllmfake.Config{}, nil)
	v, err := backend.NewVLLM(backend.DefaultVLLMConfig(up.URL))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	replica := route.NewReplica(v, 4)
	s.table.Put("prompt-1", "prompt", "prompt-base", []*route.Replica{replica})
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, s.url, strings.NewReader(body("prompt", `,"stream":true`)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := resp.Body.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	cancel()
	_ = resp.Body.Close()
	<-left
	for replica.InFlight() > 0 {
		time.Sleep(time.Millisecond)
	}
	if got := s.gw.Stats(); got.Failed != 0 {
		t.Errorf("%+v", got)
	}
}

func TestParseRequest(t *testing.T) {
	deep := `{"messages":[{"model":"inner","text":"\"model\":\"no\""}],"model":"pröm\"pt","stream":true,"user":"u","metadata":{"model":1}}`
	g := &Gateway{}
	r, err := parseRequest([]byte(deep), g.allows)
	if err != nil {
		t.Fatal(err)
	}
	if r.model != `pröm"pt` || !r.stream || r.user != "u" {
		t.Fatalf("%+v", r)
	}
	out := r.withModel("v-1")
	var got, want map[string]any
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := json.Unmarshal([]byte(deep), &want); err != nil {
		t.Fatal(err)
	}
	want["model"] = "v-1"
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{``, `[]`, `{}`, `{"model":3}`, `{"model":""}`, `{"model":"a"`, `{"model":"a"} x`, `{"model":"a","model":"b"}`,
		`{"model":"a","stream":"yes"}`, `{"model":"a","metadata":tru}`, `{"model":"a","echo":true}`} {
		if _, err := parseRequest([]byte(bad), g.allows); err == nil {
			t.Errorf("%s: accepted", bad)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(body("prompt", `,"stream":true`)))
	g := &Gateway{}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := parseRequest(raw, g.allows)
		if err != nil {
			return
		}
		again, err := parseRequest(r.withModel("other"), g.allows)
		if err != nil || again.model != "other" || again.stream != r.stream {
			t.Fatalf("%q: %+v %v", raw, again, err)
		}
	})
}

func writeAdapter(t testing.TB, dir string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "adapter_model.safetensors"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkAddedLatency compares requests of 2 KB through the gateway with the same straight to the upstream, which
// answers at once: the difference is what the gateway adds.
func BenchmarkAddedLatency(b *testing.B) {
	answer := []byte(
		`{"id":"x","object":"chat.completion","model":"prompt-base","choices":[{"index":0,"message":{"role":"assistant","content":"` +
			strings.Repeat("word ", 40) + `"}}]}`,
	)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer)
	}))
	defer up.Close()
	v, err := backend.NewVLLM(backend.DefaultVLLMConfig(up.URL))
	if err != nil {
		b.Fatal(err)
	}
	defer v.Close()
	table := &route.Table{}
	table.Put("prompt-1", "prompt", "prompt-base", []*route.Replica{route.NewReplica(v, 4096)})
	table.Flip("prompt-1")
	gw, err := New(Default(), table, nil, func(*route.Replica, string) {}, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		b.Fatal(err)
	}
	srv := httptest.NewServer(gw)
	defer srv.Close()
	raw := []byte(body("prompt", `,"metadata":"`+strings.Repeat("x", 1900)+`"`))
	for name, url := range map[string]string{"direct": up.URL, "gateway": srv.URL} {
		b.Run(name, func(b *testing.B) {
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
			defer client.CloseIdleConnections()
			var d []time.Duration
			for b.Loop() {
				start := time.Now()
				resp, err := client.Post(url, "application/json", bytes.NewReader(raw))
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				d = append(d, time.Since(start))
			}
			slices.Sort(d)
			b.ReportMetric(float64(d[len(d)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(d[len(d)*99/100].Microseconds()), "p99-µs")
		})
	}
}
