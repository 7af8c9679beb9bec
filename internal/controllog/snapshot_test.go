package controllog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
)

// fill appends n job commands at once, as other processes did.
func fill(t *testing.T, b *streamtest.Broker, n int) {
	t.Helper()
	rs := make([]*stream.Record, n)
	for i := range rs {
		e := submit(fmt.Sprint("old-", i))
		raw, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		rs[i] = &stream.Record{Topic: schemas.TopicControl, Key: []byte(e.Entity), Value: raw}
	}
	streamtest.Produce(t, b.Config, rs...)
}

// folds is how many commands the log has folded since it was opened.
func folds(l *Log) float64 {
	return testutil.ToFloat64(l.metrics.commands.WithLabelValues("applied"))
}

// A start folds what came after the newest snapshot only, and comes to the same state.
func TestAStartReadsTheSnapshotAndTheTail(t *testing.T) {
	b, ctx := streamtest.Start(t, 1), t.Context()
	fill(t, b, snapshotEvery+10)
	first := open(t, b) // writes one
	if _, err := first.Append(ctx, submit("new")); err != nil {
		t.Fatal(err)
	}
	want := first.State()
	first.Close()
	second := open(t, b)
	if got := folds(second); got != 1 {
		t.Errorf("the second start folded %v commands, want the one after the snapshot", got)
	}
	if diff := cmp.Diff(marshal(t, want), marshal(t, second.State())); diff != "" {
		t.Errorf("another state: %s", diff)
	}
	// What was decided before the snapshot is still told as repeated.
	if got, err := second.Append(ctx, submit("old-3")); err != nil || got != control.Repeated {
		t.Errorf("an old command again: %q, %v", got, err)
	}
	// The records before the snapshot may go; those before nothing may not.
	streamtest.DeleteRecords(t, b.Config, schemas.TopicControl, 0, snapshotEvery)
	if diff := cmp.Diff(marshal(t, want.Jobs), marshal(t, open(t, b).State().Jobs)); diff != "" {
		t.Errorf("with the old records gone: %s", diff)
	}
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// Decisions that are gone without a snapshot are not passed over in silence, and nobody waits for them.
func TestALogWithoutItsBeginningIsRefused(t *testing.T) {
	b := streamtest.Start(t, 1)
	fill(t, b, 3)
	streamtest.DeleteRecords(t, b.Config, schemas.TopicControl, 0, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	l, err := Open(ctx, b.Config, Options{}, zerolog.Nop(), prometheus.NewRegistry())
	if !errors.Is(err, stream.ErrDataLoss) {
		t.Errorf("opened: %v", err)
	}
	if l != nil {
		l.Close()
	}
}

// A log that was made anew has other offsets: its reader does not begin with the old one's snapshot.
func TestASnapshotOfAnotherLogIsLeftAside(t *testing.T) {
	b, ctx := streamtest.Start(t, 1), t.Context()
	fill(t, b, snapshotEvery+1)
	open(t, b).Close()
	if err := stream.DeleteTopics(ctx, b.Config, schemas.TopicControl); err != nil {
		t.Fatal(err)
	}
	if err := stream.EnsureTopics(ctx, b.Config, schemas.Topics(), 1, -1); err != nil {
		t.Fatal(err)
	}
	l := open(t, b)
	if st := l.State(); st.Offset != -1 || len(st.Jobs) != 0 {
		t.Errorf("a new log begins at offset %d with %d jobs", st.Offset, len(st.Jobs))
	}
}

// A process that meets a newer release's command appends nothing more, and says why.
func TestWhoIsBehindDecidesNothing(t *testing.T) {
	b, ctx := streamtest.Start(t, 1), t.Context()
	l := open(t, b)
	if err := l.Err(); err != nil {
		t.Fatal(err)
	}
	newer := open(t, b)
	e := submit("x")
	e.Type, e.Format = "job.of_another_age", control.Format+1
	if _, err := newer.Append(ctx, e); err != nil {
		t.Fatal(err)
	}
	if err := l.replica.WaitFor(ctx, 0); err != nil {
		t.Fatal(err)
	}
	if err := l.Err(); !errors.Is(err, control.ErrBehind) {
		t.Errorf("it says %v", err)
	}
	_, err := l.Append(ctx, submit("y"))
	if r, ok := control.Rejected(err); !ok || r.Reason != control.Behind {
		t.Errorf("an append of a process that is behind: %v", err)
	}
	if got := testutil.ToFloat64(l.metrics.behind); got != 1 {
		t.Errorf("the metric says %v", got)
	}
}
