package controllog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
)

func open(t *testing.T, b *streamtest.Broker) *Log {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	l, err := Open(ctx, b.Config, Options{}, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// do appends a command with an id of its own.
func do(ctx context.Context, l *Log, typ control.Type, entity string, expect int64, data any) error {
	e, err := control.NewEvent(uuid.NewString(), typ, entity, expect, "test", "", time.Now(), data)
	if err != nil {
		return err
	}
	_, err = l.Append(ctx, e)
	return err
}

func job(id string) control.Job { return control.Job{ID: id, Kind: "reward", Spec: []byte(`{}`)} }

func TestAppendIsSeenByItselfAndByLaterReaders(t *testing.T) {
	b, ctx := streamtest.Start(t, 2), t.Context()
	l := open(t, b)
	if err := do(ctx, l, control.JobSubmitted, control.JobEntity("j"), -1, job("j")); err != nil {
		t.Fatal(err)
	}
	if got := l.State().Jobs["j"]; got == nil || got.State != control.JobQueued {
		t.Fatalf("the command is folded when Append returns, but the job is %+v", got)
	}
	before := l.State()
	if err := do(ctx, l, control.JobStarted, control.JobEntity("j"), 1, control.JobUpdate{Attempt: 1}); err != nil {
		t.Fatal(err)
	}
	if before.Jobs["j"].State != control.JobQueued {
		t.Error("a state that was handed out has changed")
	}
	if diff := cmp.Diff(l.State(), open(t, b).State(), cmpopts.IgnoreUnexported(control.State{})); diff != "" {
		t.Errorf("a later reader folds to another state: %s", diff)
	}
}

func TestRejections(t *testing.T) {
	b, ctx := streamtest.Start(t, 2), t.Context()
	l := open(t, b)
	if err := do(ctx, l, control.JobStarted, control.JobEntity("none"), -1, control.JobUpdate{}); !errors.Is(
		err,
		control.ErrInvalid,
	) {
		t.Errorf("a job that does not exist: want ErrInvalid, got %v", err)
	}
	// Of many that decide on the same version, one wins, in every process.
	other := open(t, b)
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		wg.Go(func() {
			from := l
			if i%2 == 1 {
				from = other
			}
			errs[i] = do(ctx, from, control.BreakerTripped, control.BreakerEntity("s"), 0, control.Breaker{Slice: "s", Value: float64(i)})
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, control.ErrConflict) {
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d commands won, want 1", won)
	}
	for _, l := range []*Log{l, other} {
		if err := l.replica.WaitFor(ctx, 16); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(l.State(), other.State(), cmpopts.IgnoreUnexported(control.State{})); diff != "" {
		t.Error(diff)
	}
}

func TestUnreadableRecordIsSkipped(t *testing.T) {
	b, ctx := streamtest.Start(t, 2), t.Context()
	streamtest.Produce(t, b.Config, record("{broken"))
	l := open(t, b)
	if l.State().Offset != 0 {
		t.Fatalf("offset %d, want 0", l.State().Offset)
	}
	if err := do(ctx, l, control.JobSubmitted, control.JobEntity("j"), -1, job("j")); err != nil {
		t.Fatal(err)
	}
}

func TestWatchEndsAtTheLastState(t *testing.T) {
	b := streamtest.Start(t, 2)
	l := open(t, b)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	states := l.Watch(ctx)
	for i := range 5 {
		id := fmt.Sprint("j", i)
		if err := do(ctx, l, control.JobSubmitted, control.JobEntity(id), -1, job(id)); err != nil {
			t.Fatal(err)
		}
	}
	for s := range states {
		if len(s.Jobs) == 5 {
			return
		}
	}
	t.Fatal("the last state was never sent")
}

func TestAppendTwiceIsOnce(t *testing.T) {
	b, ctx := streamtest.Start(t, 2), t.Context()
	l := open(t, b)
	e, err := control.NewEvent("fixed", control.JobSubmitted, control.JobEntity("j"), -1, "test", "", time.Unix(0, 0), job("j"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []control.Answer{control.Applied, control.Repeated} {
		if got, err := l.Append(ctx, e); err != nil || got != want {
			t.Fatalf("answer %q, %v, want %q", got, err, want)
		}
	}
	if v := l.State().Versions[control.JobEntity("j")]; v != 1 {
		t.Errorf("version %d after one command sent twice", v)
	}
}

func record(value string) *stream.Record {
	return &stream.Record{Topic: schemas.TopicControl, Key: []byte("x"), Value: []byte(value)}
}
