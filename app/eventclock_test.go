package app

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/ingest"
	"ctrloop/internal/telemetry"
)

// With clock event and the join in another process, a serving process still knows what time it is in the stream: without,
// no experiment would ever take a step.
func TestServingKnowsTheEventTimeOfAJoinElsewhere(t *testing.T) {
	cfg := Default()
	cfg.Ingest.Clock = ingest.ClockEvent
	cfg.Kafka.Retention = -time.Second
	join, err := Start(t.Context(), inMemory(t, cfg, Ingest, Joiner))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(join.Stop)
	serving := &App{cfg: cfg, kafka: join.Kafka(), log: zerolog.Nop(), registry: telemetry.NewRegistry("test")}
	now := serving.eventNow()
	if got := now(); !got.IsZero() {
		t.Errorf("%v before the first impression", got)
	}
	shown := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	events := fmt.Sprintf(`{"type":"impression","id":"%s","product":"p","creative":"c","user":"u"}
{"type":"watermark","time_ms":%d}`, impressionAt(shown), shown.UnixMilli()+1)
	resp, err := join.Client(time.Minute).Post("http://"+join.Addresses().Edge+"/v1/events", "application/x-ndjson", strings.NewReader(events))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	promised := shown.Add(time.Millisecond)
	got := now()
	for end := time.Now().Add(time.Minute); !got.Equal(promised) && time.Now().Before(end); got = now() {
		<-time.After(50 * time.Millisecond)
	}
	if !got.Equal(promised) {
		t.Errorf("the event clock says %v, impressions have come up to %v", got, promised)
	}
}

// impressionAt is the id of an impression.
func impressionAt(at time.Time) string {
	h := fmt.Sprintf("%012x", at.UnixMilli())
	return h[:8] + "-" + h[8:] + "-7000-8000-000000000001"
}
