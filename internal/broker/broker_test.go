package broker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ctrloop/internal/broker"
	"ctrloop/internal/broker/brokertest"
	"ctrloop/internal/stream"
	"ctrloop/schemas"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

func produce(t *testing.T, c stream.Config, n int) {
	t.Helper()
	p, err := stream.NewProducer(c, stream.ProducerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for i := range n {
		if err := p.Produce(t.Context(), &stream.Record{Topic: schemas.Topics()[0].Name, Value: fmt.Append(nil, i)}); err != nil {
			t.Fatal(err)
		}
	}
}

func end(t *testing.T, c stream.Config) (n int64) {
	t.Helper()
	ends, err := stream.EndOffsets(t.Context(), c, schemas.Topics()[0].Name)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range ends {
		n += at
	}
	return n
}

// What was acknowledged is there after kill -9 of the broker, which comes back on its port by itself; after an ordered stop
// and a start on the same folder; a second one on the folder is refused.
func TestSurvives(t *testing.T) {
	dir := t.TempDir()
	b := brokertest.Start(t, dir)
	c := b.Config()
	if err := stream.EnsureTopics(t.Context(), c, schemas.Topics(), 2, -1); err != nil {
		t.Fatal(err)
	}
	produce(t, c, 100)
	second := broker.Config{Program: brokertest.Program(t), Dir: dir}
	if _, err := broker.Start(t.Context(), second, zerolog.Nop(), prometheus.NewRegistry()); !errors.Is(err, broker.ErrInUse) {
		t.Errorf("a second broker on the folder: %v", err)
	}
	began := time.Now()
	brokertest.Crash(t, b)
	produce(t, c, 1)
	t.Logf("writes again %s after kill -9", time.Since(began))
	if n := end(t, c); n != 101 {
		t.Errorf("%d records of 101 after kill -9", n)
	}
	b.Stop()
	again := brokertest.Start(t, dir)
	if n := end(t, again.Config()); again.Brokers()[0] != b.Brokers()[0] || n != 101 {
		t.Errorf("%d records of 101 after a stop, at %v (was %v)", n, again.Brokers(), b.Brokers())
	}
}

// A copy of what was frozen beside a writer is a broker with exactly what was acknowledged before, and no more than was sent.
func TestFrozenIsAMoment(t *testing.T) {
	dir, copied := t.TempDir(), t.TempDir()
	b := brokertest.Start(t, dir)
	c := b.Config()
	if err := stream.EnsureTopics(t.Context(), c, schemas.Topics(), 2, -1); err != nil {
		t.Fatal(err)
	}
	produce(t, c, 500)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p, err := stream.NewProducer(c, stream.ProducerConfig{})
		if err != nil {
			return
		}
		defer p.Close()
		for ctx.Err() == nil {
			_ = p.Produce(ctx, &stream.Record{Topic: schemas.Topics()[0].Name, Value: []byte("beside")})
		}
	}()
	before := end(t, c)
	f, err := b.Freeze(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	after := end(t, c)
	for name, size := range f.Sizes {
		copyFirst(t, filepath.Join(f.Links, name), filepath.Join(copied, name), size)
	}
	cancel()
	<-done
	if err := f.Release(); err != nil {
		t.Error(err)
	}
	if n := end(t, brokertest.Start(t, copied).Config()); n < before || n > after {
		t.Errorf("the copy has %d records, want %d to %d", n, before, after)
	}
}

func copyFirst(t *testing.T, from, to string, size int64) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err == nil {
		_, err = io.CopyN(out, in, size)
	}
	if err := errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestOldFoldersAreRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "log"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := broker.Start(t.Context(), broker.Config{Dir: dir}, zerolog.Nop(), prometheus.NewRegistry())
	if old := new(broker.OldFolderError); !errors.As(err, &old) {
		t.Error(err)
	}
}

// A broker that cannot start says what Kafka said.
func TestWhyItDoesNotStart(t *testing.T) {
	dir := t.TempDir()
	b := brokertest.Start(t, dir)
	b.Stop()
	if err := os.WriteFile(filepath.Join(dir, "data", "meta.properties"), []byte("version=1\nnode.id=7\ncluster.id=x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := broker.Start(t.Context(), broker.Config{Program: brokertest.Program(t), Dir: dir}, zerolog.Nop(), prometheus.NewRegistry())
	if err == nil {
		t.Fatal("it starts as another node")
	}
	t.Log(err)
}
