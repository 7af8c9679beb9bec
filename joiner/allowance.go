package joiner

import "sync"

// allowance bounds what a transaction settles because the watermark moves: impressions that become negatives, clicks
// that give up waiting. Without it a watermark that jumps over millions of open impressions would close them in one
// transaction, which the broker ends after its timeout, again and again. Each partition in the transaction has an even
// share; as much again is there for those who come first, so that a partition with most of the traffic keeps up.
//
// The zero value does not bound anything, nor does nil.
type allowance struct {
	each int

	mu    sync.Mutex
	spare int
}

// newAllowance is twice the records that a transaction may read: what comes in can go out, and what was left behind
// becomes less.
func newAllowance(maxPoll, partitions int) *allowance {
	return &allowance{each: max(1, maxPoll/partitions), spare: maxPoll}
}

// take returns what one partition may settle, 0 for any amount. Give back what was not used.
func (a *allowance) take() int {
	if a == nil {
		return 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.each + a.spare
	a.spare = 0
	return n
}

func (a *allowance) giveBack(taken, used int) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.spare += max(0, taken-max(used, a.each))
}
