package httpapi

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// boundedListener bounds open connections, in all and by address. At a bound, the one that has been idle the longest is
// closed for a new one, so that a client which opens thousands and sends nothing does not shut out others.
type boundedListener struct {
	net.Listener
	limits  Limits
	refused func()
	gauge   prometheus.Gauge

	mu   sync.Mutex
	open map[net.Conn]*connection
	from map[netip.Addr]int
}

type connection struct {
	address netip.Addr
	idle    bool // no request is being read or answered
	since   time.Time
}

func newBoundedListener(l net.Listener, limits Limits, refused func(), gauge prometheus.Gauge) *boundedListener {
	return &boundedListener{
		Listener: l, limits: limits, refused: refused, gauge: gauge, open: make(map[net.Conn]*connection), from: make(map[netip.Addr]int),
	}
}

// Accept implements net.Listener.
func (b *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		address := addressOf(c.RemoteAddr().String())
		victim, ok := b.admit(c, address)
		if victim != nil {
			_ = victim.Close()
			b.refused()
		}
		if ok {
			return c, nil
		}
	}
}

// admit counts a connection and says which one is to be closed, if any; false: the new one is.
func (b *boundedListener) admit(c net.Conn, address netip.Addr) (victim net.Conn, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	full := len(b.open) >= b.limits.MaxConnections
	crowded := b.from[address] >= b.limits.MaxConnectionsPerAddress
	if full || crowded {
		victim = b.idlest(func(o *connection) bool { return !crowded || o.address == address })
		if victim == nil {
			return c, false
		}
		b.forget(victim)
	}
	b.open[c] = &connection{address: address, idle: true, since: time.Now()}
	b.from[address]++
	b.gauge.Set(float64(len(b.open)))
	return victim, true
}

// idlest is the connection that has been idle the longest among those that match.
func (b *boundedListener) idlest(match func(*connection) bool) (found net.Conn) {
	var since time.Time
	for c, o := range b.open {
		if o.idle && match(o) && (found == nil || o.since.Before(since)) {
			found, since = c, o.since
		}
	}
	return found
}

func (b *boundedListener) forget(c net.Conn) {
	o := b.open[c]
	if o == nil {
		return
	}
	delete(b.open, c)
	if b.from[o.address]--; b.from[o.address] == 0 {
		delete(b.from, o.address)
	}
	b.gauge.Set(float64(len(b.open)))
}

// state is the server's ConnState hook. A connection is active from the first byte of a request.
func (b *boundedListener) state(c net.Conn, s http.ConnState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o := b.open[c]
	if o == nil {
		return
	}
	switch s {
	case http.StateClosed, http.StateHijacked:
		b.forget(c)
	case http.StateActive:
		o.idle = false
	case http.StateIdle:
		o.idle, o.since = true, time.Now()
	case http.StateNew:
	}
}
