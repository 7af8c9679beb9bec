package app

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
)

func TestActorsStopInReverseOneAfterAnother(t *testing.T) {
	a := newActors(zerolog.Nop())
	var mu sync.Mutex
	var events []string
	note := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, s)
	}
	for _, name := range []string{"store", "worker", "edge"} {
		a.start(name, func(ctx context.Context) error {
			<-ctx.Done()
			note("stopping " + name)
			note("stopped " + name)
			return nil
		})
	}
	a.stop()
	want := []string{"stopping edge", "stopped edge", "stopping worker", "stopped worker", "stopping store", "stopped store"}
	if d := cmp.Diff(want, events); d != "" {
		t.Error(d)
	}
}

func TestAnActorThatEndsTakesTheProcessDown(t *testing.T) {
	for _, end := range []error{errors.New("disk full"), nil} {
		a := newActors(zerolog.Nop())
		a.start("idle", func(ctx context.Context) error { <-ctx.Done(); return nil })
		a.start("broken", func(context.Context) error { return end })
		err := <-a.failed
		if !strings.HasPrefix(err.Error(), "broken: ") {
			t.Errorf("%v", err)
		}
		a.stop()
	}
}
