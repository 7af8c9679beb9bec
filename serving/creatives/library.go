package creatives

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"ctrloop/schemas"
)

// Library is every creative that there is, as topic creatives.v1 has it: whoever reads the topic puts its records
// here. Readers get an immutable view and never wait for writers.
type Library struct {
	mu    sync.Mutex
	byID  map[string]schemas.Creative
	stop  map[string]string // blocked by people: why, by id
	dirty atomic.Bool
	view  atomic.Pointer[View]
}

// View is the library at one moment. Its maps and slices must not be changed.
type View struct {
	byID     map[string]schemas.Creative
	stop     map[string]string
	products map[string]*Shelf
}

// Shelf holds the creatives of one product that may serve, ordered by id, so that an index drawn at random means
// the same creative in every replica.
type Shelf struct {
	All       []schemas.Creative
	ByVersion map[string][]schemas.Creative
}

// NewLibrary is empty.
func NewLibrary() *Library { return &Library{byID: map[string]schemas.Creative{}} }

// Put adds a creative or replaces its state.
func (l *Library) Put(cs ...schemas.Creative) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range cs {
		l.byID[c.ID] = c
	}
	l.dirty.Store(true)
}

// Block says which creatives people have blocked, by id, and why; all others may serve, if nothing else is wrong with them.
// The map must not be changed afterwards.
func (l *Library) Block(why map[string]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !maps.Equal(l.stop, why) {
		l.stop = why
		l.dirty.Store(true)
	}
}

// Stored finds a creative as the topic has it: without what people have blocked.
func (l *Library) Stored(id string) (schemas.Creative, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, ok := l.byID[id]
	return c, ok
}

// Len is the number of creatives, blocked ones included.
func (l *Library) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.byID)
}

// Now is the library as of all Puts that have returned. It is built when it is first asked for after a change:
// puts come by the thousand, looks between them are rare.
func (l *Library) Now() *View {
	// The flag first, then the view; the builder does it the other way round. So a clean flag promises that the
	// view read after it has every put that had returned before.
	if !l.dirty.Load() {
		if v := l.view.Load(); v != nil {
			return v
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if v := l.view.Load(); v != nil && !l.dirty.Load() {
		return v
	}
	v := &View{byID: maps.Clone(l.byID), stop: l.stop, products: map[string]*Shelf{}}
	for id, why := range l.stop {
		if c, ok := v.byID[id]; ok {
			c.Blocked = why
			v.byID[id] = c
		}
	}
	for _, c := range v.byID {
		s := v.products[c.Product]
		if s == nil {
			s = &Shelf{ByVersion: map[string][]schemas.Creative{}}
			v.products[c.Product] = s
		}
		if c.Blocked == "" && c.Valid {
			s.All = append(s.All, c)
		}
	}
	for _, s := range v.products {
		slices.SortFunc(s.All, func(a, b schemas.Creative) int { return cmp.Compare(a.ID, b.ID) })
		for _, c := range s.All {
			s.ByVersion[c.ModelVersion] = append(s.ByVersion[c.ModelVersion], c)
		}
	}
	l.view.Store(v)
	l.dirty.Store(false)
	return v
}

// Get finds a creative, blocked ones too.
func (v *View) Get(id string) (schemas.Creative, bool) {
	c, ok := v.byID[id]
	return c, ok
}

// Stopped says why people have blocked a creative; empty: nobody has.
func (v *View) Stopped(id string) string { return v.stop[id] }

// Shelf is what may serve for a product; nil: the product has never had a creative.
func (v *View) Shelf(product string) *Shelf { return v.products[product] }

// List selects creatives, blocked ones too, by id order; empty arguments select all.
func (v *View) List(product, version string, limit int) []schemas.Creative {
	var out []schemas.Creative
	for _, c := range v.byID {
		if (product == "" || c.Product == product) && (version == "" || c.ModelVersion == version) {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b schemas.Creative) int {
		return cmp.Or(cmp.Compare(a.Product, b.Product), cmp.Compare(a.ID, b.ID))
	})
	return out[:min(len(out), limit)]
}
