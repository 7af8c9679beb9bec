package sink

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"ctrloop/internal/stream"
)

// patience is how long a part of the sink may fail before the sink says that it does not work.
const patience = 30 * time.Second

// lostPause is the pause between two looks at a partition whose next records the broker has deleted: nothing but a person
// heals that.
const lostPause = time.Minute

// health is what does not work, by part, and since when.
type health struct {
	mu      sync.Mutex
	since   map[string]time.Time
	trouble map[string]string
	report  func(trouble string)
}

// Report makes the service call f whenever it stops working, with the reason, and with the empty string when it works again. It is
// called with what holds now.
func (s *Service) Report(f func(trouble string)) {
	s.health.mu.Lock()
	defer s.health.mu.Unlock()
	s.health.report = f
	s.health.tell()
}

// works takes note that a part has done something.
func (h *health) works(part string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.since, part)
	if _, was := h.trouble[part]; was {
		delete(h.trouble, part)
		h.tell()
	}
}

// fails takes note of an error of a part.
func (h *health) fails(part string, err error, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.since == nil {
		h.since, h.trouble = map[string]time.Time{}, map[string]string{}
	}
	since, failing := h.since[part]
	if !failing {
		h.since[part], since = now, now
	}
	if errors.Is(err, stream.ErrDataLoss) || now.Sub(since) >= patience {
		h.trouble[part] = fmt.Sprintf("%s since %s: %v", part, since.UTC().Format(time.RFC3339), err)
		h.tell()
	}
}

func (h *health) tell() {
	if h.report == nil {
		return
	}
	var all []string
	for _, part := range slices.Sorted(maps.Keys(h.trouble)) {
		all = append(all, h.trouble[part])
	}
	h.report(strings.Join(all, "; "))
}
