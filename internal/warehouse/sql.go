package warehouse

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Format of a result for people and programs.
type Format string

// Formats of SQL.
const (
	FormatTable   Format = "table"
	FormatJSON    Format = "json" // one object per line
	FormatCSV     Format = "csv"  // with a header
	FormatTSV     Format = "tsv"  // with a header
	FormatParquet Format = "parquet"
)

// Formats lists them in the order of documentation.
func Formats() []Format {
	return []Format{FormatTable, FormatJSON, FormatCSV, FormatTSV, FormatParquet}
}

func (f Format) clickhouse() (string, error) {
	switch f {
	case FormatTable:
		return "PrettyCompactMonoBlock", nil
	case FormatJSON:
		return "JSONEachRow", nil
	case FormatCSV:
		return "CSVWithNames", nil
	case FormatTSV:
		return "TSVWithNames", nil
	case FormatParquet:
		return "Parquet", nil
	}
	return "", fmt.Errorf("unknown format %q: want one of %v", f, Formats())
}

// Limits of one query; 0 leaves what the server's profile for the user allows (with the embedded engine's
// read-only user 10 million rows and 60 s, which a query cannot exceed).
type Limits struct {
	Rows    int64
	Timeout time.Duration // rounded up to seconds
}

// readsFiles finds the name of the function file(), which needs no grant and reads the server's disk (the embedded
// engine is confined to its own data besides). It may be called without brackets (APPLY(file)) or by a quoted
// name with escapes, so the word is looked for, everywhere: a text that hides it from a parser of ours cannot
// hide it from this.
var readsFiles = regexp.MustCompile("\\bfile\\b|[`\"][^`\"]*\\\\")

var errReadsFiles = errors.New(
	"a question must not have the word file in it, nor a quoted name with a backslash: the function of that name reads the server's disk; " +
		"in a text, write concat('fi', 'le')",
)

// SQL runs one query for a person and streams its result to w. It goes over HTTP, where the server does
// the formatting. With Engine.ReadOnlyDSN the query can only read. An error in the middle of a long
// result comes after part of it was written.
func SQL(ctx context.Context, dsn, query string, format Format, w io.Writer, limits Limits) error {
	return Ask(ctx, dsn, query, nil, format, w, limits)
}

// Ask is SQL for a query with parameters: {name:Type} in its text takes the value of that name, as a value and
// never as text of the query.
func Ask(ctx context.Context, dsn, query string, params map[string]string, format Format, w io.Writer, limits Limits) error {
	name, err := format.clickhouse()
	if err != nil {
		return err
	}
	if readsFiles.MatchString(query) {
		return errReadsFiles
	}
	rq, secure, err := sqlRequest(ctx, dsn, query, params, name, limits)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: secure}}
	r, err := client.Do(rq)
	if err != nil {
		return fmt.Errorf("ask ClickHouse: %w", err)
	}
	defer func() { _ = r.Body.Close() }()
	if r.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(r.Body, 64<<10)) // what came is the best message there is
		return errors.New(sqlMessage(string(text)))
	}
	if _, err := io.Copy(w, r.Body); err != nil {
		return fmt.Errorf("result of the query (cut off): %w", err)
	}
	return nil
}

// sqlRequest is the question over HTTP, and the TLS to ask it with. What the DSN says of TLS on the native port holds here.
func sqlRequest(
	ctx context.Context,
	dsn, query string,
	params map[string]string,
	format string,
	limits Limits,
) (*http.Request, *tls.Config, error) {
	u, err := url.Parse(dsn)
	if err != nil || u.Host == "" {
		return nil, nil, errors.New("ClickHouse DSN does not parse: want clickhouse://user:password@host:port/database?http_port=N")
	}
	secure := isSet(u, "secure") || u.Scheme == "https"
	conf := &tls.Config{
		InsecureSkipVerify: isSet(u, "skip_verify"),
		ServerName:         u.Query().Get("tls_server_name"),
	} //nolint:gosec // asked for in the DSN
	at := url.URL{Scheme: "http", Path: "/", Host: u.Host}
	if secure {
		at.Scheme = "https"
	}
	if u.Scheme != "http" && u.Scheme != "https" { // the DSN's port is the native one
		port := u.Query().Get(httpPortParam)
		if port == "" {
			port = map[bool]string{false: "8123", true: "8443"}[secure]
		}
		at.Host = net.JoinHostPort(u.Hostname(), port)
	}
	database := strings.TrimPrefix(u.Path, "/")
	if database == "" {
		database = Database
	}
	q := url.Values{"database": {database}, "default_format": {format}}
	for name, value := range params {
		// The value is read as a field of a TSV line.
		q.Set("param_"+name, strings.NewReplacer(`\`, `\\`, "\t", `\t`, "\n", `\n`).Replace(value))
	}
	if limits.Rows > 0 {
		q.Set("max_result_rows", strconv.FormatInt(limits.Rows, 10))
	}
	if limits.Timeout > 0 {
		q.Set("max_execution_time", strconv.FormatInt(int64((limits.Timeout+time.Second-1)/time.Second), 10))
	}
	at.RawQuery = q.Encode()
	rq, err := http.NewRequestWithContext(ctx, http.MethodPost, at.String(), strings.NewReader(query))
	if err != nil {
		return nil, nil, fmt.Errorf("ask ClickHouse: %w", err)
	}
	password, _ := u.User.Password()
	rq.Header.Set("X-ClickHouse-User", u.User.Username())
	rq.Header.Set("X-ClickHouse-Key", password)
	return rq, conf, nil
}

// isSet reads a flag of a DSN as clickhouse-go does: without a value it is set.
func isSet(dsn *url.URL, name string) bool {
	if !dsn.Query().Has(name) {
		return false
	}
	v := dsn.Query().Get(name)
	on, err := strconv.ParseBool(v)
	return v == "" || err == nil && on
}

// sqlMessage shortens the server's message to what the writer of the query needs.
func sqlMessage(s string) string {
	s = strings.TrimSpace(s)
	if i := strings.LastIndex(s, " (version "); i > 0 {
		s = s[:i]
	}
	return s
}
