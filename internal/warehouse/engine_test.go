package warehouse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/rs/zerolog"

	"ctrloop/internal/loopback"
)

// eventually polls a state that another process brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func exec1(t *testing.T, db *DB, q string) {
	t.Helper()
	if err := db.Exec(t.Context(), q); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
}

func count(t testing.TB, db *DB, q string) uint64 {
	t.Helper()
	var n uint64
	if err := db.QueryRow(t.Context(), q).Scan(&n); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	return n
}

func TestEngineKeepsDataAndDSNOverAStop(t *testing.T) {
	dir := t.TempDir()
	e := startEngine(t, EngineConfig{Dir: dir})
	port := e.cfg.TCPPort
	dsn := e.DSN()
	db := connect(t, dsn)
	exec1(t, db, "CREATE TABLE kept (x UInt64) ENGINE = MergeTree ORDER BY x")
	exec1(t, db, "INSERT INTO kept SELECT number FROM numbers(1000)")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	stop(t, e)
	stop(t, e) // again is nothing
	e = startEngine(t, EngineConfig{Dir: dir, TCPPort: port, HTTPPort: e.cfg.HTTPPort})
	if e.DSN() != dsn {
		t.Errorf("DSN changed over a restart on the same ports: %s, was %s", e.DSN(), dsn)
	}
	if n := count(t, connect(t, e.DSN()), "SELECT count() FROM kept"); n != 1000 {
		t.Errorf("%d rows after the restart, want 1000", n)
	}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Dir(path) == dir {
			if st, err := d.Info(); err == nil && st.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %v: others must not read it", d.Name(), st.Mode())
			}
		}
		return nil
	})
}

// The files of the query log outlive the table, which only the process knows. The next process must be able to make
// it again, after a stop and after a kill: it tried for ever once, with a core of its own.
func TestEveryProcessHasAQueryLog(t *testing.T) {
	dir := t.TempDir()
	logged := func(after string, e *Engine) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		db := connect(t, e.DSN())
		if err := db.Exec(ctx, "SYSTEM FLUSH LOGS query_log, part_log"); err != nil {
			t.Fatalf("after %s: %v", after, err)
		}
		var n uint64
		if err := db.QueryRow(ctx, "SELECT count() FROM system.query_log").Scan(&n); err != nil || n == 0 {
			t.Errorf("after %s: %d queries are in the log, %v", after, n, err)
		}
	}
	e := startEngine(t, EngineConfig{Dir: dir})
	logged("the first start", e)
	stop(t, e)
	e = startEngine(t, EngineConfig{Dir: dir})
	logged("a stop", e)
	if err := syscall.Kill(e.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); e.Restarts() == 0; {
		if time.Now().After(deadline) {
			t.Fatal("no restart after a kill")
		}
		time.Sleep(10 * time.Millisecond)
	}
	logged("a kill", e)
}

// The child is killed again and again while a writer goes on; each acknowledged row must be there once
// and the same pool of connections must go on to work.
func TestKilledChildKeepsAcknowledgedRows(t *testing.T) {
	e := startEngine(t, EngineConfig{})
	db := connect(t, e.DSN())
	exec1(t, db, "CREATE TABLE acks (x UInt64) ENGINE = MergeTree ORDER BY x SETTINGS non_replicated_deduplication_window = 10000")
	next := uint64(0)
	for round := range 3 {
		before := e.PID()
		kill := time.AfterFunc(time.Duration(20+30*round)*time.Millisecond, func() { _ = syscall.Kill(before, syscall.SIGKILL) })
		for acked := next; e.Restarts() == round || next < acked+10; {
			rows := proto.Input{{Name: "x", Data: proto.ColUInt64{2 * next, 2*next + 1}}}
			if err := db.native.insert(t.Context(), "acks", fmt.Sprintf("token-%d", next), rows); err == nil {
				next++
			} else {
				time.Sleep(5 * time.Millisecond) // down: the same again
			}
		}
		kill.Stop()
		if e.PID() == before {
			t.Fatal("the same process after a kill")
		}
	}
	if n, u := count(t, db, "SELECT count() FROM acks"), count(t, db, "SELECT uniqExact(x) FROM acks"); n != 2*next || u != n {
		t.Errorf("%d rows, %d different, want %d", n, u, 2*next)
	}
}

func TestSecondEngineOnADirectoryIsRefused(t *testing.T) {
	e := engine(t)
	_, err := StartEngine(t.Context(), EngineConfig{Lib: LibPath(), Dir: e.cfg.Dir}, zerolog.Nop())
	if !errors.Is(err, ErrInUse) {
		t.Fatalf("got %v, want ErrInUse", err)
	}
	if err := connect(t, e.DSN()).Ping(t.Context()); err != nil {
		t.Errorf("the first engine after the refusal: %v", err)
	}
}

func TestTakenPorts(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	taken := l.Addr().(*net.TCPAddr).Port
	other := engine(t)
	free, err := loopback.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]EngineConfig{
		"tcp":            {TCPPort: taken, HTTPPort: free},
		"another engine": {TCPPort: other.cfg.TCPPort, HTTPPort: other.cfg.HTTPPort},
	} {
		cfg.Lib, cfg.Dir = LibPath(), t.TempDir()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if e, err := StartEngine(ctx, cfg, zerolog.Nop()); !errors.Is(err, errPortTaken) {
			t.Errorf("%s: got %v, want %v", name, err, errPortTaken)
			if err == nil {
				stop(t, e)
			}
		}
	}
}

func TestMissingLibrary(t *testing.T) {
	_, err := StartEngine(t.Context(), EngineConfig{Lib: filepath.Join(t.TempDir(), "libchdb.so"), Dir: t.TempDir()}, zerolog.Nop())
	if !errors.Is(err, ErrUnavailable) {
		t.Fatalf("got %v, want ErrUnavailable", err)
	}
	for _, want := range []string{"ctrloop setup", "clickhouse.dsn"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

// The parent dies by kill -9: the engine must go with it, release the directory and keep the rows.
func TestChildDiesWithParent(t *testing.T) {
	if dir := os.Getenv(parentDirEnv); dir != "" { // we are the parent to be killed
		e := startEngine(t, EngineConfig{Dir: dir})
		db := connect(t, e.DSN())
		exec1(t, db, "CREATE TABLE kept (x UInt64) ENGINE = MergeTree ORDER BY x")
		exec1(t, db, "INSERT INTO kept SELECT number FROM numbers(500)")
		fmt.Printf("engine %d\n", e.PID())
		select {}
	}
	needLib(t)
	dir := t.TempDir()
	parent := exec.Command(os.Args[0], "-test.run=^TestChildDiesWithParent$", "-test.v")
	parent.Env = append(os.Environ(), parentDirEnv+"="+dir)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	for line := ""; pid == 0; {
		b := make([]byte, 256)
		n, err := out.Read(b)
		line += string(b[:n])
		if _, rest, ok := strings.Cut(line, "engine "); ok && strings.Contains(rest, "\n") {
			pid, _ = strconv.Atoi(strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0]))
		} else if err != nil {
			t.Fatalf("the parent said %q: %v", line, err)
		}
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	eventually(t, "end of the engine", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || bytes.Contains(stat, []byte(") Z ")) // gone, or waiting for init to collect it
	})
	e := startEngine(t, EngineConfig{Dir: dir})
	if n := count(t, connect(t, e.DSN()), "SELECT count() FROM kept"); n != 500 {
		t.Errorf("%d rows, want 500", n)
	}
}

// Clients that reset, send garbage or a wrong password abort an engine that does not run on a terminal.
func TestRudeClientsDoNotKillTheEngine(t *testing.T) {
	e := engine(t)
	pid := e.PID()
	tcp, web := fmt.Sprintf("127.0.0.1:%d", e.cfg.TCPPort), fmt.Sprintf("127.0.0.1:%d", e.cfg.HTTPPort)
	raw := func(addr string, payload []byte, read, reset bool) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatalf("connect to %s: %v", addr, err)
		}
		_, _ = c.Write(payload)
		if read {
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			_, _ = io.CopyN(io.Discard, c, 100)
		}
		if reset {
			_ = c.(*net.TCPConn).SetLinger(0)
		}
		_ = c.Close()
	}
	httpGet := func(user, password, query string) []byte {
		return fmt.Appendf(nil, "GET /?user=%s&password=%s&query=%s HTTP/1.1\r\nHost: x\r\n\r\n", user, password, url.QueryEscape(query))
	}
	long := "SELECT sum(sipHash64(number)) FROM numbers(100000000000)"
	rude := map[string]func(reset bool){
		"connect":         func(reset bool) { raw(tcp, nil, false, reset) },
		"wrong protocol":  func(reset bool) { raw(tcp, []byte("GET / HTTP/1.0\r\n\r\n"), true, reset) },
		"garbage":         func(reset bool) { raw(tcp, bytes.Repeat([]byte{0xff}, 100), true, reset) },
		"part of a hello": func(reset bool) { raw(tcp, hello(appUser, e.creds.App)[:10], false, reset) },
		"hello":           func(reset bool) { raw(tcp, hello(appUser, e.creds.App), true, reset) },
		"wrong password":  func(reset bool) { raw(tcp, hello(appUser, "no"), true, reset) },
		"http garbage":    func(reset bool) { raw(web, []byte("xxxx\r\n\r\n"), true, reset) },
		"http half a body": func(reset bool) {
			raw(
				web,
				[]byte("POST /?user="+appUser+"&password="+e.creds.App+" HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nSELECT 1"),
				false,
				reset,
			)
		},
		"http long query": func(reset bool) { raw(web, httpGet(readOnlyUser, e.creds.ReadOnly, long), true, reset) },
		"http large result": func(reset bool) {
			raw(web, httpGet(readOnlyUser, e.creds.ReadOnly, "SELECT number FROM numbers(5000000)"), true, reset)
		},
		"http wrong password": func(reset bool) { raw(web, httpGet(appUser, "no", "SELECT 1"), true, reset) },
		"native cancel": func(bool) {
			db := connect(t, e.DSN())
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			_ = db.Exec(ctx, long)
		},
		"native failed login": func(bool) {
			_, err := Open(t.Context(), strings.Replace(e.DSN(), e.creds.App, "no", 1))
			if err == nil {
				t.Error("a wrong password logs in")
			}
		},
		"exceptions": func(bool) {
			db := connect(t, e.DSN())
			for _, q := range []string{"SELECT * FROM nosuch", "syntax error here", "SELECT throwIf(1)",
				"INSERT INTO FUNCTION null('x UInt64') VALUES ('abc')"} {
				if db.Exec(t.Context(), q) == nil {
					t.Errorf("%q succeeds", q)
				}
			}
		},
	}
	for name, f := range rude {
		t.Run(name, func(t *testing.T) {
			for i := range 6 {
				f(i%2 == 0)
			}
			if r, err := http.Get("http://" + web + "/ping"); err != nil {
				t.Fatalf("the engine does not answer any more: %v", err)
			} else {
				_ = r.Body.Close()
			}
			if e.PID() != pid || e.Restarts() != 0 {
				t.Fatal("the engine died")
			}
		})
	}
	exec1(t, connect(t, e.DSN()), "KILL QUERY WHERE query LIKE '%sipHash64(number)%' AND query NOT LIKE '%KILL%' ASYNC")
}

// hello is the first packet of the native protocol.
func hello(user, password string) []byte {
	var b bytes.Buffer
	text := func(s string) { b.WriteByte(byte(len(s))); b.WriteString(s) }
	number := func(x uint64) {
		for ; x >= 0x80; x >>= 7 {
			b.WriteByte(byte(x) | 0x80)
		}
		b.WriteByte(byte(x))
	}
	number(0)
	text("probe")
	number(1)
	number(1)
	number(54460)
	text("default")
	text(user)
	text(password)
	return b.Bytes()
}

// TestGivenPassword: the password that somebody else names replaces the drawn one, on a new directory and on an old one, and
// stays when it is named no more.
func TestGivenPassword(t *testing.T) {
	path := filepath.Join(t.TempDir(), "credentials.json")
	drawn, err := loadCredentials(path, "")
	if err != nil || drawn.App == "" || drawn.ReadOnly == "" {
		t.Fatal(drawn, err)
	}
	for _, given := range []string{"known", "known", ""} {
		c, err := loadCredentials(path, given)
		if err != nil || c.App != "known" || c.ReadOnly != drawn.ReadOnly {
			t.Errorf("given %q: %+v, %v; want the password known and the other one as drawn", given, c, err)
		}
	}
	if c, err := loadCredentials(filepath.Join(t.TempDir(), "new.json"), "known"); err != nil || c.App != "known" || c.ReadOnly == "" {
		t.Errorf("a new directory: %+v, %v", c, err)
	}
}

// R7: other processes know the engine by its address, so it comes back on the ports that it had, and on others only where those
// are taken.
func TestEngineComesBackOnItsPorts(t *testing.T) {
	dir := t.TempDir()
	first := startEngine(t, EngineConfig{Dir: dir})
	was := first.DSN()
	stop(t, first)
	second := startEngine(t, EngineConfig{Dir: dir})
	if second.DSN() != was {
		t.Errorf("the engine was at %s and is at %s", was, second.DSN())
	}
	port := second.cfg.TCPPort
	stop(t, second)
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if third := startEngine(t, EngineConfig{Dir: dir}); third.cfg.TCPPort == port {
		t.Error("two servers on one port")
	}
}

// The engine makes the file of what was typed its user's own, which for root took /dev/null away from everybody else.
func TestTheEngineLeavesDevicesAlone(t *testing.T) {
	e := startEngine(t, EngineConfig{})
	connect(t, e.DSN())
	if err := e.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	if mode := fi.Mode().Perm(); mode != 0o666 {
		t.Errorf("/dev/null has mode %o", mode)
	}
}
