package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// HeaderRequestID names a request in answers and logs. A client may choose it.
const HeaderRequestID = "X-Request-Id"

// Error is the one shape in which every listener refuses: {"error": {...}}. Clients of OpenAI's API read it too.
type Error struct {
	Status     int           `json:"-"`
	Code       string        `json:"code"`           // for programs; from the status, see codes
	Message    string        `json:"message"`        // what is refused, and why
	Hint       string        `json:"hint,omitempty"` // what to do
	RequestID  string        `json:"request_id,omitempty"`
	RetryAfter time.Duration `json:"-"` // above 0: sent as Retry-After, in whole seconds
}

// Error is the message.
func (e *Error) Error() string { return e.Message }

// codes of the statuses that are used. The list is closed, so that clients can rely on it.
var codes = map[int]string{
	http.StatusBadRequest:            "bad_request",
	http.StatusUnauthorized:          "unauthenticated",
	http.StatusForbidden:             "forbidden",
	http.StatusNotFound:              "not_found",
	http.StatusMethodNotAllowed:      "method_not_allowed",
	http.StatusRequestTimeout:        "timeout",
	http.StatusConflict:              "conflict",
	http.StatusGone:                  "gone",
	http.StatusRequestEntityTooLarge: "too_large",
	http.StatusUnsupportedMediaType:  "unsupported_media_type",
	http.StatusUnprocessableEntity:   "invalid",
	http.StatusTooManyRequests:       "too_many_requests",
	http.StatusInternalServerError:   "internal",
	http.StatusServiceUnavailable:    "unavailable",
}

// Refuse makes an error of a status with a hint of what to do, and a message of what and why.
func Refuse(status int, hint, format string, args ...any) *Error {
	e := &Error{Status: status, Code: codes[status], Message: fmt.Sprintf(format, args...), Hint: hint}
	if e.Code == "" {
		e.Code = "error"
	}
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		e.RetryAfter = time.Second
	}
	return e
}

// Fail answers with an error. One that is no *Error is a bug or a failure inside: 500, with its text.
func Fail(w http.ResponseWriter, err error) {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = Refuse(http.StatusInternalServerError, "the log of the instance has more; the request id finds it", "%v", err)
	}
	answer := *e // an error may be shared: the request's id is this answer's
	answer.RequestID = w.Header().Get(HeaderRequestID)
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int((e.RetryAfter+time.Second-1)/time.Second))))
	}
	if e.Status == http.StatusRequestTimeout {
		w.Header().Set("Connection", "close") // the rest of its body may still come
	}
	Reply(w, e.Status, map[string]any{"error": answer})
}

// Reply answers with JSON.
func Reply(w http.ResponseWriter, status int, v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		Fail(w, Refuse(http.StatusInternalServerError, "this is a bug", "encode the answer: %v", err))
		return
	}
	ReplyRaw(w, status, append(raw, '\n'))
}

// ReplyRaw answers with JSON that is encoded already.
func ReplyRaw(w http.ResponseWriter, status int, raw []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(raw)))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(raw) // a client that has gone needs no answer
}
