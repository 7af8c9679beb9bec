package two

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// kind of a fault.
type kind string

const (
	kill kind = "killed"  // kill -9, and started again
	stop kind = "stopped" // SIGSTOP, and SIGCONT
	lose kind = "lost"    // a model server that comes back empty
)

// fault is something that happens to one process.
type fault struct {
	node *node // nil: a model server
	i    int   // of the model server
	kind kind
	at   time.Duration // from the begin of the round
	last time.Duration // until it is started again, or continued
}

func (x fault) String() string {
	name := fmt.Sprintf("%s %d", servers, x.i)
	if x.node != nil {
		name = x.node.name
	}
	return fmt.Sprintf("%s %s at %.1f s for %.1f s", name, x.kind, x.at.Seconds(), x.last.Seconds())
}

func list(faults []fault) string {
	lines := make([]string, len(faults))
	for i, x := range faults {
		lines[i] = x.String()
	}
	return strings.Join(lines, ", ")
}

// draw decides what happens in a round: to each process something or nothing, to at least one of each role something.
func draw(c *cluster, f form, rng *rand.Rand) []fault {
	span := func(from, to time.Duration) time.Duration { return from + time.Duration(rng.Int64N(int64(to-from))) }
	var out []fault
	for _, role := range roles {
		nodes := c.of(role)
		both, one := rng.IntN(4) == 0, rng.IntN(2)
		for i, n := range nodes {
			if !both && i != one {
				continue
			}
			x := fault{node: n, kind: kill, at: span(0, f.span), last: span(0, 3*time.Second)}
			if rng.IntN(2) == 0 {
				x.kind, x.last = stop, span(time.Second, f.longest)
				if f.longest > 10*time.Second && rng.IntN(4) == 0 {
					x.last += 20 * time.Second // beyond a lease of 15 s, and perhaps a session of 30 s
				}
			}
			out = append(out, x)
		}
	}
	if rng.IntN(2) == 0 {
		out = append(out, fault{i: rng.IntN(2), kind: lose, at: span(0, f.span), last: span(0, 3*time.Second)})
	}
	slices.SortFunc(out, func(a, b fault) int { return cmp.Compare(a.at, b.at) })
	return out
}

// inflict lets the faults happen; the channel is closed when all are over.
func (c *cluster) inflict(faults []fault) <-chan struct{} {
	over := make(chan struct{})
	var all sync.WaitGroup
	for _, x := range faults {
		all.Go(func() {
			<-time.After(x.at)
			switch x.kind {
			case kill:
				x.node.kill(x.last)
				<-time.After(x.last)
			case stop:
				x.node.signal(syscall.SIGSTOP)
				<-time.After(x.last)
				x.node.signal(syscall.SIGCONT)
			case lose:
				c.models[x.i].Kill()
				<-time.After(x.last)
				if err := c.models[x.i].Restart(); err != nil {
					c.t.Errorf("%v: %v", x, err)
				}
			}
		})
	}
	go func() {
		all.Wait()
		close(over)
	}()
	return over
}
