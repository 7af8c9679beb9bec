package sink

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"ctrloop/internal/stream"
	"ctrloop/internal/telemetry"
)

// supervised is a sink, and what its gate of labels says.
func supervised(t *testing.T, log *strings.Builder) (*Service, func() (ready bool, reason string)) {
	t.Helper()
	cfg := Default()
	cfg.Kafka.Brokers = []string{"nobody:1"}
	s, err := New(cfg, nil, zerolog.New(log), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	r := telemetry.NewReadiness()
	s.Reports(func(part string) *telemetry.Work { return telemetry.NewWork(r.Gate(part), nil) })
	return s, func() (bool, string) {
		for _, g := range func() []telemetry.GateState { _, gates := r.State(); return gates }() {
			if g.Name == "sink: labels" {
				return g.Ready, g.Reason
			}
		}
		return false, "no such gate"
	}
}

// R9: records that the broker deleted before the sink read them are no loop: one look a minute, an error that says what to do, a
// counter, and the process is not ready until it goes on.
func TestDeletedRecordsAreToldOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		s, said := supervised(t, &log)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute-time.Second)
		defer cancel()
		looks := 0
		s.supervise(ctx, "labels", func(context.Context) (bool, error) {
			looks++
			return false, fmt.Errorf("read labels.v1/3: %w", stream.ErrDataLoss)
		})
		if looks != 10 || testutil.ToFloat64(s.metrics.lost) != 10 {
			t.Errorf("%d looks in ten minutes", looks)
		}
		if !strings.Contains(log.String(), `"level":"error"`) || !strings.Contains(log.String(), "--to-earliest") {
			t.Errorf("no advice: %s", log.String())
		}
		if ready, reason := said(); ready || !strings.Contains(reason, "labels.v1/3") {
			t.Errorf("ready %v: %q", ready, reason)
		}
		s.work[partLabels].Worked()
		if ready, reason := said(); !ready {
			t.Errorf("it works again, and says %q", reason)
		}
	})
}

// R4: a sink that cannot insert is not ready when that lasts; a hiccup is none.
func TestASinkThatCannotWorkSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		s, said := supervised(t, &log)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		began := time.Now()
		s.supervise(ctx, "labels", func(context.Context) (bool, error) {
			at := time.Since(began)
			ready, reason := said()
			switch {
			case at > 4*time.Minute:
				if ready || !strings.Contains(reason, "connection refused") {
					t.Errorf("after %v: ready %v, %q", at, ready, reason)
				}
				s.work[partLabels].Worked()
				if ready, reason := said(); !ready {
					t.Errorf("it works again, and says %q", reason)
				}
				<-ctx.Done()
				return true, nil
			case at < telemetry.Patience/2:
				s.work[partLabels].Worked()
			case at < telemetry.Patience && !ready:
				t.Errorf("after %v: %q", at, reason)
			}
			return false, errors.New("connection refused")
		})
	})
}
