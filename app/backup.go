package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ctrloop/internal/broker"
	"ctrloop/internal/httpapi"
	"ctrloop/internal/warehouse"
	"ctrloop/joiner/sink"
)

// BackupPath of the admin listener freezes the stores for as long as the request lasts.
const BackupPath = "/backup"

// RefillFile in the folder of an instance says that its warehouse is behind the commits of its broker, and from where:
// a backup of a running instance holds one. The next start of the process with the engine works it off and removes it.
const RefillFile = "refill.json"

// Frozen is the answer of BackupPath: what belongs to a backup of a running instance. It holds until the request ends.
type Frozen struct {
	Time   time.Time         `json:"time"`
	Broker *broker.Frozen    `json:"broker,omitempty"` // missing: the brokers are others'
	Engine *warehouse.Frozen `json:"engine,omitempty"` // missing: the ClickHouse is another's, or not in this process
	Refill *sink.Reached     `json:"refill,omitempty"` // with Engine: for RefillFile
}

// backup answers with what is frozen and lets go when the client does.
func (a *App) backup(w http.ResponseWriter, r *http.Request) {
	if !a.begun.Ready() {
		httpapi.Fail(w, httpapi.Refuse(http.StatusServiceUnavailable, "wait until /readyz says so", "the instance is not ready"))
		return
	}
	// The commits say nothing of a warehouse that is behind them still.
	if _, err := os.Stat(filepath.Join(a.opt.Dir, RefillFile)); !errors.Is(err, fs.ErrNotExist) {
		httpapi.Fail(w, httpapi.Refuse(http.StatusServiceUnavailable, "try again when "+RefillFile+" is gone",
			"the restored warehouse is still being filled up"))
		return
	}
	f, release, err := a.freeze(r.Context())
	defer release()
	if err != nil {
		a.log.Error().Err(err).Msg("backup")
		httpapi.Fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(f); err != nil {
		return // the client is gone
	}
	_ = http.NewResponseController(w).Flush()
	select {
	case <-r.Context().Done():
	case <-httpapi.Stopping(r.Context()):
	}
}

// freeze keeps the stores in an order from which a restore can go on: first the commits of the sink, then the warehouse,
// which is at least that far, then the broker, which has every record that the warehouse has rows of and all that
// comes between. What a restored warehouse lacks of the restored broker's commits is read again (sink.Refill).
// Artifacts are copied behind both: they are there before a record names them, and do not change.
func (a *App) freeze(ctx context.Context) (f Frozen, release func(), err error) {
	var held []func() error
	release = func() {
		for _, r := range held {
			if err := r(); err != nil {
				a.log.Warn().Err(err).Msg("links of a backup stay until the next start")
			}
		}
	}
	f.Time = time.Now().UTC()
	if a.engine != nil {
		reached, err := sink.ReachedBy(ctx, a.sinkConfig())
		if err != nil {
			return f, release, fmt.Errorf("how far the sink is: %w", err)
		}
		engine, err := a.engine.Freeze(ctx, a.db)
		held = append(held, engine.Release)
		if err != nil {
			return f, release, err
		}
		f.Refill, f.Engine = &reached, &engine
	}
	if a.broker != nil {
		moment, err := a.broker.Freeze(ctx)
		held = append(held, moment.Release)
		if err != nil {
			return f, release, err
		}
		f.Broker = &moment
	}
	return f, release, nil
}

// refill works off RefillFile, where there is one.
func (a *App) refill(ctx context.Context, s *sink.Service) error {
	file := filepath.Join(a.opt.Dir, RefillFile)
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var from sink.Reached
	if err == nil {
		err = json.Unmarshal(raw, &from)
	}
	if err != nil {
		return fmt.Errorf("%s, which says from where the restored warehouse is to be filled: %w", file, err)
	}
	for {
		began := time.Now()
		done, err := s.Refill(ctx, from)
		if err == nil {
			for _, lost := range done.Lost {
				a.log.Error().Str("range", lost).Msg("the restored warehouse lacks records that cannot be read again; see docs/sink.md, backup")
			}
			a.log.Info().Int64(
				"labels",
				done.Labels,
			).Int64(
				"there",
				done.There,
			).Int64(
				"mirrored",
				done.Mirrored,
			).Dur(
				"took",
				time.Since(began),
			).Msg(
				"the restored warehouse is filled up to the commits",
			)
			return os.Remove(file)
		}
		a.log.Warn().Err(err).Dur("retry_in", refillPause).Msg("the restored warehouse is not filled yet")
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(refillPause):
		}
	}
}

// refillBeside is refill in a process that has the engine and not the sink.
func (a *App) refillBeside(ctx context.Context) error {
	s, err := sink.New(a.sinkConfig(), a.db, a.log, prometheus.NewRegistry())
	if err == nil {
		err = a.refill(ctx, s)
	}
	if err == nil {
		<-ctx.Done()
	}
	return err
}

// refillPause is the time between two attempts.
const refillPause = 2 * time.Second
