package sink

import (
	"errors"
	"fmt"
	"time"

	"ctrloop/internal/stream"
)

// Config of the sink.
type Config struct {
	// Kafka says how to reach the brokers.
	Kafka stream.Config `yaml:"kafka"`
	// Group is the consumer group of labels.v1; its offsets and their metadata are the sink's only state. The
	// mirrors use "<group>-mirror".
	Group string `yaml:"group"`
	// InstanceID makes the group member static, so that a restart need not wait for the session of its
	// predecessor (30 s). Unique per instance. Empty: dynamic.
	InstanceID string `yaml:"instance_id"`
	// MaxRows of one insert, 1,000 to 500,000.
	MaxRows int `yaml:"max_rows"`
	// MaxBufferedRows over all partitions; at about 300 bytes each. Reading stops beyond it.
	MaxBufferedRows int `yaml:"max_buffered_rows"`
	// FlushInterval is the pace of inserts under light load; a backlog is not held up by it. With more than 20 partitions in one
	// instance it is longer, so that there are at most 20 inserts a second.
	FlushInterval time.Duration `yaml:"flush_interval"`
	// Inserts is how many partitions are inserted at the same time.
	Inserts int `yaml:"inserts"`
	// InsertTimeout of one attempt. What was sent is not lost by it: the same block is sent again.
	InsertTimeout time.Duration `yaml:"insert_timeout"`
	// AuditInterval is the time between two looks at the audit, 1s to 24h; an alarm takes two.
	AuditInterval time.Duration `yaml:"audit_interval"`
	// Retention of labels, late events and decisions: a day of impressions is removed when its newest label was
	// inserted this long ago, with its audit. At least 24h; 0 keeps everything. One server only, not a cluster.
	Retention time.Duration `yaml:"retention"`
}

// Default is for one instance beside an embedded broker and an embedded warehouse.
func Default() Config {
	return Config{
		Kafka: stream.Default(), Group: "ctrloop-sink", InstanceID: "ctrloop-sink-0",
		MaxRows: 200_000, MaxBufferedRows: 600_000, // 180 MB under a backlog
		FlushInterval: time.Second, Inserts: 2, InsertTimeout: time.Minute, AuditInterval: time.Minute,
	}
}

// Validate returns every problem, joined.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := c.Kafka.Validate(); err != nil {
		bad("kafka: %w", err)
	}
	if c.Group == "" {
		bad("group: must not be empty")
	}
	if c.MaxRows < 1000 || c.MaxRows > 500_000 {
		bad("max_rows: %d: want 1000 to 500000", c.MaxRows)
	}
	if c.MaxBufferedRows < c.MaxRows {
		bad("max_buffered_rows: %d: want at least max_rows", c.MaxBufferedRows)
	}
	if c.FlushInterval <= 0 || c.FlushInterval > 10*time.Second {
		bad("flush_interval: %s: want more than 0, at most 10s", c.FlushInterval)
	}
	if c.Inserts < 1 {
		bad("inserts: %d: want at least 1", c.Inserts)
	}
	if c.InsertTimeout <= 0 {
		bad("insert_timeout: %s: want more than 0", c.InsertTimeout)
	}
	if c.AuditInterval < time.Second || c.AuditInterval > 24*time.Hour {
		bad("audit_interval: %s: want 1s to 24h", c.AuditInterval)
	}
	if c.Retention != 0 && c.Retention < 24*time.Hour {
		bad("retention: %s: want 0 or at least 24h", c.Retention)
	}
	return errors.Join(errs...)
}

func (c Config) mirrorGroup() string { return c.Group + "-mirror" }
