package swap

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"strings"

	"ctrloop/serving/backend"
)

// Golden is probe.json: a question, what the trainer's adapter answered greedily and what its base did.
type Golden struct {
	ImagePNG     string    `json:"image_png_base64"`
	Text         string    `json:"text"`
	MaxTokens    int       `json:"max_tokens"`
	Answer       string    `json:"answer"`
	Logprobs     []float64 `json:"logprobs"` // natural, one per token, end token included
	BaseAnswer   string    `json:"base_answer"`
	BaseLogprobs []float64 `json:"base_logprobs"`
}

// ProbeReason says what a probe found. The list is closed.
type ProbeReason string

// Findings.
const (
	WrongBase      ProbeReason = "wrong_base"      // the base answers otherwise than the trainer's base
	AppliesNothing ProbeReason = "applies_nothing" // the adapter answers as the base does
	NotAsTrained   ProbeReason = "not_as_trained"  // neither the base nor what was trained: stale, damaged, misread
	Undecidable    ProbeReason = "undecidable"     // the golden answers of adapter and base are the same
)

// ProbeError is a probe that an adapter did not pass.
type ProbeError struct {
	Reason ProbeReason
	Detail string
}

func (e *ProbeError) Error() string {
	return fmt.Sprintf("activation probe: %s: %s", e.Reason, e.Detail)
}

// ReadGolden reads a version's probe.json.
func ReadGolden(dir string) (*Golden, error) {
	g := &Golden{}
	if err := readJSON(filepath.Join(dir, "probe.json"), g); err != nil {
		return nil, fmt.Errorf("probe: %w (a version without a golden answer cannot be verified and is not served)", err)
	}
	if g.Text == "" || g.MaxTokens < 1 || len(g.Logprobs) == 0 || len(g.BaseLogprobs) == 0 {
		return nil, fmt.Errorf("probe.json: want text, max_tokens, logprobs and base_logprobs")
	}
	return g, nil
}

func (g *Golden) request(model string) backend.ChatRequest {
	content := []backend.Part{{Type: "text", Text: g.Text}}
	if g.ImagePNG != "" {
		url := &backend.ImageURL{URL: "data:image/png;base64," + g.ImagePNG}
		content = append([]backend.Part{{Type: "image_url", ImageURL: url}}, content...)
	}
	return backend.ChatRequest{
		Model:     model,
		Messages:  []backend.Message{{Role: "user", Content: content}},
		N:         1,
		MaxTokens: g.MaxTokens,
		Logprobs:  true,
	}
}

// Probe asks the base and the adapter of a replica the golden question, greedily. tolerance is the largest
// difference of a token's log-probability that counts as equal: rounding in float32 is below 0.001, in
// bfloat16 up to about 0.1.
func (g *Golden) Probe(ctx context.Context, r backend.Prompt, base, adapter string, tolerance float64) error {
	if same(g.Answer, g.Logprobs, g.BaseAnswer, g.BaseLogprobs, 2*tolerance) {
		return &ProbeError{Undecidable, "the trained adapter and its base give the same answer within the tolerance"}
	}
	text, logp, err := ask(ctx, r, g.request(base))
	if err != nil {
		return err
	}
	if !same(text, logp, g.BaseAnswer, g.BaseLogprobs, tolerance) {
		return &ProbeError{
			WrongBase,
			fmt.Sprintf("base %s answers %s, the trainer's answered %s", base, show(text, logp), show(g.BaseAnswer, g.BaseLogprobs)),
		}
	}
	text, logp, err = ask(ctx, r, g.request(adapter))
	switch {
	case err != nil:
		return err
	case same(text, logp, g.Answer, g.Logprobs, tolerance):
		return nil
	case same(text, logp, g.BaseAnswer, g.BaseLogprobs, tolerance):
		return &ProbeError{AppliesNothing, fmt.Sprintf("adapter %s answers as the base does: %s", adapter, show(text, logp))}
	}
	return &ProbeError{
		NotAsTrained,
		fmt.Sprintf("adapter %s answers %s, the trainer's answered %s", adapter, show(text, logp), show(g.Answer, g.Logprobs)),
	}
}

func ask(ctx context.Context, r backend.Prompt, req backend.ChatRequest) (string, []float64, error) {
	resp, err := r.Chat(ctx, req)
	if err != nil {
		return "", nil, err
	}
	if resp.Model != req.Model {
		return "", nil, &ProbeError{NotAsTrained, fmt.Sprintf("asked %q, %q answered", req.Model, resp.Model)}
	}
	c := resp.Choices[0]
	var logp []float64
	if c.Logprobs != nil {
		for _, t := range c.Logprobs.Content {
			logp = append(logp, t.Logprob)
		}
	}
	return c.Message.Content, logp, nil
}

// same compares two greedy answers. Servers differ in whether they report the end token, so one token more
// or less is ignored.
func same(a string, la []float64, b string, lb []float64, tolerance float64) bool {
	if strings.TrimSpace(a) != strings.TrimSpace(b) || max(len(la), len(lb))-min(len(la), len(lb)) > 1 {
		return false
	}
	for i := range min(len(la), len(lb)) {
		if !(math.Abs(la[i]-lb[i]) <= tolerance) { // also when one is NaN
			return false
		}
	}
	return len(la) > 0 && len(lb) > 0
}

func show(text string, logp []float64) string {
	sum := 0.0
	for _, l := range logp {
		sum += l
	}
	return fmt.Sprintf("%.120q (log-probability %.3f over %d tokens)", strings.TrimSpace(text), sum, len(logp))
}
