package gateway

import "sync"

// budget bounds retries to a share of the requests, so that a fleet which is failing is not asked twice for everything.
// A gateway with little to do may still try again at once, as often as the reserve allows.
type budget struct {
	share float64 // of a retry that a request earns

	mu   sync.Mutex
	left float64
}

// reserve is how many retries may be saved up.
const reserve = 10

func newBudget(share float64) *budget { return &budget{share: share, left: reserve} }

// earn is called for each request.
func (b *budget) earn() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = min(reserve, b.left+b.share)
}

// spend takes a retry; false: there is none left.
func (b *budget) spend() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}
