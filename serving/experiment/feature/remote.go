package feature

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/assign"
	"ctrloop/serving/experiment/exposure"
)

// maxSnapshot bounds an answer, in bytes.
const maxSnapshot = 16 << 20

// Remote keeps the assignment of a ctrloop instance, and takes exposures there. It is a Source and an exposure.Sink. A
// poll that fails leaves what was known: arms are sticky, so an old state is nearly right and none is wrong.
type Remote struct {
	base   string
	client *http.Client
	etag   string // of the poller
	p      atomic.Pointer[assign.Assigner]
}

var (
	_ Source        = (*Remote)(nil)
	_ exposure.Sink = (*Remote)(nil)
)

// NewRemote asks the instance at a base address, http://host:port; client nil: one with a timeout of 10 s.
func NewRemote(base string, client *http.Client) *Remote {
	if client == nil {
		client = &http.Client{Timeout: 10 * time.Second}
	}
	return &Remote{base: strings.TrimSuffix(base, "/"), client: client}
}

// Assigner is the newest one; nil before the first answer.
func (r *Remote) Assigner() *assign.Assigner { return r.p.Load() }

// Poll asks every interval until ctx ends; the errors go to failed, which may be nil.
func (r *Remote) Poll(ctx context.Context, every time.Duration, failed func(error)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := r.Fetch(ctx); err != nil && ctx.Err() == nil && failed != nil {
			failed(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Fetch asks once. Not safe for concurrent use.
func (r *Remote) Fetch(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.base+"/v1/experiments/assignments", nil)
	if err != nil {
		return err
	}
	if r.etag != "" {
		req.Header.Set("If-None-Match", r.etag)
	}
	res, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusNotModified:
		return nil
	case http.StatusOK:
	default:
		return fmt.Errorf("assignments: %s", res.Status)
	}
	st := control.NewState()
	if err := json.NewDecoder(io.LimitReader(res.Body, maxSnapshot)).Decode(st); err != nil {
		return fmt.Errorf("assignments: %w", err)
	}
	if len(st.Routes) == 0 {
		return errors.New("assignments: no logical model has a champion yet")
	}
	r.p.Store(assign.New(st))
	r.etag = res.Header.Get("ETag")
	return nil
}

// Expose sends exposures.
func (r *Remote) Expose(ctx context.Context, es []exposure.Exposure) error {
	body, err := json.Marshal(map[string]any{"exposures": es})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.base+"/v1/experiments/exposures", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 300))
		return fmt.Errorf("exposures: %s: %s", res.Status, text)
	}
	return nil
}
