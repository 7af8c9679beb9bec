package joiner

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// losingAnswers dials connections that die when the answer to an EndTxn has arrived, before the client sees it.
// Every second EndTxn is hit, at most `most` times.
func losingAnswers(cuts *atomic.Int64, most int64) func(context.Context, string, string) (net.Conn, error) {
	var seen atomic.Int64
	return func(ctx context.Context, network, host string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, host)
		if err != nil {
			return nil, err
		}
		return &losingConn{Conn: c, seen: &seen, cuts: cuts, most: most}, nil
	}
}

type losingConn struct {
	net.Conn
	seen, cuts *atomic.Int64
	most       int64
	cut        atomic.Bool
}

// Write looks at the request's key: size int32, key int16.
func (c *losingConn) Write(b []byte) (int, error) {
	if len(b) >= 6 && kmsg.Key(binary.BigEndian.Uint16(b[4:])) == kmsg.EndTxn && c.seen.Add(1)%2 == 0 && c.cuts.Load() < c.most {
		c.cuts.Add(1)
		c.cut.Store(true)
	}
	return c.Conn.Write(b)
}

func (c *losingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b) // the broker has carried the request out
	if c.cut.Load() {
		c.Conn.Close()
		return 0, io.EOF
	}
	return n, err
}
