// Package vllmfake imitates vLLM's recorded protocol (0.32, see docs in backend) for tests: its calls, status
// codes and error bodies, its carelessness (adapters that fit nothing load with 200), and the faults that
// a swap must survive. It is no model: answers are a hash of the weights' content and the request.
package vllmfake

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ctrloop/serving/backend"
	"ctrloop/serving/safetensors"
)

// Fault is something that goes wrong inside the server.
type Fault string

// Faults.
const (
	NoOp       Fault = "no_op"       // loads answer 200 and apply nothing (vllm #34186)
	Garbage    Fault = "garbage"     // loads answer 200 and the adapter answers nonsense
	Stale      Fault = "stale"       // an adapter answers with what was loaded before it (vllm #42125)
	NotListed  Fault = "not_listed"  // loads answer 200 but /v1/models does not have it
	LoadFails  Fault = "load_fails"  // loads answer 500
	ChatBusy   Fault = "chat_busy"   // completions answer 503
	WrongModel Fault = "wrong_model" // completions claim to come from the base

	StreamError Fault = "stream_error" // a stream answers 200, and its only event is the client's mistake, as in vLLM
	Comments    Fault = "comments"     // streams begin with a comment, as proxies send to keep a connection open
	Dies        Fault = "dies"         // a completion closes its connection without a byte
	ServerError Fault = "server_error" // completions answer 500 with words
	SlowModels  Fault = "slow_models"  // /v1/models does not answer before its caller gives up
)

// Config of a fake server.
type Config struct {
	// Base is the served name of the base model.
	Base string
	// BaseWeights stands for the content of the base: another one is another base model.
	BaseWeights string
	// Layers of the base. Adapters with other keys are no-ops, with other shapes garbage, as in vLLM. Nil: anything fits.
	Layers map[string][2]int64
	// Answer writes the text for a seed; nil: a hash in words. weights is a digest of what answers.
	Answer func(weights, prompt string, seed int64) string
	// Latency of a completion.
	Latency time.Duration
	// LoadLatency of a load.
	LoadLatency time.Duration
	// OnChat is told of every request for a completion; nil: nobody is.
	OnChat func(r *http.Request)
}

// Server is a fake replica on a loopback port that stays the same when it is killed and restarted.
type Server struct {
	cfg  Config
	addr string

	mu       sync.Mutex
	srv      *http.Server
	adapters map[string]string // name -> weights it answers with
	roots    map[string]string
	last     string // weights loaded last
	faults   map[Fault]bool

	// Completions counts answers given, Asked requests for one, Loads adapters loaded.
	Completions, Asked, Loads atomic.Int64
}

// Start runs a fake until Kill.
func Start(cfg Config) (*Server, error) {
	if cfg.Answer == nil {
		cfg.Answer = func(weights, prompt string, seed int64) string { return Words(weights, prompt, seed) }
	}
	s := &Server{cfg: cfg, faults: map[Fault]bool{}}
	return s, s.listen("127.0.0.1:0")
}

// Address is the server's URL.
func (s *Server) Address() string { return "http://" + s.addr }

func (s *Server) listen(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: s.handler(), ErrorLog: log.New(io.Discard, "", 0)}
	s.mu.Lock()
	s.addr, s.srv = l.Addr().String(), srv
	s.adapters, s.roots, s.last = map[string]string{}, map[string]string{}, ""
	s.mu.Unlock()
	go func() { _ = srv.Serve(l) }()
	return nil
}

// Kill ends the server at once: connections break, adapters are gone.
func (s *Server) Kill() {
	s.mu.Lock()
	srv := s.srv
	s.mu.Unlock()
	_ = srv.Close()
}

// Restart brings it back on the same port, without its adapters.
func (s *Server) Restart() error { return s.listen(s.addr) }

// Set turns a fault on or off.
func (s *Server) Set(f Fault, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[f] = on
}

func (s *Server) has(f Fault) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faults[f]
}

// Adapters lists what is resident.
func (s *Server) Adapters() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for a := range s.adapters {
		out = append(out, a)
	}
	return out
}

func (s *Server) handler() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	m.HandleFunc("GET /v1/models", s.models)
	m.HandleFunc("POST /v1/load_lora_adapter", s.load)
	m.HandleFunc("POST /v1/unload_lora_adapter", s.unload)
	m.HandleFunc("POST /v1/chat/completions", s.chat)
	return m
}

func fail(w http.ResponseWriter, code int, typ, format string, args ...any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(
		w,
	).Encode(
		map[string]any{"error": map[string]any{"message": fmt.Sprintf(format, args...), "type": typ, "param": nil, "code": code}},
	)
}

func (s *Server) models(w http.ResponseWriter, r *http.Request) {
	if s.has(SlowModels) {
		<-r.Context().Done()
		return
	}
	type card struct {
		ID     string  `json:"id"`
		Object string  `json:"object"`
		Root   string  `json:"root"`
		Parent *string `json:"parent"`
	}
	s.mu.Lock()
	out := []card{{s.cfg.Base, "model", "models/base", nil}}
	for name := range s.adapters {
		if !s.faults[NotListed] {
			out = append(out, card{name, "model", s.roots[name], &s.cfg.Base})
		}
	}
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"object": "list", "data": out})
}

func (s *Server) load(w http.ResponseWriter, r *http.Request) {
	var b struct {
		Name string `json:"lora_name"`
		Path string `json:"lora_path"`
	}
	if json.NewDecoder(r.Body).Decode(&b) != nil || b.Name == "" || b.Path == "" {
		fail(w, 400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
		return
	}
	time.Sleep(s.cfg.LoadLatency) //nolint:forbidigo // the passing time is what is faked
	if s.has(LoadFails) {
		fail(w, 500, "InternalServerError", "Call to add_lora method failed: Worker failed with error 'injected'")
		return
	}
	own, err := s.Weights(b.Path)
	if err != nil {
		fail(w, 404, "NotFoundError", "Loading lora %s failed: No adapter found for %s", b.Name, b.Path)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.adapters[b.Name] != "" {
		fail(
			w,
			400,
			"InvalidUserInput",
			"The lora adapter '%s' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True.",
			b.Name,
		)
		return
	}
	answersWith := own
	switch {
	case s.faults[NoOp]:
		answersWith = s.cfg.BaseWeights
	case s.faults[Garbage]:
		answersWith = "garbage"
	case s.faults[Stale] && s.last != "":
		answersWith = s.last
	}
	s.adapters[b.Name], s.roots[b.Name], s.last = answersWith, b.Path, own
	s.Loads.Add(1)
	fmt.Fprintf(w, "Success: LoRA adapter '%s' added successfully.", b.Name)
}

// Weights is what an adapter folder amounts to on this base, as vLLM would load it: keys that fit nothing
// are the base, shapes that do not fit are garbage.
func (s *Server) Weights(dir string) (string, error) {
	file := filepath.Join(dir, "adapter_model.safetensors")
	raw, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append(raw, s.cfg.BaseWeights...))
	own := hex.EncodeToString(sum[:8])
	if s.cfg.Layers == nil {
		return own, nil
	}
	tensors, err := safetensors.ReadHeader(file)
	if err != nil {
		return "", err
	}
	applied := false
	for key, t := range tensors {
		module := strings.TrimPrefix(key, "base_model.model.")
		module, _, _ = strings.Cut(module, ".lora_")
		shape, ok := s.cfg.Layers[module]
		if !ok {
			continue
		}
		applied = true
		if strings.Contains(key, "lora_A") && t.Shape[1] != shape[1] || strings.Contains(key, "lora_B") && t.Shape[0] != shape[0] {
			return "garbage", nil
		}
	}
	if !applied {
		return s.cfg.BaseWeights, nil
	}
	return own, nil
}

func (s *Server) unload(w http.ResponseWriter, r *http.Request) {
	var b struct {
		Name string `json:"lora_name"`
	}
	_ = json.NewDecoder(r.Body).Decode(&b)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.adapters[b.Name] == "" {
		fail(w, 404, "NotFoundError", "The lora adapter '%s' cannot be found.", b.Name)
		return
	}
	delete(s.adapters, b.Name)
	fmt.Fprintf(w, "Success: LoRA adapter '%s' removed successfully.", b.Name)
}

func (s *Server) chat(w http.ResponseWriter, r *http.Request) {
	if s.cfg.OnChat != nil {
		s.cfg.OnChat(r)
	}
	var b struct {
		backend.ChatRequest
		Stream bool `json:"stream"`
	}
	if err := json.NewDecoder(r.Body).Decode(&b); err != nil {
		fail(w, 400, "Bad Request", "%v", err)
		return
	}
	s.Asked.Add(1)
	switch {
	case s.has(Dies):
		panic(http.ErrAbortHandler)
	case s.has(ServerError):
		fail(w, 500, "InternalServerError", "list index out of range")
		return
	case b.Stream && s.has(StreamError):
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, `data: {"error": {"message": "max_tokens must be at least 1", "type": "BadRequestError", "code": 400}}`+
			"\n\ndata: [DONE]\n\n")
		return
	}
	if s.has(ChatBusy) {
		fail(w, 503, "ServiceUnavailableError", "busy")
		return
	}
	s.mu.Lock()
	weights, ok := s.adapters[b.Model]
	s.mu.Unlock()
	if b.Model == s.cfg.Base {
		weights, ok = s.cfg.BaseWeights, true
	}
	if !ok {
		fail(w, 404, "NotFoundError", "The model `%s` does not exist. Valid aliases: %s.", b.Model, s.cfg.Base)
		return
	}
	if s.cfg.Latency > 0 {
		select {
		case <-r.Context().Done():
			return
		case <-time.After(s.cfg.Latency):
		}
	}
	model := b.Model
	if s.has(WrongModel) {
		model = s.cfg.Base
	}
	s.Completions.Add(1)
	texts := s.answers(weights, b.ChatRequest)
	if b.Stream {
		if s.has(Comments) {
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprint(w, ": ping\n\n")
		}
		stream(w, model, texts)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(completion(model, weights, texts, b.Logprobs))
}

func (s *Server) answers(weights string, r backend.ChatRequest) []string {
	seed := int64(0)
	if r.Seed != nil && r.Temperature > 0 {
		seed = *r.Seed + 1
	}
	var prompt strings.Builder
	for _, m := range r.Messages {
		for _, p := range m.Content {
			prompt.WriteString(p.Text)
			if p.ImageURL != nil {
				prompt.WriteString(p.ImageURL.URL)
			}
		}
	}
	out := make([]string, max(1, r.N))
	for i := range out {
		out[i] = s.cfg.Answer(weights, prompt.String(), seed+1000*int64(i)*min(1, seed))
	}
	return out
}

// Golden is what the trainer would have recorded: the greedy answers of an adapter and of the base.
func (s *Server) Golden(
	dir string,
	r backend.ChatRequest,
) (answer string, logprobs []float64, base string, baseLogprobs []float64, err error) {
	w, err := s.Weights(dir)
	if err != nil {
		return "", nil, "", nil, err
	}
	r.Temperature, r.N = 0, 1
	answer, base = s.answers(w, r)[0], s.answers(s.cfg.BaseWeights, r)[0]
	return answer, logprobsOf(w, answer), base, logprobsOf(s.cfg.BaseWeights, base), nil
}

func logprobsOf(weights, text string) []float64 {
	var out []float64
	for i, word := range strings.Fields(text) {
		out = append(out, -float64(hash(weights, word, int64(i))%1000)/500)
	}
	return out
}

func completion(model, weights string, texts []string, logprobs bool) map[string]any {
	var choices []map[string]any
	for i, t := range texts {
		c := map[string]any{"index": i, "message": map[string]any{"role": "assistant", "content": t}, "finish_reason": "stop", "logprobs": nil}
		if logprobs {
			var content []map[string]any
			words := strings.Fields(t)
			for k, l := range logprobsOf(weights, t) {
				content = append(content, map[string]any{"token": words[k], "logprob": l, "top_logprobs": []any{}})
			}
			c["logprobs"] = map[string]any{"content": content}
		}
		choices = append(choices, c)
	}
	return map[string]any{
		"id":      "chatcmpl-fake",
		"object":  "chat.completion",
		"created": 1,
		"model":   model,
		"choices": choices,
		"usage":   map[string]any{"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
	}
}

func stream(w http.ResponseWriter, model string, texts []string) {
	w.Header().Set("Content-Type", "text/event-stream")
	f, _ := w.(http.Flusher)
	for i, t := range texts {
		for _, word := range strings.SplitAfter(t, " ") {
			chunk := map[string]any{"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1, "model": model,
				"choices": []any{map[string]any{"index": i, "delta": map[string]any{"content": word}, "finish_reason": nil}}}
			raw, _ := json.Marshal(chunk)
			fmt.Fprintf(w, "data: %s\n\n", raw)
			if f != nil {
				f.Flush()
			}
		}
	}
	fmt.Fprint(w, "data: [DONE]\n\n")
}

// Words is a hash of its arguments, in four words.
func Words(weights, prompt string, seed int64) string {
	words := [...]string{
		"oak",
		"marble",
		"beach",
		"forest",
		"street",
		"velvet",
		"stage",
		"lake",
		"rug",
		"desk",
		"sofa",
		"bench",
		"glow",
		"petal",
		"ribbon",
		"leaf",
	}
	h := hash(weights, prompt, seed)
	out := make([]string, 4)
	for i := range out {
		out[i] = words[h>>(4*i)&15]
	}
	return strings.Join(out, " ")
}

func hash(a, b string, n int64) uint64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d|%s|%s|%d", len(a), a, b, n))
	return binary.LittleEndian.Uint64(sum[:8])
}
