package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// actors runs the parts of the process and stops them in the reverse order of their start, each one only
// when everything that was started after it has ended: the HTTP listeners stop taking work first, then what
// works on it, then the stores. (oklog/run interrupts all its actors at once, which is not an order.)
type actors struct {
	log     zerolog.Logger
	running []*actor
	failed  chan error // first failure
	once    sync.Once
}

type actor struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
}

func newActors(log zerolog.Logger) *actors {
	return &actors{log: log, failed: make(chan error, 1)}
}

// start runs an actor on a context of its own, which outlives the caller's: it ends in stop, in order. An
// actor that returns before it was stopped, with an error or without, takes the process down.
func (a *actors) start(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	x := &actor{name: name, cancel: cancel, done: make(chan struct{})}
	a.running = append(a.running, x)
	go func() {
		defer close(x.done)
		err := run(ctx)
		if ctx.Err() == nil {
			if err == nil {
				err = errors.New("ended by itself")
			}
			a.once.Do(func() { a.failed <- fmt.Errorf("%s: %w", name, err) })
			return
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			a.log.Error().Err(err).Str("part", name).Msg("did not stop cleanly")
		}
	}()
}

// onStop registers work that is done when the turn comes in stop, for parts that are not actors.
func (a *actors) onStop(name string, stop func()) {
	a.start(name, func(ctx context.Context) error {
		<-ctx.Done()
		stop()
		return nil
	})
}

// stop ends all actors, last started first, and says how long each took.
func (a *actors) stop() {
	for _, x := range slices.Backward(a.running) {
		start := time.Now()
		x.cancel()
		<-x.done
		a.log.Debug().Str("part", x.name).Dur("took", time.Since(start)).Msg("stopped")
	}
	a.running = nil
}
