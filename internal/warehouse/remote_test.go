package warehouse

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
)

// A server behind TLS goes through the same code: DSN, user, database, migrations, inserts, queries. The engine has no
// TLS of its own, so a relay in front of it has.
func TestServerBehindTLS(t *testing.T) {
	e := engine(t)
	web := httptest.NewTLSServer(nil) // for its certificate
	defer web.Close()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: web.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go relay(c, fmt.Sprintf("127.0.0.1:%d", e.cfg.TCPPort))
		}
	}()
	at := func(query string) string {
		return fmt.Sprintf("clickhouse://%s:%s@%s/test_tls?http_port=1%s", appUser, e.creds.App, l.Addr(), query)
	}
	db := connect(t, at("&secure=true&skip_verify=true"))
	t.Cleanup(func() { _ = db.conn.Exec(t.Context(), "DROP DATABASE test_tls") })
	if err := db.Migrate(t.Context(), Options{}); err != nil {
		t.Fatal(err)
	}
	if got := lines(t, db, "SELECT currentDatabase(), currentUser()"); got != "test_tls\t"+appUser+"\n" {
		t.Errorf("database and user %q", got)
	}
	if n := count(t, db, "SELECT count() FROM ctr_by_creative"); n != 0 {
		t.Errorf("%d creatives in a new database", n)
	}
	if _, err := Open(t.Context(), at("&secure=true")); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate of nobody's: %v", err)
	}
	if _, err := Open(t.Context(), strings.Replace(at("&secure=true&skip_verify=true"), e.creds.App, "wrong", 1)); !Permanent(err) ||
		strings.Contains(err.Error(), e.creds.App) {
		t.Errorf("a wrong password: %v", err)
	}
}

func relay(c net.Conn, to string) {
	defer func() { _ = c.Close() }()
	s, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer func() { _ = s.Close() }()
	go func() { _, _ = io.Copy(s, c) }()
	_, _ = io.Copy(c, s)
}
