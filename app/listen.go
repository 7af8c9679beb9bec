package app

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"ctrloop/internal/access"
	"ctrloop/internal/httpapi"
	"ctrloop/internal/stream"
	"ctrloop/internal/telemetry"
)

// TokensFile is where the tokens of an instance with this configuration and folder are.
func TokensFile(cfg Config, dir string) string {
	if cfg.Auth.TokensFile != "" {
		return cfg.Auth.TokensFile
	}
	return filepath.Join(dir, access.TokensFile)
}

// openDoor reads the tokens, draws the one of whoever may read the folder, and makes the kit of all listeners.
func (a *App) openDoor(context.Context) error {
	store, err := access.Open(TokensFile(a.cfg, a.opt.Dir), time.Now)
	if err != nil {
		return err
	}
	a.addresses.Token = store.Own()
	a.check("tokens", func(context.Context) error { return store.Problem() })
	a.who = httpapi.NewTokens(store)
	a.kit, err = httpapi.New(a.cfg.Limits, a.cfg.Auth, a.log, a.registry, a.who)
	return err
}

// listen starts an HTTP listener and returns its address.
func (a *App) listen(name, address string, routes []httpapi.Route) (string, error) {
	gate := a.ready.Gate(name)
	server, err := a.kit.Listen(name, address, routes...)
	if err != nil {
		return "", err
	}
	a.actors.start(name, func(ctx context.Context) error {
		gate.Healthy()
		err := server.Run(ctx)
		gate.Unhealthy("stopped")
		return err
	})
	return server.Addr(), nil
}

// Client asks this process's own listeners with its own token, for programs that run it inside of them.
func (a *App) Client(timeout time.Duration) *http.Client {
	return httpapi.NewClient(a.addresses.Token, "", timeout, a.addresses.API, a.addresses.Edge, a.addresses.Admin)
}

// work is what a part tries for ever; its gate closes when that fails for long.
func (a *App) work(part string) *telemetry.Work {
	return telemetry.NewWork(a.ready.Gate(part), stream.Explain)
}

// check is something that is asked again and again whether it can do its work.
type check struct {
	gate *telemetry.Gate
	ask  func(context.Context) error
}

// checkEvery is the pace of checks, and the most that one may take.
const checkEvery = 2 * time.Second

// check has a part asked, once all are started.
func (a *App) check(name string, ask func(context.Context) error) {
	a.checks = append(a.checks, check{a.ready.Gate(name), ask})
}

// watch asks each part at its pace until ctx is done, so that /readyz becomes false when one cannot work, and true again.
func (a *App) watch(ctx context.Context) error {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		for _, c := range a.checks {
			asked, cancel := context.WithTimeout(ctx, checkEvery)
			err := c.ask(asked)
			cancel()
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("it does not answer within %v", checkEvery)
			}
			c.gate.Report(err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
