package telemetry

import (
	"fmt"
	"sync"
	"time"
)

// Patience is how long a part that has worked may fail before it counts as one that does not work: shorter troubles, such as a broker
// that hands its partitions over, end by themselves.
const Patience = 15 * time.Second

// Work supervises what a part tries again and again, for ever: nothing ends when that fails, so that its gate is the only one to say that
// the process cannot do what it is there for. The gate closes, with the reason, when nothing has worked for Patience, and opens as
// soon as something works again. A part that has not worked yet has no credit: its first failure closes the gate.
//
// A nil Work takes every word and keeps none. Safe for concurrent use.
type Work struct {
	gate    *Gate
	explain func(error) error

	mu     sync.Mutex
	worked bool      // at some time
	began  time.Time // of the try that goes on
	since  time.Time // of the first failure since something worked; zero: nothing fails
	why    error     // the last failure
	due    *time.Timer
}

// Works gives each part of a service its Work, by name. A nil one gives nil.
type Works func(part string) *Work

// Of is the part's Work.
func (w Works) Of(part string) *Work {
	if w == nil {
		return nil
	}
	return w(part)
}

// NewWork opens the gate: the part has yet to fail. explain puts failures in words; it may be nil.
func NewWork(gate *Gate, explain func(error) error) *Work {
	if explain == nil {
		explain = func(err error) error { return err }
	}
	gate.Healthy()
	return &Work{gate: gate, explain: explain}
}

// Begin says that a try begins that goes on until it fails, a session for instance.
func (w *Work) Begin() {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.began = time.Now()
}

// Alive says that the try that has begun goes on. It may have nothing to do, so that it counts as working once it has gone on for
// Patience; before, its failure may only be on its way.
func (w *Work) Alive() {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Since(w.began) >= Patience {
		w.works()
	}
}

// Worked says that something was done, or that nothing is left to do.
func (w *Work) Worked() {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.works()
}

// works is Worked; the lock is held.
func (w *Work) works() {
	w.worked = true
	if w.since.IsZero() {
		return
	}
	w.since = time.Time{}
	w.due.Stop()
	w.gate.Healthy()
}

// Tried is Worked without an error, and Failed with one.
func (w *Work) Tried(err error) {
	if err != nil {
		w.Failed(err)
		return
	}
	w.Worked()
}

// Failed says that a try has failed.
func (w *Work) Failed(err error) { w.fail(err, Patience) }

// Stuck says that it has failed with what no further try mends.
func (w *Work) Stuck(err error) { w.fail(err, 0) }

func (w *Work) fail(err error, patience time.Duration) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.why = w.explain(err)
	if w.since.IsZero() {
		w.since = time.Now()
		w.due = time.AfterFunc(Patience, w.lasts) // also when no further try comes back
	}
	if !w.worked || time.Since(w.since) >= patience {
		w.tell()
	}
}

// lasts closes the gate if it fails still.
func (w *Work) lasts() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.since.IsZero() && time.Since(w.since) >= Patience {
		w.tell()
	}
}

func (w *Work) tell() {
	w.gate.Unhealthy(fmt.Sprintf("fails since %s: %v", w.since.UTC().Format(time.RFC3339), w.why))
}
