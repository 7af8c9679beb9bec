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
)

func supervised(t *testing.T, log *strings.Builder) (*Service, *[]string) {
	t.Helper()
	cfg := Default()
	cfg.Kafka.Brokers = []string{"nobody:1"}
	s, err := New(cfg, nil, zerolog.New(log), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	said := &[]string{}
	s.Report(func(trouble string) { *said = append(*said, trouble) })
	return s, said
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
		if n := len(*said); n < 2 || (*said)[0] != "" || !strings.Contains((*said)[n-1], "labels.v1/3") {
			t.Errorf("said %q", *said)
		}
		s.health.works("labels")
		if n := len(*said); (*said)[n-1] != "" {
			t.Errorf("it works again, and says %q", (*said)[n-1])
		}
	})
}

// R4: a sink that cannot insert is not ready after half a minute; a hiccup is none.
func TestASinkThatCannotWorkSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		s, said := supervised(t, &log)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		began := time.Now()
		s.supervise(ctx, "labels", func(context.Context) (bool, error) {
			if at := time.Since(began); at > 4*time.Minute {
				s.health.works("labels")
				<-ctx.Done()
				return true, nil
			} else if at < 10*time.Second {
				s.health.works("labels")
			}
			if time.Since(began) < 30*time.Second && len(*said) > 1 {
				t.Errorf("after %v: %q", time.Since(began), *said)
			}
			return false, errors.New("connection refused")
		})
		n := len(*said)
		if n < 3 || (*said)[n-1] != "" || !strings.Contains((*said)[n-2], "connection refused") ||
			!strings.HasPrefix((*said)[n-2], "labels since ") {
			t.Errorf("said %q", *said)
		}
	})
}
