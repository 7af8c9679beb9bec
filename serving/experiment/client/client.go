// Package client is the one HTTP client of the experiments' API: commands and questions of people, and what services that
// evaluate experiments on their own need of it (package feature).
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"ctrloop/internal/httpapi"
	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/exposure"
)

// Bounds of answers, in bytes, and of a call whose context has no end: an analysis reads the warehouse.
const (
	maxAnswer   = 64 << 20
	callTimeout = time.Minute
)

// Client calls one instance. Safe for concurrent use.
type Client struct {
	base string
	http *http.Client
}

// New makes a client of the instance at an address, host:port or URL. token may be empty, where the instance is on this
// machine and does not ask; user is the name of the user of this machine, which goes beside an instance's own token.
func New(address, token, user string) *Client {
	return Over(address, httpapi.NewClient(token, user, callTimeout, address))
}

// Over makes a client over an HTTP client of the caller's, who takes care of tokens.
func Over(address string, c *http.Client) *Client {
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	return &Client{base: strings.TrimSuffix(address, "/"), http: c}
}

// Error is a refusal of the API.
type Error = httpapi.Error

// root is the path of the experiments' calls.
const root = "/v1/experiments"

// Call sends a request for a path below /v1/experiments and returns the answer's body. body nil: none. A refusal is an
// error of type *Error.
func (c *Client) Call(ctx context.Context, method, path string, body any) ([]byte, error) {
	return c.At(ctx, method, root+path, body)
}

// At is Call for any path of the instance, such as /v1/creatives.
func (c *Client) At(ctx context.Context, method, path string, body any) ([]byte, error) {
	raw, _, err := c.call(ctx, method, path, body, "")
	return raw, err
}

// errNotModified means that the caller's state is the newest.
var errNotModified = errors.New("not modified")

func (c *Client) call(ctx context.Context, method, path string, body any, etag string) (answer []byte, newest string, err error) {
	var in io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, "", err
		}
		in = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, in)
	if err != nil {
		return nil, "", err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if etag != "" {
		req.Header.Set("If-None-Match", etag)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, "", fmt.Errorf("read the answer: %w", err)
	case len(raw) > maxAnswer:
		return nil, "", fmt.Errorf("the answer of %s %s has more than %d bytes", method, req.URL.Path, maxAnswer)
	case res.StatusCode == http.StatusNotModified:
		return nil, etag, errNotModified
	case res.StatusCode/100 != 2:
		return nil, "", refusal(res, raw)
	}
	return raw, res.Header.Get("ETag"), nil
}

// refusal reads an error in the API's shape, or says what came instead of one.
func refusal(res *http.Response, raw []byte) *Error {
	var answer struct {
		Error Error `json:"error"`
	}
	if json.Unmarshal(raw, &answer) != nil || answer.Error.Message == "" {
		answer.Error.Message = fmt.Sprintf("%s %s: %s: %.200s", res.Request.Method, res.Request.URL.Path, res.Status, raw)
	}
	answer.Error.Status = res.StatusCode
	return &answer.Error
}

// Assignments returns what assignment needs of the instance's state, and its ETag. With the ETag of the state that the
// caller has, it returns nil where there is no newer one.
func (c *Client) Assignments(ctx context.Context, etag string) (*control.State, string, error) {
	raw, newest, err := c.call(ctx, http.MethodGet, root+"/assignments", nil, etag)
	if errors.Is(err, errNotModified) {
		return nil, etag, nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("assignments: %w", err)
	}
	st := control.NewState()
	if err := json.Unmarshal(raw, st); err != nil {
		return nil, "", fmt.Errorf("assignments: %w", err)
	}
	return st, newest, nil
}

// Expose sends exposures.
func (c *Client) Expose(ctx context.Context, es []exposure.Exposure) error {
	if _, err := c.Call(ctx, http.MethodPost, "/exposures", map[string]any{"exposures": es}); err != nil {
		return fmt.Errorf("exposures: %w", err)
	}
	return nil
}
