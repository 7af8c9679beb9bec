package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
)

// firstBuffer is what a body takes before its first byte has come.
const firstBuffer = 4 << 10

// Budget bounds the bytes of all bodies together that are held at one time.
type Budget struct {
	max  int64
	used atomic.Int64
}

// NewBudget makes a budget of max bytes.
func NewBudget(most int64) *Budget { return &Budget{max: most} }

// Used is the number of bytes held now.
func (b *Budget) Used() int64 { return b.used.Load() }

// Hold is what one request holds of a budget. The zero Hold has no budget: nothing bounds it but a body's own limit.
type Hold struct {
	of *Budget
	n  int64
}

// Hold starts with nothing.
func (b *Budget) Hold() *Hold { return &Hold{of: b} }

// Release gives everything back. What was read must not be used any more.
func (h *Hold) Release() {
	if h.of != nil {
		h.of.used.Add(-h.n)
	}
	h.n = 0
}

func (h *Hold) grow(n int64) error {
	if h.of == nil {
		return nil
	}
	h.n += n
	if h.of.used.Add(n) > h.of.max {
		return Refuse(http.StatusTooManyRequests, "come back after Retry-After", "bodies of more than %d bytes are being worked on", h.of.max)
	}
	return nil
}

// Read reads all of a body. Memory is taken as bytes arrive, at most twice of what has come: size, which is what the
// client announces (below 0: nothing), only says where growing stops. More than most bytes are refused.
func (h *Hold) Read(src io.Reader, size, most int64) ([]byte, error) {
	if size > most {
		return nil, tooLarge(most)
	}
	want := most + 1 // one more, to see the end without growing
	if size >= 0 {
		want = size + 1
	}
	buf := make([]byte, 0, min(want, firstBuffer))
	if err := h.grow(int64(cap(buf))); err != nil {
		return nil, err
	}
	for {
		n, err := src.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case int64(len(buf)) > most:
			return nil, tooLarge(most)
		case errors.Is(err, io.EOF):
			return buf, nil
		case err != nil:
			return nil, bodyError(err)
		case len(buf) == cap(buf):
			to := min(2*int64(cap(buf)), most+1)
			if int64(cap(buf)) < want {
				to = min(to, want)
			}
			if err := h.grow(to - int64(cap(buf))); err != nil {
				return nil, err
			}
			buf = append(make([]byte, 0, to), buf...)
		}
	}
}

func tooLarge(most int64) *Error {
	return Refuse(http.StatusRequestEntityTooLarge, "send less at once", "the body has more than %d bytes", most)
}

// bodyError says in the client's words why its body could not be read.
func bodyError(err error) error {
	if refused, ok := errors.AsType[*Error](err); ok {
		return refused
	}
	if large, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge(large.Limit)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return Refuse(http.StatusRequestTimeout, "send the body without pauses, in smaller parts over a slow line",
			"the body did not come in time")
	}
	return Refuse(http.StatusBadRequest, "send it again", "the body could not be read: %v", err)
}

// Body reads the body of a request, at most most bytes. It counts against the listener's budget until the request has been
// answered. Errors are of type *Error.
func Body(r *http.Request, most int64) ([]byte, error) {
	return HoldOf(r.Context()).Read(r.Body, r.ContentLength, most)
}

// HoldOf is what a request holds of its listener's budget, for bodies that are decoded while they are read.
func HoldOf(ctx context.Context) *Hold {
	if c := callOf(ctx); c != nil && c.hold != nil {
		return c.hold
	}
	return &Hold{}
}

// ReadJSON reads a body of one JSON value into v. Unknown keys, values of another type and anything behind the value are
// errors, of type *Error.
func ReadJSON(r *http.Request, most int64, v any) error {
	raw, err := Body(r, most)
	if err != nil {
		return err
	}
	return DecodeJSON(raw, v)
}

// DecodeJSON is ReadJSON of bytes.
func DecodeJSON(raw []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		what := strings.TrimPrefix(err.Error(), "json: ")
		if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok { // without the names of Go's types
			what = strings.TrimSpace(fmt.Sprintf("%s cannot be a JSON %s", wrong.Field, wrong.Value))
		}
		if errors.Is(err, io.EOF) {
			what = "it is empty"
		}
		return Refuse(http.StatusBadRequest, "want one JSON object with known fields", "body: %s", what)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Refuse(http.StatusBadRequest, "send one object", "body: something follows the JSON object")
	}
	return nil
}
