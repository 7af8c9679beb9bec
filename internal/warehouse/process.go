package warehouse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// errPortTaken is wrapped when the engine could not listen.
var errPortTaken = errors.New("port is taken")

// process is one life of the engine.
type process struct {
	cmd    *exec.Cmd
	tty    *os.File // our end of the engine's terminal
	output tail
	done   chan struct{}
	err    error // of the exit, set when done is closed
}

// tail keeps the end of what the engine says.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailBytes = 16 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > 2*tailBytes {
		t.b = append(t.b[:0], t.b[len(t.b)-tailBytes:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b[max(0, len(t.b)-tailBytes):]))
}

// startProcess writes the configuration, starts the child and waits until both ports answer as ours.
func (e *Engine) startProcess(ctx context.Context, cfg EngineConfig) (*process, error) {
	config, users := filepath.Join(cfg.Dir, "config.xml"), filepath.Join(cfg.Dir, "users.xml")
	if err := writePrivate(config,
		[]byte(serverConfig(cfg.Dir, e.nonce, cfg.TCPPort, cfg.HTTPPort, cfg.MaxMemoryBytes, cfg.remoteServers))); err != nil {
		return nil, err
	}
	if err := writePrivate(users, []byte(usersConfig(e.creds, cfg.MaxMemoryBytes))); err != nil {
		return nil, err
	}
	// The engine forgets its own database, system, with its process, but not the files of the log tables in it: their names are taken
	// then, and it tries to make them again without a pause, one core busy for ever.
	if err := os.RemoveAll(filepath.Join(cfg.Dir, "data", "data", "system")); err != nil {
		return nil, fmt.Errorf("remove the query log of the engine's last process: %w", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program to start it as the engine: %w", err)
	}
	p := &process{done: make(chan struct{})}
	p.cmd = exec.Command(exe, "--config-file", config, "--path", filepath.Join(cfg.Dir, "data"),
		"--listen_host", "127.0.0.1", "--tcp_port", strconv.Itoa(cfg.TCPPort), "--http_port", strconv.Itoa(cfg.HTTPPort),
		// The engine makes its history file its user's own (mode 600): a file of its folder, never a device.
		"--interactive", "--disable_suggestion", "--history_file", filepath.Join(cfg.Dir, "data", "history"),
		"--progress", "off", "--progress-table", "off",
		"--highlight", "0", "--hints", "0", "--echo", "0", "--query", "SYSTEM START LISTEN TCP; SYSTEM START LISTEN HTTP")
	// A short environment: nothing of the caller's (tokens, proxies) belongs into the database's process.
	p.cmd.Env = []string{childEnv + "=" + cfg.Lib, "TZ=UTC", "LANG=C.UTF-8", "TERM=dumb", "HOME=" + cfg.Dir, "PATH=" + os.Getenv("PATH")}
	if cfg.remoteServers != "" {
		p.cmd.Env = append(p.cmd.Env, connectEnv+"=1")
	}
	p.cmd.Dir = filepath.Join(cfg.Dir, "data", "user_files") // where clickhouse-local looks for files, whatever the configuration says
	p.cmd.ExtraFiles = []*os.File{e.lock}
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	if err := p.start(); err != nil {
		return nil, err
	}
	if err := e.awaitReady(ctx, cfg, p); err != nil {
		p.kill()
		return nil, err
	}
	return p, nil
}

// start runs the child on a terminal. Without a terminal on stdin the engine takes itself for a batch
// job and aborts on any error of a network thread: a client's reset, a failed login, garbage. Nobody
// reads the terminal's echo, so it must be drained or the engine blocks.
func (p *process) start() error {
	tty, slave, err := openPTY()
	if err != nil {
		return err
	}
	p.tty, p.cmd.Stdin = tty, slave
	setChildAttributes(p.cmd)
	started := make(chan error)
	go func() {
		// The parent-death signal is sent when the starting THREAD ends: keep it for the child's life.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := p.cmd.Start(); err != nil {
			started <- fmt.Errorf("start the engine's process: %w", err)
			return
		}
		started <- nil
		p.err = p.cmd.Wait()
		close(p.done)
		_ = tty.Close()
	}()
	err = <-started
	_ = slave.Close()
	if err != nil {
		_ = tty.Close()
		return err
	}
	go func() { _, _ = io.Copy(&p.output, tty) }() // ends when the child's side is closed
	return nil
}

// awaitReady polls the HTTP port until it answers with our nonce, then makes the database and proves the native port.
func (e *Engine) awaitReady(ctx context.Context, cfg EngineConfig, p *process) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	create := fmt.Sprintf("http://127.0.0.1:%d/?database=default", cfg.HTTPPort)
	for {
		if name, err := askHTTP(ctx, client, create, e.creds.App, "CREATE DATABASE IF NOT EXISTS "+Database+" ENGINE = Atomic",
			e.nonce); err == nil {
			break
		} else if name != "" && name != e.nonce {
			return fmt.Errorf("%w: another server (%s) answers on 127.0.0.1:%d", errPortTaken, name, cfg.HTTPPort)
		} else if name == e.nonce {
			return err
		}
		if out := p.output.String(); strings.Contains(out, "Address already in use") {
			return fmt.Errorf("%w: 127.0.0.1:%d or :%d", errPortTaken, cfg.TCPPort, cfg.HTTPPort)
		}
		select {
		case <-p.done:
			return fmt.Errorf("the engine ended (%v): %s", p.err, p.output.String())
		case <-ctx.Done():
			return fmt.Errorf("%w while waiting for the engine: %s", context.Cause(ctx), p.output.String())
		case <-time.After(5 * time.Millisecond):
		}
	}
	name, err := nativeName(ctx, fmt.Sprintf("127.0.0.1:%d", cfg.TCPPort), e.creds.App)
	if err != nil {
		return fmt.Errorf("native port of the engine: %w", err)
	}
	if name != e.nonce {
		return fmt.Errorf("%w: another server (%s) answers on 127.0.0.1:%d", errPortTaken, name, cfg.TCPPort)
	}
	return nil
}

// askHTTP runs one statement; name is who answered, empty when nobody did. The password goes only to a
// server on the loopback interface.
func askHTTP(ctx context.Context, c *http.Client, url, password, query, nonce string) (name string, err error) {
	rq, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(query))
	if err != nil {
		return "", err
	}
	rq.Header.Set("X-ClickHouse-User", appUser)
	rq.Header.Set("X-ClickHouse-Key", password)
	r, err := c.Do(rq)
	if err != nil {
		return "", err
	}
	defer func() { _ = r.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(r.Body, 4096))
	if err != nil {
		return "", err
	}
	if name = r.Header.Get("X-ClickHouse-Server-Display-Name"); name == "" {
		name = "not ClickHouse, or refusing us"
	}
	if r.StatusCode != http.StatusOK || name != nonce {
		return name, fmt.Errorf("status %d: %s", r.StatusCode, body)
	}
	return name, nil
}

// stop asks for an orderly end and kills when ctx is done first.
func (p *process) stop(ctx context.Context) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	_, _ = io.WriteString(p.tty, "exit\n") // fails only when the child is gone
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		p.kill()
		return fmt.Errorf("the engine did not stop in time and was killed (acknowledged rows are safe): %w", context.Cause(ctx))
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}
