package warehouse

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"
)

// native inserts blocks over the low-level client that clickhouse-go itself is built on: there a
// LowCardinality column can be sent as it is, dictionary and numbers (ADR 19).
type native struct {
	addresses []string
	options   ch.Options

	mu   sync.Mutex
	idle []*ch.Client
	shut bool
}

// maxIdle connections are kept; the sink uses two.
const maxIdle = 4

func newNative(opt *clickhouse.Options) *native {
	n := &native{addresses: opt.Addr, options: ch.Options{
		Database: opt.Auth.Database, User: opt.Auth.Username, Password: opt.Auth.Password, ClientName: "ctrloop", TLS: opt.TLS,
		DialTimeout: opt.DialTimeout, ReadTimeout: opt.ReadTimeout, // between the packets of an answer: an insert answers when it is applied
		Compression: ch.CompressionLZ4,
	}}
	if opt.DialTimeout == 0 {
		n.options.DialTimeout = 10 * time.Second
	}
	if loopbackOnly(opt.Addr) && opt.TLS == nil {
		n.options.Compression = ch.CompressionDisabled // memory is faster than LZ4
	}
	if opt.DialContext != nil {
		n.options.Dialer = dialer(opt.DialContext)
	}
	for k, v := range opt.Settings {
		n.options.Settings = append(n.options.Settings, ch.Setting{Key: k, Value: settingText(v), Important: true})
	}
	return n
}

type dialer func(ctx context.Context, address string) (net.Conn, error)

func (d dialer) DialContext(ctx context.Context, _, address string) (net.Conn, error) {
	return d(ctx, address)
}

func loopbackOnly(addresses []string) bool {
	for _, a := range addresses {
		host, _, err := net.SplitHostPort(a)
		if err != nil {
			return false
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return false
		}
	}
	return true
}

func settingText(v any) string {
	switch v := v.(type) {
	case bool:
		if v {
			return "1"
		}
		return "0"
	case clickhouse.CustomSetting:
		return v.Value
	}
	return fmt.Sprint(v)
}

// insert sends one block and returns when it is applied.
func (n *native) insert(ctx context.Context, table, token string, columns proto.Input) error {
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = c.Name
	}
	query := ch.Query{
		Body: "INSERT INTO " + table + " (" + strings.Join(names, ", ") + ") VALUES", Input: columns,
		Settings: []ch.Setting{
			{Key: "async_insert", Value: "0", Important: true},                  // an answer means applied
			{Key: "distributed_foreground_insert", Value: "1", Important: true}, // on a cluster: on every shard
			{Key: "insert_deduplicate", Value: "1", Important: true},
			{Key: "insert_deduplication_token", Value: token, Important: true},
			{Key: "deduplicate_blocks_in_dependent_materialized_views", Value: "1", Important: true},
			{Key: "max_partitions_per_insert_block", Value: "0"}, // a replayed backlog may span more than the default 100 days
			// Looking for rows of one key inside of a block costs as much as all the rest of the insert. There
			// are none: a version of a label is in the topic once; and merges and FINAL would find them.
			{Key: "optimize_on_insert", Value: "0"},
		},
	}
	for {
		c, used, err := n.acquire(ctx)
		if err != nil {
			return fmt.Errorf("insert into %s: %w", table, err)
		}
		err = c.Do(ctx, query)
		if err == nil {
			n.release(c)
			return nil
		}
		_ = c.Close()
		// A connection that waited may have been closed by the other side. The token makes a second time harmless.
		if _, answered := ch.AsException(err); used && !answered && ctx.Err() == nil {
			continue
		}
		return fmt.Errorf("insert into %s: %w", table, err)
	}
}

// acquire returns a connection, and whether it was used before.
func (n *native) acquire(ctx context.Context) (c *ch.Client, used bool, err error) {
	n.mu.Lock()
	if n.shut {
		n.mu.Unlock()
		return nil, false, errors.New("the connection to ClickHouse is closed")
	}
	if last := len(n.idle) - 1; last >= 0 {
		c = n.idle[last]
		n.idle = n.idle[:last]
	}
	n.mu.Unlock()
	if c != nil {
		return c, true, nil
	}
	var errs []error
	for _, address := range n.addresses {
		opt := n.options
		opt.Address = address
		if opt.TLS != nil && opt.TLS.ServerName == "" {
			if host, _, err := net.SplitHostPort(address); err == nil {
				opt.TLS = opt.TLS.Clone()
				opt.TLS.ServerName = host
			}
		}
		if c, err = ch.Dial(ctx, opt); err == nil {
			return c, false, nil
		}
		errs = append(errs, fmt.Errorf("connect to ClickHouse at %s: %w", address, err))
	}
	return nil, false, errors.Join(errs...)
}

// release makes the connection ready for the next insert, or closes it where enough wait.
func (n *native) release(c *ch.Client) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.shut || len(n.idle) >= maxIdle || c.IsClosed() {
		_ = c.Close()
		return
	}
	n.idle = append(n.idle, c)
}

func (n *native) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shut = true
	for _, c := range n.idle {
		_ = c.Close()
	}
	n.idle = nil
}
