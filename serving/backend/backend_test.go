package backend_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ctrloop/serving/backend"
	"ctrloop/serving/backend/vllmfake"
	"ctrloop/serving/servingtest"
)

// TestClassify goes over bodies that were recorded from vLLM 0.32.
func TestClassify(t *testing.T) {
	const already = `{"error":{"message":"The lora adapter 'a' has already been loaded. If you want to load the adapter in place, set ` +
		`'load_inplace' to True.","type":"InvalidUserInput","param":null,"code":400}}`
	const conflict = `{"error":{"message":"The lora adapter 'tiny-llama' conflicts with a served base model.","type":"InvalidUserInput",` +
		`"param":null,"code":400}}`
	const rank = `{"error":{"message":"Call to add_lora method failed: Worker failed with error 'LoRA rank 64 is greater than max_lora_rank ` +
		`16.'","type":"InternalServerError","param":null,"code":500}}`
	for _, tc := range []struct {
		status int
		body   string
		want   backend.Kind
	}{
		{400, already, backend.AlreadyLoaded}, {400, conflict, backend.Rejected}, {500, rank, backend.Failed},
		{404, `{"error":{"message":"The model ` + "`nope`" + ` does not exist.","type":"NotFoundError","code":404}}`, backend.NotFound},
		{503, "", backend.Overloaded}, {429, "", backend.Overloaded}, {502, "<html>", backend.Failed}, {413, "", backend.Rejected},
	} {
		if got := backend.Classify(tc.status, []byte(tc.body)); got != tc.want {
			t.Errorf("%d %.60s: %s, want %s", tc.status, tc.body, got, tc.want)
		}
	}
}

func client(t *testing.T, address string) *backend.VLLM {
	t.Helper()
	cfg := backend.DefaultVLLMConfig(address)
	cfg.ReadTimeout = 200 * time.Millisecond
	v, err := backend.NewVLLM(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

func TestTheCalls(t *testing.T) {
	s, err := vllmfake.Start(vllmfake.Config{Base: "base", BaseWeights: "w"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Kill()
	v, ctx := client(t, s.Address()), t.Context()
	dir := t.TempDir()
	servingtest.WriteSafetensors(t, dir+"/adapter_model.safetensors", servingtest.LoRA(1))
	kind := func(err error) string {
		if err == nil {
			return "ok"
		}
		return string(backend.KindOf(err))
	}
	got := []string{
		kind(v.Health(ctx)),
		kind(v.Load(ctx, "a", dir)),
		kind(v.Load(ctx, "a", dir)),
		kind(v.Load(ctx, "b", dir+"/none")),
		kind(v.Unload(ctx, "b")),
	}
	if d := cmp.Diff([]string{"ok", "ok", "already_loaded", "not_found", "not_found"}, got); d != "" {
		t.Error(d)
	}
	cards, err := v.Models(ctx)
	want := []backend.ModelCard{{ID: "base", Root: "models/base"}, {ID: "a", Root: dir, Parent: "base"}}
	if d := cmp.Diff(want, cards); err != nil || d != "" {
		t.Error(err, d)
	}
	resp, err := v.Chat(
		ctx,
		backend.ChatRequest{
			Model:    "a",
			N:        3,
			Logprobs: true,
			Messages: []backend.Message{{Role: "user", Content: []backend.Part{{Type: "text", Text: "x"}}}},
		},
	)
	if err != nil || resp.Model != "a" || len(resp.Choices) != 3 || len(resp.Choices[0].Logprobs.Content) != 4 {
		t.Fatal(resp, err)
	}
	s.Kill()
	if err := v.Health(ctx); backend.KindOf(err) != backend.Unavailable || !backend.Transient(err) {
		t.Errorf("dead server: %v", err)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if err := v.Health(canceled); backend.KindOf(err) != backend.Canceled {
		t.Errorf("caller gone: %v", err)
	}
}

func TestServersThatMisbehave(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/health":
			<-release // hangs
		case "/v1/models":
			fmt.Fprint(w, "not json")
		default:
			fmt.Fprint(w, strings.Repeat("x", backend.MaxAnswerBytes+1))
		}
	}))
	defer srv.Close()
	defer close(release)
	v := client(t, srv.URL)
	if err := v.Health(t.Context()); backend.KindOf(err) != backend.Slow || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hanging server: %v", err)
	}
	if _, err := v.Models(t.Context()); backend.KindOf(err) != backend.Protocol {
		t.Errorf("nonsense: %v", err)
	}
	if _, err := v.Chat(t.Context(), backend.ChatRequest{Model: "m"}); backend.KindOf(err) != backend.Protocol {
		t.Errorf("endless answer: %v", err)
	}
	for _, bad := range []string{"", "localhost:8000", "ftp://x", "http://"} {
		if _, err := backend.NewVLLM(backend.DefaultVLLMConfig(bad)); err == nil {
			t.Errorf("address %q accepted", bad)
		}
	}
}

// TestARequestThatEndsItsServer is sent once on a fresh connection, and twice at most on a kept one (review V7).
func TestARequestThatEndsItsServer(t *testing.T) {
	var asked atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			return
		}
		asked.Add(1)
		panic(http.ErrAbortHandler)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer srv.Close()
	v := client(t, srv.URL)
	for range 4 {
		if err := v.Health(t.Context()); err != nil { // leaves a connection to be used again
			t.Fatal(err)
		}
	}
	if _, err := v.Forward(t.Context(), "", []byte("{}")); backend.KindOf(err) != backend.Broken {
		t.Errorf("%v", err)
	}
	if n := asked.Load(); n > 2 {
		t.Errorf("the request was sent %d times", n)
	}
}

func TestIndexKnowsTheNamesOfModules(t *testing.T) {
	x, err := backend.ReadIndex(servingtest.Base(t))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][2]int64{"model.vision_tower.encoder.layers.0.mlp.fc1": {4, 4}}
	maps.Copy(want, servingtest.Layers)
	if d := cmp.Diff(want, x.Layers); d != "" {
		t.Error(d)
	}
	// Qwen2.5-VL as it is stored: "model." is the language model there.
	dir := t.TempDir()
	servingtest.WriteSafetensors(t, dir+"/model.safetensors", map[string]servingtest.Tensor{
		"visual.blocks.0.attn.qkv.weight": {
			Shape: []int64{6, 2},
		}, "model.layers.0.mlp.up_proj.weight": {Shape: []int64{4, 2}}, "model.norm.weight": {Shape: []int64{2}},
	})
	if x, err = backend.ReadIndex(dir); err != nil {
		t.Fatal(err)
	}
	want = map[string][2]int64{"model.visual.blocks.0.attn.qkv": {6, 2}, "model.language_model.layers.0.mlp.up_proj": {4, 2}}
	if d := cmp.Diff(want, x.Layers); d != "" {
		t.Error(d)
	}
}
