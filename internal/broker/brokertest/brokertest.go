// Package brokertest starts the embedded broker, Apache Kafka, for tests that need one which survives what is done to it.
// Tests that only need a broker use streamtest, whose broker in memory starts at once.
package brokertest

import (
	"syscall"
	"testing"
	"time"

	"ctrloop/internal/broker"
	"ctrloop/internal/setup"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// Broker is the embedded broker.
type Broker = broker.Broker

// Program is what set-up has fetched; without it the test fails and says what to run.
func Program(t testing.TB) broker.Program {
	t.Helper()
	home, err := setup.Home("")
	if err != nil {
		t.Fatal(err)
	}
	p, err := setup.Kafka(home)
	if err != nil {
		t.Fatalf("%v: run `ctrloop setup`", err)
	}
	return p
}

// Start starts a broker on a folder, for as long as the test runs.
func Start(t testing.TB, dir string) *broker.Broker {
	t.Helper()
	b, err := broker.Start(t.Context(), broker.Config{Program: Program(t), Dir: dir}, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Stop)
	return b
}

// Kill is kill -9 of the broker's process.
func Kill(t testing.TB, b *broker.Broker) {
	t.Helper()
	pid := b.PID()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for b.PID() == pid {
		<-time.After(time.Millisecond) // nothing tells of it
	}
}

// Crash kills the broker's process and waits until it has been started again and answers.
func Crash(t testing.TB, b *broker.Broker) {
	t.Helper()
	Kill(t, b)
	if err := b.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
}
