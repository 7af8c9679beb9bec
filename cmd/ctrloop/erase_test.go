package main

import (
	"strings"
	"testing"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/internal/warehouse"
	"ctrloop/schemas"
)

// The proof says by when each topic has deleted the hash, by what the brokers are really configured to.
func TestErasureNamesTheTopics(t *testing.T) {
	b := streamtest.StartTopics(t, 1)
	var topics []schemas.Topic
	for i, name := range topicsWithUsers {
		topics = append(topics, schemas.Topic{Name: name, Retention: []time.Duration{0, -1}[i/4]}) // the last one keeps everything
	}
	if err := stream.EnsureTopics(t.Context(), b.Config, topics, 1, 7*24*time.Hour); err != nil {
		t.Fatal(err)
	}
	at := storeFlags{Dir: t.TempDir()}
	kafka, stop, known, err := at.topicsAt(t.Context(), strings.Join(b.Config.Brokers, ","), "", stream.Default())
	if err != nil || !known {
		t.Fatal(known, err)
	}
	defer stop()
	rest, err := topicsRest(t.Context(), kafka, known, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	if err != nil || len(rest) != len(topicsWithUsers) {
		t.Fatal(rest, err)
	}
	var said strings.Builder
	erasureProof{Erasure: warehouse.Erasure{User: 7}, Topics: rest}.print(&said)
	for i, name := range topicsWithUsers {
		want := name + strings.Repeat(" ", max(0, 16-len(name))) + []string{" by 2026-03-09 13:00 UTC\n", " NEVER"}[i/4]
		if !strings.Contains(said.String(), want) {
			t.Errorf("no %q in\n%s", want, said.String())
		}
	}
	if _, _, known, err := at.topicsAt(t.Context(), "", "", stream.Config{}); err != nil || known {
		t.Errorf("a broker is known where nobody names one: %v", err)
	}
	unasked, err := topicsRest(t.Context(), stream.Config{}, false, time.Now())
	if err != nil || unasked != nil {
		t.Errorf("without a broker: %v, %v", unasked, err)
	}
	said.Reset()
	erasureProof{Erasure: warehouse.Erasure{User: 7}}.print(&said)
	if !strings.Contains(said.String(), "evidence.v1 was NOT told") {
		t.Errorf("evidence goes on counting, and nobody says so:\n%s", &said)
	}
}

// S19: 0 and the empty id are everybody who was not named.
func TestErasureOfNobodyAndEverybodyIsRefused(t *testing.T) {
	for _, args := range [][]string{{"0", "--number"}, {""}, {"00", "--number"}, {"-1", "--number"}, {"alice", "--number"}} {
		code, _, stderr := cli(t, append([]string{"erase", "user", "--dir", t.TempDir()}, args...)...)
		if code != exitUsage {
			t.Errorf("erase user %q: exit %d, %s", args, code, stderr)
		}
	}
}
