package backend

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"strings"
	"time"
)

// MaxAnswerBytes bounds an answer that is read as a whole.
const MaxAnswerBytes = 8 << 20

// VLLMConfig is how to reach a server that speaks vLLM's calls.
type VLLMConfig struct {
	// Address of the server: http://host:port.
	Address string `yaml:"address"`
	// ControlTimeout bounds loading and unloading an adapter. SGLang-like deadlocks must not hang a swap.
	ControlTimeout time.Duration `yaml:"control_timeout"`
	// ReadTimeout bounds /v1/models and /health.
	ReadTimeout time.Duration `yaml:"read_timeout"`
	// ChatTimeout bounds one completion, streaming included.
	ChatTimeout time.Duration `yaml:"chat_timeout"`
}

// DefaultVLLMConfig suits a server on this machine.
func DefaultVLLMConfig(address string) VLLMConfig {
	return VLLMConfig{Address: address, ControlTimeout: time.Minute, ReadTimeout: 5 * time.Second, ChatTimeout: 2 * time.Minute}
}

// VLLM is a client of vLLM's HTTP calls (recorded against 0.32). vLLM must run with --enable-lora, with
// VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and with one API-server process: a load reaches only one of them.
type VLLM struct {
	cfg    VLLMConfig
	base   string
	client *http.Client
}

var _ Prompt = (*VLLM)(nil)

// NewVLLM checks the address.
func NewVLLM(cfg VLLMConfig) (*VLLM, error) {
	if err := CheckAddress(cfg.Address); err != nil {
		return nil, fmt.Errorf("model server: %w", err)
	}
	t := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 1024, // as many as there may be requests in flight: no reconnecting under load
		IdleConnTimeout:     idleTimeout,
		DisableCompression:  true, // answers are small and are passed on as they are
	}
	return &VLLM{cfg: cfg, base: strings.TrimRight(cfg.Address, "/"), client: &http.Client{Transport: t}}, nil
}

// CheckAddress says what is wrong with the URL of a server.
func CheckAddress(address string) error {
	u, err := url.Parse(address)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return fmt.Errorf("address %q: want http://host:port", address)
	}
	return nil
}

// Name is the server's address.
func (v *VLLM) Name() string { return v.base }

// Close lets idle connections go.
func (v *VLLM) Close() { v.client.CloseIdleConnections() }

// Load calls POST /v1/load_lora_adapter.
func (v *VLLM) Load(ctx context.Context, name, path string) error {
	_, err := v.call(
		ctx,
		"load "+name,
		v.cfg.ControlTimeout,
		http.MethodPost,
		"/v1/load_lora_adapter",
		map[string]string{"lora_name": name, "lora_path": path},
	)
	return err
}

// Unload calls POST /v1/unload_lora_adapter.
func (v *VLLM) Unload(ctx context.Context, name string) error {
	_, err := v.call(
		ctx,
		"unload "+name,
		v.cfg.ControlTimeout,
		http.MethodPost,
		"/v1/unload_lora_adapter",
		map[string]string{"lora_name": name},
	)
	return err
}

// Models calls GET /v1/models.
func (v *VLLM) Models(ctx context.Context) ([]ModelCard, error) {
	raw, err := v.call(ctx, "list models", v.cfg.ReadTimeout, http.MethodGet, "/v1/models", nil)
	if err != nil {
		return nil, err
	}
	var list struct {
		Data []struct {
			ID     string  `json:"id"`
			Root   *string `json:"root"`
			Parent *string `json:"parent"`
		} `json:"data"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, &Error{Kind: Protocol, Op: "list models", Replica: v.base, Err: err}
	}
	out := make([]ModelCard, len(list.Data))
	for i, d := range list.Data {
		out[i] = ModelCard{ID: d.ID, Root: deref(d.Root), Parent: deref(d.Parent)}
	}
	return out, nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// idleTimeout closes connections before the server does: uvicorn, under vLLM and the embedded server, keeps an
// idle one for 5 s, and a request that is written to a connection that is being closed fails.
const idleTimeout = 4 * time.Second

// do sends a request, once more when it was written to a kept connection that the server was just closing (second
// belt behind idleTimeout) and no byte of an answer came. On a fresh connection a failure is a failure, and so is a second
// one: a request that makes its server close the connection must not be sent again and again.
func (v *VLLM) do(req *http.Request) (resp *http.Response, err error) {
	for range 2 {
		reused, began := false, false
		trace := &httptrace.ClientTrace{
			GotConn:              func(i httptrace.GotConnInfo) { reused = i.Reused },
			GotFirstResponseByte: func() { began = true },
		}
		resp, err = v.client.Do(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
		if err == nil || !reused || began || req.Context().Err() != nil {
			return resp, err
		}
		// The other kept connections may be as dead: a server that has been killed closes all of them at once.
		v.client.CloseIdleConnections()
		if req.GetBody != nil {
			var again error
			if req.Body, again = req.GetBody(); again != nil {
				return nil, again
			}
		}
	}
	return resp, err
}

// Chat calls POST /v1/chat/completions and reads the whole answer.
func (v *VLLM) Chat(ctx context.Context, r ChatRequest) (*ChatResponse, error) {
	raw, err := v.call(ctx, "chat with "+r.Model, v.cfg.ChatTimeout, http.MethodPost, "/v1/chat/completions", r)
	if err != nil {
		return nil, err
	}
	var out ChatResponse
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, &Error{Kind: Protocol, Op: "chat with " + r.Model, Replica: v.base, Err: err}
	}
	if len(out.Choices) == 0 {
		return nil, &Error{Kind: Protocol, Op: "chat with " + r.Model, Replica: v.base, Message: "an answer without choices"}
	}
	return &out, nil
}

// Health calls GET /health.
func (v *VLLM) Health(ctx context.Context) error {
	_, err := v.call(ctx, "health", v.cfg.ReadTimeout, http.MethodGet, "/health", nil)
	return err
}

// Forward calls POST /v1/chat/completions and hands the answer over unread.
func (v *VLLM) Forward(ctx context.Context, client string, body []byte) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, v.cfg.ChatTimeout)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, v.base+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		cancel()
		return nil, &Error{Kind: Rejected, Op: "chat", Replica: v.base, Err: err}
	}
	req.Header.Set("Content-Type", "application/json")
	if client != "" {
		req.Header.Set("X-Forwarded-For", client)
	}
	resp, err := v.do(req)
	if err != nil {
		cancel()
		return nil, v.transport("chat", err)
	}
	resp.Body = &cancelBody{resp.Body, cancel}
	return resp, nil
}

// cancelBody ends the request's timer when the body is closed.
type cancelBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *cancelBody) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

func (v *VLLM) call(ctx context.Context, op string, timeout time.Duration, method, path string, body any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var r io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, &Error{Kind: Rejected, Op: op, Replica: v.base, Err: err}
		}
		r = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, v.base+path, r)
	if err != nil {
		return nil, &Error{Kind: Rejected, Op: op, Replica: v.base, Err: err}
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := v.do(req)
	if err != nil {
		return nil, v.transport(op, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, MaxAnswerBytes+1))
	if err != nil {
		return nil, v.transport(op, err)
	}
	if len(raw) > MaxAnswerBytes {
		return nil, &Error{Kind: Protocol, Op: op, Replica: v.base, Status: resp.StatusCode, Message: "the answer is larger than 8 MiB"}
	}
	if resp.StatusCode != http.StatusOK {
		return nil, &Error{Kind: Classify(resp.StatusCode, raw), Op: op, Replica: v.base, Status: resp.StatusCode, Message: message(raw)}
	}
	return raw, nil
}

// transport classifies a failed exchange by what may have happened at the server.
func (v *VLLM) transport(op string, err error) error {
	kind := Broken
	var dial *net.OpError
	switch {
	case errors.Is(err, context.Canceled):
		kind = Canceled
	case errors.As(err, &dial) && dial.Op == "dial":
		kind = Unavailable
	case errors.Is(err, context.DeadlineExceeded), os.IsTimeout(err):
		kind = Slow
	}
	return &Error{Kind: kind, Op: op, Replica: v.base, Err: err}
}

// Classify maps an answer other than 200 to a Kind.
func Classify(status int, body []byte) Kind {
	switch {
	case status == http.StatusNotFound:
		return NotFound
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
		return Overloaded
	case status == http.StatusBadRequest && strings.Contains(message(body), "has already been loaded"):
		return AlreadyLoaded
	case status >= 400 && status < 500:
		return Rejected
	}
	return Failed
}

// message is the server's explanation: error.message, or the start of the body.
func message(body []byte) string {
	var e struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if json.Unmarshal(body, &e) == nil && e.Error.Message != "" {
		return e.Error.Message
	}
	return strings.ToValidUTF8(string(body[:min(len(body), 300)]), "?")
}
