package joiner

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/internal/telemetry"
	"ctrloop/internal/telemetry/telemetrytest"
)

// S9: a joiner whose right to its group was withdrawn tries on, and says meanwhile that it cannot work.
func TestAJoinerWithoutItsRightSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, stop := streamtest.StartVirtual(t, 1)
		defer stop()
		rights := b.Rights()
		s, err := New(testConfig(b), zerolog.Nop(), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		gate, work := telemetrytest.NewGate(stream.Explain)
		s.Reports(func(part string) *telemetry.Work {
			if part == "join" {
				return work
			}
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		gate.Await(t, true)
		rights.Withdraw()
		if reason := gate.Await(t, false); !strings.Contains(reason, "do not give this user the rights") {
			t.Errorf("the reason is %q", reason)
		}
		rights.Give()
		gate.Await(t, true)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
