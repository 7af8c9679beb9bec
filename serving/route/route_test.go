package route

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

func TestAdmission(t *testing.T) {
	var table Table
	if _, err := table.Admit("prompt"); !errors.Is(err, ErrUnknown) {
		t.Fatalf("empty table: %v", err)
	}
	if table.Flip("v1") {
		t.Fatal("flipped to a version that is not there")
	}
	a, b := NewReplica(nil, 1), NewReplica(nil, 1)
	table.Put("v1", "prompt", "m1", []*Replica{a, b})
	if _, err := table.Admit("prompt"); !errors.Is(err, ErrUnknown) {
		t.Fatalf("no champion: %v", err)
	}
	table.Flip("v1")
	l, err := table.Admit("prompt")
	if err != nil || l.Name != "v1" || l.Model != "m1" || l.InFlight() != 1 {
		t.Fatal(l, err)
	}
	table.Drop("v1", a)
	if got := l.Current(); len(got) != 1 || got[0] != b || len(l.Replicas) != 2 {
		t.Fatalf("a lease must see the replicas of now, and keep what it was given: %v %v", got, l.Replicas)
	}
	table.Put("v2", "prompt", "v2", []*Replica{a})
	table.Flip("v2")
	if l.Name != "v1" {
		t.Fatal("a flip changed an admitted request")
	}
	if err := table.Remove(t.Context(), "v2"); err == nil {
		t.Fatal("a champion was removed")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := table.Remove(ctx, "v1"); !errors.Is(err, context.Canceled) {
		t.Fatalf("removed under a request: %v", err)
	}
	if _, err := table.Admit("v1"); !errors.Is(err, ErrUnknown) {
		t.Fatalf("a version that drains admits: %v", err)
	}
	l.Release()
	if a.TryAcquire(); a.TryAcquire() {
		t.Fatal("a replica took more than its limit")
	}
}

// TestNobodyIsLeftBehind: when Remove returns, no lease of the version is held and none can be taken, whatever
// admissions and flips run beside it.
func TestNobodyIsLeftBehind(t *testing.T) {
	var table Table
	var held sync.Map // version -> *atomic.Int64
	count := func(v string) *atomic.Int64 {
		c, _ := held.LoadOrStore(v, &atomic.Int64{})
		return c.(*atomic.Int64)
	}
	names := []string{"v0", "v1", "v2"}
	table.Put("v0", "prompt", "v0", nil)
	table.Flip("v0")
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				l, err := table.Admit("prompt")
				if err != nil {
					t.Errorf("a champion was always there: %v", err)
					return
				}
				c := count(l.Name)
				c.Add(1)
				c.Add(-1)
				l.Release()
			}
		})
	}
	for i := range 80 {
		old, next := names[i%3], names[(i+1)%3]
		table.Put(next, "prompt", next, nil)
		table.Flip(next)
		if err := table.Remove(t.Context(), old); err != nil {
			t.Fatal(err)
		}
		if n := count(old).Load(); n != 0 {
			t.Fatalf("%d requests on %s after it was drained", n, old)
		}
	}
	stop()
	wg.Wait()
	for _, v := range table.Versions() {
		if v.InFlight() != 0 {
			t.Errorf("%s: %d in flight at the end", v.Name, v.InFlight())
		}
	}
}

// TestASlowReader reads the table, and is overtaken by a removal before it has counted itself.
func TestASlowReader(t *testing.T) {
	var table Table
	table.Put("v1", "prompt", "v1", nil)
	table.Flip("v1")
	old := table.load()
	table.Put("v2", "prompt", "v2", nil)
	table.Flip("v2")
	if err := table.Remove(t.Context(), "v1"); err != nil {
		t.Fatal(err)
	}
	if l, err := table.admitBy(old, "prompt"); l != nil || err != nil {
		t.Fatalf("admitted to a version that has been drained: %+v, %v", l, err)
	}
	if n := old.versions["v1"].InFlight(); n != 0 {
		t.Errorf("%d requests counted on it", n)
	}
	if l, err := table.Admit("prompt"); err != nil || l.Name != "v2" {
		t.Errorf("%v %v", l, err)
	}
}
