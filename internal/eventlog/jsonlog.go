package eventlog

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"ctrloop/schemas"
)

// maxLine bounds a JSON event, bytes, as the edge does.
const maxLine = 1 << 20

// jsonLines reads one object a line. A line that is no event spoils only itself.
func jsonLines(s *source, r *bufio.Reader, opt Options) func() ([]Line, error) {
	return func() ([]Line, error) {
		for {
			b, long, err := readLine(r)
			if err != nil {
				return nil, err
			}
			s.line++
			if b = bytes.TrimSpace(b); len(b) == 0 && !long {
				continue
			}
			if long {
				return nil, &RowError{Line: s.line, Reason: schemas.DeadOversized, Text: clip(b),
					Detail: fmt.Sprintf("the line has more than %d bytes", maxLine)}
			}
			return jsonEvent(b, s.line, opt)
		}
	}
}

// readLine returns the next line without its end. Of a line that is too long it returns the start, and passes over it.
func readLine(r *bufio.Reader) (line []byte, long bool, err error) {
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) <= maxLine {
			line = append(line, part...)
		} else {
			long = true
		}
		switch {
		case err == nil:
			return bytes.TrimSuffix(line, []byte{'\n'}), long, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && (len(line) > 0 || long):
			return line, long, nil
		default:
			return nil, false, err
		}
	}
}

// jsonArray reads a file that is one array of objects. A broken array ends the reading: there is no next row to find.
func jsonArray(s *source, r io.Reader, opt Options) (func() ([]Line, error), error) {
	dec := json.NewDecoder(r)
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("not a JSON array: %w", err)
	}
	s.line = 0
	return func() ([]Line, error) {
		if !dec.More() {
			if _, err := dec.Token(); err != nil {
				return nil, fmt.Errorf("the JSON array does not end behind element %d: is the file whole? (%w)", s.line, err)
			}
			if _, err := dec.Token(); !errors.Is(err, io.EOF) {
				return nil, errors.New("something follows the JSON array: put one object on each line instead")
			}
			return nil, io.EOF
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, fmt.Errorf("the JSON array is broken behind element %d: %w", s.line, err)
		}
		s.line++
		var one bytes.Buffer
		if err := json.Compact(&one, raw); err != nil {
			return nil, err
		}
		return jsonEvent(one.Bytes(), s.line, opt)
	}, nil
}

// jsonEvent reads what order and time need; the edge judges the rest.
func jsonEvent(b []byte, line int64, opt Options) ([]Line, error) {
	bad := func(reason schemas.DeadLetterReason, format string, args ...any) error {
		return &RowError{Line: line, Reason: reason, Detail: fmt.Sprintf(format, args...), Text: clip(b)}
	}
	if !utf8.Valid(b) {
		return nil, bad(schemas.DeadBadField, "the line is not UTF-8: convert the log, for example with iconv -f LATIN1 -t UTF-8")
	}
	var e struct {
		Type         string `json:"type"`
		ID           string `json:"id"`
		ImpressionID string `json:"impression_id"`
		TimeMS       int64  `json:"time_ms"`
	}
	if err := json.Unmarshal(b, &e); err != nil {
		var typ *json.UnmarshalTypeError
		if errors.As(err, &typ) && typ.Field != "" {
			return nil, bad(schemas.DeadBadField, "%s: a JSON %s, want %s", typ.Field, typ.Value, wanted(typ.Field))
		}
		return nil, bad(schemas.DeadMalformed, "not a JSON object: %v", err)
	}
	l := Line{JSON: bytes.Clone(b), Click: e.Type == "click", TimeMS: e.TimeMS, Row: line}
	shown := e.ID
	switch e.Type {
	case "impression":
	case "click":
		shown = e.ImpressionID
	default:
		return nil, bad(schemas.DeadUnknownSchema, `type %q: want "impression" or "click"`, e.Type)
	}
	id, err := schemas.ParseImpressionID(shown)
	if err != nil {
		return nil, bad(schemas.DeadBadID, "%v", err)
	}
	if !l.Click {
		l.TimeMS = id.UnixMilli() // an impression's time is in its id
	}
	if detail := checkTime(l.TimeMS, opt.Latest); detail != "" {
		return nil, bad(schemas.DeadBadTime, "%s", detail)
	}
	if l.Click && l.TimeMS < id.UnixMilli()-schemas.MaxBeforeMS {
		return nil, bad(schemas.DeadBadTime, "the click is a day or more before its impression: time_ms is in Unix milliseconds, not seconds")
	}
	return []Line{l}, nil
}

func wanted(field string) string {
	if field == "time_ms" {
		return "a whole number of milliseconds"
	}
	return "text"
}

// checkTime says what is wrong with an event's time, "" for nothing. A recorded event cannot be of the future: one such
// row would close every window of the store for what comes after it.
func checkTime(ms int64, latest time.Time) string {
	switch {
	case ms <= 0 || ms > schemas.MaxTimeMS:
		return fmt.Sprintf("time %d is not in Unix milliseconds between 1970 and 2100", ms)
	case !latest.IsZero() && ms > latest.UnixMilli():
		return fmt.Sprintf("%s is in the future: a recorded event cannot be", time.UnixMilli(ms).UTC().Format(time.RFC3339))
	}
	return ""
}

// ImpressionOf is the impression that an event shows or clicks.
func ImpressionOf(l Line) (schemas.ImpressionID, error) {
	var e event
	if err := json.Unmarshal(l.JSON, &e); err != nil {
		return schemas.ImpressionID{}, fmt.Errorf("%s, line %d: %w", l.File, l.Row, err)
	}
	if l.Click {
		return schemas.ParseImpressionID(e.ImpressionID)
	}
	return schemas.ParseImpressionID(e.ID)
}
