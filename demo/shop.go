package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"ctrloop/internal/world"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// shop is the world's side of the system: it asks for decisions and delivers events as any site would, over
// HTTP, and tries again while the system is full or starting.
type shop struct {
	api, edge string
	client    *http.Client
	seen      *clock
}

// patience is how long the shop tries again before it gives up on a call.
const patience = 2 * time.Minute

// retryEvery is the pace of tries.
const retryEvery = 100 * time.Millisecond

// temporary says whether an answer means "later" rather than "no".
func temporary(status int) bool {
	return status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable || status == http.StatusBadGateway
}

func (s *shop) post(ctx context.Context, url, contentType string, body []byte) ([]byte, error) {
	deadline := time.Now().Add(patience)
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", contentType)
		resp, err := s.client.Do(req)
		if err != nil {
			return nil, err
		}
		raw, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		switch {
		case err != nil:
			return nil, err
		case resp.StatusCode == http.StatusOK:
			return raw, nil
		case !temporary(resp.StatusCode) || time.Now().After(deadline):
			return nil, fmt.Errorf("%s answered %s: %.500s", url, resp.Status, raw)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(retryEvery):
		}
	}
}

type decideRequest struct {
	User      string `json:"user"`
	Product   string `json:"product"`
	Placement string `json:"placement"`
	Position  uint32 `json:"position"`
	TimeMS    int64  `json:"time_ms"`
}

type decideAnswer struct {
	Decisions []struct {
		ImpressionID string  `json:"impression_id"`
		Creative     string  `json:"creative"`
		Experiment   string  `json:"experiment"`
		Variant      string  `json:"variant"`
		ModelVersion string  `json:"model_version"`
		Policy       string  `json:"policy"`
		Propensity   float64 `json:"propensity"`
		ArmShare     float64 `json:"arm_share"`
		Error        string  `json:"error"`
	} `json:"decisions"`
}

// Decide implements world.Decider.
func (s *shop) Decide(ctx context.Context, visits []world.Visit) ([]world.Decision, error) {
	reqs := make([]decideRequest, len(visits))
	for i, v := range visits {
		reqs[i] = decideRequest{strconv.FormatUint(v.User, 10), v.Product, v.Placement, v.Position, v.TimeMS}
	}
	body, err := json.Marshal(map[string]any{"requests": reqs})
	if err != nil {
		return nil, err
	}
	raw, err := s.post(ctx, "http://"+s.api+"/v1/decide", "application/json", body)
	if err != nil {
		return nil, fmt.Errorf("decide: %w", err)
	}
	var a decideAnswer
	if err := json.Unmarshal(raw, &a); err != nil {
		return nil, fmt.Errorf("decide: %w", err)
	}
	if len(a.Decisions) != len(visits) {
		return nil, fmt.Errorf("decide: %d answers to %d visits", len(a.Decisions), len(visits))
	}
	out := make([]world.Decision, len(visits))
	for i, d := range a.Decisions {
		if d.Error != "" {
			return nil, fmt.Errorf("decide for product %s: %s", visits[i].Product, d.Error)
		}
		id, err := schemas.ParseImpressionID(d.ImpressionID)
		if err != nil {
			return nil, fmt.Errorf("decide: %w", err)
		}
		out[i] = world.Decision{
			ImpressionID: id, Creative: d.Creative, Experiment: d.Experiment, Variant: d.Variant,
			ModelVersion: d.ModelVersion, Policy: d.Policy, Propensity: d.Propensity, ArmShare: d.ArmShare,
		}
	}
	return out, nil
}

// Send implements world.Sender.
func (s *shop) Send(ctx context.Context, batch []world.Event) error {
	var body []byte
	var err error
	for _, e := range batch {
		var m proto.Message = e.Impression
		if e.Click != nil {
			m = e.Click
		}
		if body, err = eventpb.AppendBody(body, m); err != nil {
			return err
		}
		s.seen.observe(e.TimeMS)
	}
	return s.send(ctx, body)
}

// EndOfDay promises the edge that no event before ms will follow, so that the join can close its windows.
func (s *shop) EndOfDay(ctx context.Context, ms int64) error {
	body, err := eventpb.AppendBody(nil, &eventpb.Punctuation{LowWatermarkMs: ms})
	if err != nil {
		return err
	}
	return s.send(ctx, body)
}

func (s *shop) send(ctx context.Context, body []byte) error {
	if len(body) == 0 {
		return nil
	}
	raw, err := s.post(ctx, "http://"+s.edge+"/v1/events", "application/x-protobuf", body)
	if err != nil {
		return fmt.Errorf("send events: %w", err)
	}
	var a struct {
		RejectedTotal int64 `json:"rejected_total"`
	}
	if err := json.Unmarshal(raw, &a); err != nil {
		return fmt.Errorf("send events: %w", err)
	}
	if a.RejectedTotal > 0 {
		return errors.New("the edge rejected events of the world: " + string(raw))
	}
	return nil
}

// clock is the newest event time that was sent.
type clock struct {
	mu sync.Mutex
	ms int64
}

func (c *clock) observe(ms int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ms = max(c.ms, ms)
}

// Now is the clock of the traffic; the wall clock before the first event.
func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ms == 0 {
		return time.Now()
	}
	return time.UnixMilli(c.ms)
}
