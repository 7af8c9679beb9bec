package warehouse

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

var shared struct {
	engine *Engine
	err    error
}

// parentDirEnv is set in the process that TestChildDiesWithParent kills.
const parentDirEnv = "WAREHOUSE_TEST_PARENT_DIR"

func TestMain(m *testing.M) {
	MaybeChild()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	// A process that a test is going to kill leaves its files inside of that test's folder.
	dir, err := os.MkdirTemp(os.Getenv(parentDirEnv), "warehouse-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := os.Stat(LibPath()); err == nil {
		shared.engine, shared.err = StartEngine(ctx, EngineConfig{Lib: LibPath(), Dir: filepath.Join(dir, "engine")}, zerolog.Nop())
	}
	code := m.Run()
	if shared.engine != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := shared.engine.Stop(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// needLib fails without the library, or skips where missing it was allowed.
func needLib(t testing.TB) string {
	t.Helper()
	if _, err := os.Stat(LibPath()); err != nil {
		if os.Getenv("CTRLOOP_TEST_ALLOW_MISSING") == "1" {
			t.Skip("no libchdb")
		}
		t.Fatalf("no libchdb at %s: run `ctrloop setup`, or set CTRLOOP_TEST_ALLOW_MISSING=1 to skip", LibPath())
	}
	return LibPath()
}

// engine is the package's shared one.
func engine(t testing.TB) *Engine {
	t.Helper()
	needLib(t)
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.engine
}

// startEngine starts one of the test's own.
func startEngine(t testing.TB, cfg EngineConfig) *Engine {
	t.Helper()
	cfg.Lib = needLib(t)
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	e, err := StartEngine(ctx, cfg, zerolog.New(zerolog.NewTestWriter(t)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, e) })
	return e
}

func stop(t testing.TB, e *Engine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := e.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// connect opens the engine's database, or another one by name on the shared engine.
func connect(t testing.TB, dsn string) *DB {
	t.Helper()
	db, err := Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}
