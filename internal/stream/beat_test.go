package stream

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestSilenceEndsACommit: the end of a transaction waits for a heartbeat behind its offsets for so long, and no longer.
func TestSilenceEndsACommit(t *testing.T) {
	type request struct {
		after time.Duration
		key   kmsg.Key
		err   error
	}
	lost := errors.New("connection lost")
	for _, test := range []struct {
		name     string
		requests []request
		lost     bool
	}{
		{"a heartbeat follows", []request{{0, kmsg.TxnOffsetCommit, nil}, {time.Second, kmsg.Heartbeat, nil}}, false},
		{"none follows", []request{{0, kmsg.Heartbeat, nil}, {0, kmsg.TxnOffsetCommit, nil}}, true},
		{"one that failed", []request{{0, kmsg.TxnOffsetCommit, nil}, {time.Second, kmsg.Heartbeat, lost}}, true},
		{"offsets that failed are tried again", []request{{0, kmsg.TxnOffsetCommit, lost}}, false},
		{"no offsets", []request{{0, kmsg.EndTxn, nil}}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var b beats
				for range 2 { // the second transaction begins as the first
					ctx, ended := b.watch(t.Context())
					for _, r := range test.requests {
						time.Sleep(r.after)
						b.OnBrokerE2E(kgo.BrokerMetadata{}, int16(r.key), kgo.BrokerE2E{ReadErr: r.err})
					}
					time.Sleep(silence - 2*time.Second)
					if ctx.Err() != nil {
						t.Fatal("too early")
					}
					time.Sleep(2 * time.Second)
					synctest.Wait()
					if got := errors.Is(context.Cause(ctx), errSilence); got != test.lost {
						t.Errorf("lost: %v, want %v", got, test.lost)
					}
					ended()
				}
			})
		})
	}
}
