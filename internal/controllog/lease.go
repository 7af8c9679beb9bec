package controllog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/telemetry"
	"ctrloop/schemas/control"
)

// DefaultTTL is how long a holder may be silent before another process takes its roles over.
const DefaultTTL = 15 * time.Second

// Pulse lets processes see that others are alive (stream.Beacon).
type Pulse interface {
	// Beat shows n under the owner's name.
	Beat(ctx context.Context, owner string, n int64) error
	// Last is what the owner has shown last, -1 if nothing.
	Last(ctx context.Context, owner string) (int64, error)
}

// Leader is one process's claim on a single-writer role (*Holder, or Alone).
type Leader interface {
	// Lead calls work whenever this process holds the role, until ctx ends or work returns by itself. The context of work
	// ends when the role is lost; its log stamps commands with the lease, so that the fold rejects what comes too late.
	Lead(ctx context.Context, work func(ctx context.Context, log control.Log) error) error
	// Held is the log to append to as the holder; nil while another process holds the role.
	Held() control.Log
}

// Leases holds leases for one process, and shows others that the process is alive. The control log alone decides
// who holds a lease. That the process is alive is shown by offsets committed beside the log, so that the log does not grow while
// nothing happens.
type Leases struct {
	log    control.Log
	pulse  Pulse
	owner  string
	ttl    time.Duration
	logger zerolog.Logger
	held   *prometheus.GaugeVec

	mu      sync.Mutex
	last    time.Time     // when the last beat that arrived was sent
	trouble error         // of the last beat; nil: it arrived
	beats   chan struct{} // closed at the next one
}

// NewLeases names the process; the name must be its own, see Hold. reg may be nil.
func NewLeases(log control.Log, pulse Pulse, owner string, ttl time.Duration, logger zerolog.Logger, reg prometheus.Registerer) *Leases {
	k := &Leases{
		log: log, pulse: pulse, owner: owner, ttl: ttl, logger: logger, beats: make(chan struct{}),
		held: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ctrloop_controllog_held_leases",
			Help: "1 while this process holds the lease of a single-writer role, by role; the sum over all processes is 1.",
		}, []string{"role"}),
	}
	if reg != nil {
		reg.MustRegister(k.held)
	}
	return k
}

// Run shows that the process is alive until ctx ends.
func (k *Leases) Run(ctx context.Context) error {
	failing := false
	for n := time.Now().UnixMilli(); ; n++ { // a start with the same name goes on above
		sent := time.Now()
		bctx, cancel := context.WithTimeout(ctx, k.ttl/3)
		err := k.pulse.Beat(bctx, k.owner, n)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			failing = false
			k.mu.Lock()
			k.last, k.trouble = sent, nil
			close(k.beats)
			k.beats = make(chan struct{})
			k.mu.Unlock()
		default:
			k.mu.Lock()
			k.trouble = err
			k.mu.Unlock()
			if failing {
				break
			}
			failing = true
			k.logger.Warn().Err(err).Msg("control log: others cannot see that this process is alive; its roles rest if that goes on")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(k.ttl/3 - min(time.Since(sent), k.ttl/3)):
		}
	}
}

// fresh says for how long this process may still trust its leases, and what is closed at the next beat. Others wait a
// whole ttl from when they saw the last beat, which is later than when it was sent.
func (k *Leases) fresh() (time.Duration, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last.IsZero() {
		return 0, k.beats
	}
	return k.ttl*4/5 - time.Since(k.last), k.beats
}

// Holder is the claim of this process on one role.
type Holder struct {
	k    *Leases
	role control.Role

	acquired int64 // epoch that Run has claimed; 0: none

	mu      sync.Mutex
	work    *telemetry.Work
	epoch   int64         // of the lease that is held; 0: none
	changed chan struct{} // closed when epoch changes
}

var _ Leader = (*Holder)(nil)

// Hold makes a claim on a role, one in a process. It claims while Run runs.
//
// A lease of the same owner name from an earlier run is taken over at once. A lease of another is taken over when its
// owner has shown nothing new for a whole ttl of this process's own monotonic clock, counted from when this process first
// saw what it showed last: no two clocks are compared. Should the owner only have been stopped or cut off, it may still
// believe in its lease for a moment; the fold rejects its commands, which carry an older epoch.
func (k *Leases) Hold(role control.Role) *Holder {
	k.held.WithLabelValues(string(role)).Set(0)
	return &Holder{k: k, role: role, changed: make(chan struct{})}
}

// Reports has the claim say whether it can be made. Call it before Run.
func (h *Holder) Reports(w *telemetry.Work) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.work = w
}

// Run claims the role until ctx ends, and releases it then. Stop what works under it first.
func (h *Holder) Run(ctx context.Context) error {
	var w watch
	earlier := h.k.log.State().Leases[h.role].Epoch // up to here, this name was an earlier run
	for ctx.Err() == nil {
		changed := h.k.log.Changed()
		st := h.k.log.State()
		l := st.Leases[h.role]
		left, beat := h.k.fresh()
		wait := h.k.ttl / 3
		switch {
		case st.Behind != nil || left <= 0:
			h.set(0)
			h.rests()
		case l.Holds(h.k.owner, h.acquired):
			h.set(l.Epoch)
			h.works().Worked()
			wait = left
		case l.Owner == "", l.Owner == h.k.owner && l.Epoch <= earlier, l.Owner != h.k.owner && w.silent(ctx, h.k, l):
			h.set(0)
			if h.acquire(ctx, st, l) {
				continue
			}
		default:
			h.set(0)
			h.works().Worked() // another process leads, or its lease has yet to run out
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-beat:
		case <-time.After(max(wait, time.Millisecond)):
		}
	}
	h.release()
	return nil
}

func (h *Holder) works() *telemetry.Work {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.work
}

// rests tells that the role rests here because nobody could see this process, if that is why.
func (h *Holder) rests() {
	h.k.mu.Lock()
	err := h.k.trouble
	h.k.mu.Unlock()
	if err != nil {
		h.works().Failed(fmt.Errorf("others cannot see that this process is alive, so that it leads nothing: %w", err))
	}
}

// watch is what a candidate has seen of a holder.
type watch struct {
	lease control.Lease
	shown int64
	since time.Time
}

// silent says whether the holder has shown nothing new for a ttl.
func (w *watch) silent(ctx context.Context, k *Leases, l control.Lease) bool {
	ctx, cancel := context.WithTimeout(ctx, k.ttl/3)
	defer cancel()
	shown, err := k.pulse.Last(ctx, l.Owner)
	if err != nil || w.lease != l || w.shown != shown { // who cannot see does not judge
		*w = watch{l, shown, time.Now()}
		return false
	}
	return time.Since(w.since) >= k.ttl
}

// acquire appends the claim and says whether to look at the state again at once. The answer may be lost: then the state
// shows later what has become of it.
func (h *Holder) acquire(ctx context.Context, st *control.State, old control.Lease) bool {
	entity := control.LeaseEntity(h.role)
	note := ""
	if old.Owner != "" && old.Owner != h.k.owner {
		note = fmt.Sprintf("%s has been silent for %v", old.Owner, h.k.ttl)
	}
	h.acquired = st.Versions[entity] + 1
	e, err := control.NewEvent(uuid.NewString(), control.LeaseAcquired, entity, st.Versions[entity], h.k.owner, note, time.Now(),
		control.Lease{Role: h.role, Owner: h.k.owner})
	if err == nil {
		_, err = h.k.log.Append(ctx, e)
	}
	if _, rejected := control.Rejected(err); rejected { // another was first
		h.acquired = 0
		h.k.logger.Debug().Err(err).Str("role", string(h.role)).Msg("lease not acquired")
		return false
	}
	if err != nil && ctx.Err() == nil {
		h.works().Failed(err)
		h.k.logger.Warn().Err(err).Str("role", string(h.role)).Msg("lease could not be acquired; trying again")
	}
	return err == nil
}

// release gives the role back, so that another process need not wait.
func (h *Holder) release() {
	epoch := h.acquired
	h.set(0)
	if epoch == 0 || !h.k.log.State().Leases[h.role].Holds(h.k.owner, epoch) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.k.ttl/3)
	defer cancel()
	e, err := control.NewEvent(uuid.NewString(), control.LeaseReleased, control.LeaseEntity(h.role), -1, h.k.owner, "", time.Now(),
		control.Lease{Role: h.role, Owner: h.k.owner})
	if err == nil {
		e.Role, e.Epoch = h.role, epoch
		_, err = h.k.log.Append(ctx, e)
	}
	if r, ok := control.Rejected(err); err != nil && (!ok || r.Reason != control.Fenced) {
		h.k.logger.Warn().Err(err).Str("role", string(h.role)).Msg("lease could not be released; it runs out by itself")
	}
}

func (h *Holder) set(epoch int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.epoch == epoch {
		return
	}
	said := "lease held"
	if epoch == 0 {
		said = "lease not held any more"
	}
	h.k.logger.Info().Str("role", string(h.role)).Int64("epoch", max(epoch, h.epoch)).Msg(said)
	h.epoch = epoch
	h.k.held.WithLabelValues(string(h.role)).Set(float64(min(epoch, 1)))
	close(h.changed)
	h.changed = make(chan struct{})
}

// holds says which lease is held now, 0 for none, and what is closed when that changes.
func (h *Holder) holds() (epoch int64, changed <-chan struct{}) {
	left, _ := h.k.fresh() // a process that was stopped finds out here, before Run does
	h.mu.Lock()
	defer h.mu.Unlock()
	if left <= 0 {
		return 0, h.changed
	}
	return h.epoch, h.changed
}

// Held is the log to append to as the holder; nil while another process holds the role, or may.
func (h *Holder) Held() control.Log {
	if epoch, _ := h.holds(); epoch > 0 {
		return stamped{h.k.log, h, epoch}
	}
	return nil
}

// Lead implements Leader.
func (h *Holder) Lead(ctx context.Context, work func(ctx context.Context, log control.Log) error) error {
	for ctx.Err() == nil {
		epoch, changed := h.holds()
		if epoch == 0 {
			select {
			case <-ctx.Done():
			case <-changed:
			case <-time.After(h.k.ttl / 3):
			}
			continue
		}
		lost, err := h.during(ctx, epoch, work)
		if !lost || err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return nil
}

// during runs work until it returns; its context ends with the lease, and lost says whether it did. To ask afterwards would not tell:
// a process that was stopped for a moment may hold the lease again by then.
func (h *Holder) during(ctx context.Context, epoch int64, work func(ctx context.Context, log control.Log) error) (lost bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	defer watcher.Wait()
	defer cancel()
	watcher.Go(func() {
		defer cancel()
		for ctx.Err() == nil {
			now, changed := h.holds()
			if now != epoch {
				return
			}
			left, beat := h.k.fresh()
			select {
			case <-ctx.Done():
			case <-changed:
			case <-beat:
			case <-time.After(max(left, time.Millisecond)):
			}
		}
	})
	err = work(ctx, stamped{h.k.log, h, epoch})
	return ctx.Err() != nil, err
}

// stamped marks commands with a lease.
type stamped struct {
	control.Log
	h     *Holder
	epoch int64
}

func (s stamped) Append(ctx context.Context, e control.Event) (control.Answer, error) {
	if now, _ := s.h.holds(); now != s.epoch { // the fold would say so too
		return "", control.Reject(e, fmt.Errorf("%w: this process lost the role of %s", control.ErrFenced, s.h.role))
	}
	e.Role, e.Epoch = s.h.role, s.epoch
	return s.Log.Append(ctx, e)
}

// Alone is the leader where there is no other process: in tests, and in tools on a log of their own.
func Alone(log control.Log) Leader { return alone{log} }

type alone struct{ control.Log }

func (a alone) Held() control.Log { return a.Log }

func (a alone) Lead(ctx context.Context, work func(ctx context.Context, log control.Log) error) error {
	return work(ctx, a.Log)
}
