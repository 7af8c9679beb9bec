package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// request is a chat completion as the gateway sees it: the bytes, and where the model's name stands in them. It
// is not decoded and encoded again: pictures make bodies large.
type request struct {
	raw        []byte
	model      string
	user       string
	stream     bool
	start, end int // of the model's value in raw
}

var errBody = errors.New("the body must be a JSON object with \"model\" and \"messages\"")

func parseRequest(raw []byte, allowed func(field string) bool) (*request, error) {
	r := &request{raw: raw}
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errBody
	}
	found := false
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errBody, err)
		}
		switch key {
		case "model":
			if found {
				return nil, fmt.Errorf("%w: \"model\" twice", errBody)
			}
			var v json.RawMessage
			if err := d.Decode(&v); err != nil {
				return nil, fmt.Errorf("%w: %w", errBody, err)
			}
			if err := json.Unmarshal(v, &r.model); err != nil || r.model == "" {
				return nil, fmt.Errorf("%w: \"model\" must be a name", errBody)
			}
			r.end = int(d.InputOffset())
			r.start, found = r.end-len(v), true
		case "user":
			err = d.Decode(&r.user)
		case "stream":
			err = d.Decode(&r.stream)
		default:
			if name, _ := key.(string); !allowed(name) {
				return nil, fmt.Errorf("the field %q is not passed on to the models: leave it out", name)
			}
			err = d.Decode(&skip{})
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errBody, err)
		}
	}
	if _, err := d.Token(); err != nil || !found {
		return nil, errBody
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: more follows the object", errBody)
	}
	return r, nil
}

// fields of a chat completion that are passed on, besides those that the gateway reads. Engines know more of them, and
// some of those end the engine for everybody (vLLM 0.32: echo beside stream, with adapters).
var fields = map[string]bool{
	"messages": true, "n": true, "temperature": true, "top_p": true, "top_k": true, "min_p": true, "max_tokens": true,
	"max_completion_tokens": true, "seed": true, "stop": true, "stream_options": true, "logprobs": true, "top_logprobs": true,
	"presence_penalty": true, "frequency_penalty": true, "repetition_penalty": true, "logit_bias": true, "response_format": true,
	"metadata": true,
}

// allows says whether a field is passed on.
func (g *Gateway) allows(field string) bool {
	return fields[field] || slices.Contains(g.cfg.AllowFields, field)
}

// skip takes any value and keeps nothing.
type skip struct{}

func (*skip) UnmarshalJSON([]byte) error { return nil }

// withModel is the body with another model's name.
func (r *request) withModel(name string) []byte {
	quoted, _ := json.Marshal(name) // a string always encodes
	out := make([]byte, 0, len(r.raw)+len(quoted))
	out = append(out, r.raw[:r.start]...)
	out = append(out, quoted...)
	return append(out, r.raw[r.end:]...)
}
