package stream_test

import (
	"strings"
	"testing"
	"testing/synctest"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/internal/telemetry/telemetrytest"
	"ctrloop/schemas"
)

// S9: a copy of a log that may not be read any more says so, and that it may again. Nothing comes meanwhile: silence is no sign.
func TestAReplicaWithoutItsRightSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, stop := streamtest.StartVirtual(t, 1)
		defer stop()
		rights := b.Rights()
		fold := func(*stream.Record) error { return nil }
		r, err := stream.OpenReplica(t.Context(), b.Config, schemas.TopicControl, -1, fold, func(error) {})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		gate, work := telemetrytest.NewGate(stream.Explain)
		r.Reports(work)
		gate.Await(t, true)
		rights.Withdraw()
		if reason := gate.Await(t, false); !strings.Contains(reason, "do not give this user the rights") {
			t.Errorf("the reason is %q", reason)
		}
		rights.Give()
		gate.Await(t, true)
	})
}
