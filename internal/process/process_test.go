package process

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
)

func shell(script string) Spec {
	return Spec{Name: "test", Path: "/bin/sh", Args: []string{"-c", script}, LogLevel: zerolog.InfoLevel}
}

func TestExitClasses(t *testing.T) {
	for _, test := range []struct {
		name string
		spec Spec
		want Exit
		text string
	}{
		{"done", shell("exit 0"), Exit{Outcome: OutcomeDone}, ""},
		{"failed", shell("echo no such model >&2; exit 2"), Exit{Outcome: OutcomeFailed, Code: 2}, "status 2; its last words: no such model"},
		{"killed", shell("kill -9 $$"), Exit{OutcomeKilled, -1, syscall.SIGKILL}, "lack of memory"},
		{"crashed", shell("kill -SEGV $$"), Exit{OutcomeKilled, -1, syscall.SIGSEGV}, "segmentation fault"},
		{"not started", Spec{Name: "test", Path: "/nonexistent/program"}, Exit{Outcome: OutcomeNotStarted, Code: -1}, "no such file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := Run(t.Context(), test.spec, zerolog.Nop())
			got, ok := ExitOf(err)
			if !ok {
				t.Fatalf("not a process error: %v", err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("exit (-want +got):\n%s", diff)
			}
			if err != nil && !strings.Contains(err.Error(), test.text) {
				t.Errorf("error %q does not say %q", err, test.text)
			}
		})
	}
}

// cancelWhen returns a logger and a context that ends once the child logs a line with the text.
func cancelWhen(t *testing.T, text string) (context.Context, zerolog.Logger, *bytes.Buffer) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	var buf bytes.Buffer
	log := zerolog.New(&buf).Hook(zerolog.HookFunc(func(_ *zerolog.Event, _ zerolog.Level, msg string) {
		if strings.Contains(msg, text) {
			cancel()
		}
	}))
	return ctx, log, &buf
}

func TestStopIsGracefulFirst(t *testing.T) {
	ctx, log, buf := cancelWhen(t, "started")
	err := Run(ctx, shell(`trap 'echo checkpointed; exit 5' TERM; echo started; while :; do sleep 0.01; done`), log)
	exit, _ := ExitOf(err)
	if diff := cmp.Diff(Exit{Outcome: OutcomeStopped, Code: 5}, exit); diff != "" {
		t.Errorf("exit (-want +got):\n%s", diff)
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v does not wrap the context's", err)
	}
	if !strings.Contains(buf.String(), "checkpointed") {
		t.Errorf("the trap did not run; log:\n%s", buf)
	}
}

func TestStopKillsWhatIgnoresIt(t *testing.T) {
	ctx, log, _ := cancelWhen(t, "started")
	spec := shell(`trap '' TERM; echo started; while :; do sleep 0.01; done`)
	spec.Grace = 50 * time.Millisecond
	exit, _ := ExitOf(Run(ctx, spec, log))
	if diff := cmp.Diff(Exit{OutcomeStopped, -1, syscall.SIGKILL}, exit); diff != "" {
		t.Errorf("exit (-want +got):\n%s", diff)
	}
}

func TestStopReachesGrandchildren(t *testing.T) {
	ctx, log, _ := cancelWhen(t, "started")
	pidFile := filepath.Join(t.TempDir(), "pid")
	err := Run(ctx, shell(fmt.Sprintf(`sleep 60 & echo $! > %s; echo started; wait`, pidFile)), log)
	if exit, _ := ExitOf(err); exit.Outcome != OutcomeStopped {
		t.Fatalf("exit %v", exit)
	}
	waitGone(t, readPID(t, pidFile))
}

func readPID(t *testing.T, path string) int {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// waitGone fails the test unless the process ends. A zombie that its new parent has not collected has ended.
func waitGone(t *testing.T, pid int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("process %d is still alive", pid)
}

// TestChildDiesWithItsParent re-executes the test binary as a parent with a child, and kills it with -9.
func TestChildDiesWithItsParent(t *testing.T) {
	if os.Getenv("CTRLOOP_TEST_PARENT") != "" {
		log := zerolog.New(os.Stdout)
		_ = Run(context.Background(), shell("echo pid $$; exec sleep 60"), log)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestChildDiesWithItsParent$")
	cmd.Env = append(os.Environ(), "CTRLOOP_TEST_PARENT=1")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := 0
	for scanner := bufio.NewScanner(stdout); pid == 0 && scanner.Scan(); {
		if _, after, ok := strings.Cut(scanner.Text(), "pid "); ok {
			pid, _ = strconv.Atoi(strings.TrimRight(after, `"}`))
		}
	}
	if pid == 0 {
		t.Fatal("the parent never named its child")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	waitGone(t, pid)
}

func TestOutputIsLoggedByBoundedLines(t *testing.T) {
	var buf bytes.Buffer
	l := newLines(zerolog.New(&buf), zerolog.InfoLevel)
	for _, part := range []string{"one\ntw", "o\n\n", "10%\r50%\r100%\n", `{"loss":0.5}` + "\n", strings.Repeat("x", maxLineBytes+7) + "\n",
		"end"} {
		if n, err := l.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatalf("write: %d, %v", n, err)
		}
	}
	l.flush()
	want := strings.Join([]string{
		`{"level":"info","message":"one"}`, `{"level":"info","message":"two"}`, `{"level":"info","message":"100%"}`,
		`{"level":"info","line":{"loss":0.5}}`,
		`{"level":"info","dropped_bytes":7,"message":"` + strings.Repeat("x", maxLineBytes) + `"}`,
		`{"level":"info","message":"end"}`, ``,
	}, "\n")
	if diff := cmp.Diff(want, buf.String()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	if got := l.tail(); len(got) > maxTailBytes+16 || !strings.HasSuffix(got, "\nend") {
		t.Errorf("tail has %d bytes: %.100s", len(got), got)
	}
}

func TestThreadsAreBounded(t *testing.T) {
	var out bytes.Buffer
	spec := shell("echo $OMP_NUM_THREADS $EXTRA")
	spec.Threads, spec.Env, spec.Stdout = 1, []string{"EXTRA=x"}, &out
	if err := Run(t.Context(), spec, zerolog.Nop()); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); got != "1 x\n" {
		t.Errorf("environment %q", got)
	}
}

func fastServer() ServerConfig {
	return ServerConfig{
		ReadyTimeout: 5 * time.Second, ProbeInterval: time.Millisecond,
		MinBackoff: time.Millisecond, MaxBackoff: 4 * time.Millisecond, MaxFailures: 3,
	}
}

func TestServerIsRestartedAfterACrash(t *testing.T) {
	starts := 0
	marker := filepath.Join(t.TempDir(), "ready")
	launch := func(context.Context) (Spec, func(context.Context) error, error) {
		starts++
		_ = os.Remove(marker)
		ready := func(context.Context) error { _, err := os.Stat(marker); return err }
		return shell("touch " + marker + "; exec sleep 60"), ready, nil
	}
	reg := prometheus.NewRegistry()
	server, err := NewServer("model", fastServer(), launch, zerolog.Nop(), reg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	if err := server.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	first, down := server.PID(), server.readyChan()
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for server.readyChan() == down { // until the supervisor has noticed
		time.Sleep(time.Millisecond)
	}
	if err := server.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	second := server.PID()
	if second == first || second == 0 {
		t.Errorf("process ids %d, then %d", first, second)
	}
	if got := testutil.ToFloat64(server.metrics.restarts); got != 1 {
		t.Errorf("%v restarts are counted", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("a clean stop returned %v", err)
	}
	waitGone(t, second)
	if server.Ready() || starts != 2 {
		t.Errorf("ready=%v after the stop, %d starts", server.Ready(), starts)
	}
}

func TestServerGivesUp(t *testing.T) {
	for name, test := range map[string]struct {
		script  string
		timeout time.Duration
		want    string
	}{
		"ends":        {"echo cannot bind >&2; exit 1", 5 * time.Second, "cannot bind"},
		"never ready": {"exec sleep 60", 20 * time.Millisecond, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := fastServer()
			cfg.ReadyTimeout = test.timeout
			closed := closedAddress(t)
			starts := 0
			launch := func(context.Context) (Spec, func(context.Context) error, error) {
				starts++
				return shell(test.script), func(ctx context.Context) error {
					conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", closed)
					if err == nil {
						conn.Close()
					}
					return err
				}, nil
			}
			server, err := NewServer("model", cfg, launch, zerolog.Nop(), prometheus.NewRegistry())
			if err != nil {
				t.Fatal(err)
			}
			err = server.Run(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.want) || starts != cfg.MaxFailures {
				t.Errorf("after %d starts: %v, want %q", starts, err, test.want)
			}
		})
	}
}

// closedAddress returns a loopback address on which nothing listens.
func closedAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func TestServerConfigProblemsAreAllReported(t *testing.T) {
	err := ServerConfig{MinBackoff: 2, MaxBackoff: 1, MaxFailures: -1}.Validate()
	for _, want := range []string{"ready_timeout", "probe_interval", "min_backoff", "max_failures"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not mention %s", err, want)
		}
	}
	if err := DefaultServerConfig().Validate(); err != nil {
		t.Error(err)
	}
}

func TestLimits(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("limits are for Linux")
	}
	var out bytes.Buffer
	err := Run(t.Context(), Spec{
		Name: "limited", Path: "/bin/sh", Args: []string{"-c", "ulimit -d; nproc"}, Stdout: &out,
		Limits: Limits{MemoryBytes: 256 << 20, CPUs: 1},
	}, zerolog.Nop())
	if err != nil || out.String() != "262144\n1\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	err = Run(t.Context(), Spec{Name: "absent", Path: "/no/such/program", Limits: Limits{MemoryBytes: 256 << 20}}, zerolog.Nop())
	if exit, ok := ExitOf(err); !ok || exit.Outcome != OutcomeNotStarted {
		t.Errorf("a program that is not there: %v", err)
	}
	out.Reset()
	free := Spec{Name: "free", Path: "/bin/sh", Args: []string{"-c", "ulimit -d; nproc"}, Stdout: &out}
	if err := Run(t.Context(), free, zerolog.Nop()); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("unlimited\n%d\n", runtime.NumCPU()); out.String() != want {
		t.Errorf("a child without limits after one with: %q, want %q", out.String(), want)
	}
}
