package app

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/rs/zerolog"

	"ctrloop/internal/telemetry"
)

// copyOfLog is a log that can break.
type copyOfLog struct {
	mu      sync.Mutex
	changed chan struct{}
	done    chan struct{}
	err     error
}

func (c *copyOfLog) Done() <-chan struct{} { return c.done }

func (c *copyOfLog) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

func (c *copyOfLog) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *copyOfLog) set(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	close(c.changed)
	c.changed = make(chan struct{})
}

// A process whose copy of the control plane stands still, or is not the whole truth, is not ready and says why.
func TestAProcessWhoseLogStandsStillIsNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &App{ready: telemetry.NewReadiness(), actors: newActors(zerolog.Nop())}
		defer a.actors.stop()
		log := &copyOfLog{changed: make(chan struct{}), done: make(chan struct{})}
		a.follow("control log", log)
		check := func(ready bool, reason string) {
			t.Helper()
			synctest.Wait()
			got, gates := a.ready.State()
			if got != ready || !strings.Contains(gates[0].Reason, reason) {
				t.Errorf("ready %v, gates %+v", got, gates)
			}
		}
		check(true, "")
		log.set(errors.New("it is behind"))
		check(false, "it is behind")
		log.set(nil)
		check(true, "")
		log.mu.Lock()
		log.err = errors.New("records are gone")
		log.mu.Unlock()
		close(log.done)
		check(false, "records are gone")
	})
}
