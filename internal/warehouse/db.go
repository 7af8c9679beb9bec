package warehouse

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// Rows is the result of a query.
type Rows = driver.Rows

// Row is the result of a query for one row.
type Row = driver.Row

// DB is a pool of connections over the native protocol: there, unlike over HTTP, ending a Go context
// ends the query.
type DB struct {
	conn     driver.Conn
	native   *native // inserts of labels
	database string
	dialect  dialect // set by Migrate
}

// httpPortParam of a DSN names the HTTP port next to the native one; SQL needs it.
const httpPortParam = "http_port"

// codeUnknownDatabase is ClickHouse's error UNKNOWN_DATABASE.
const codeUnknownDatabase = 81

// Open connects to a ClickHouse (>= 25.8) and creates the DSN's database when it is missing. The DSN is
// clickhouse-go's, clickhouse://user:password@host:port/database?..., plus http_port.
func Open(ctx context.Context, dsn string) (*DB, error) {
	opt, err := options(dsn)
	if err != nil {
		return nil, err
	}
	conn, err := clickhouse.Open(opt)
	if err != nil {
		return nil, fmt.Errorf("open ClickHouse: %w", err)
	}
	err = conn.Ping(ctx)
	var ex *clickhouse.Exception
	if errors.As(err, &ex) && ex.Code == codeUnknownDatabase {
		if err = createDatabase(ctx, *opt); err == nil {
			err = conn.Ping(ctx)
		}
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("connect to ClickHouse at %v: %w", opt.Addr, err)
	}
	return &DB{conn: conn, native: newNative(opt), database: opt.Auth.Database}, nil
}

func options(dsn string) (*clickhouse.Options, error) {
	u, err := url.Parse(dsn)
	if err != nil {
		return nil, errors.New(
			"ClickHouse DSN does not parse: want clickhouse://user:password@host:port/database",
		) // the cause would quote the password
	}
	q := u.Query()
	q.Del(httpPortParam) // not clickhouse-go's: it would become a setting of every query
	u.RawQuery = q.Encode()
	opt, err := clickhouse.ParseDSN(u.String())
	if err != nil {
		return nil, fmt.Errorf("ClickHouse DSN: %w", err)
	}
	if opt.Auth.Database == "" {
		opt.Auth.Database = Database
	}
	if opt.MaxOpenConns == 0 {
		opt.MaxOpenConns = 16
	}
	if opt.MaxIdleConns == 0 {
		opt.MaxIdleConns = 8
	}
	if opt.ReadTimeout == 0 {
		opt.ReadTimeout = 5 * time.Minute // an insert answers only when it is applied
	}
	if opt.Compression == nil {
		opt.Compression = &clickhouse.Compression{Method: clickhouse.CompressionLZ4}
	}
	return opt, nil
}

func createDatabase(ctx context.Context, opt clickhouse.Options) error {
	name := opt.Auth.Database
	opt.Auth.Database = "default"
	conn, err := clickhouse.Open(&opt)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return conn.Exec(ctx, "CREATE DATABASE IF NOT EXISTS "+quoteName(name))
}

// nativeName is the display name of the server on a native port.
func nativeName(ctx context.Context, addr, password string) (string, error) {
	conn, err := clickhouse.Open(&clickhouse.Options{
		Addr: []string{
			addr,
		}, Auth: clickhouse.Auth{Database: Database, Username: appUser, Password: password}, MaxOpenConns: 1, DialTimeout: 5 * time.Second,
	})
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.Ping(ctx); err != nil {
		return "", err
	}
	v, err := conn.ServerVersion()
	if err != nil {
		return "", err
	}
	return v.DisplayName, nil
}

// Query runs a query that returns rows; close them.
func (db *DB) Query(ctx context.Context, query string, args ...any) (Rows, error) {
	rows, err := db.conn.Query(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("query ClickHouse: %w", err)
	}
	return rows, nil
}

// QueryRow runs a query that returns one row; its Scan returns the error.
func (db *DB) QueryRow(ctx context.Context, query string, args ...any) Row {
	return db.conn.QueryRow(ctx, query, args...)
}

// Exec runs a statement.
func (db *DB) Exec(ctx context.Context, query string, args ...any) error {
	if err := db.conn.Exec(ctx, query, args...); err != nil {
		return fmt.Errorf("execute on ClickHouse: %w", err)
	}
	return nil
}

// Select appends all rows of a query to dest, a pointer to a slice of structs with `ch` tags.
func (db *DB) Select(ctx context.Context, dest any, query string, args ...any) error {
	if err := db.conn.Select(ctx, dest, query, args...); err != nil {
		return fmt.Errorf("select from ClickHouse: %w", err)
	}
	return nil
}

// Ping says whether the server answers.
func (db *DB) Ping(ctx context.Context) error { return db.conn.Ping(ctx) }

// Close ends all connections.
func (db *DB) Close() error {
	db.native.close()
	return db.conn.Close()
}

// Permanent says whether an error will come again however often the statement is repeated: the server
// has understood and refused. Everything else (network, memory, overload, shutdown) is worth a retry.
func Permanent(err error) bool {
	var code int32
	if ex, ok := errors.AsType[*clickhouse.Exception](err); ok {
		code = ex.Code
	} else if ex, ok := ch.AsException(err); ok {
		code = int32(ex.Code)
	}
	switch code {
	case 6, 16, 27, 38, 41, 43, 47, 53, 60, 62, 70, 81, 164, 192, 349, 497, 516:
		// cannot parse text, no such column, cannot parse input/date/datetime, illegal type, unknown
		// identifier, type mismatch, unknown table, syntax, cannot convert, unknown database, readonly,
		// unknown user, null into non-null, access denied, authentication failed
		return true
	}
	return false
}

func quoteName(s string) string {
	b := []byte{'`'}
	for i := 0; i < len(s); i++ {
		if s[i] == '`' || s[i] == '\\' {
			b = append(b, '\\')
		}
		b = append(b, s[i])
	}
	return string(append(b, '`'))
}
