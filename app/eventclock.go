package app

import (
	"context"
	"sync"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/joiner"
	"ctrloop/schemas"
)

// Reading of the event clock of a join in other processes.
const (
	eventClockAge     = time.Second // for which a reading is good
	eventClockTimeout = 5 * time.Second
)

// eventClock is the event time up to which the join has read, as it commits it, in whichever processes it runs.
type eventClock struct {
	a *App

	mu     sync.Mutex
	newest time.Time
	read   time.Time
}

// now is the time, zero before the first impression. While the brokers do not answer it stands still: then no step is taken.
func (c *eventClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.read) < eventClockAge {
		return c.newest
	}
	ctx, cancel := context.WithTimeout(context.Background(), eventClockTimeout)
	defer cancel()
	committed, err := stream.CommittedOffsets(ctx, c.a.kafka, c.a.cfg.Joiner.Group, schemas.TopicImpressions)
	c.read = time.Now()
	if err != nil {
		c.a.log.Warn().Err(err).Msg("the event clock stands still: how far the join is cannot be read")
		return c.newest
	}
	for _, at := range committed {
		if ms, ok := joiner.EventTimeOf(at.Metadata); ok && time.UnixMilli(ms).After(c.newest) {
			c.newest = time.UnixMilli(ms)
		}
	}
	return c.newest
}
