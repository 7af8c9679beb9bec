package warehouse

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestReadOnlyUserCanOnlyRead(t *testing.T) {
	e := engine(t)
	app := connect(t, e.DSN())
	exec1(t, app, "CREATE TABLE IF NOT EXISTS for_reading (x UInt64) ENGINE = MergeTree ORDER BY x")
	exec1(t, app, "TRUNCATE TABLE for_reading")
	exec1(t, app, "INSERT INTO for_reading VALUES (1), (2)")
	secret := filepath.Join(e.cfg.Dir, "data", "user_files", "secret.csv")
	if err := os.MkdirAll(filepath.Dir(secret), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(secret, []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The attempts would work for somebody with rights: the application's user proves it where it can.
	if n := count(t, app, "SELECT count() FROM file('secret.csv', 'CSV', 'x UInt64')"); n != 1 {
		t.Fatal("the application cannot read the file, the test would prove nothing")
	}
	outside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = outside.Close() }()
	reached := make(chan struct{}, 100)
	go func() {
		for {
			c, err := outside.Accept()
			if err != nil {
				return
			}
			reached <- struct{}{}
			_ = c.Close()
		}
	}()
	refused := []string{
		"INSERT INTO for_reading VALUES (3)",
		"CREATE TABLE mine (x UInt64) ENGINE = Memory",
		"CREATE TEMPORARY TABLE mine (x UInt64)",
		"DROP TABLE for_reading", "TRUNCATE TABLE for_reading", "ALTER TABLE for_reading DELETE WHERE 1",
		"OPTIMIZE TABLE for_reading FINAL", "SYSTEM SHUTDOWN", "SYSTEM STOP MERGES for_reading", "KILL QUERY WHERE 1",
		"SELECT * FROM file('secret.csv', 'CSV', 'x UInt64')",
		"SELECT * FROM file('/etc/passwd', 'LineAsString', 'x String')",
		"INSERT INTO FUNCTION file('out.csv', 'CSV', 'x UInt64') VALUES (1)",
		fmt.Sprintf("SELECT * FROM url('http://%s/', 'CSV', 'x UInt64')", outside.Addr()),
		fmt.Sprintf("SELECT * FROM s3('http://%s/a/b', 'CSV', 'x UInt64')", outside.Addr()),
		fmt.Sprintf("SELECT * FROM remote('%s', system.one)", outside.Addr()),
		fmt.Sprintf("SELECT * FROM mysql('%s', 'd', 't', 'u', 'p')", outside.Addr()),
		fmt.Sprintf("SELECT * FROM postgresql('%s', 'd', 't', 'u', 'p')", outside.Addr()),
		"SELECT * FROM executable('id', 'TSV', 'x String')",
		"SELECT * FROM sqlite('/tmp/x', 't')",
		"SELECT * FROM system.query_log", "SELECT * FROM system.part_log", "SELECT * FROM system.users",
		"SELECT 1 SETTINGS readonly = 0", "SET max_execution_time = 100000", "SELECT 1 SETTINGS max_result_rows = 100000000",
		"SELECT number FROM numbers(20000000)", // more rows than the limit
		"CREATE USER x", "GRANT ALL ON *.* TO " + readOnlyUser,
		"SELECT 1 INTO OUTFILE 'out.csv'", "SELECT 1 INTO OUTFILE '/tmp/ctrloop-outfile.csv' TRUNCATE FORMAT CSV",
		fmt.Sprintf("INSERT INTO FUNCTION url('http://%s/', 'CSV', 'x UInt64') VALUES (1)", outside.Addr()),
		fmt.Sprintf("SELECT * FROM cluster('default', url('http://%s/', 'CSV', 'x UInt64'))", outside.Addr()),
		fmt.Sprintf("SELECT * FROM remoteSecure('%s', system.one)", outside.Addr()),
		fmt.Sprintf(
			"CREATE DICTIONARY d (x UInt64) PRIMARY KEY x SOURCE(HTTP(URL 'http://%s/' FORMAT 'CSV')) LAYOUT(FLAT()) LIFETIME(1)",
			outside.Addr(),
		),
		"SELECT * FROM fileCluster('default', 'secret.csv', 'CSV', 'x UInt64')", "DESCRIBE TABLE file('secret.csv')",
		// The function of the same name.
		"SELECT file('secret.csv')", "SELECT `f\\x69le`('secret.csv')", "SELECT * APPLY(file) FROM (SELECT 'secret.csv')",
		"SELECT * FROM merge('system', 'query_log')", "SELECT * FROM loop(system.query_log)",
		"SELECT * FROM system.processes", "SELECT * FROM system.named_collections", "SELECT * FROM system.server_settings",
		"SELECT * FROM system.disks",
		"SELECT * FROM system.user_directories", "SELECT * FROM system.clusters", "SELECT * FROM system.session_log",
		"SELECT * FROM system.stack_trace",
		"SELECT addressToLine(1) SETTINGS allow_introspection_functions = 1", "SELECT getSetting('x'), 1 SETTINGS log_queries = 0",
		"BACKUP TABLE for_reading TO File('b')", "ATTACH DATABASE x",
	}
	for _, q := range refused {
		if err := SQL(t.Context(), e.ReadOnlyDSN(), q, FormatTSV, &bytes.Buffer{}, Limits{}); err == nil {
			t.Errorf("over HTTP allowed: %s", q)
		}
	}
	native := connect(t, e.ReadOnlyDSN())
	for _, q := range refused[:20] {
		if err := native.Exec(t.Context(), q); err == nil {
			t.Errorf("over the native protocol allowed: %s", q)
		}
	}
	if len(reached) > 0 {
		t.Errorf("%d connections left the engine", len(reached))
	}
	if n := count(t, native, "SELECT sum(x) FROM for_reading"); n != 3 {
		t.Errorf("sum %d, want 3", n)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(secret), "out.csv")); err == nil {
		t.Error("a file was written")
	}
}

func TestSQLFormatsAndLimits(t *testing.T) {
	e := engine(t)
	const q = "SELECT number AS n, concat('a,', toString(number)) AS s FROM numbers(2)"
	for format, want := range map[Format]string{
		FormatJSON: "{\"n\":0,\"s\":\"a,0\"}\n{\"n\":1,\"s\":\"a,1\"}\n",
		FormatCSV:  "\"n\",\"s\"\n0,\"a,0\"\n1,\"a,1\"\n",
		FormatTSV:  "n\ts\n0\ta,0\n1\ta,1\n",
	} {
		var b bytes.Buffer
		if err := SQL(t.Context(), e.ReadOnlyDSN(), q, format, &b, Limits{}); err != nil {
			t.Errorf("%s: %v", format, err)
		} else if b.String() != want {
			t.Errorf("%s: %q, want %q", format, b.String(), want)
		}
	}
	var table, parquet bytes.Buffer
	if err := SQL(t.Context(), e.ReadOnlyDSN(), q, FormatTable, &table, Limits{}); err != nil ||
		!strings.Contains(table.String(), "│ a,1 │") {
		t.Errorf("table: %v, %q", err, table.String())
	}
	if err := SQL(t.Context(), e.ReadOnlyDSN(), q, FormatParquet, &parquet, Limits{}); err != nil ||
		!bytes.HasPrefix(parquet.Bytes(), []byte("PAR1")) {
		t.Errorf("parquet: %v, %d bytes", err, parquet.Len())
	}
	if err := SQL(t.Context(), e.ReadOnlyDSN(), "SELECT number FROM numbers(1000)", FormatTSV, &bytes.Buffer{}, Limits{Rows: 10}); err == nil {
		t.Error("1000 rows with a limit of 10")
	}
	if err := SQL(t.Context(), e.ReadOnlyDSN(), "SELECT sum(sipHash64(number)) FROM numbers(1000000000000)", FormatTSV, &bytes.Buffer{},
		Limits{Timeout: time.Second}); err == nil ||
		!strings.Contains(err.Error(), "TIMEOUT") {
		t.Errorf("endless query with a limit of 1 s: %v", err)
	}
	err := SQL(t.Context(), e.ReadOnlyDSN(), "SELECT nosuch FROM labels_nosuch", FormatTSV, &bytes.Buffer{}, Limits{})
	if err == nil || strings.Contains(err.Error(), "version 26") || !strings.Contains(err.Error(), "labels_nosuch") {
		t.Errorf("message for a person: %v", err)
	}
	if err := SQL(t.Context(), e.ReadOnlyDSN(), "SELECT 1", "xml", &bytes.Buffer{}, Limits{}); err == nil {
		t.Error("unknown format accepted")
	}
}

// The engine's process cannot read what is not its own, whoever asks: the function file() knows no rights, and the
// library takes any path.
func TestEngineIsConfined(t *testing.T) {
	e := engine(t)
	app := connect(t, e.DSN())
	own := filepath.Join(e.cfg.Dir, "data", "user_files", "own.txt")
	other := filepath.Join(t.TempDir(), "other.txt")
	for _, path := range []string{own, other} {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var content string
	if err := app.QueryRow(t.Context(), "SELECT file('"+own+"')").Scan(&content); err != nil || content != "x" {
		t.Fatalf("a file of its own: %q, %v; the test would prove nothing", content, err)
	}
	if !confinable() {
		t.Skip("this kernel has no Landlock of ABI 3")
	}
	for _, path := range []string{other, "/etc/passwd", filepath.Join(e.cfg.Dir, "credentials.json"), "/proc/1/environ",
		fmt.Sprintf("/proc/%d/environ", os.Getpid())} {
		if err := app.QueryRow(t.Context(), "SELECT file('"+path+"')").Scan(&content); err == nil {
			t.Errorf("the engine reads %s", path)
		}
	}
	if err := app.Exec(t.Context(), "INSERT INTO FUNCTION file('"+filepath.Join(filepath.Dir(other), "new.csv")+
		"', 'CSV', 'x UInt64') VALUES (1)"); err == nil {
		t.Error("the engine writes outside of its folder")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	err = app.Exec(t.Context(), fmt.Sprintf("SELECT * FROM url('http://%s/', 'CSV', 'x UInt64') SETTINGS http_max_tries = 1", l.Addr()))
	if err == nil || !strings.Contains(strings.ToLower(err.Error()), "permission denied") {
		t.Errorf("the engine connects to elsewhere: %v", err)
	}
}

// TestAskOverTLS: a certificate of nobody's is refused unless the DSN says not to look, as on the native port.
func TestAskOverTLS(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-ClickHouse-User") != "somebody" {
			w.WriteHeader(http.StatusForbidden)
		}
		_, _ = fmt.Fprintln(w, "42")
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes
	defer server.Close()
	host, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for query, asked := range map[string]bool{
		"secure=true": false, "secure=true&skip_verify=false": false,
		"secure=true&skip_verify=true": true, "secure=1&skip_verify=1": true, "secure&skip_verify": true,
		"secure=true&skip_verify=true&tls_server_name=example.com": true,
		"skip_verify=true": false, // and not secure: plain HTTP, which this port does not speak
	} {
		var b bytes.Buffer
		err := Ask(
			t.Context(),
			"clickhouse://somebody:secret@"+host+":9440/ctrloop?http_port="+port+"&"+query,
			"SELECT 42",
			nil,
			FormatTSV,
			&b,
			Limits{},
		)
		if asked && (err != nil || b.String() != "42\n") || !asked && err == nil {
			t.Errorf("%s: %q, %v", query, b.String(), err)
		}
	}
	var b bytes.Buffer
	if err := Ask(t.Context(), "https://somebody:secret@"+host+":"+port+"/ctrloop?skip_verify=true", "SELECT 42", nil, FormatTSV, &b,
		Limits{}); err != nil {
		t.Error(err)
	}
}
