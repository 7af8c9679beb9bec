package stream_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

func TestFateOf(t *testing.T) {
	for want, errs := range map[stream.Fate][]error{
		stream.Retry: {nil, io.EOF, stream.ErrRebalanced, context.DeadlineExceeded,
			// S9: passwords are rotated and rights come back, and the process is not ready until then.
			kerr.SaslAuthenticationFailed, kerr.IllegalSaslState, kerr.TopicAuthorizationFailed, kerr.GroupAuthorizationFailed,
			kerr.ClusterAuthorizationFailed, fmt.Errorf("begin: %w", kerr.TransactionalIDAuthorizationFailed),
			kerr.ProducerFenced, kerr.InvalidProducerEpoch, kerr.FencedInstanceID},
		stream.Lost:    {stream.ErrDataLoss, fmt.Errorf("read: %w", stream.ErrDataLoss), stream.Final(stream.ErrDataLoss, "start over")},
		stream.Refused: {stream.ErrBroker, fmt.Errorf("topics: %w", stream.ErrPartitionCount), kerr.UnsupportedSaslMechanism},
	} {
		for _, err := range errs {
			if got := stream.FateOf(err); got != want {
				t.Errorf("%v: %v, want %v", err, got, want)
			}
		}
	}
	var coded interface{ ExitCode() int }
	err := fmt.Errorf("joiner: %w", stream.Final(stream.ErrDataLoss, "start over"))
	if !errors.As(err, &coded) || coded.ExitCode() != stream.ExitLost || !strings.HasSuffix(err.Error(), "; start over") {
		t.Errorf("%v has no exit code of lost records", err)
	}
}

// R10: who was fenced hears that another process has its id, and who lacks a right whose it is.
func TestExplain(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{kerr.ProducerFenced, "another process has this id"},
		{fmt.Errorf("commit: %w", kerr.InvalidProducerEpoch), "another process has this id"},
		{kerr.FencedInstanceID, "another process has this id"},
		{kerr.SaslAuthenticationFailed, "kafka.sasl"},
		{kerr.TopicAuthorizationFailed, "rights"},
		{io.EOF, "EOF"},
	} {
		got := stream.Explain(c.err)
		if !errors.Is(got, c.err) || !strings.Contains(got.Error(), c.want) || stream.FateOf(got) != stream.Retry {
			t.Errorf("%v: %v, want %q", c.err, got, c.want)
		}
	}
	if stream.Explain(nil) != nil {
		t.Error("nil is explained")
	}
}

// A copy of a log that cannot be followed any more says so to whoever waits on it.
func TestReplicaTellsOfItsEnd(t *testing.T) {
	b := streamtest.StartTopics(t, 1, schemas.Topic{Name: "log", Partitions: 1})
	one := func() { streamtest.Produce(t, b.Config, &stream.Record{Topic: "log", Value: []byte("x")}) }
	one()
	block := make(chan struct{})
	n := 0
	r, err := stream.OpenReplica(t.Context(), b.Config, "log", -1, func(*stream.Record) error {
		if n++; n == 2 {
			<-block
			return errors.New("the connection is lost with the record in hand")
		}
		return nil
	}, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	one()
	for range 3 {
		one()
	}
	streamtest.DeleteRecords(t, b.Config, "log", 0, 4) // what is to be read again is gone
	close(block)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := r.Wait(ctx); stream.FateOf(err) != stream.Lost {
		t.Errorf("Wait ended with %v", err)
	}
}
