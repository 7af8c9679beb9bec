package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// request is a chat completion as the gateway sees it: the bytes, and where the model's name stands in them. It
// is not decoded and encoded again: pictures make bodies large, and a field that we do not know must get through.
type request struct {
	raw        []byte
	model      string
	user       string
	stream     bool
	start, end int // of the model's value in raw
}

var errBody = errors.New("the body must be a JSON object with \"model\" and \"messages\"")

func parseRequest(raw []byte) (*request, error) {
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

// modelOf reads which model an answer, or the first event of a streamed answer, says it comes from.
func modelOf(raw []byte) (string, error) {
	var a struct {
		Model string `json:"model"`
	}
	err := json.Unmarshal(raw, &a)
	return a.Model, err
}
