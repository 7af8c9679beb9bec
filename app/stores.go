package app

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"ctrloop/ingest"
	"ctrloop/internal/artifact"
	"ctrloop/internal/catalogue"
	"ctrloop/internal/setup"
	"ctrloop/internal/warehouse"
	"ctrloop/schemas"
)

func (a *App) startWarehouse(ctx context.Context) error {
	if !a.needs(Sink, Pairer, Serving) {
		return nil
	}
	dsn := a.cfg.ClickHouse.DSN
	a.readDSN = a.cfg.ClickHouse.ReadOnlyDSN
	if dsn == "" {
		lib, err := setup.Library(a.opt.Home)
		if err != nil {
			return err
		}
		a.engine, err = warehouse.StartEngine(
			ctx,
			warehouse.EngineConfig{
				Lib: lib, Dir: filepath.Join(a.opt.Dir, EngineFolder), MaxMemoryBytes: a.cfg.ClickHouse.MaxMemoryBytes,
				TCPPort: a.cfg.ClickHouse.EmbeddedPort, HTTPPort: a.cfg.ClickHouse.EmbeddedHTTPPort,
			},
			a.log,
		)
		if err != nil {
			return err
		}
		a.actors.onStop("embedded clickhouse", func() {
			stop, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if err := a.engine.Stop(stop); err != nil {
				a.log.Warn().Err(err).Msg("the embedded ClickHouse did not stop cleanly; what it acknowledged is safe")
			}
		})
		dsn, a.readDSN = a.engine.DSN(), a.engine.ReadOnlyDSN()
	}
	if a.readDSN == "" {
		a.readDSN = dsn
	}
	db, err := warehouse.Open(ctx, dsn)
	if err != nil {
		return err
	}
	a.db = db
	a.actors.onStop("warehouse connections", func() { _ = db.Close() })
	a.check("warehouse", db.Ping)
	a.addresses.ClickHouse = a.readDSN
	err = db.Migrate(ctx, warehouse.Options{
		Cluster: a.cfg.ClickHouse.Cluster, Window: a.cfg.Joiner.Window, Bucket: a.cfg.Joiner.Bucket,
		SaltCheck: ingest.SaltCheck(a.cfg.Salt()),
	})
	if err != nil {
		return err
	}
	if a.engine != nil && !a.runs(Sink) {
		a.actors.start("refill", a.refillBeside)
	}
	return nil
}

func (a *App) openArtifacts(ctx context.Context) (err error) {
	if !a.needs(Pairer, Trainer, Serving) {
		return nil
	}
	if a.store, err = artifact.Open(filepath.Join(a.opt.Dir, "artifacts")); err != nil {
		return err
	}
	if a.catalog, err = catalogue.Open(a.cfg.Products); err != nil {
		return err
	}
	if a.db == nil {
		return nil
	}
	rows := make([]warehouse.ProductRow, 0, len(a.catalog.Products()))
	for _, p := range a.catalog.Products() {
		rows = append(rows, warehouse.ProductRow{ID: p.ID, Title: p.Title, Category: p.Category, Holdout: a.holdout(p.ID)})
	}
	return a.db.InsertProducts(ctx, rows)
}

func (a *App) holdout(product string) bool {
	return schemas.Holdout(product, a.cfg.Pairer.HoldoutFraction) || slices.Contains(a.cfg.Pairer.HoldoutProducts, product)
}
