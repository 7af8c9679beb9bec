// Package controltest is a control log in memory for tests, with faults: appends that are refused, and appends whose
// answer is lost. Several processes of a test share one Log.
package controltest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ctrloop/schemas/control"
)

// Log is a control log in memory. Each command has an offset, the rejected ones too, as on a broker.
type Log struct {
	mu      sync.Mutex
	st      *control.State
	changed chan struct{}
	applied []control.Event
	appends int
	before  func(control.Event) error
	after   func(control.Event) error
}

var _ control.Log = (*Log)(nil)

// New is empty.
func New() *Log { return &Log{st: control.NewState(), changed: make(chan struct{})} }

// State implements control.Log.
func (l *Log) State() *control.State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.st.View()
}

// Changed implements control.Log.
func (l *Log) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// Append implements control.Log.
func (l *Log) Append(ctx context.Context, e control.Event) (control.Answer, error) {
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	l.mu.Lock()
	before, after := l.before, l.after
	l.appends++
	l.mu.Unlock()
	if before != nil {
		if err := before(e); err != nil {
			return "", err
		}
	}
	answer, err := l.apply(e)
	if after != nil {
		if lost := after(e); lost != nil {
			return "", lost
		}
	}
	return answer, err
}

func (l *Log) apply(e control.Event) (control.Answer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	answer, err := l.st.Apply(l.st.Offset+1, e)
	if answer == control.Applied {
		l.applied = append(l.applied, e)
	}
	close(l.changed)
	l.changed = make(chan struct{})
	return answer, err
}

// Refuse calls f before each command is written: its error is the append's, and nothing is written. Nil ends that.
func (l *Log) Refuse(f func(control.Event) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.before = f
}

// Lose calls f after each command is written: its error takes the place of the answer. Nil ends that.
func (l *Log) Lose(f func(control.Event) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.after = f
}

// Appends is how many there were, with those that were refused or rejected.
func (l *Log) Appends() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.appends
}

// Applied lists the commands that are part of the state, in order.
func (l *Log) Applied() []control.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.applied)
}

// Try makes a command of the test, at any version, and returns what becomes of it. Faults do not touch it.
func (l *Log) Try(typ control.Type, entity string, data any) error {
	l.mu.Lock()
	n := l.st.Offset + 1
	l.mu.Unlock()
	e, err := control.NewEvent(fmt.Sprintf("test-%d-%s", n, entity), typ, entity, -1, "test", "", time.Unix(1+n, 0), data)
	if err != nil {
		return err
	}
	_, err = l.apply(e)
	return err
}

// Put is Try that fails the test when the command is rejected.
func (l *Log) Put(t testing.TB, typ control.Type, entity string, data any) {
	t.Helper()
	if err := l.Try(typ, entity, data); err != nil {
		t.Fatal(err)
	}
}

// Register registers a version.
func (l *Log) Register(t testing.TB, m control.Model) {
	t.Helper()
	l.Put(t, control.ModelRegistered, control.ModelEntity(m.Version), m)
}

// Shadow brings registered versions through their probe.
func (l *Log) Shadow(t testing.TB, versions ...string) {
	t.Helper()
	for _, v := range versions {
		for _, s := range []control.ModelState{control.ModelLoaded, control.ModelProbed, control.ModelShadow} {
			l.Put(t, control.ModelStateChanged, control.ModelEntity(v), control.ModelStateChange{State: s})
		}
	}
}

// Promote makes a version champion of its logical model.
func (l *Log) Promote(t testing.TB, version string) {
	t.Helper()
	logical := ""
	if m := l.State().Models[version]; m != nil {
		logical = m.Logical
	}
	l.Put(t, control.ModelPromoted, control.RouteEntity(logical), control.Promotion{Logical: logical, Version: version})
}

// Await waits until the state satisfies ok. Under testing/synctest the wait ends at a deadlock.
func (l *Log) Await(t testing.TB, what string, ok func(*control.State) bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		changed, st := l.Changed(), l.State()
		if ok(st) {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			var models strings.Builder
			for v, m := range st.Models {
				fmt.Fprintf(&models, "%s: %s %s; ", v, m.State, m.Reason)
			}
			t.Fatalf("timed out waiting for %s (%s)", what, models.String())
		}
	}
}

// Pulse is a controllog.Pulse in memory, for the processes of a test.
type Pulse struct {
	mu   sync.Mutex
	last map[string]int64
	fail map[string]error
}

// Beat implements controllog.Pulse.
func (p *Pulse) Beat(_ context.Context, owner string, n int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.fail[owner]; err != nil {
		return err
	}
	if p.last == nil {
		p.last = map[string]int64{}
	}
	p.last[owner] = n
	return nil
}

// Last implements controllog.Pulse.
func (p *Pulse) Last(_ context.Context, owner string) (int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n, ok := p.last[owner]; ok {
		return n, nil
	}
	return -1, nil
}

// Cut makes an owner's beats fail with err; nil: they arrive again.
func (p *Pulse) Cut(owner string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail == nil {
		p.fail = map[string]error{}
	}
	p.fail[owner] = err
}
