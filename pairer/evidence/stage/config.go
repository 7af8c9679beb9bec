package stage

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/pairer/evidence"
)

// Config of the stage.
type Config struct {
	// Group is the consumer group. Its committed offsets with their metadata, and evidence.v1, are the stage's only state.
	Group string `yaml:"group"`
	// TransactionalID must be stable and unique per instance: a second instance with it fences the first.
	TransactionalID string `yaml:"transactional_id"`
	// InstanceID is the name of this instance in its group, where it is a static member. Empty: the transactional id.
	InstanceID string `yaml:"instance_id"`
	// RebalanceTimeout is how long the group waits for an instance that is in the middle of a transaction when others come or go,
	// 35s to 10m. Rebuilds do not count: they run beside.
	RebalanceTimeout time.Duration `yaml:"rebalance_timeout"`
	// CommitInterval is the pace of transactions under light load. Each writes the cells that changed once, so a longer one writes
	// fewer records, and a label counts later by as much.
	CommitInterval time.Duration `yaml:"commit_interval"`
	// MaxPoll bounds the labels of one transaction.
	MaxPoll int `yaml:"max_poll"`
	// MaxBytes bounds the memory of the open hours, all partitions of the instance together. Beyond it the oldest hours are closed
	// early: nothing is lost, but evidence.v1 gets a record in each transaction for each of their cells. 0: no bound.
	MaxBytes int64 `yaml:"max_bytes"`

	// AuditInterval is the pace at which evidence is held against the warehouse's sums, by the process that leads the pairing.
	AuditInterval time.Duration `yaml:"audit_interval"`

	// Kafka says how to reach the brokers, and Join what the join is that makes the labels. The process sets them.
	Kafka stream.Config `yaml:"-" json:"-"`
	Join  Join          `yaml:"-" json:"-"`
}

// Join are the times of the join that makes the labels.
type Join struct{ Window, Correction, Lateness, Bucket time.Duration }

// Default is for one instance beside an embedded broker.
func Default() Config {
	return Config{
		Group: "ctrloop-evidence", TransactionalID: "ctrloop-evidence-0", RebalanceTimeout: stream.DefaultRebalanceTimeout,
		CommitInterval: time.Second, MaxPoll: 100_000, MaxBytes: 256 << 20, AuditInterval: 5 * time.Minute,
	}
}

// Validate returns every problem, joined.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Group == "" {
		bad("group: must not be empty")
	}
	if c.TransactionalID == "" {
		bad("transactional_id: must not be empty, and must be the same after a restart")
	}
	if c.RebalanceTimeout < 35*time.Second || c.RebalanceTimeout > 10*time.Minute {
		bad("rebalance_timeout: %s: want 35s to 10m", c.RebalanceTimeout)
	}
	if c.CommitInterval < 0 || c.CommitInterval > 5*time.Second {
		bad("commit_interval: %s: want 0 to 5s, well inside the transaction timeout", c.CommitInterval)
	}
	if c.MaxPoll < 1 {
		bad("max_poll: %d: want 1 or more", c.MaxPoll)
	}
	if c.MaxBytes < 0 {
		bad("max_bytes: %d: want 0 (no bound) or more", c.MaxBytes)
	}
	if c.AuditInterval <= 0 {
		bad("audit_interval: %s: want more than 0", c.AuditInterval)
	}
	return errors.Join(errs...)
}

// instance is the name of this instance in its group.
func (c Config) instance() string { return cmp.Or(c.InstanceID, c.TransactionalID) }

// fold is the configuration of a partition, one of so many of this instance.
func (c Config) fold(of int) evidence.Config {
	return evidence.Config{
		WindowMS: c.Join.Window.Milliseconds(), CorrectionMS: c.Join.Correction.Milliseconds(), LatenessMS: c.Join.Lateness.Milliseconds(),
		BucketMS: c.Join.Bucket.Milliseconds(), MaxBytes: int(c.MaxBytes / int64(max(1, of))),
	}
}
