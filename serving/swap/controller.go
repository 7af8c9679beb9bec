package swap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"ctrloop/internal/artifact"
	"ctrloop/internal/controllog"
	"ctrloop/internal/telemetry"
	"ctrloop/schemas/control"
	"ctrloop/serving/backend"
	"ctrloop/serving/route"
)

// actor signs this package's commands.
const actor = "swap"

// ErrNotReady is returned by Promote for a version that is not routable.
var ErrNotReady = errors.New("the version is not loaded and probed: wait for it, or see why it failed")

// Controller keeps the replicas and the route table of this process as the control log says. What it tells the log about
// versions, it tells only while it holds control.RoleSwap: another process has other replicas, or sees them otherwise.
type Controller struct {
	cfg      Config
	clog     control.Log
	lead     controllog.Leader
	work     *telemetry.Work
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
	failed     map[string]failure
	gone       map[string]bool // unloaded from every replica that answered
	readyAt    map[string]time.Time
	retiring   map[string]bool
	strikes    map[*route.Replica]int // surveys in a row without an answer
	surveyed   time.Time              // start of the last survey
	retired    sync.WaitGroup
}

// failure of a version on this process's replicas.
type failure struct {
	since time.Time // of the version's state in which it failed: once the log has it, it is not tried again in that state
	until time.Time // it is tried again then, if the log has it not
	why   string
}

// New reads the base's index. The table is this controller's to write; lead is the claim on control.RoleSwap.
func New(
	cfg Config,
	clog control.Log,
	lead controllog.Leader,
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
		cfg: cfg, clog: clog, lead: lead, store: store, replicas: replicas, table: table, base: base, log: log, m: newMetrics(reg),
		wake: make(chan struct{}, 1), routed: make(chan struct{}, 1),
		resident: map[*route.Replica]map[string]bool{}, quarantine: map[*route.Replica]time.Time{},
		failed: map[string]failure{}, gone: map[string]bool{}, readyAt: map[string]time.Time{}, retiring: map[string]bool{},
		strikes: map[*route.Replica]int{},
	}, nil
}

// BaseDigest is the digest of the base model's folder.
func (c *Controller) BaseDigest() string { return c.base.Digest }

// Stats of the flips.
func (c *Controller) Stats() Stats { return c.flips.stats() }

// Reports has the controller say whether it can tell the states of versions. Call it before Run.
func (c *Controller) Reports(w *telemetry.Work) { c.work = w }

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
		c.signal(c.wake) // the version before the previous one may go now
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
	if _, err := c.clog.Append(ctx, e); err != nil { // repeated cannot be: the id is new
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
	c.signal(c.wake)
}

// signal wakes a loop; a signal that waits already is enough.
func (c *Controller) signal(ch chan struct{}) {
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
		c.makeResident(ctx, m, up)
	}
	for _, v := range c.table.Versions() {
		if !slices.ContainsFunc(want, func(m *control.ModelStatus) bool { return m.Version == v.Name }) {
			c.retire(ctx, v.Name)
		}
	}
	c.m.resident.Set(float64(len(c.table.Versions())))
	c.reportStates(ctx)
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
