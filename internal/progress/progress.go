// Package progress shows how far long work has come: one line that is drawn over on a terminal, and a plain
// line every few seconds elsewhere, each with a rate and the time that is left.
package progress

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"ctrloop/internal/telemetry"
)

// plainEvery is the pace of plain lines.
const plainEvery = 5 * time.Second

// drawEvery is the pace of redrawing.
const drawEvery = 200 * time.Millisecond

// Bar is the progress of one piece of work. It is safe for concurrent use.
type Bar struct {
	w     io.Writer
	name  string
	unit  string
	tty   bool
	now   func() time.Time
	start time.Time

	mu   sync.Mutex
	last time.Time
	wide int // length of the line on the terminal
}

// Start begins a piece of work whose progress is counted in units (plural: "events").
func Start(w io.Writer, name, unit string) *Bar {
	return &Bar{w: w, name: name, unit: unit, tty: telemetry.IsTerminal(w), now: time.Now, start: time.Now()}
}

// Set shows that done units are through, which is the given share (0 to 1) of the work; a negative share is unknown.
func (b *Bar) Set(done int64, share float64, note string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	pace := plainEvery
	if b.tty {
		pace = drawEvery
	}
	if now.Sub(b.last) < pace {
		return
	}
	b.last = now
	b.print(b.line(now, done, share, note), false)
}

// Done ends the line with what was achieved.
func (b *Bar) Done(done int64, note string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.print(b.line(b.now(), done, 1, note), true)
}

func (b *Bar) line(now time.Time, done int64, share float64, note string) string {
	took := now.Sub(b.start)
	parts := []string{fmt.Sprintf("%-12s", b.name)}
	if share >= 0 {
		parts = append(parts, fmt.Sprintf("%3.0f %%", 100*share))
	}
	if b.unit != "" {
		parts = append(parts, fmt.Sprintf("%d %s", done, b.unit))
		if s := took.Seconds(); s > 0.5 && done > 0 {
			parts = append(parts, fmt.Sprintf("%.0f/s", float64(done)/s))
		}
	}
	switch {
	case share > 0.02 && share < 1:
		left := time.Duration(float64(took) * (1 - share) / share)
		parts = append(parts, "about "+left.Round(time.Second).String()+" left")
	default:
		parts = append(parts, took.Round(100*time.Millisecond).String())
	}
	if note != "" {
		parts = append(parts, note)
	}
	return strings.Join(parts, "  ")
}

func (b *Bar) print(line string, end bool) {
	if !b.tty {
		fmt.Fprintln(b.w, line)
		return
	}
	pad := max(0, b.wide-len(line))
	b.wide = len(line)
	fmt.Fprintf(b.w, "\r%s%s", line, strings.Repeat(" ", pad))
	if end {
		fmt.Fprintln(b.w)
	}
}
