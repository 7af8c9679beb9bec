package overview

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"ctrloop/serving/console"
)

const (
	loadTimeout = 20 * time.Second
	// tooOld to be shown for a moment without a warning.
	tooOld = 30 * time.Second
)

// refreshed is a value that is loaded in the background when somebody asks for it and it is old.
type refreshed[T any] struct {
	mu    sync.Mutex
	key   string // of what was loaded; another key is loaded at once
	value T
	err   error         // of the last load; value is then that of an earlier one
	good  time.Time     // start of the last load that went well
	span  time.Duration // that its value is meant to be shown for
	next  time.Time
	done  chan struct{} // of the load in progress
}

// get returns the value as it is, and starts a load when it is due: pace after the last one, or rest times as
// long as that one took. The first load, and the first after nobody has looked for a while, is waited for while ctx
// allows.
func (r *refreshed[T]) get(
	ctx context.Context,
	key string,
	pace time.Duration,
	rest int,
	load func(context.Context) (T, error),
) (T, error) {
	r.mu.Lock()
	now := time.Now()
	if r.done == nil && (key != r.key || !now.Before(r.next)) {
		r.done = make(chan struct{})
		go r.load(key, pace, rest, load)
	}
	done, old := r.done, now.Sub(r.next) > tooOld
	r.mu.Unlock()
	if old && done != nil {
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.value, r.err
}

func (r *refreshed[T]) load(key string, pace time.Duration, rest int, load func(context.Context) (T, error)) {
	// Not the context of who looks: the result is for the next one too.
	ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
	defer cancel()
	start := time.Now()
	v, err := load(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	took := time.Since(start)
	if r.err = err; err == nil {
		r.value, r.good, r.span = v, start, took+max(pace, time.Duration(rest)*took)
	}
	r.key, r.next = key, start.Add(took+max(pace, time.Duration(rest)*took))
	close(r.done)
	r.done = nil
}

// stale says how old the value is, where that is older than it is meant to be shown.
func (r *refreshed[T]) stale(now time.Time, part string) []console.Stale {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.good.IsZero() && r.err == nil { // not asked for yet, or the first load is under way
		return nil
	}
	age := now.Sub(r.good)
	if !r.good.IsZero() && age <= r.span+tooOld {
		return nil
	}
	s := console.Stale{Part: part, AgeSeconds: age.Seconds()}
	if r.good.IsZero() {
		s.AgeSeconds = 0
	}
	if r.err != nil {
		s.Why = clip(r.err.Error())
	}
	return []console.Stale{s}
}

// stale lists the parts of the page whose figures are old.
func (o *Page) stale(now time.Time) []console.Stale {
	out := slices.Concat(
		o.traffic.stale(now, "rates and creatives"), o.history.stale(now, "control log"), o.verdict.stale(now, "rollout"),
		o.backlog.stale(now, "what waits"), o.audit.stale(now, "audit"),
	)
	slices.SortStableFunc(out, func(a, b console.Stale) int { return cmp.Compare(b.AgeSeconds, a.AgeSeconds) })
	return out
}
