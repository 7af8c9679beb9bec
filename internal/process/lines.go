package process

import (
	"bytes"
	"encoding/json"
	"strings"
	"sync"

	"github.com/rs/zerolog"
)

const (
	// maxLineBytes bounds one logged line; the rest of a longer one is dropped. A traceback's line is far
	// shorter, a progress bar without line ends is not.
	maxLineBytes = 8 << 10
	// maxTailBytes of the last lines are kept for the error message.
	maxTailBytes = 2 << 10
)

// lines forwards what a child writes to a logger, line by line, and remembers the end.
type lines struct {
	log   zerolog.Logger
	level zerolog.Level

	mu      sync.Mutex
	partial []byte
	dropped int // bytes of the present line beyond the bound
	last    []string
	size    int
}

func newLines(log zerolog.Logger, level zerolog.Level) *lines { return &lines{log: log, level: level} }

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for rest := p; len(rest) > 0; {
		line, after, ended := bytes.Cut(rest, []byte{'\n'})
		room := min(len(line), maxLineBytes-len(l.partial))
		l.partial = append(l.partial, line[:room]...)
		l.dropped += len(line) - room
		if ended {
			l.emit()
		}
		rest = after
	}
	return len(p), nil
}

// flush logs a last line without an end.
func (l *lines) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.partial) > 0 {
		l.emit()
	}
}

// emit logs the present line. A carriage return redraws a line on a terminal: what was last on it counts.
func (l *lines) emit() {
	text := strings.TrimRight(strings.ToValidUTF8(string(l.partial), "�"), "\r ")
	if i := strings.LastIndexByte(text, '\r'); i >= 0 {
		text = text[i+1:]
	}
	dropped := l.dropped
	l.partial, l.dropped = l.partial[:0], 0
	if text == "" {
		return
	}
	l.remember(text)
	event := l.log.WithLevel(l.level)
	if dropped > 0 {
		event = event.Int("dropped_bytes", dropped)
	}
	if structured := []byte(text); text[0] == '{' && json.Valid(structured) {
		event.RawJSON("line", structured).Msg("")
		return
	}
	event.Msg(text)
}

// remember keeps the line for the tail, whole lines up to the bound.
func (l *lines) remember(text string) {
	if len(text) > maxTailBytes/2 {
		text = strings.ToValidUTF8(text[:maxTailBytes/2], "") + "..."
	}
	l.last = append(l.last, text)
	l.size += len(text)
	for l.size > maxTailBytes && len(l.last) > 1 {
		l.size -= len(l.last[0])
		l.last = l.last[1:]
	}
}

// tail returns the last lines.
func (l *lines) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.last, "\n")
}
