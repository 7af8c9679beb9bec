package swap

import (
	"context"
	"maps"
	"time"

	"golang.org/x/sync/errgroup"

	"ctrloop/serving/backend"
	"ctrloop/serving/route"
)

// survey asks every replica what it has, and forgets what a restart has lost.
func (c *Controller) survey(ctx context.Context) []*route.Replica {
	up := make([]bool, len(c.replicas))
	c.mu.Lock()
	last := c.surveyed
	c.surveyed = time.Now()
	c.mu.Unlock()
	var g errgroup.Group
	for i, r := range c.replicas {
		g.Go(func() error {
			before := c.residentOn(r)
			cards, err := r.Models(ctx)
			switch {
			case ctx.Err() != nil:
				return nil
			case err != nil:
				c.strike(r, err, last)
				return nil
			}
			c.mu.Lock()
			delete(c.strikes, r)
			c.mu.Unlock()
			c.dropLost(r, before, cards)
			c.mu.Lock()
			up[i] = time.Now().After(c.quarantine[r])
			c.mu.Unlock()
			return nil
		})
	}
	_ = g.Wait()
	var out []*route.Replica
	for i, r := range c.replicas {
		if up[i] {
			out = append(out, r)
		}
	}
	c.m.up.Set(float64(len(out)))
	return out
}

// strike counts a survey without an answer. A replica that is busy with requests, or has answered some since the last
// survey, is slow and not dead: it stays. One that does not answer twice in a row goes; the second survey follows at once.
func (c *Controller) strike(r *route.Replica, err error, last time.Time) {
	if backend.KindOf(err) == backend.Slow && (r.InFlight() > 0 || r.AnsweredSince(last)) {
		c.log.Warn().Err(err).Str("replica", r.Name()).Int64("in_flight", r.InFlight()).Msg("replica is slow; it is routed to as before")
		return
	}
	c.mu.Lock()
	c.strikes[r]++
	n := c.strikes[r]
	c.mu.Unlock()
	if n < maxStrikes {
		c.signal(c.wake)
		return
	}
	if len(c.residentOn(r)) > 0 {
		c.log.Warn().Err(err).Str("replica", r.Name()).Msg("replica is down; not routed to until it is back and probed")
	}
	c.forget(r)
	c.table.Drop("", r)
}

// dropLost forgets a replica that no longer lists what was resident before it was asked: it has restarted, and nothing
// that was proved holds. What this controller is unloading, or has unloaded meanwhile, is not lost.
func (c *Controller) dropLost(r *route.Replica, before map[string]bool, cards []backend.ModelCard) {
	listed := map[string]bool{}
	for _, card := range cards {
		listed[card.ID] = true
	}
	now := c.residentOn(r)
	for version := range before {
		c.mu.Lock()
		leaving := c.retiring[version]
		c.mu.Unlock()
		if model := c.modelName(version); listed[model] || leaving || !now[version] {
			continue
		}
		c.log.Warn().Str("replica", r.Name()).Str("version", version).Msg("replica has lost its adapters; loading and probing again")
		c.forget(r)
		c.table.Drop("", r)
		return
	}
}

func (c *Controller) modelName(version string) string {
	if v, ok := c.table.Version(version); ok {
		return v.Model
	}
	return version
}

func (c *Controller) residentOn(r *route.Replica) map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.resident[r])
}

func (c *Controller) forget(r *route.Replica) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.resident, r)
}
