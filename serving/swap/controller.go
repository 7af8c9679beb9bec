package swap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"ctrloop/internal/artifact"
	"ctrloop/schemas/control"
	"ctrloop/serving/backend"
	"ctrloop/serving/route"
)

// actor signs this package's commands.
const actor = "swap"

// ErrNotReady is returned by Promote for a version that is not routable.
var ErrNotReady = errors.New("the version is not loaded and probed: wait for it, or see why it failed")

// ControlLog is the control plane.
type ControlLog interface {
	State() *control.State
	Append(ctx context.Context, e control.Event) error
	Changed() <-chan struct{}
}

// Controller keeps the replicas and the route table as the control log says.
type Controller struct {
	cfg      Config
	clog     ControlLog
	store    *artifact.Store
	replicas []*route.Replica
	table    *route.Table
	base     *backend.Index
	log      zerolog.Logger
	m        *metrics
	flips    recorder
	wake     chan struct{} // a survey is due now
	routed   chan struct{} // a version has become routable

	flipping sync.Mutex // held by applyRoutes

	mu         sync.Mutex
	resident   map[*route.Replica]map[string]bool // loaded and probed
	quarantine map[*route.Replica]time.Time
	failed     map[string]time.Time // version -> Since of the state in which it failed: not tried again in that state
	readyAt    map[string]time.Time
	retiring   map[string]bool
	strikes    map[*route.Replica]int // surveys in a row without an answer
	surveyed   time.Time              // start of the last survey
	retired    sync.WaitGroup
}

// New reads the base's index. The table is this controller's to write.
func New(
	cfg Config,
	clog ControlLog,
	store *artifact.Store,
	replicas []*route.Replica,
	table *route.Table,
	log zerolog.Logger,
	reg prometheus.Registerer,
) (*Controller, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if len(replicas) == 0 {
		return nil, errors.New("serving.replicas: want at least one model server")
	}
	base, err := backend.ReadIndex(cfg.BaseDir)
	if err != nil {
		return nil, err
	}
	return &Controller{
		cfg: cfg, clog: clog, store: store, replicas: replicas, table: table, base: base, log: log, m: newMetrics(reg),
		wake: make(chan struct{}, 1), routed: make(chan struct{}, 1),
		resident: map[*route.Replica]map[string]bool{}, quarantine: map[*route.Replica]time.Time{},
		failed: map[string]time.Time{}, readyAt: map[string]time.Time{}, retiring: map[string]bool{},
		strikes: map[*route.Replica]int{},
	}, nil
}

// BaseDigest is the digest of the base model's folder.
func (c *Controller) BaseDigest() string { return c.base.Digest }

// Stats of the flips.
func (c *Controller) Stats() Stats { return c.flips.stats() }

// Run keeps the table and the replicas right until ctx ends. Adapters stay loaded: the next start finds them.
func (c *Controller) Run(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() error { c.runFlips(ctx); return nil })
	g.Go(func() error { c.runResidency(ctx); return nil })
	err := g.Wait()
	c.retired.Wait()
	return err
}

// runFlips does nothing but flips, so that a rollback never waits for a load.
func (c *Controller) runFlips(ctx context.Context) {
	for ctx.Err() == nil {
		changed := c.clog.Changed()
		c.applyRoutes()
		select {
		case <-ctx.Done():
		case <-changed:
		case <-c.routed:
		}
	}
}

func (c *Controller) applyRoutes() {
	// The state is read under the lock: of two that run at once, the later one has the later state, and an
	// older promotion never overwrites a newer one.
	c.flipping.Lock()
	defer c.flipping.Unlock()
	st := c.clog.State()
	for _, logical := range c.cfg.Logicals {
		want, have := st.Routes[logical], c.table.Champion(logical)
		if want.Champion == "" || want.Champion == have || !c.table.Flip(want.Champion) {
			continue
		}
		c.mu.Lock()
		from := c.readyAt[want.Champion]
		c.mu.Unlock()
		if want.Since.After(from) {
			from = want.Since
		}
		if have != "" { // the first champion is no swap
			d := max(time.Since(from), 0)
			c.m.flips.Inc()
			c.m.flip.Observe(d.Seconds())
			c.flips.add(d)
		}
		c.log.Info().Str("champion", want.Champion).Str("previous", have).Msg("flipped")
		c.poke(c.wake) // the version before the previous one may go now
	}
}

// Promote makes a routable version champion of its logical name and returns when every new request goes to
// it. rollback only says how the log shall call it.
func (c *Controller) Promote(ctx context.Context, version string, rollback bool, who, note string) error {
	v, ok := c.table.Version(version)
	if !ok {
		return fmt.Errorf("promote %s: %w", version, ErrNotReady)
	}
	entity := control.RouteEntity(v.Logical)
	st := c.clog.State()
	typ := control.ModelPromoted
	if rollback {
		typ = control.ModelRolledBack
	}
	e, err := control.NewEvent(uuid.NewString(), typ, entity, st.Versions[entity], who, note, time.Now(),
		control.Promotion{Logical: v.Logical, Version: version, Previous: st.Routes[v.Logical].Champion})
	if err != nil {
		return err
	}
	if err := c.clog.Append(ctx, e); err != nil {
		return fmt.Errorf("promote %s: %w", version, err)
	}
	c.applyRoutes()
	return nil
}

// Suspect reports that a replica did not answer as it should: it is surveyed at once. A version that it did not
// know is no longer routed to it.
func (c *Controller) Suspect(r *route.Replica, version string) {
	if version != "" {
		c.forget(r)
		c.table.Drop(version, r)
	}
	c.poke(c.wake)
}

func (c *Controller) poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (c *Controller) runResidency(ctx context.Context) {
	tick := time.NewTicker(c.cfg.CheckInterval)
	defer tick.Stop()
	for ctx.Err() == nil {
		changed := c.clog.Changed()
		c.Reconcile(ctx)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-c.wake:
		case <-tick.C:
		}
	}
}

// Reconcile compares what should be resident with what is, once, and mends what it can.
func (c *Controller) Reconcile(ctx context.Context) {
	st := c.clog.State()
	up := c.survey(ctx)
	want := c.wanted(st)
	for _, m := range want {
		if ctx.Err() != nil {
			return
		}
		c.bring(ctx, m, up)
	}
	for _, v := range c.table.Versions() {
		if !slices.ContainsFunc(want, func(m *control.ModelStatus) bool { return m.Version == v.Name }) {
			c.retire(ctx, v.Name)
		}
	}
	c.m.resident.Set(float64(len(c.table.Versions())))
}

// wanted lists what the log wants resident: champions first, so that a restart serves as soon as it can.
func (c *Controller) wanted(st *control.State) []*control.ModelStatus {
	pinned := map[string]int{} // version -> urgency
	for _, logical := range c.cfg.Logicals {
		r := st.Routes[logical]
		for _, x := range st.Running(logical) {
			pinned[x.Control], pinned[x.Treatment] = 2, 2
		}
		pinned[r.Previous] = 1
		pinned[r.Champion] = 3
	}
	var out []*control.ModelStatus
	for v, m := range st.Models {
		if !slices.Contains(c.cfg.Logicals, m.Logical) {
			continue
		}
		switch m.State {
		case control.ModelFetched, control.ModelLoaded, control.ModelProbed, control.ModelShadow, control.ModelRamp, control.ModelChampion:
			out = append(out, m)
		case control.ModelFailed: // a version in use stays in use until somebody promotes another
			if pinned[v] >= 2 {
				out = append(out, m)
			}
		default:
			// The base is resident anyway: it stays routable, so that there is always a way back to it.
			if pinned[v] > 0 || m.Artifact == c.base.Digest {
				out = append(out, m)
			}
		}
	}
	slices.SortFunc(out, func(a, b *control.ModelStatus) int {
		if d := pinned[b.Version] - pinned[a.Version]; d != 0 {
			return d
		}
		return a.Since.Compare(b.Since)
	})
	return out
}

// maxStrikes is how many surveys in a row a replica may leave without an answer before it is no longer routed to.
const maxStrikes = 2

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
		c.poke(c.wake)
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

// candidate is a version on its way, with what the steps need to know of it.
type candidate struct {
	*control.ModelStatus
	dir    string
	model  string  // name on the servers
	golden *Golden // nil for a base: it has nothing to tell it from itself
}

// bring sees that a version is resident wherever it can be, and routed to.
func (c *Controller) bring(ctx context.Context, m *control.ModelStatus, up []*route.Replica) {
	c.mu.Lock()
	since, failed := c.failed[m.Version]
	skip := c.retiring[m.Version] || (failed && since.Equal(m.Since))
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
			err = c.bringTo(ctx, v, missing)
		}
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return
		case backend.Transient(err):
			c.log.Warn().Err(err).Str("version", m.Version).Msg("version could not be loaded now; trying again")
		default:
			c.fail(ctx, m, err)
			return
		}
	}
	c.publish(ctx, m)
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

// bringTo loads and probes a version on replicas. A newcomer goes to one replica first: if it kills the server,
// the others go on. Its error is final for a newcomer unless it is transient; replicas that fail with any other
// version, or while others succeed, are set aside.
func (c *Controller) bringTo(ctx context.Context, v *candidate, replicas []*route.Replica) error {
	first := newcomer(v.ModelStatus)
	if first {
		if err := c.settle(ctx, v, replicas[0]); err != nil {
			return err
		}
		replicas = replicas[1:]
	}
	errs := make([]error, len(replicas))
	var g errgroup.Group
	for i, r := range replicas {
		g.Go(func() error { errs[i] = c.settle(ctx, v, r); return nil })
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

// settle is one version on one replica: load, read back, probe, warm up.
func (c *Controller) settle(ctx context.Context, v *candidate, r *route.Replica) error {
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

// publish routes to a version where it is resident, and tells the log how far it has come.
func (c *Controller) publish(ctx context.Context, m *control.ModelStatus) {
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
		c.poke(c.routed)
		c.log.Info().Str("version", m.Version).Int("replicas", len(on)).Msg("version is routable")
	}
	// A base, and a version that serves already, keep the state that they have.
	steps := []control.ModelState{control.ModelFetched, control.ModelLoaded, control.ModelProbed, control.ModelShadow}
	at := slices.Index(steps, m.State)
	if at < 0 {
		return
	}
	for _, s := range steps[at+1:] {
		if err := c.record(ctx, m.Version, s, fmt.Sprintf("on %d of %d replicas", len(on), len(c.replicas))); err != nil {
			c.log.Error().Err(err).Str("version", m.Version).Msg("state could not be recorded")
			return
		}
	}
}

func (c *Controller) record(ctx context.Context, version string, s control.ModelState, reason string) error {
	e, err := control.NewEvent(
		uuid.NewString(),
		control.ModelStateChanged,
		control.ModelEntity(version),
		-1,
		actor,
		"",
		time.Now(),
		control.ModelStateChange{State: s, Reason: reason},
	)
	if err != nil {
		return err
	}
	return c.clog.Append(ctx, e)
}

// fail takes a version that did not come into service off the replicas and records why. Routing was not touched.
func (c *Controller) fail(ctx context.Context, m *control.ModelStatus, why error) {
	c.log.Error().Err(why).Str("version", m.Version).Msg("version failed; routing is as it was")
	c.m.failures.Inc()
	c.mu.Lock()
	for _, r := range c.replicas {
		delete(c.resident[r], m.Version)
	}
	c.mu.Unlock()
	if _, routed := c.table.Version(m.Version); !routed && m.Artifact != c.base.Digest {
		c.unload(ctx, m.Version)
	}
	if err := c.record(ctx, m.Version, control.ModelFailed, why.Error()); err != nil {
		c.log.Error().Err(err).Str("version", m.Version).Msg("failure could not be recorded")
		return
	}
	now := c.clog.State().Models[m.Version]
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed[m.Version] = m.Since
	if now != nil && now.State == control.ModelFailed {
		c.failed[m.Version] = now.Since
	}
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
	retained := func() bool {
		m := c.clog.State().Models[v.Name]
		return m != nil && m.State == control.ModelRetained
	}
	tell := func(s control.ModelState) {
		if err := c.record(ctx, v.Name, s, ""); err != nil && ctx.Err() == nil {
			c.log.Error().Err(err).Str("version", v.Name).Msg("state could not be recorded")
		}
	}
	was := retained()
	if was {
		tell(control.ModelDrained)
	}
	if v.Model == v.Name {
		c.unload(ctx, v.Name)
	}
	c.mu.Lock()
	for _, r := range c.replicas {
		delete(c.resident[r], v.Name)
	}
	delete(c.retiring, v.Name)
	c.mu.Unlock()
	if was {
		tell(control.ModelUnloaded)
	}
	c.poke(c.wake) // it may be wanted again by now
}
