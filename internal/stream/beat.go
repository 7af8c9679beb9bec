package stream

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// silence is how long the heartbeat that follows the offsets of a transaction may take. The client asks for it at once,
// and a broker answers in milliseconds: three heartbeat intervals without one mean that its group session has ended.
const silence = 3 * heartbeatInterval

var errSilence = errors.New("no heartbeat after the transaction's offsets: the place in the group was lost, probably with a broker")

// beats ends the end of a transaction that waits for a heartbeat that will never come. The client's group session ends when
// the broker is away for longer than it tries, and says so only after the owner has polled; the owner is in the commit, which
// waits for that session. Only the requests on the wire tell.
type beats struct {
	mu     sync.Mutex
	cancel context.CancelCauseFunc // nil: nobody commits
	timer  *time.Timer
}

var _ kgo.HookBrokerE2E = (*beats)(nil)

// OnBrokerE2E sees every request with its answer.
func (b *beats) OnBrokerE2E(_ kgo.BrokerMetadata, key int16, e2e kgo.BrokerE2E) {
	if e2e.Err() != nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch k := kmsg.Key(key); {
	case k == kmsg.TxnOffsetCommit && b.cancel != nil && b.timer == nil:
		cancel := b.cancel
		b.timer = time.AfterFunc(silence, func() { cancel(errSilence) })
	case (k == kmsg.Heartbeat || k == kmsg.ConsumerGroupHeartbeat) && b.timer != nil:
		b.timer.Stop()
	}
}

// watch returns a context for the end of a transaction, and what to call after it.
func (b *beats) watch(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cancel = cancel
	return ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.timer != nil {
			b.timer.Stop()
		}
		b.cancel, b.timer = nil, nil
		cancel(nil)
	}
}
