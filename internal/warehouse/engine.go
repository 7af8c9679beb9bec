package warehouse

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/internal/loopback"
)

// Environment of the engine's process.
const (
	childEnv   = "CTRLOOP_WAREHOUSE_CHILD"   // path of the library
	connectEnv = "CTRLOOP_WAREHOUSE_CONNECT" // set where it may connect to other engines
)

// MaybeChild must be the first call in main (and in TestMain): the engine's process is this binary
// again, and there it runs the engine and never returns.
func MaybeChild() {
	lib := os.Getenv(childEnv)
	if lib == "" {
		return
	}
	if err := runChild(lib, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// ErrUnavailable is wrapped by StartEngine when this machine has no embedded engine: no library for its
// platform, or none fetched yet.
var ErrUnavailable = errors.New("embedded ClickHouse is not available")

// ErrInUse is wrapped by StartEngine when another engine holds the data directory.
var ErrInUse = errors.New("data directory is in use by another engine")

// EngineConfig says where the embedded engine lives.
type EngineConfig struct {
	Lib string // path of libchdb.so
	Dir string // data directory, created when missing; one engine at a time
	// TCPPort and HTTPPort on 127.0.0.1; 0 takes those that the folder's last engine had, or free ones where they are taken. They
	// stay the same over restarts of the engine.
	TCPPort, HTTPPort int
	// MaxMemoryBytes bounds what the engine accounts for; its resident memory can exceed it by about
	// 0.65 GiB (allocator, code). 0 takes 2 GiB.
	MaxMemoryBytes int64
	// Password of the user with all rights; empty: the one that was drawn for the directory. For an engine whose clients
	// are told its address and password by somebody else.
	Password string

	// remoteServers is the inner XML of remote_servers: other engines as shards, for tests.
	remoteServers string
}

// Engine is a running embedded ClickHouse. When its process dies it is started again on the same ports
// and data, so that DSNs stay valid; what was acknowledged survives.
type Engine struct {
	cfg   EngineConfig
	log   zerolog.Logger
	creds credentials
	nonce string
	lock  *os.File

	mu       sync.Mutex
	proc     *process
	restarts int

	stopping chan struct{}
	stopOnce sync.Once
	done     chan struct{} // the supervisor has ended
}

// StartEngine boots the engine and waits until it answers. The context bounds the start only; use Stop.
func StartEngine(ctx context.Context, cfg EngineConfig, log zerolog.Logger) (*Engine, error) {
	if err := platformError(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if st, err := os.Stat(cfg.Lib); err != nil || st.IsDir() {
		return nil, fmt.Errorf(
			"%w: no libchdb at %q: run `ctrloop setup` to fetch it or give a server (clickhouse.dsn in the configuration, --dsn of sql and migrate)",
			ErrUnavailable,
			cfg.Lib,
		)
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("engine directory: %w", err)
	}
	cfg.Dir = dir
	if cfg.MaxMemoryBytes == 0 {
		cfg.MaxMemoryBytes = 2 << 30
	}
	e := &Engine{cfg: cfg, log: log, nonce: "ctrloop-" + randomHex(8), stopping: make(chan struct{}), done: make(chan struct{})}
	if err := e.prepare(); err != nil {
		return nil, err
	}
	if err := e.firstStart(ctx); err != nil {
		_ = e.lock.Close()
		return nil, fmt.Errorf("start the embedded ClickHouse in %s: %w", dir, err)
	}
	go e.supervise()
	return e, nil
}

// prepare makes the directory ours and draws or reads the passwords.
func (e *Engine) prepare() error {
	for _, d := range []string{"", "data", "data/user_files", "log"} {
		if err := os.MkdirAll(filepath.Join(e.cfg.Dir, d), 0o700); err != nil {
			return fmt.Errorf("engine directory: %w", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(e.cfg.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("engine directory: %w", err)
	}
	// The child inherits this open file, and a flock belongs to the open file: the directory stays
	// locked until the engine is gone, even when only the parent has died.
	if err := lockPatiently(lock); err != nil {
		_ = lock.Close()
		return fmt.Errorf("%w: %s (%v): stop it first", ErrInUse, e.cfg.Dir, err)
	}
	e.lock = lock
	if err := os.RemoveAll(filepath.Join(e.cfg.Dir, ShadowFolder)); err != nil { // of a backup whose process was killed
		_ = lock.Close()
		return fmt.Errorf("engine directory: %w", err)
	}
	if e.creds, err = loadCredentials(filepath.Join(e.cfg.Dir, "credentials.json"), e.cfg.Password); err != nil {
		_ = lock.Close()
		return err
	}
	return nil
}

// lockPatiently waits up to 2 s for the lock: an engine whose parent was killed a moment ago may still be
// on its way out, its threads hold the lock to the last.
func lockPatiently(f *os.File) error {
	for deadline := time.Now().Add(2 * time.Second); ; {
		err := lockFile(f)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		<-time.After(20 * time.Millisecond) // a flock can only be polled, or waited for without end
	}
}

// portsFile has the ports of the folder's last engine.
const portsFile = "ports"

// firstStart finds ports: a free port can be taken between our look and the engine's bind.
func (e *Engine) firstStart(ctx context.Context) error {
	fixed := e.cfg.TCPPort != 0 && e.cfg.HTTPPort != 0
	file := filepath.Join(e.cfg.Dir, portsFile)
	kept := loopback.KeptPorts(file, 2)
	for try := 1; ; try++ {
		cfg := e.cfg
		var err error
		if try == 1 && kept != nil {
			cfg.TCPPort, cfg.HTTPPort = cmp.Or(cfg.TCPPort, kept[0]), cmp.Or(cfg.HTTPPort, kept[1])
		}
		if cfg.TCPPort == 0 {
			cfg.TCPPort, err = loopback.FreePort()
		}
		if err == nil && cfg.HTTPPort == 0 {
			cfg.HTTPPort, err = loopback.FreePort()
		}
		if err != nil {
			return err
		}
		p, err := e.startProcess(ctx, cfg)
		if err == nil {
			e.cfg, e.proc = cfg, p
			if err := loopback.KeepPorts(file, cfg.TCPPort, cfg.HTTPPort); err != nil {
				e.log.Warn().Err(err).Msg("the engine may come back on other ports, where processes that know its address do not find it")
			}
			return nil
		}
		if !errors.Is(err, errPortTaken) || fixed || try == 5 {
			return err
		}
		e.log.Debug().Err(err).Int("try", try).Msg("engine port taken, trying another")
	}
}

// supervise starts the engine again when it dies, with back-off from 50 ms to 5 s.
func (e *Engine) supervise() {
	defer close(e.done)
	const minWait, maxWait = 50 * time.Millisecond, 5 * time.Second
	wait := minWait
	for {
		p := e.process()
		up := time.Now()
		select {
		case <-e.stopping:
			return
		case <-p.done:
		}
		if time.Since(up) > time.Minute {
			wait = minWait
		}
		e.log.Warn().AnErr(
			"exit",
			p.err,
		).Str(
			"output",
			p.output.String(),
		).Dur(
			"retry_in",
			wait,
		).Msg(
			"embedded ClickHouse ended, starting it again",
		)
		for {
			select {
			case <-e.stopping:
				return
			case <-time.After(wait):
			}
			wait = min(wait*2, maxWait)
			next, err := e.restart()
			if err == nil {
				e.mu.Lock()
				e.proc = next
				e.restarts++
				e.mu.Unlock()
				break
			}
			e.log.Error().Err(err).Dur("retry_in", wait).Msg("embedded ClickHouse does not start")
		}
	}
}

// restart is one attempt; Stop cuts it short.
func (e *Engine) restart() (*process, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	go func() {
		select {
		case <-e.stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	return e.startProcess(ctx, e.cfg)
}

func (e *Engine) process() *process {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.proc
}

// DSN is the address for the application: all rights, native protocol.
func (e *Engine) DSN() string { return e.dsn(appUser, e.creds.App) }

// ReadOnlyDSN is the address for SQL of people: reads only, with limits on rows, time and memory, and no
// way to files or to other machines.
func (e *Engine) ReadOnlyDSN() string { return e.dsn(readOnlyUser, e.creds.ReadOnly) }

func (e *Engine) dsn(user, password string) string {
	return fmt.Sprintf("clickhouse://%s:%s@127.0.0.1:%d/%s?http_port=%d", user, password, e.cfg.TCPPort, Database, e.cfg.HTTPPort)
}

// Dir is where the engine's data are.
func (e *Engine) Dir() string { return e.cfg.Dir }

// PID of the engine's process; it changes when the engine was started again.
func (e *Engine) PID() int { return e.process().cmd.Process.Pid }

// Restarts counts how often the engine died and was started again.
func (e *Engine) Restarts() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.restarts
}

// Stop ends the engine: orderly until ctx is done, by SIGKILL then. Close connections first. It may be
// called more than once.
func (e *Engine) Stop(ctx context.Context) error {
	var err error
	e.stopOnce.Do(func() {
		close(e.stopping)
		<-e.done
		err = e.process().stop(ctx)
		_ = e.lock.Close()
	})
	return err
}

// OwnerDSN is the DSN of the application for the engine on dir that another process runs, made from the read-only one. It
// fails with fs.ErrNotExist where dir has no engine.
func OwnerDSN(dir, readOnly string) (string, error) {
	file := filepath.Join(dir, "credentials.json")
	if _, err := os.Stat(file); err != nil { // it would be drawn
		return "", fmt.Errorf("passwords of the engine: %w", err)
	}
	c, err := loadCredentials(file, "")
	if err != nil {
		return "", err
	}
	u, err := url.Parse(readOnly)
	if err != nil {
		return "", errors.New("the read-only DSN does not parse") // the cause would quote the password
	}
	u.User = url.UserPassword(appUser, c.App)
	return u.String(), nil
}
