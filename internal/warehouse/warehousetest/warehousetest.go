// Package warehousetest gives tests of other packages an embedded ClickHouse with the schema. A test binary that uses
// it calls [warehouse.MaybeChild] first in its TestMain: the engine is that binary, run again.
package warehousetest

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/internal/warehouse"
)

// Start starts an engine on a folder of its own and migrates it; both end with the test. It costs seconds: share one
// among subtests. Without the engine's library the test fails, or skips if CTRLOOP_TEST_ALLOW_MISSING is 1.
func Start(t testing.TB, opt warehouse.Options) (*warehouse.Engine, *warehouse.DB) {
	t.Helper()
	if _, err := os.Stat(warehouse.LibPath()); err != nil {
		if os.Getenv("CTRLOOP_TEST_ALLOW_MISSING") == "1" {
			t.Skip("no libchdb")
		}
		t.Fatalf("no libchdb at %s: run `ctrloop setup`, or set CTRLOOP_TEST_ALLOW_MISSING=1 to skip", warehouse.LibPath())
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	e, err := warehouse.StartEngine(ctx, warehouse.EngineConfig{Lib: warehouse.LibPath(), Dir: t.TempDir()}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := e.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	db, err := warehouse.Open(ctx, e.DSN())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if err := db.Migrate(ctx, opt); err != nil {
		t.Fatal(err)
	}
	return e, db
}
