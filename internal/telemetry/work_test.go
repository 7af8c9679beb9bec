package telemetry

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// S9: what is tried for ever says that it does not work when that lasts, and that it works again at once.
func TestWorkThatFailsClosesItsGate(t *testing.T) {
	refused := errors.New("the right was withdrawn")
	run := func(name string, f func(t *testing.T, w *Work, check func(ready bool))) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := NewReadiness()
				w := NewWork(r.Gate("part"), func(err error) error { return fmt.Errorf("in words: %w", err) })
				f(t, w, func(ready bool) {
					t.Helper()
					synctest.Wait()
					got, gates := r.State()
					if got != ready || ready == strings.Contains(gates[0].Reason, "in words: the right was withdrawn") {
						t.Errorf("after %v: ready %v, want %v: %+v", time.Since(gates[0].Since), got, ready, gates)
					}
				})
			})
		})
	}
	run("one that has worked has some time", func(_ *testing.T, w *Work, check func(bool)) {
		check(true)
		w.Worked()
		for range 7 {
			w.Failed(refused)
			check(true)
			time.Sleep(Patience / 8)
		}
		w.Failed(refused)
		time.Sleep(Patience/8 + 1)
		check(false) // although no try has come back since
		time.Sleep(time.Hour)
		w.Failed(refused)
		check(false)
		w.Worked()
		check(true)
		time.Sleep(time.Hour)
		check(true)
	})
	run("one that has not worked yet has none", func(_ *testing.T, w *Work, check func(bool)) {
		w.Failed(refused)
		check(false)
		w.Worked()
		check(true)
	})
	run("a hiccup is none", func(_ *testing.T, w *Work, check func(bool)) {
		w.Worked()
		for range 100 {
			w.Failed(refused)
			time.Sleep(Patience / 2)
			w.Worked()
			time.Sleep(Patience / 2)
			check(true)
		}
	})
	run("what no try mends is told at once", func(_ *testing.T, w *Work, check func(bool)) {
		w.Worked()
		w.Stuck(refused)
		check(false)
	})
	run("a session that has nothing to do works once it has lasted", func(_ *testing.T, w *Work, check func(bool)) {
		for range 3 { // it looks alive until the broker's refusal comes back
			w.Begin()
			w.Alive()
			time.Sleep(Patience / 2)
			w.Alive()
			w.Failed(refused)
			check(false)
		}
		w.Begin()
		time.Sleep(Patience)
		check(false)
		w.Alive()
		check(true)
	})
	var none *Work
	none.Begin()
	none.Alive()
	none.Worked()
	none.Tried(refused)
	none.Stuck(refused)
	Works(nil).Of("part").Failed(refused)
}
