package broker

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"ctrloop/internal/artifact"
	"ctrloop/internal/process"
	"ctrloop/internal/stream"
	"ctrloop/schemas"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// format writes server.properties and, in a new folder, what Kafka wants there before its first start.
func format(ctx context.Context, cfg Config, text string) error {
	file := filepath.Join(cfg.Dir, propertiesFile)
	if err := artifact.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	_, err := os.Stat(filepath.Join(cfg.Dir, dataFolder, "meta.properties")) // written last
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err = process.Run(ctx, process.Spec{
		Name: "kafka-format", Path: cfg.Program.Java, Dir: cfg.Dir,
		Args: jvm(cfg, "kafka.tools.StorageTool", "format", "-c", file, "-t", clusterID(rand.Reader)),
	}, zerolog.Nop())
	if err != nil {
		return fmt.Errorf("format %s: %w", cfg.Dir, err)
	}
	return nil
}

// clusterID draws the id of a cluster. Kafka's tool takes one that begins with a minus sign for an option.
func clusterID(random io.Reader) string {
	id := make([]byte, 16)
	_, _ = io.ReadFull(random, id) // of the system: it never fails
	id[0] &= 0x7f
	return base64.RawURLEncoding.EncodeToString(id)
}

// recordTimeout bounds a recording: some 10 s on a quiet machine.
const recordTimeout = 5 * time.Minute

// Record lets a broker start, work a little and stop, and writes what Java prepares from that ahead of time (JEP 514) to a file.
func Record(ctx context.Context, p Program, to string) error {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	dir, err := os.MkdirTemp(filepath.Dir(to), ".recording-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "cache.aot")
	p.Cache = ""
	b, err := Start(ctx, Config{Program: p, Dir: filepath.Join(dir, "kafka"), record: out}, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		return err
	}
	err = exercise(ctx, b.Config())
	b.Stop() // Java writes the file while it ends
	if err != nil {
		return err
	}
	return os.Rename(out, to)
}

// exercise does what every run does first: topics, and records in a transaction's log and out of it.
func exercise(ctx context.Context, c stream.Config) error {
	if err := stream.EnsureTopics(ctx, c, schemas.Topics(), 1, -1); err != nil {
		return err
	}
	p, err := stream.NewProducer(c, stream.ProducerConfig{})
	if err != nil {
		return err
	}
	defer p.Close()
	topic := schemas.Topics()[0].Name
	if err := p.Produce(ctx, &stream.Record{Topic: topic, Value: []byte("recorded")}); err != nil {
		return err
	}
	return stream.ReadRange(ctx, c, topic, 0, 0, 1, func(*stream.Record) error { return nil })
}
