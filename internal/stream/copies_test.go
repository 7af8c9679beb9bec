package stream_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"

	"ctrloop/internal/stream"
)

// TestCopies: a cluster is refused if it acknowledges what one broker has; one broker alone is a warning.
func TestCopies(t *testing.T) {
	for _, test := range []struct {
		name            string
		brokers         int
		inSync          string
		warning, refuse string
	}{
		{"three brokers, two in sync", 3, "2", "", ""},
		{"three brokers, one in sync", 3, "1", "", "t (3 copies, min.insync.replicas 1)"},
		{"more in sync than copies", 3, "4", "", "t (3 copies, min.insync.replicas 4) can never be written to"},
		{"one broker", 1, "1", "the cluster has one broker", ""},
		{"one broker, two in sync", 1, "2", "", "t (1 copies, min.insync.replicas 2) can never be written to"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cluster, err := kfake.NewCluster(kfake.NumBrokers(test.brokers))
			if err != nil {
				t.Fatal(err)
			}
			defer cluster.Close()
			if err := cluster.CreateTopic("t", 2, map[string]string{"min.insync.replicas": test.inSync}); err != nil {
				t.Fatal(err)
			}
			c := stream.Default()
			c.Brokers = cluster.ListenAddrs()
			warning, err := stream.CheckCopies(testContext(t), c, "t")
			if !strings.Contains(warning, test.warning) || (warning == "") != (test.warning == "") {
				t.Errorf("warning %q, want %q", warning, test.warning)
			}
			switch {
			case test.refuse == "" && err != nil:
				t.Error(err)
			case test.refuse != "" && (err == nil || !strings.Contains(err.Error(), test.refuse)):
				t.Errorf("%v: want %q", err, test.refuse)
			case errors.Is(err, stream.ErrCopies) != (test.refuse != "" && !strings.Contains(test.refuse, "never")):
				t.Errorf("%v", err)
			}
		})
	}
}
