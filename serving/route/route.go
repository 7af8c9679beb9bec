// Package route is the table that says which model version answers for which name, and on which replicas.
// Readers take one atomic load and never wait; the table they got stays as it was. A version is closed by
// taking it out of the table and then waiting for the requests that were admitted to it.
package route

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ctrloop/serving/backend"
	"ctrloop/serving/experiment/assign"
)

// ErrUnknown is returned for a name that nothing is routed for.
var ErrUnknown = errors.New("no such model, or none of its versions is ready to serve yet")

// Assigner assigns units to the arms of the experiment that runs on a logical model (assign.Assigner). It must be
// safe for concurrent use and fast: it is called for every decision.
type Assigner interface {
	Assign(logical string, u assign.Unit) (assign.Assignment, bool)
}

// Replica is one model server, with a bound on the requests in flight.
type Replica struct {
	backend.Prompt
	limit    int64
	inflight atomic.Int64
	answered atomic.Int64 // Unix nanoseconds of the last whole answer, or start of a stream
	avoided  atomic.Int64 // Unix nanoseconds until which others are asked first
}

// NewReplica bounds a backend to limit concurrent requests.
func NewReplica(p backend.Prompt, limit int) *Replica {
	return &Replica{Prompt: p, limit: int64(limit)}
}

// TryAcquire takes a place; false: the replica is full.
func (r *Replica) TryAcquire() bool {
	if r.inflight.Add(1) > r.limit {
		r.inflight.Add(-1)
		return false
	}
	return true
}

// Release gives the place back.
func (r *Replica) Release() { r.inflight.Add(-1) }

// Answered notes that the replica has just answered a request: it lives, however slow.
func (r *Replica) Answered() { r.answered.Store(time.Now().UnixNano()) }

// AnsweredSince says whether it has answered a request since then.
func (r *Replica) AnsweredSince(t time.Time) bool { return r.answered.Load() > t.UnixNano() }

// Avoid has others asked first for a while.
func (r *Replica) Avoid(d time.Duration) { r.avoided.Store(time.Now().Add(d).UnixNano()) }

// Avoided says whether others should be asked first.
func (r *Replica) Avoided() bool { return time.Now().UnixNano() < r.avoided.Load() }

// InFlight is the number of places taken.
func (r *Replica) InFlight() int64 { return r.inflight.Load() }

// Version is a model version that is routed to. It is immutable, but for the count of its requests.
type Version struct {
	Name     string     // "<logical>-<digest12>"
	Logical  string     // "prompt"
	Model    string     // the name that the replicas know it by
	Replicas []*Replica // on which it is loaded and has passed its probe
	use      *use
}

type use struct {
	inflight atomic.Int64
	closed   atomic.Bool
}

// InFlight is the number of requests admitted to the version and not yet answered.
func (v *Version) InFlight() int64 { return v.use.inflight.Load() }

// table is immutable.
type table struct {
	versions  map[string]*Version
	champions map[string]string
}

// Table is the current routes. The zero value is empty and ready. Safe for concurrent use.
type Table struct {
	mu sync.Mutex // of writers
	p  atomic.Pointer[table]
}

func (t *Table) load() *table {
	if p := t.p.Load(); p != nil {
		return p
	}
	return &table{}
}

func (t *Table) update(change func(*table)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.load()
	n := &table{versions: maps.Clone(old.versions), champions: maps.Clone(old.champions)}
	if n.versions == nil {
		n.versions, n.champions = map[string]*Version{}, map[string]string{}
	}
	change(n)
	t.p.Store(n)
}

// Put routes to a version on the given replicas; a version that is there keeps its count.
func (t *Table) Put(name, logical, model string, replicas []*Replica) {
	t.update(func(n *table) {
		v := &Version{Name: name, Logical: logical, Model: model, Replicas: slices.Clone(replicas), use: &use{}}
		if old := n.versions[name]; old != nil {
			v.use = old.use
		}
		n.versions[name] = v
	})
}

// Drop takes a replica out of a version's list, or of every version's for an empty name.
func (t *Table) Drop(name string, r *Replica) {
	t.update(func(n *table) {
		for k, v := range n.versions {
			if (name == "" || name == k) && slices.Contains(v.Replicas, r) {
				c := *v
				c.Replicas = slices.DeleteFunc(slices.Clone(v.Replicas), func(x *Replica) bool { return x == r })
				n.versions[k] = &c
			}
		}
	})
}

// Flip makes a routed version the champion of its logical name: every request admitted after the return
// goes to it. False: the version is not routed, and nothing has changed.
func (t *Table) Flip(name string) bool {
	ok := false
	t.update(func(n *table) {
		if v := n.versions[name]; v != nil {
			n.champions[v.Logical], ok = name, true
		}
	})
	return ok
}

// Remove stops admitting requests to a version, and returns when those that were admitted have ended or ctx
// has. A champion is never removed.
func (t *Table) Remove(ctx context.Context, name string) error {
	var gone *Version
	var err error
	t.update(func(n *table) {
		v := n.versions[name]
		if v == nil {
			return
		}
		if n.champions[v.Logical] == name {
			err = errors.New("a champion cannot be removed: promote another version first")
			return
		}
		gone = v
		delete(n.versions, name)
	})
	if gone == nil {
		return err
	}
	// A reader that took the old table either counted itself before this store, and is waited for below, or
	// sees it and looks the version up again (Admit).
	gone.use.closed.Store(true)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for gone.use.inflight.Load() > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// Champion is the version that answers for a logical name; empty: none is ready.
func (t *Table) Champion(logical string) string { return t.load().champions[logical] }

// Version looks a routed version up.
func (t *Table) Version(name string) (*Version, bool) {
	v, ok := t.load().versions[name]
	return v, ok
}

// Versions lists what is routed, by name.
func (t *Table) Versions() []*Version {
	vs := slices.Collect(maps.Values(t.load().versions))
	slices.SortFunc(vs, func(a, b *Version) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return vs
}

// Lease is the right to send one request to a version. Release it when the answer has ended.
type Lease struct {
	*Version
	t *Table
}

// Release ends the lease.
func (l *Lease) Release() { l.use.inflight.Add(-1) }

// Current is the version with the replicas that it has now: between admission and a retry some may have
// gone. The version itself stays the one that was admitted.
func (l *Lease) Current() []*Replica {
	if v, ok := l.t.Version(l.Name); ok {
		return v.Replicas
	}
	return l.Replicas
}

// Admit decides the version of a request: the champion of a logical name, or a version by its own name.
func (t *Table) Admit(model string) (*Lease, error) {
	for {
		l, err := t.admitBy(t.load(), model)
		if l != nil || err != nil {
			return l, err
		}
	}
}

// admitBy admits by a table that may have been replaced since it was read. Neither a lease nor an error: the version
// has been removed meanwhile, so the newer table must be asked.
func (t *Table) admitBy(p *table, model string) (*Lease, error) {
	name, logical := p.champions[model]
	if !logical {
		name = model
	}
	v := p.versions[name]
	if v == nil {
		return nil, ErrUnknown
	}
	v.use.inflight.Add(1)
	if v.use.closed.Load() {
		v.use.inflight.Add(-1)
		return nil, nil
	}
	return &Lease{Version: v, t: t}, nil
}
