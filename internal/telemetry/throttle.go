package telemetry

import (
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// maxThrottleKeys bounds the memory of a Throttle. Keys are kinds of errors, of which a component has a dozen;
// what comes after the bound shares one key.
const maxThrottleKeys = 256

// Throttle keeps an error that repeats a thousand times a second from filling the log: the first one of each
// key is logged at once, later ones at most once per interval, with the number left out in between.
type Throttle struct {
	log      zerolog.Logger
	interval time.Duration
	now      func() time.Time

	mu   sync.Mutex
	keys map[string]*throttled
}

type throttled struct {
	last       time.Time
	suppressed int
}

// NewThrottle returns a throttle that writes to log, at most once per interval and key. now is the clock,
// usually time.Now.
func NewThrottle(log zerolog.Logger, interval time.Duration, now func() time.Time) *Throttle {
	return &Throttle{log: log, interval: interval, now: now, keys: make(map[string]*throttled)}
}

// Event starts a log line of the given level for a kind of event. It returns nil, which zerolog takes and
// ignores, where the line is to be left out. A line after a silence carries the count as "repeated".
//
//	throttle.Event(zerolog.ErrorLevel, "produce").Err(err).Msg("produce")
func (t *Throttle) Event(level zerolog.Level, key string) *zerolog.Event {
	t.mu.Lock()
	defer t.mu.Unlock()
	seen, known := t.keys[key]
	if !known && len(t.keys) >= maxThrottleKeys {
		key = "other"
		seen, known = t.keys[key]
	}
	now := t.now()
	if !known {
		t.keys[key] = &throttled{last: now}
		return t.log.WithLevel(level)
	}
	if now.Sub(seen.last) < t.interval {
		seen.suppressed++
		return nil
	}
	repeated := seen.suppressed
	seen.last, seen.suppressed = now, 0
	event := t.log.WithLevel(level)
	if repeated > 0 {
		event = event.Int("repeated", repeated)
	}
	return event
}
