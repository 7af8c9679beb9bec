package backend

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// Prompt is one replica of a prompt-model server.
type Prompt interface {
	// Name identifies the replica in logs and metrics.
	Name() string
	// Load makes the adapter in the folder path answer under name. It returns when the adapter is resident.
	Load(ctx context.Context, name, path string) error
	// Unload lets go of an adapter.
	Unload(ctx context.Context, name string) error
	// Models lists what the replica answers for.
	Models(ctx context.Context) ([]ModelCard, error)
	// Chat answers one request.
	Chat(ctx context.Context, r ChatRequest) (*ChatResponse, error)
	// Forward sends an encoded chat completion of a client on and returns the answer as it comes: the caller closes its
	// body. Only a request that got no answer at all is an error. The client's name is for a server that has clients take
	// turns; empty: not known.
	Forward(ctx context.Context, client string, body []byte) (*http.Response, error)
	// Health is nil when the replica can serve.
	Health(ctx context.Context) error
}

// ModelCard is an entry of /v1/models. Adapters have a parent.
type ModelCard struct {
	ID     string `json:"id"`
	Root   string `json:"root"`
	Parent string `json:"parent"`
}

// ChatRequest is a chat completion in OpenAI's form, as far as this project uses it.
type ChatRequest struct {
	Model       string    `json:"model"`
	Messages    []Message `json:"messages"`
	N           int       `json:"n,omitempty"`
	Temperature float64   `json:"temperature"`
	TopP        float64   `json:"top_p,omitempty"`
	MinP        float64   `json:"min_p,omitempty"`
	MaxTokens   int       `json:"max_tokens,omitempty"`
	Seed        *int64    `json:"seed,omitempty"`
	Logprobs    bool      `json:"logprobs,omitempty"`
}

// Message is one turn.
type Message struct {
	Role    string `json:"role"`
	Content []Part `json:"content"`
}

// Part is a text or a picture.
type Part struct {
	Type     string    `json:"type"` // "text", "image_url"
	Text     string    `json:"text,omitempty"`
	ImageURL *ImageURL `json:"image_url,omitempty"`
}

// ImageURL holds a picture as a data URL.
type ImageURL struct {
	URL string `json:"url"`
}

// ChatResponse is the answer.
type ChatResponse struct {
	Model   string   `json:"model"`
	Choices []Choice `json:"choices"`
	Usage   struct {
		PromptTokens     int `json:"prompt_tokens"`
		CompletionTokens int `json:"completion_tokens"`
	} `json:"usage"`
}

// Choice is one of n answers.
type Choice struct {
	Index   int `json:"index"`
	Message struct {
		Content string `json:"content"`
	} `json:"message"`
	FinishReason string `json:"finish_reason"`
	Logprobs     *struct {
		Content []TokenLogprob `json:"content"`
	} `json:"logprobs"`
}

// TokenLogprob is the natural logarithm of a token's probability.
type TokenLogprob struct {
	Token   string  `json:"token"`
	Logprob float64 `json:"logprob"`
}

// Kind classifies a failure. The list is closed.
type Kind string

// Kinds of failures, and what to do about them.
const (
	Unavailable   Kind = "unavailable"    // it could not be reached: nothing was sent; try another replica, later this one
	Broken        Kind = "broken"         // the exchange broke off after the request was sent: it may have been the request
	Slow          Kind = "slow"           // no answer in time: it may still be at work
	WrongVersion  Kind = "wrong_version"  // another version answered than was asked
	Overloaded    Kind = "overloaded"     // 429, 503: try another replica
	NotFound      Kind = "not_found"      // the replica does not have that adapter: reload it
	AlreadyLoaded Kind = "already_loaded" // a load that happened before
	Rejected      Kind = "rejected"       // other 4xx: the request is wrong, trying again is useless
	Failed        Kind = "failed"         // 5xx: the server could not do it
	Protocol      Kind = "protocol"       // an answer that is not of the protocol
	Canceled      Kind = "canceled"       // the caller gave up
)

// Error is a failed call.
type Error struct {
	Kind    Kind
	Op      string
	Replica string
	Status  int    // HTTP status, 0 without an answer
	Message string // the server's own words
	Err     error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s on %s: %s", e.Op, e.Replica, e.Kind)
	if e.Status != 0 {
		s += fmt.Sprintf(" (%d)", e.Status)
	}
	if e.Message != "" {
		s += ": " + e.Message
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf is the class of an error of this package; Failed for any other.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Failed
}

// Transient says whether the same call may succeed later without anybody changing anything.
func Transient(err error) bool {
	switch KindOf(err) {
	case Unavailable, Broken, Slow, Overloaded, WrongVersion, Canceled:
		return true
	default:
		return false
	}
}
