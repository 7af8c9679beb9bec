package swap

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"ctrloop/schemas/control"
)

// reportStates brings the log to what this process knows of its versions, while it leads. Each command follows from the state and
// from what is resident, so that one whose append failed is written by a later call.
func (c *Controller) reportStates(ctx context.Context) {
	log := c.lead.Held()
	if log == nil {
		c.work.Worked() // whoever leads tells them
		return
	}
	var failed error
	for _, version := range slices.Sorted(maps.Keys(log.State().Models)) {
		for ctx.Err() == nil {
			st := log.State()
			next, reason := c.next(st, st.Models[version])
			if next == "" {
				break
			}
			if next == control.ModelUnloaded { // an earlier run may have left it there
				c.ensureUnloaded(ctx, version)
			}
			if err := c.record(ctx, log, st, version, next, reason); err != nil {
				if _, rejected := control.Rejected(err); !rejected {
					failed = err
				}
				if ctx.Err() == nil {
					c.log.Warn().Err(err).Str("version", version).Str("state", string(next)).Msg("state could not be recorded; trying again")
				}
				break
			}
		}
	}
	if ctx.Err() == nil {
		c.work.Tried(failed)
	}
}

// next is the state that the log lacks of a version, "" if none. A base that serves keeps the state that it has.
func (c *Controller) next(st *control.State, m *control.ModelStatus) (next control.ModelState, reason string) {
	if !slices.Contains(c.cfg.Logicals, m.Logical) {
		return "", ""
	}
	_, routed := c.table.Version(m.Version)
	c.mu.Lock()
	defer c.mu.Unlock()
	if f, failed := c.failed[m.Version]; failed && f.since.Equal(m.Since) && m.State != control.ModelFailed {
		return control.ModelFailed, f.why
	}
	on := 0
	for _, r := range c.replicas {
		if c.resident[r][m.Version] {
			on++
		}
	}
	switch {
	case routed && on > 0:
		steps := []control.ModelState{control.ModelFetched, control.ModelLoaded, control.ModelProbed, control.ModelShadow}
		if at := slices.Index(steps, m.State); at >= 0 && at+1 < len(steps) {
			return steps[at+1], fmt.Sprintf("on %d of %d replicas", on, len(c.replicas))
		}
	case routed || c.retiring[m.Version] || c.wants(st, m.Version):
	case m.State == control.ModelRetained:
		return control.ModelDrained, ""
	case m.State == control.ModelDrained && on == 0:
		return control.ModelUnloaded, ""
	}
	return "", ""
}

func (c *Controller) wants(st *control.State, version string) bool {
	return slices.ContainsFunc(c.wanted(st), func(m *control.ModelStatus) bool { return m.Version == version })
}

// record appends one state, decided on the version of the model that was seen.
func (c *Controller) record(
	ctx context.Context, log control.Log, st *control.State, version string, s control.ModelState, reason string,
) error {
	entity := control.ModelEntity(version)
	e, err := control.NewEvent(uuid.NewString(), control.ModelStateChanged, entity, st.Versions[entity], actor, "", time.Now(),
		control.ModelStateChange{State: s, Reason: control.Clip(reason)})
	if err == nil {
		_, err = log.Append(ctx, e) // repeated cannot be: the id is new
	}
	if err != nil {
		return err
	}
	if now := log.State().Models[version]; s == control.ModelFailed && now.State == s { // it is the same failure, now in its own state
		c.mu.Lock()
		defer c.mu.Unlock()
		f := c.failed[version]
		f.since = now.Since
		c.failed[version] = f
	}
	return nil
}

// fail takes a version that did not come into service off the replicas and keeps why for the log. Routing was not touched.
func (c *Controller) fail(ctx context.Context, m *control.ModelStatus, why error) {
	c.log.Error().Err(why).Str("version", m.Version).Msg("version failed; routing is as it was")
	c.m.failures.Inc()
	c.mu.Lock()
	for _, r := range c.replicas {
		delete(c.resident[r], m.Version)
	}
	c.failed[m.Version] = failure{since: m.Since, until: time.Now().Add(c.cfg.Quarantine), why: why.Error()}
	c.mu.Unlock()
	if _, routed := c.table.Version(m.Version); !routed && m.Artifact != c.base.Digest {
		c.unload(ctx, m.Version)
	}
}
