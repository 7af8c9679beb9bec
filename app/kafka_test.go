package app

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kfake"

	"ctrloop/internal/stream"
)

// TestStartLooksAtCopies: a cluster that acknowledges what one of its brokers has is refused; a single broker is not.
func TestStartLooksAtCopies(t *testing.T) {
	for _, test := range []struct {
		brokers int
		refused bool
		said    string
	}{
		{1, false, "the cluster has one broker"},
		{3, true, ""},
	} {
		cluster, err := kfake.NewCluster(kfake.NumBrokers(test.brokers))
		if err != nil {
			t.Fatal(err)
		}
		defer cluster.Close()
		var log bytes.Buffer
		a := &App{cfg: Default(), log: zerolog.New(&log)}
		a.cfg.Kafka.Brokers = cluster.ListenAddrs()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := a.startKafka(ctx); errors.Is(err, stream.ErrCopies) != test.refused || !test.refused && err != nil {
			t.Errorf("%d brokers: %v", test.brokers, err)
		}
		if !strings.Contains(log.String(), test.said) || (test.said == "") != (log.Len() == 0) {
			t.Errorf("%d brokers: said %q, want %q", test.brokers, &log, test.said)
		}
	}
}
