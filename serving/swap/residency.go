package swap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"ctrloop/schemas/control"
	"ctrloop/serving/backend"
	"ctrloop/serving/route"
)

// candidate is a version on its way, with what the steps need to know of it.
type candidate struct {
	*control.ModelStatus
	dir    string
	model  string  // name on the servers
	golden *Golden // nil for a base: it has nothing to tell it from itself
}

// makeResident sees that a version is resident wherever it can be, and routed to.
func (c *Controller) makeResident(ctx context.Context, m *control.ModelStatus, up []*route.Replica) {
	c.mu.Lock()
	f, failed := c.failed[m.Version]
	skip := c.retiring[m.Version] || failed && f.since.Equal(m.Since) && (m.State == control.ModelFailed || time.Now().Before(f.until))
	var missing []*route.Replica
	for _, r := range up {
		if !c.resident[r][m.Version] {
			missing = append(missing, r)
		}
	}
	c.mu.Unlock()
	if skip {
		return
	}
	if len(missing) > 0 {
		v, err := c.open(m)
		if err == nil {
			err = c.makeResidentOn(ctx, v, missing)
		}
		switch {
		case err == nil:
			c.mu.Lock()
			delete(c.failed, m.Version)
			delete(c.gone, m.Version)
			c.mu.Unlock()
		case ctx.Err() != nil:
			return
		case backend.Transient(err):
			c.log.Warn().Err(err).Str("version", m.Version).Msg("version could not be loaded now; trying again")
		default:
			c.fail(ctx, m, err)
			return
		}
	}
	c.publish(m)
}

// open checks a version's artifact; any error is final.
func (c *Controller) open(m *control.ModelStatus) (*candidate, error) {
	v := &candidate{ModelStatus: m, dir: c.store.Path(m.Artifact), model: m.Version}
	if m.Artifact == c.base.Digest { // the servers' own, which nobody needs to fetch
		v.model = c.cfg.ServedBase
		return v, nil
	}
	if err := c.store.Verify(m.Artifact); err != nil {
		return nil, fmt.Errorf("fetch: %w", err)
	}
	if !isAdapter(v.dir) {
		return nil, fmt.Errorf(
			"%w: it is a whole model (%.12s), and the servers run the base %.12s: start servers with it instead",
			ErrMisfit,
			m.Artifact,
			c.base.Digest,
		)
	}
	if m.Base != c.base.Digest {
		return nil, fmt.Errorf("%w: it is registered for the base %.12s, the servers run %.12s", ErrMisfit, m.Base, c.base.Digest)
	}
	if err := CheckAdapter(v.dir, c.base, Limits{MaxRank: c.cfg.MaxRank, Vision: c.cfg.VisionLoRA}); err != nil {
		return nil, err
	}
	var err error
	v.golden, err = ReadGolden(v.dir)
	return v, err
}

// newcomer says that a version has not proved itself yet: what goes wrong with it is its own fault. A version
// that has served before is not to blame when a replica cannot load it any more: the replica is.
func newcomer(m *control.ModelStatus) bool {
	return m.State == control.ModelFetched || m.State == control.ModelLoaded || m.State == control.ModelProbed
}

// makeResidentOn loads and probes a version on replicas. A newcomer goes to one replica first: if it kills the server,
// the others go on. Its error is final for a newcomer unless it is transient; replicas that fail with any other
// version, or while others succeed, are set aside.
func (c *Controller) makeResidentOn(ctx context.Context, v *candidate, replicas []*route.Replica) error {
	first := newcomer(v.ModelStatus)
	if first {
		if err := c.install(ctx, v, replicas[0]); err != nil {
			return err
		}
		replicas = replicas[1:]
	}
	errs := make([]error, len(replicas))
	var g errgroup.Group
	for i, r := range replicas {
		g.Go(func() error { errs[i] = c.install(ctx, v, r); return nil })
	}
	_ = g.Wait()
	for i, err := range errs {
		if err == nil || ctx.Err() != nil {
			continue
		}
		if first && !backend.Transient(err) {
			return err
		}
		c.setAside(replicas[i], v.Version, err)
	}
	return nil
}

func (c *Controller) setAside(r *route.Replica, version string, err error) {
	c.log.Error().Err(err).Str("replica", r.Name()).Str("version", version).Dur("quarantine", c.cfg.Quarantine).Msg("replica set aside")
	c.mu.Lock()
	c.quarantine[r] = time.Now().Add(c.cfg.Quarantine)
	c.mu.Unlock()
}

// install brings one version onto one replica: load, read back, probe, warm up.
func (c *Controller) install(ctx context.Context, v *candidate, r *route.Replica) error {
	if err := c.load(ctx, v, r); err != nil {
		return err
	}
	if err := c.probe(ctx, v, r); err != nil {
		if v.golden != nil {
			_ = r.Unload(ctx, v.model)
		}
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.resident[r] == nil {
		c.resident[r] = map[string]bool{}
	}
	c.resident[r][v.Version] = true
	return nil
}

func (c *Controller) load(ctx context.Context, v *candidate, r *route.Replica) error {
	if v.golden != nil {
		err := r.Load(ctx, v.model, v.dir)
		if backend.KindOf(err) == backend.AlreadyLoaded { // by an earlier run of ours; the probe will tell
			err = nil
		}
		result := "ok"
		if err != nil {
			result = string(backend.KindOf(err))
		}
		c.m.loads.WithLabelValues(result).Inc()
		if err != nil {
			return err
		}
	}
	cards, err := r.Models(ctx)
	if err != nil {
		return err
	}
	ok := slices.ContainsFunc(cards, func(m backend.ModelCard) bool {
		return m.ID == v.model && (v.golden == nil) == (m.Parent == "")
	})
	if !ok {
		return fmt.Errorf("read back: %s does not list %s after loading it", r.Name(), v.model)
	}
	return nil
}

// probe also warms the version up: a first request is several times slower than the next.
func (c *Controller) probe(ctx context.Context, v *candidate, r *route.Replica) error {
	if v.golden == nil {
		g := Golden{Text: "warm-up", MaxTokens: 4}
		_, _, err := ask(ctx, r, g.request(v.model))
		return err
	}
	err := v.golden.Probe(ctx, r, c.cfg.ServedBase, v.model, c.cfg.LogprobTolerance)
	result := "ok"
	if pe := (*ProbeError)(nil); errors.As(err, &pe) {
		result = string(pe.Reason)
	} else if err != nil {
		result = string(backend.KindOf(err))
	}
	c.m.probes.WithLabelValues(result).Inc()
	return err
}

// publish routes to a version where it is resident.
func (c *Controller) publish(m *control.ModelStatus) {
	var on []*route.Replica
	c.mu.Lock()
	for _, r := range c.replicas {
		if c.resident[r][m.Version] {
			on = append(on, r)
		}
	}
	c.mu.Unlock()
	old, routed := c.table.Version(m.Version)
	if len(on) == 0 || (routed && slices.Equal(old.Replicas, on)) {
		return
	}
	model := m.Version
	if m.Artifact == c.base.Digest {
		model = c.cfg.ServedBase
	}
	c.table.Put(m.Version, m.Logical, model, on)
	if !routed {
		c.mu.Lock()
		c.readyAt[m.Version] = time.Now()
		c.mu.Unlock()
		c.signal(c.routed)
		c.log.Info().Str("version", m.Version).Int("replicas", len(on)).Msg("version is routable")
	}
}

func (c *Controller) ensureUnloaded(ctx context.Context, version string) {
	c.mu.Lock()
	gone := c.gone[version]
	c.mu.Unlock()
	if gone {
		return
	}
	c.unload(ctx, version)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone[version] = ctx.Err() == nil
}

func (c *Controller) unload(ctx context.Context, version string) {
	var g errgroup.Group
	for _, r := range c.replicas {
		g.Go(func() error {
			// Best effort: an adapter that stays costs memory, and is found again by its name.
			if err := r.Unload(ctx, version); err != nil && backend.KindOf(err) != backend.NotFound && !backend.Transient(err) {
				c.log.Warn().Err(err).Msg("adapter could not be unloaded")
			}
			return nil
		})
	}
	_ = g.Wait()
}

// retire drains and unloads a version in the background.
func (c *Controller) retire(ctx context.Context, version string) {
	v, ok := c.table.Version(version)
	c.mu.Lock()
	busy := c.retiring[version]
	c.mu.Unlock()
	if !ok || busy || c.table.Champion(v.Logical) == version {
		return
	}
	c.mu.Lock()
	c.retiring[version] = true
	c.mu.Unlock()
	c.retired.Go(func() {
		start := time.Now()
		dctx, cancel := context.WithTimeout(ctx, c.cfg.DrainTimeout)
		defer cancel()
		if err := c.table.Remove(dctx, version); err != nil && ctx.Err() == nil {
			c.log.Warn().Err(err).Str("version", version).Int64("in_flight", v.InFlight()).Msg("version did not drain in time")
		}
		c.m.drains.Observe(time.Since(start).Seconds())
		c.finishRetiring(ctx, v)
	})
}

func (c *Controller) finishRetiring(ctx context.Context, v *route.Version) {
	if v.Model == v.Name {
		c.ensureUnloaded(ctx, v.Name)
	}
	c.mu.Lock()
	for _, r := range c.replicas {
		delete(c.resident[r], v.Name)
	}
	delete(c.retiring, v.Name)
	c.mu.Unlock()
	c.signal(c.wake) // it may be wanted again by now, and the log must get its state
}
