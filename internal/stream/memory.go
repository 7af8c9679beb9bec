package stream

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kfake"
)

// Memory is a broker in this process that keeps nothing beyond it: kfake, franz-go's stand-in for Kafka, as it is published. It is
// for tests and for replays into a temporary folder; it survives nothing, and its transactions are not a real broker's.
type Memory struct{ cluster *kfake.Cluster }

// StartMemory starts it on a port of loopback; 0 takes a free one.
func StartMemory(port int) (*Memory, error) {
	opts := []kfake.Opt{
		kfake.NumBrokers(1), // one process gains nothing from more
		// Records carry event time, which may be years old: a limit on age in the broker would delete a replayed log while it is read.
		kfake.BrokerConfigs(map[string]string{"log.retention.ms": "-1"}),
	}
	if port != 0 {
		opts = append(opts, kfake.Ports(port))
	}
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		return nil, fmt.Errorf("broker in memory: %w", err)
	}
	return &Memory{cluster: cluster}, nil
}

// Brokers are the addresses to put into Config.Brokers.
func (m *Memory) Brokers() []string { return m.cluster.ListenAddrs() }

// Close stops the broker and forgets what it holds.
func (m *Memory) Close() { m.cluster.Close() }
