package app

import (
	"cmp"
	"context"
	"image"
	"time"

	"ctrloop/ingest"
	"ctrloop/internal/artifact"
	"ctrloop/internal/catalogue"
	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse"
	"ctrloop/joiner"
	"ctrloop/joiner/window"
	"ctrloop/pairer"
	"ctrloop/pairer/evidence/stage"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
)

// This file is what commands that embed a process (demo, replay) may look at.

// Addresses of the listeners.
func (a *App) Addresses() Addresses { return a.addresses }

// Failed yields the first failure of a part.
func (a *App) Failed() <-chan error { return a.actors.failed }

// Control is the state of the control log. Do not change it.
func (a *App) Control() *control.State { return a.control.State() }

// Ledger of the join in this process.
func (a *App) Ledger() joiner.Ledger { return a.joiner.Ledger() }

// JoinReady waits until the join in this process has every partition, with its state rebuilt, and returns the
// ledger's totals at that point.
func (a *App) JoinReady(ctx context.Context) (window.Ledger, error) {
	for {
		if l := a.Ledger(); len(l.Partitions) == int(a.cfg.Kafka.Partitions) {
			return l.Total, nil
		}
		select {
		case <-ctx.Done():
			return window.Ledger{}, ctx.Err()
		case err := <-a.actors.failed:
			return window.Ledger{}, err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Drained says whether every event that the edge has acknowledged is joined and every label is in the warehouse.
// Labels of open windows are not due yet.
func (a *App) Drained(ctx context.Context) (bool, error) {
	for _, g := range []struct {
		group  string
		topics []string
	}{
		{ingest.Group, []string{schemas.TopicRawImpressions, schemas.TopicRawClicks}},
		{a.cfg.Joiner.Group, []string{schemas.TopicImpressions, schemas.TopicClicks}},
	} {
		if n, err := stream.Lag(ctx, a.kafka, g.group, g.topics...); n > 0 || err != nil {
			return false, err
		}
	}
	n, err := a.SinkLag(ctx)
	return n == 0, err
}

// SinkLag is the number of records that are not in the warehouse yet; 1 where only the word is missing that they are (view
// label_horizon), so that 0 means that questions count all that is mature.
func (a *App) SinkLag(ctx context.Context) (int64, error) {
	n, err := a.sink.Lag(ctx)
	if n > 0 || err != nil {
		return n, err
	}
	all, err := a.sink.RecordProgress(ctx)
	if !all {
		n = 1
	}
	return n, err
}

// Kafka is the broker of the services.
func (a *App) Kafka() stream.Config { return a.kafka }

// Warehouse is the connection of the services.
func (a *App) Warehouse() *warehouse.DB { return a.db }

// Artifacts is the store.
func (a *App) Artifacts() *artifact.Store { return a.store }

// Catalogue of the shop.
func (a *App) Catalogue() *catalogue.Catalogue { return a.catalog }

// Creative looks a creative up.
func (a *App) Creative(id string) (schemas.Creative, bool) { return a.ads.Get(id) }

// AllCreatives lists every creative, with the reason where it must not serve: by its record, or because a person has blocked it.
func (a *App) AllCreatives() []schemas.Creative {
	st, all := a.control.State(), a.ads.All()
	for i := range all {
		all[i].Blocked = cmp.Or(st.WhyBlocked(all[i].ID), all[i].Blocked)
	}
	return all
}

// Picture decodes a creative's image.
func (a *App) Picture(c schemas.Creative) (*image.NRGBA, error) { return decodePNG(a.store, c.Asset) }

// Creatives counts the creatives of a version that may serve, and the products that have some.
func (a *App) Creatives(version string) (n int64, products int) {
	seen := map[string]bool{}
	for _, c := range a.AllCreatives() {
		if c.ModelVersion == version && c.Blocked == "" {
			n++
			seen[c.Product] = true
		}
	}
	return n, len(seen)
}

// Pairing is the outcome of the pairer's last look.
func (a *App) Pairing() pairer.Status { return a.pairer.Status() }

// Evidence is the account of the labels that this process has added up.
func (a *App) Evidence() stage.Ledger { return a.evidence.Ledger() }

// EvidenceAudit is how evidence was last held against the warehouse.
func (a *App) EvidenceAudit() stage.AuditStatus { return a.auditor.Status() }

// TrainingNote says in a few words what training is doing.
func (a *App) TrainingNote() string {
	for id, j := range a.control.State().Jobs {
		if j.State == control.JobRunning {
			return id + "  " + a.jobs.Progress(id)
		}
	}
	return ""
}
