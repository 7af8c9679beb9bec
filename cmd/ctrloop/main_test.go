package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ctrloop/app"
	"ctrloop/internal/warehouse"

	"github.com/google/go-cmp/cmp"
)

// asMain in the environment makes this test binary the program.
const asMain = "CTRLOOP_TEST_AS_MAIN"

// TestMain lets the tests start the embedded engine, and commands that run themselves: both are this test binary again.
func TestMain(m *testing.M) {
	warehouse.MaybeChild()
	if os.Getenv(asMain) != "" {
		main()
	}
	os.Exit(m.Run())
}

// cli runs the command line in this process.
func cli(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestWrongUsage(t *testing.T) {
	for _, args := range [][]string{{"bogus"}, {"status", "--bogus"}, {}, {"sql"}, {"sql", "--format", "xml", "SELECT 1"}} {
		code, stdout, stderr := cli(t, args...)
		if code != exitUsage || stdout != "" || !strings.HasPrefix(stderr, "ctrloop: ") || !strings.Contains(stderr, "do: ctrloop --help") {
			t.Errorf("%q: exit %d, stdout %q, stderr:\n%s", args, code, stdout, stderr)
		}
	}
}

func TestHelpListsTheCommands(t *testing.T) {
	code, stdout, _ := cli(t, "--help")
	if code != exitOK {
		t.Errorf("exit %d", code)
	}
	for _, command := range []string{"setup", "status", "sql", "config", "version", "render"} {
		if !strings.Contains(stdout, "\n  "+command) {
			t.Errorf("help does not list %s:\n%s", command, stdout)
		}
	}
}

func TestVersion(t *testing.T) {
	code, stdout, stderr := cli(t, "version", "--json")
	var v versionInfo
	if err := json.Unmarshal([]byte(stdout), &v); code != exitOK || err != nil || v.Version == "" || v.Platform == "" {
		t.Errorf("exit %d, %v: %s%s", code, err, stdout, stderr)
	}
}

func TestExitCodes(t *testing.T) {
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	for name, test := range map[string]struct {
		ctx  context.Context
		err  error
		want int
	}{
		"plain":               {t.Context(), errors.New("x"), exitFailed},
		"usage, wrapped":      {t.Context(), fmt.Errorf("y: %w", usageError{errors.New("x")}), exitUsage},
		"needs set-up":        {t.Context(), needsSetup{errors.New("x")}, exitNeedsSetup},
		"stopped":             {stopped, fmt.Errorf("y: %w", context.Canceled), exitInterrupted},
		"failed while stop":   {stopped, errors.New("disk full"), exitFailed},
		"cancelled by itself": {t.Context(), context.Canceled, exitFailed},
	} {
		if got := exitCode(test.ctx, test.err); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	var buf bytes.Buffer
	printError(&buf, fmt.Errorf("start: %w", withHint(errors.New("port 1 is taken\nby another"), "stop it\nor choose another")))
	want := "ctrloop: start: port 1 is taken\n  by another\n  do: stop it\n      or choose another\n"
	if diff := cmp.Diff(want, buf.String()); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

func TestResultsAppearWhole(t *testing.T) {
	var stdout bytes.Buffer
	out := &output{stdout: &stdout, stderr: &stdout}
	path := filepath.Join(t.TempDir(), "result.json")
	for range 2 { // the second one replaces the first
		if err := out.writeJSON(path, map[string]int{"lost": 0}); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(path)
	if err != nil || string(raw) != "{\n  \"lost\": 0\n}\n" {
		t.Errorf("%q, %v", raw, err)
	}
	if err := out.writeJSON("-", 1); err != nil || stdout.String() != "1\n" {
		t.Errorf("stdout %q, %v", stdout.String(), err)
	}
	if err := out.writeJSON(filepath.Join(path, "x"), 1); err == nil {
		t.Error("a file as a folder was no error")
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

// fakeInstance serves an admin listener and an API, and leaves a run.json that points to them.
func fakeInstance(t *testing.T, readyz, overview string) (dir string) {
	t.Helper()
	serve := func(path, body string, code int) string {
		mux := http.NewServeMux()
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = w.Write([]byte(body))
		})
		server := httptest.NewServer(mux)
		t.Cleanup(server.Close)
		return server.Listener.Addr().String()
	}
	code := http.StatusOK
	if strings.Contains(readyz, `"ready":false`) {
		code = http.StatusServiceUnavailable
	}
	i := app.Addresses{
		Admin: serve("/readyz", readyz, code), API: "http://" + serve("/api/overview", overview, http.StatusOK),
		ClickHouse: "clickhouse://app:s3cret@127.0.0.1:1/ctrloop",
	}
	raw, err := json.Marshal(i)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, app.RunFile), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestStatus(t *testing.T) {
	dir := fakeInstance(t,
		`{"ready":false,"gates":[{"name":"joiner","ready":false,"reason":"rebuilding"},{"name":"edge","ready":true}]}`,
		`{"champion":{"version":"v3"},"join":{"lag_seconds":1.5},"creatives":[{},{}],
		"alerts":[{"severity":"page","title":"No model server answers: connection refused","since":"2026-03-01T10:00:00Z","runbook":"r.md"},
			{"severity":"warn","title":"Labels stand still","since":"0001-01-01T00:00:00Z","runbook":""}],
		"stale":[{"part":"warehouse","age_seconds":312.4,"why":"it does not answer"}],
		"stages":[{"name":"join","state":"degraded","detail":"behind"}]}`)
	code, stdout, stderr := cli(t, "status", "--dir", dir)
	if code != exitOK {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	for _, want := range []string{"not ready", "waits for", "rebuilding", "champion.version", "v3", "join.lag_seconds", "1.5", "creatives",
		"(2)", "\nalert ", "page", "No model server answers: connection refused", "since 2026-03-01 10:00:00", "r.md", "warn",
		"Labels stand still", "stale", "312 s old: it does not answer", "degraded", "behind"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in:\n%s", want, stdout)
		}
	}
	if at, champion := strings.Index(stdout, "alert "), strings.Index(stdout, "champion.version"); at > champion ||
		strings.Contains(stdout, "0001-01-01") {
		t.Errorf("alerts come first, and no time that nobody knows:\n%s", stdout)
	}
	code, asJSON, stderr := cli(t, "status", "--dir", dir, "--json")
	var status instanceStatus
	if err := json.Unmarshal([]byte(asJSON), &status); err != nil || code != exitOK || status.Ready || len(status.Gates) != 2 ||
		status.Overview["champion"] == nil {
		t.Errorf("exit %d, %v:\n%s%s", code, err, asJSON, stderr)
	}
	if strings.Contains(stdout+asJSON, "s3cret") {
		t.Error("a password is shown")
	}
}

// TestStatusReady: the exit code is the answer, for health checks inside of containers.
func TestStatusReady(t *testing.T) {
	waiting := fakeInstance(t, `{"ready":false,"gates":[{"name":"joiner","ready":false,"reason":"rebuilding"},{"name":"edge",`+
		`"ready":true}]}`, `{}`)
	code, stdout, stderr := cli(t, "status", "--ready", "--dir", waiting)
	if code != exitFailed || stdout != "" || !strings.Contains(stderr, "joiner: rebuilding") || strings.Contains(stderr, "edge") {
		t.Errorf("not ready: exit %d: %s%s", code, stdout, stderr)
	}
	ready := fakeInstance(t, `{"ready":true,"gates":[{"name":"edge","ready":true}]}`, `no JSON: it must not be asked`)
	if code, stdout, stderr = cli(t, "status", "--ready", "--dir", ready); code != exitOK || stdout+stderr != "" {
		t.Errorf("ready: exit %d: %s%s", code, stdout, stderr)
	}
	if code, _, _ = cli(t, "status", "--ready", "--dir", t.TempDir()); code != exitFailed {
		t.Errorf("nothing runs: exit %d", code)
	}
	silent := t.TempDir()
	if err := os.WriteFile(filepath.Join(silent, app.RunFile), []byte(`{"edge":"127.0.0.1:1"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr = cli(t, "status", "--ready", "--dir", silent); code != exitFailed || !strings.Contains(stderr, "admin.address") {
		t.Errorf("without an admin listener: exit %d: %s", code, stderr)
	}
}

func TestStatusWithoutAnInstance(t *testing.T) {
	dir := t.TempDir()
	code, _, stderr := cli(t, "status", "--dir", dir)
	if code != exitFailed || !strings.Contains(stderr, "no instance runs on") || !strings.Contains(stderr, "do: start one") {
		t.Errorf("nothing there: exit %d: %s", code, stderr)
	}
	if err := os.WriteFile(filepath.Join(dir, app.RunFile), []byte(`{"admin":"127.0.0.1:1"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr = cli(t, "status", "--dir", dir); code != exitFailed || !strings.Contains(stderr, "may have been killed") {
		t.Errorf("left by a killed one: exit %d: %s", code, stderr)
	}
	if err := os.WriteFile(filepath.Join(dir, app.RunFile), []byte(`{`), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr = cli(t, "status", "--dir", dir); code != exitFailed || !strings.Contains(stderr, "run.json") {
		t.Errorf("broken: exit %d: %s", code, stderr)
	}
}

func TestSQLWithoutAWarehouse(t *testing.T) {
	dir := t.TempDir()
	code, _, stderr := cli(t, "sql", "--dir", dir, "SELECT 1")
	if code != exitFailed || !strings.Contains(stderr, "there is no warehouse in "+dir) {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("a question made %v", entries)
	}
	if err := os.Mkdir(filepath.Join(dir, app.EngineFolder), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LIBCHDB", "")
	code, _, stderr = cli(t, "--home", t.TempDir(), "sql", "--dir", dir, "SELECT 1")
	if code != exitNeedsSetup || !strings.Contains(stderr, "do: ") {
		t.Errorf("without an engine: exit %d: %s", code, stderr)
	}
}

// TestSQLAtRest asks a folder on which nothing runs, with the real engine.
func TestSQLAtRest(t *testing.T) {
	if _, err := os.Stat(warehouse.LibPath()); err != nil {
		t.Skipf("the engine is not set up (run `ctrloop setup`): %v", err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, app.EngineFolder), 0o755); err != nil {
		t.Fatal(err)
	}
	// Addresses of an instance that was killed must not matter.
	if err := os.WriteFile(filepath.Join(dir, app.RunFile), []byte(`{"clickhouse":"clickhouse://a:b@127.0.0.1:1/ctrloop"}`),
		0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the engine has stopped and released the folder after the first question
		code, stdout, stderr := cli(t, "sql", "--dir", dir, "--format", "json", "SELECT 6*7 AS answer")
		if code != exitOK || stdout != "{\"answer\":42}\n" {
			t.Fatalf("exit %d, %q: %s", code, stdout, stderr)
		}
	}
	code, stdout, stderr := cli(t, "sql", "--dir", dir, "CREATE TABLE x (a Int8) ENGINE=Memory")
	if code != exitFailed || stdout != "" || stderr == "" {
		t.Errorf("a write was let through: exit %d, %q, %s", code, stdout, stderr)
	}
}

func TestSetupCheck(t *testing.T) {
	t.Setenv("LIBCHDB", "")
	code, stdout, stderr := cli(t, "--home", t.TempDir(), "setup", "--check", "--json")
	var result setupResult
	if err := json.Unmarshal([]byte(stdout), &result); err != nil || code != exitNeedsSetup || result.Ready || len(result.Items) != 4 {
		t.Errorf("exit %d, %v:\n%s%s", code, err, stdout, stderr)
	}
	code, stdout, stderr = cli(t, "--home", t.TempDir(), "setup", "--python-path")
	if code != exitNeedsSetup || stdout != "" || !strings.Contains(stderr, "ctrloop setup") {
		t.Errorf("exit %d, %q: %s", code, stdout, stderr)
	}
}
