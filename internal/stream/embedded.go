package stream

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/twmb/franz-go/pkg/kfake"

	"ctrloop/internal/lockfile"
	"ctrloop/internal/loopback"
)

// EmbeddedConfig configures the broker in this process.
type EmbeddedConfig struct {
	// Dir holds everything the broker remembers; it is created. One process at a time may use it.
	Dir string
	// Port on loopback; 0 takes the one that the folder's last broker had, or a free one where it is taken.
	Port int
}

// Embedded is a Kafka broker in this process, with its state on disk. Writes go to the page cache, as
// Apache Kafka's do: they survive kill -9 of this process, not a power cut. So do transactions, by what
// third_party/kfake changes in kfake: one that was open is aborted at the next start, one that was being
// committed is committed in full.
type Embedded struct {
	cluster *kfake.Cluster
	dir     string
	unlock  func()
	once    sync.Once
}

// ErrInUse is returned when another process runs a broker on the same directory.
var ErrInUse = errors.New("another process runs a broker on this directory")

// logFolder is the broker's own, inside of EmbeddedConfig.Dir.
const logFolder = "log"

// StartEmbedded starts the broker and returns when it answers.
func StartEmbedded(c EmbeddedConfig) (*Embedded, error) {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("embedded broker: %w", err)
	}
	unlock, err := lockDir(c.Dir)
	if err != nil {
		return nil, err
	}
	if err := os.RemoveAll(filepath.Join(c.Dir, FrozenFolder)); err != nil { // of a process that was killed
		unlock()
		return nil, fmt.Errorf("embedded broker: %w", err)
	}
	cluster, err := startOnPort(c)
	if err != nil {
		unlock()
		return nil, err
	}
	return &Embedded{cluster: cluster, dir: c.Dir, unlock: unlock}, nil
}

// portFile has the port of the folder's last broker.
const portFile = "port"

// startOnPort starts the broker on the configured port, on the one that the folder's last broker had, or on a free one.
func startOnPort(c EmbeddedConfig) (*kfake.Cluster, error) {
	file := filepath.Join(c.Dir, portFile)
	port := c.Port
	if kept := loopback.KeptPorts(file, 1); port == 0 && kept != nil && loopback.Free(kept[0]) {
		port = kept[0]
	}
	if port == 0 {
		var err error
		if port, err = loopback.FreePort(); err != nil {
			return nil, fmt.Errorf("embedded broker: %w", err)
		}
	}
	cluster, err := kfake.NewCluster(
		kfake.NumBrokers(1), // one process gains nothing from more
		kfake.Ports(port),
		kfake.DataDir(filepath.Join(c.Dir, logFolder)),
		kfake.BrokerConfigs(map[string]string{
			// Records carry event time, which may be years old: a limit on age in the broker would
			// delete a replayed log while it is read.
			"log.retention.ms": "-1",
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("embedded broker on %s, port %d (is the port taken?): %w", c.Dir, port, err)
	}
	if err := loopback.KeepPorts(file, port); err != nil {
		cluster.Close()
		return nil, fmt.Errorf("embedded broker: %w", err)
	}
	return cluster, nil
}

// lockDir takes the directory for this process.
func lockDir(dir string) (release func(), err error) {
	release, err = lockfile.Acquire(filepath.Join(dir, "LOCK"), strconv.Itoa(os.Getpid()))
	if held, ok := errors.AsType[*lockfile.HeldError](err); ok {
		return nil, fmt.Errorf("%s (pid %s): %w: stop it, or choose another directory", held.Path, held.Holder, ErrInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("embedded broker: %w", err)
	}
	return release, nil
}

// Brokers are the addresses to put into Config.Brokers.
func (e *Embedded) Brokers() []string { return e.cluster.ListenAddrs() }

// Config reaches this broker.
func (e *Embedded) Config() Config {
	c := Default()
	c.Brokers = e.Brokers()
	return c
}

// Close stops the broker, writes what it holds in memory and frees the directory.
func (e *Embedded) Close() {
	e.once.Do(func() {
		e.cluster.Close()
		e.unlock()
	})
}
