package app

import (
	"context"
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

func (c *copyOfLog) Wait(context.Context) error {
	<-c.done
	return c.Err()
}

func (c *copyOfLog) set(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	close(c.changed)
	c.changed = make(chan struct{})
}

// A process whose copy of the control plane is not the whole truth is not ready and says why; one whose copy follows no more ends.
func TestAProcessWhoseLogStandsStillEnds(t *testing.T) {
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
		select {
		case err := <-a.actors.failed:
			t.Fatalf("a process that is behind ended: %v", err)
		default:
		}
		gone := errors.New("records are gone")
		log.mu.Lock()
		log.err = gone
		log.mu.Unlock()
		close(log.done)
		check(false, "records are gone") // while it ends
		if err := a.Wait(t.Context()); !errors.Is(err, gone) || !strings.Contains(err.Error(), "copy of the control log") {
			t.Errorf("the process ends with %v, want why its copy follows no more", err)
		}
	})
}
