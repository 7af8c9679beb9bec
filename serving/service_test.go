package serving

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/artifact"
	"ctrloop/internal/catalogue"
	"ctrloop/internal/controllog"
	"ctrloop/internal/imaging"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving/backend/vllmfake"
	"ctrloop/serving/decide"
	"ctrloop/serving/servingtest"
)

// memoryTopic is creatives.v1 in memory.
type memoryTopic struct {
	mu      sync.Mutex
	all     map[string]schemas.Creative
	changed chan struct{}
}

func newTopic() *memoryTopic {
	return &memoryTopic{all: map[string]schemas.Creative{}, changed: make(chan struct{})}
}

func (m *memoryTopic) Publish(_ context.Context, cs ...schemas.Creative) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range cs {
		m.all[c.ID] = c
	}
	close(m.changed)
	m.changed = make(chan struct{})
	return nil
}

func (m *memoryTopic) All() (out []schemas.Creative) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.all {
		out = append(out, c)
	}
	return out
}

func (m *memoryTopic) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// instance is a running Service over model servers.
type instance struct {
	*Service
	t     *testing.T
	log   *servingtest.Log
	store *artifact.Store
	topic *memoryTopic
	url   string
	base  string // version, promoted
}

func start(t *testing.T, baseDir string, replicas ...string) *instance {
	t.Helper()
	i := &instance{t: t, log: servingtest.NewLog(), topic: newTopic()}
	var err error
	if i.store, err = artifact.Open(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	i.base = servingtest.Register(t, i.log, i.store, baseDir, "")
	servingtest.Promote(t, i.log, i.base)
	i.run(baseDir, replicas...)
	return i
}

// beside is another process over the same log and topics.
func (i *instance) beside(baseDir string, replicas ...string) *instance {
	i.t.Helper()
	other := &instance{t: i.t, log: i.log, store: i.store, topic: i.topic, base: i.base}
	other.run(baseDir, replicas...)
	return other
}

func (i *instance) run(baseDir string, replicas ...string) {
	t := i.t
	t.Helper()
	var err error
	cfg := Default()
	cfg.Replicas, cfg.Swap.BaseDir, cfg.Creatives.Dir = replicas, baseDir, t.TempDir()
	cfg.Swap.CheckInterval, cfg.Swap.Quarantine = 50*time.Millisecond, 100*time.Millisecond
	cfg.Creatives.SizePx, cfg.Decide.Epsilon = 128, 0
	out := io.Discard
	if testing.Verbose() {
		out = t.Output()
	}
	d := Deps{Control: i.log, Swap: controllog.Alone(i.log), Creatives: i.topic, Store: i.store, Products: catalogue.Embedded()}
	if i.Service, err = New(cfg, d, zerolog.New(out), prometheus.NewRegistry()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- i.Run(ctx) }()
	srv := httptest.NewServer(i.Handler())
	i.url = srv.URL
	t.Cleanup(func() {
		srv.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	i.eventually("a champion", func() bool { return i.Ready("prompt") })
}

func (i *instance) eventually(what string, ok func() bool) {
	i.t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			i.t.Fatalf("timed out waiting for %s", what)
		}
	}
}

// call makes an HTTP request and decodes the answer into out.
func (i *instance) call(method, path string, body any, want int, out any) http.Header {
	i.t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		i.t.Fatal(err)
	}
	req, err := http.NewRequest(method, i.url+path, bytes.NewReader(raw))
	if err != nil {
		i.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		i.t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != want {
		i.t.Fatalf("%s %s: %d, want %d: %s (%v)", method, path, resp.StatusCode, want, got, err)
	}
	if out != nil {
		if err := json.Unmarshal(got, out); err != nil {
			i.t.Fatalf("%s %s: %v: %s", method, path, err, got)
		}
	}
	return resp.Header
}

// makeCreatives runs a job for the first n products and returns their ids.
func (i *instance) makeCreatives(n, perProduct int, version string) []string {
	i.t.Helper()
	var products []string
	for _, p := range catalogue.Embedded().Products()[:n] {
		products = append(products, p.ID)
	}
	var job struct {
		ID, State string
		Creatives int
		Errors    map[string]string
	}
	i.call("POST", "/v1/creatives", map[string]any{"products": products, "version": version, "per_product": perProduct, "seed": 4}, 202, &job)
	i.eventually("the creatives of "+version, func() bool {
		i.call("GET", "/v1/creatives/jobs/"+job.ID, nil, 200, &job)
		return job.State == "done" || job.State == "failed"
	})
	if job.State != "done" {
		i.t.Fatalf("%+v", job)
	}
	return products
}

func (i *instance) decideAll(products []string, users int) []decide.Decision {
	i.t.Helper()
	var reqs []map[string]any
	for u := range users {
		for _, p := range products {
			reqs = append(reqs, map[string]any{"user": u, "product": p, "placement": "feed", "position": 1, "time_ms": 1_700_000_000_000})
		}
	}
	var out struct{ Decisions []decide.Decision }
	i.call("POST", "/v1/decide", map[string]any{"requests": reqs}, 200, &out)
	return out.Decisions
}

// fakes are model servers that describe backgrounds in the grammar's words.
func fakes(t *testing.T, n int) (servers []*vllmfake.Server, addresses []string) {
	t.Helper()
	grammar := imaging.Grammar()
	cfg := vllmfake.Config{
		Base:        "prompt-base",
		BaseWeights: "w",
		Layers:      servingtest.Layers,
		Answer: func(weights, prompt string, seed int64) string {
			n := len(vllmfake.Words(weights, prompt, seed)) * int(seed%97+3)
			if weights != "w" {
				n++
			}
			return fmt.Sprintf("%s, %s tones, %s, %s", grammar.Scenes[n%14], grammar.Palettes[n%10], grammar.Lights[n%5], grammar.Props[n%6])
		},
	}
	for range n {
		s, err := vllmfake.Start(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Kill)
		servers, addresses = append(servers, s), append(addresses, s.Address())
	}
	return servers, addresses
}

// promptingBase is a base model's folder that says how it is prompted.
func promptingBase(t *testing.T) string {
	t.Helper()
	dir := servingtest.Base(t)
	servingtest.WriteJSON(
		t,
		dir+"/prompting.json",
		map[string]any{"instructions": []string{"describe a background"}, "view_px": 64, "temperature": 1, "min_p": 0.03, "max_tokens": 32},
	)
	return dir
}

// TestFromVersionToDecision follows a version through all of serving, against two fake model servers: creatives of the
// champion, a new version, its creatives, an experiment, a promotion.
func TestFromVersionToDecision(t *testing.T) {
	servers, addresses := fakes(t, 2)
	baseDir := promptingBase(t)
	i := start(t, baseDir, addresses...)

	products := i.makeCreatives(3, 3, "prompt")
	for _, d := range i.decideAll(products, 20) {
		if d.Error != "" || d.ModelVersion != i.base || d.Experiment != "" || d.Policy != decide.PolicyUniform {
			t.Fatalf("%+v", d)
		}
	}
	v := servingtest.Register(t, i.log, i.store, servingtest.Adapter(t, servers[0], servingtest.LoRA(1), i.BaseDigest()), i.BaseDigest())
	i.log.Await(t, "the new version in shadow", func(st *control.State) bool { return st.Models[v].State == control.ModelShadow })
	i.makeCreatives(3, 3, v)
	i.log.Put(
		t,
		control.ExperimentCreated,
		control.ExperimentEntity("x"),
		control.Experiment{
			ID:        "x",
			Logical:   "prompt",
			Unit:      "user",
			Seed:      "x",
			Control:   i.base,
			Treatment: v,
			Steps:     []float64{0.5},
			Created:   time.Now(),
		},
	)
	i.eventually("both arms", func() bool {
		arms := map[string]string{}
		for _, d := range i.decideAll(products, 200) {
			if d.Error != "" {
				t.Fatalf("%+v", d)
			}
			arms[d.Variant] = d.ModelVersion
		}
		return arms["control"] == i.base && arms["treatment"] == v
	})
	chat := map[string]any{
		"model":    "prompt",
		"user":     "7",
		"messages": []any{map[string]any{"role": "user", "content": []any{map[string]any{"type": "text", "text": "hello"}}}},
	}
	h := i.call("POST", "/v1/chat/completions", chat, 200, nil)
	if h.Get("X-Experiment") != "x" || h.Get("X-Arm-Share") != "0.5" {
		t.Errorf("headers %v", h)
	}
	i.log.Put(t, control.ExperimentDecided, control.ExperimentEntity("x"), control.Decision{Outcome: control.Promote})
	if err := i.Promote(t.Context(), v, false, "test", ""); err != nil {
		t.Fatal(err)
	}
	i.eventually("decisions by the new champion", func() bool { return i.decideAll(products, 1)[0].ModelVersion == v })
	var models struct {
		Data []struct{ ID, Version string }
	}
	i.call("GET", "/v1/models", nil, 200, &models)
	if len(models.Data) != 3 || models.Data[0].ID != "prompt" || models.Data[0].Version != v {
		t.Errorf("%+v", models)
	}
	if s := i.Stats(); s.Gateway.Failed != 0 || s.Gateway.WrongVersion != 0 || s.Swap.Flips != 1 || s.Creatives.PixelError != 0 ||
		s.Creatives.Images == 0 {
		t.Errorf("%+v", s)
	}
}

func TestConfigProblemsAreAllReported(t *testing.T) {
	cfg := Default()
	cfg.ChatTimeout = 0
	err := cfg.Validate()
	for _, want := range []string{"replicas:", "chat_timeout:"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
	for name, err := range map[string]error{"swap": cfg.Swap.Validate(), "creatives": cfg.Creatives.Validate()} {
		if err == nil {
			t.Errorf("%s: the default lacks folders and must say so", name)
		}
	}
	for name, err := range map[string]error{"gateway": cfg.Gateway.Validate(), "decide": cfg.Decide.Validate()} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
