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
	c := EraseUserCmd{Kafka: strings.Join(b.Config.Brokers, ",")}
	rest, err := c.topics(t.Context(), "", stream.Default(), time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
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
	unasked, err := (&EraseUserCmd{storeFlags: storeFlags{Dir: t.TempDir()}}).topics(t.Context(), "", stream.Config{}, time.Now())
	if err != nil || unasked != nil {
		t.Errorf("without a broker: %v, %v", unasked, err)
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
