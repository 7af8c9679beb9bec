package joiner

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/joiner/window"
)

// Config of the joiner.
type Config struct {
	// Kafka says how to reach the brokers.
	Kafka stream.Config `yaml:"kafka"`
	// Group is the consumer group. Its committed offsets and their metadata are the joiner's only state.
	Group string `yaml:"group"`
	// TransactionalID must be stable and unique per instance: a second instance with it fences the first.
	TransactionalID string `yaml:"transactional_id"`
	// InstanceID is the name of this instance in its group, where it is a static member: a restart, or a session that could not leave
	// because no broker was there, moves no partitions and waits for no session. Empty: the transactional id, which is as unique.
	InstanceID string `yaml:"instance_id"`
	// RebalanceTimeout is how long the group waits for an instance that is in the middle of a transaction when others come or
	// go, 35s to 10m: longer than the 20 s after which the broker ends a transaction and the 15 s that its end may take.
	// Rebuilds do not count: they run beside.
	RebalanceTimeout time.Duration `yaml:"rebalance_timeout"`
	// Window is how long after its impression a click counts, 60 s to 24 h of event time. It cannot be changed
	// over existing state.
	Window time.Duration `yaml:"window"`
	// Correction is how long after its window a click still corrects the label of its impression, in event time: the window at
	// least. What comes within it corrects, what comes later does not, the same on every replay. 0: as long as the window.
	// The impression is remembered that long; what is beyond its window lies in segments.dir, if there is one.
	Correction time.Duration `yaml:"correction"`
	// Lateness is the disorder of event time that is waited for, in each input.
	Lateness time.Duration `yaml:"lateness"`
	// Bucket is the width of a time bucket, 1 s to 10 s; a final negative comes at most this much after the
	// window. It cannot be changed over existing state.
	Bucket time.Duration `yaml:"bucket"`
	// Observe, if it is not 0, gives every impression that has no click this long after its bucket a provisional
	// negative, for consumers that learn from delayed feedback; versions of final labels then count from 2. Less than
	// the window. It cannot be changed over existing state.
	Observe time.Duration `yaml:"observe"`
	// KeepOneNegativeIn leaves out all but one of so many negatives, chosen by impression id; those that stay have this
	// weight. 1 keeps all. ctrloop's own figures, pairs and experiments count rows, not weights: anything but 1 is for
	// deployments in which other programs read labels.v1.
	KeepOneNegativeIn int `yaml:"keep_one_negative_in"`
	// MaxLead is how far one input may run ahead of the other in event time before it is paused.
	MaxLead time.Duration `yaml:"max_lead"`
	// CommitInterval is the pace of transactions under light load; a backlog is not held up by it.
	CommitInterval time.Duration `yaml:"commit_interval"`
	// MaxPoll bounds the records of one transaction, and twice this the impressions and waiting clicks that it settles
	// because the watermark moves: a jump goes on in the transactions after it.
	MaxPoll int `yaml:"max_poll"`
	// Breaker stops the learning when the traffic is not what it was.
	Breaker Breaker `yaml:"breaker"`
	// Segments keeps the state on a local disk besides, so that a restart is fast.
	Segments Segments `yaml:"segments"`
	// MemoryLimit is what the state may take in memory, in bytes, all partitions of the instance together. Beyond
	// it the oldest windows are read from segments.dir. 0: no limit.
	MemoryLimit int64 `yaml:"memory_limit"`
	// Workers is how many partitions are joined at the same time; 0: one per core.
	Workers int `yaml:"workers"`
}

// Segments says where the state is kept on disk. What is there is a cache: it can be deleted while the joiner is
// stopped.
type Segments struct {
	// Dir is a folder on a local disk, of this instance alone. Empty: "joiner" in the state folder of the process, if
	// it has one.
	Dir string `yaml:"dir"`
	// Interval is how often the state is made durable, by the clock on the wall; a restart reads at most about this
	// much again from the topics. 0: no segments.
	Interval time.Duration `yaml:"interval"`
}

func (s Segments) on() bool { return s.Dir != "" && s.Interval > 0 }

// Default is for one instance beside an embedded broker.
func Default() Config {
	return Config{
		Kafka:            stream.Default(),
		Group:            "ctrloop-joiner",
		TransactionalID:  "ctrloop-joiner-0",
		Window:           30 * time.Minute,
		Lateness:         30 * time.Second,
		RebalanceTimeout: stream.DefaultRebalanceTimeout,
		Bucket:           time.Second,
		// At the default window this adds a sixth to the memory of a backlog that drains unevenly.
		MaxLead:           5 * time.Minute,
		KeepOneNegativeIn: 1,
		Breaker:           defaultBreaker(),
		// Longer than an instance of ingest is away for a restart, a rebalance or a bad night's page.
		CommitInterval: 250 * time.Millisecond,
		MaxPoll:        50_000,
		Segments:       Segments{Interval: 30 * time.Second},
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
	if c.TransactionalID == "" {
		bad("transactional_id: must not be empty, and must be the same after a restart")
	}
	if c.RebalanceTimeout < 35*time.Second || c.RebalanceTimeout > 10*time.Minute {
		bad("rebalance_timeout: %s: want 35s to 10m", c.RebalanceTimeout)
	}
	if c.Window < time.Minute || c.Window > 24*time.Hour {
		bad("window: %s: want 1m to 24h", c.Window)
	}
	if c.Correction != 0 && (c.Correction < c.Window || c.Correction > 7*24*time.Hour) {
		bad("correction: %s: want 0 (as long as the window) or the window of %s to 168h", c.Correction, c.Window)
	}
	if c.Lateness < 0 || c.Lateness > time.Hour {
		bad("lateness: %s: want 0 to 1h", c.Lateness)
	}
	if c.Bucket < time.Second || c.Bucket > 10*time.Second {
		bad("bucket: %s: want 1s to 10s", c.Bucket)
	}
	if c.Observe < 0 || c.Observe >= c.Window && c.Observe > 0 {
		bad("observe: %s: want 0 (none) or less than the window of %s", c.Observe, c.Window)
	}
	if err := c.Breaker.rules(c.Window + c.Bucket).Validate(); c.Breaker.Enabled && err != nil {
		bad("breaker: %w", err)
	}
	if c.KeepOneNegativeIn < 1 || c.KeepOneNegativeIn > 1000 {
		bad("keep_one_negative_in: %d: want 1 (all) to 1000", c.KeepOneNegativeIn)
	}
	if c.MaxLead < time.Second {
		bad("max_lead: %s: want 1s or more", c.MaxLead)
	}
	if c.CommitInterval < 0 || c.CommitInterval > 5*time.Second {
		bad("commit_interval: %s: want 0 to 5s, well inside the transaction timeout", c.CommitInterval)
	}
	if c.MaxPoll < 1 {
		bad("max_poll: %d: want 1 or more", c.MaxPoll)
	}
	if c.Segments.Interval < 0 {
		bad("segments.interval: %s: want 0 (no segments) or more", c.Segments.Interval)
	}
	if c.MemoryLimit < 0 {
		bad("memory_limit: %d: want 0 (none) or more bytes", c.MemoryLimit)
	}
	if c.MemoryLimit > 0 && c.Segments.Interval == 0 {
		bad("memory_limit: %d, but segments.interval is 0: cold windows have nowhere to go", c.MemoryLimit)
	}
	if c.Workers < 0 {
		bad("workers: %d: want 0 (one per core) or more", c.Workers)
	}
	return errors.Join(errs...)
}

// instance is the name of this instance in its group.
func (c Config) instance() string { return cmp.Or(c.InstanceID, c.TransactionalID) }

// WindowConfig is the join's part of the configuration. seed is the hash tables'.
func (c Config) WindowConfig(seed uint64) window.Config {
	return window.Config{
		WindowMS: c.Window.Milliseconds(), LatenessMS: c.Lateness.Milliseconds(), BucketMS: c.Bucket.Milliseconds(), Seed: seed,
		CorrectionMS: c.correction().Milliseconds(), ObserveMS: c.Observe.Milliseconds(), NegativeRate: int64(c.KeepOneNegativeIn),
	}
}

// Remembered is how much event time the join's state is made of: window, correction and lateness. The topics must hold as much.
func (c Config) Remembered() time.Duration { return c.Window + c.correction() + c.Lateness }

// correction is how long impressions are remembered behind their window.
func (c Config) correction() time.Duration {
	if c.Correction == 0 {
		return c.Window
	}
	return c.Correction
}
