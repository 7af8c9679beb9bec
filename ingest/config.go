package ingest

import (
	"errors"
	"fmt"
	"time"

	"ctrloop/internal/config"
)

// Clock says what "now" is for the check of event times.
type Clock string

// Clocks.
const (
	ClockWall  Clock = "wall"  // live traffic: the time of this machine
	ClockEvent Clock = "event" // replays and virtual time: no check
)

// Config of edge and service.
type Config struct {
	// Instance names this instance among those that share the raw topics; no two may have the same. It must survive
	// restarts: it is the name in the group and of the transactions, with which a restart fences what is left of its
	// predecessor. Empty takes the host's name.
	Instance string `yaml:"instance"`
	// Clock is "wall" for live traffic, "event" when event time is not the time of this machine.
	Clock Clock `yaml:"clock"`
	// AllowedSkew is how far in the future an event may be with clock wall.
	AllowedSkew time.Duration `yaml:"allowed_skew"`
	// UserSalt goes into the hash of users that are given as strings. Changing it changes every user's
	// assignment to experiments. Required with brokers of your own; an embedded run without one uses "ctrloop".
	UserSalt config.Secret `yaml:"user_salt"`
	// MaxEventBytes bounds one event.
	MaxEventBytes int     `yaml:"max_event_bytes"`
	Edge          EdgeCfg `yaml:"edge"`
	Merge         Merge   `yaml:"merge"`
}

// EdgeCfg bounds the HTTP edge.
type EdgeCfg struct {
	// MaxBodyBytes bounds a request as sent, MaxDecodedBytes after decompression.
	MaxBodyBytes    int64 `yaml:"max_body_bytes"`
	MaxDecodedBytes int64 `yaml:"max_decoded_bytes"`
	// MaxInFlightBytes bounds the decoded bodies of all requests together; beyond it the answer is 429.
	MaxInFlightBytes int64 `yaml:"max_in_flight_bytes"`
	// AckTimeout is how long a request waits for Kafka.
	AckTimeout time.Duration `yaml:"ack_timeout"`
}

// Merge bounds the service.
type Merge struct {
	// BufferEvents bounds what is held of one raw partition; one that is further ahead is paused.
	BufferEvents int `yaml:"buffer_events"`
	// TransactionEvents bounds one transaction; CommitInterval is how long one gathers.
	TransactionEvents int           `yaml:"transaction_events"`
	CommitInterval    time.Duration `yaml:"commit_interval"`
	// IdleAfter is how old a broker's word may be that a partition ends where it was read to. A partition that gives nothing
	// and of which no broker has said that within this time holds up the others.
	IdleAfter time.Duration `yaml:"idle_after"`
	// PunctuateEvery is the longest time, by the clock on the wall, between an advance of the low
	// watermark and its punctuation.
	PunctuateEvery time.Duration `yaml:"punctuate_every"`
}

// Default suits a single machine.
func Default() Config {
	return Config{
		Instance: "ingest-0", Clock: ClockWall, AllowedSkew: 10 * time.Second, UserSalt: "ctrloop", MaxEventBytes: 16 << 10,
		Edge: EdgeCfg{MaxBodyBytes: 16 << 20, MaxDecodedBytes: 64 << 20, MaxInFlightBytes: 256 << 20, AckTimeout: 15 * time.Second},
		Merge: Merge{
			BufferEvents:      32_768,
			TransactionEvents: 50_000,
			CommitInterval:    100 * time.Millisecond,
			IdleAfter:         5 * time.Second,
			PunctuateEvery:    500 * time.Millisecond,
		},
	}
}

// Validate returns every problem, joined.
func (c Config) Validate() error {
	var errs []error
	bad := func(ok bool, path, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...)))
		}
	}
	bad(c.Clock == ClockWall || c.Clock == ClockEvent, "clock", "%q: want wall or event", c.Clock)
	bad(c.AllowedSkew >= 0, "allowed_skew", "%v is negative", c.AllowedSkew)
	bad(c.MaxEventBytes >= 256 && c.MaxEventBytes <= 1<<20, "max_event_bytes", "%d: want 256 to 1 MiB", c.MaxEventBytes)
	bad(c.Edge.MaxBodyBytes > 0, "edge.max_body_bytes", "%d: want at least 1", c.Edge.MaxBodyBytes)
	bad(c.Edge.MaxDecodedBytes >= c.Edge.MaxBodyBytes, "edge.max_decoded_bytes", "%d is less than max_body_bytes", c.Edge.MaxDecodedBytes)
	bad(
		c.Edge.MaxInFlightBytes >= c.Edge.MaxDecodedBytes,
		"edge.max_in_flight_bytes",
		"%d is less than max_decoded_bytes: the largest body could never be read",
		c.Edge.MaxInFlightBytes,
	)
	bad(c.Edge.AckTimeout > 0, "edge.ack_timeout", "%v: want more than 0", c.Edge.AckTimeout)
	bad(c.Merge.BufferEvents >= 1, "merge.buffer_events", "%d: want at least 1", c.Merge.BufferEvents)
	bad(c.Merge.TransactionEvents >= 1, "merge.transaction_events", "%d: want at least 1", c.Merge.TransactionEvents)
	bad(c.Merge.CommitInterval > 0, "merge.commit_interval", "%v: want more than 0", c.Merge.CommitInterval)
	bad(c.Merge.IdleAfter > 0, "merge.idle_after", "%v: want more than 0", c.Merge.IdleAfter)
	bad(c.Merge.PunctuateEvery > 0, "merge.punctuate_every", "%v: want more than 0", c.Merge.PunctuateEvery)
	return errors.Join(errs...)
}
