package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/app"
	"ctrloop/internal/broker"
	"ctrloop/internal/httpapi"
	"ctrloop/internal/setup"
	"ctrloop/internal/stream"
)

// errNotRunning means that no instance runs on a folder.
var errNotRunning = errors.New("no instance runs")

// readInstance reads the addresses of the instance that runs on dir, errNotRunning where none left any.
func readInstance(dir string) (app.Addresses, error) {
	var i app.Addresses
	raw, err := os.ReadFile(filepath.Join(dir, app.RunFile))
	if errors.Is(err, fs.ErrNotExist) {
		return i, fmt.Errorf("%w on %s", errNotRunning, dir)
	}
	if err != nil {
		return i, fmt.Errorf("find the instance on %s: %w", dir, err)
	}
	if err := json.Unmarshal(raw, &i); err != nil {
		return i, fmt.Errorf("find the instance on %s: %s: %w", dir, app.RunFile, err)
	}
	return i, nil
}

// brokersAt returns the topics' brokers: the configured ones, the running instance's, or the folder's own one, started.
func brokersAt(ctx context.Context, dir, home string, conf stream.Config) (_ stream.Config, stop func(), err error) {
	if len(conf.Brokers) > 0 {
		return conf, func() {}, nil
	}
	running, err := readInstance(dir)
	if err == nil && running.Kafka != "" {
		conf.Brokers = strings.Split(running.Kafka, ",")
	} else if err != nil && !errors.Is(err, errNotRunning) {
		return conf, nil, err
	}
	data := filepath.Join(dir, app.KafkaFolder)
	if _, err := os.Stat(data); err != nil {
		if len(conf.Brokers) > 0 { // of a cluster: the instance's configuration has it
			return conf, func() {}, nil
		}
		return conf, nil, withHint(
			fmt.Errorf("there are no topics in %s: %w", dir, err),
			"name the folder of an instance with --dir, or its configuration with --config",
		)
	}
	// A run.json may be all that is left of an instance that was killed: whether the folder can be taken tells.
	b, err := startBroker(ctx, data, home)
	switch {
	case errors.Is(err, broker.ErrInUse) && len(conf.Brokers) > 0:
		return conf, func() {}, nil
	case errors.Is(err, broker.ErrInUse):
		return conf, nil, withHint(err, "another ctrloop works on this folder; wait for it to start or to end")
	case err != nil:
		return conf, nil, err
	}
	conf.Brokers = b.Brokers()
	return conf, b.Stop, nil
}

// embeddedBroker starts a broker in a folder, for a benchmark.
func embeddedBroker(g *Globals) func(context.Context, string) (*broker.Broker, error) {
	return func(ctx context.Context, dir string) (*broker.Broker, error) { return startBroker(ctx, dir, g.Home) }
}

// startBroker starts the broker of an instance's folder that does not run, for one question.
func startBroker(ctx context.Context, folder, home string) (*broker.Broker, error) {
	home, err := setup.Home(home)
	if err != nil {
		return nil, err
	}
	program, err := setup.Kafka(home)
	if err != nil {
		return nil, err
	}
	return broker.Start(ctx, broker.Config{Program: program, Dir: folder}, zerolog.Nop(), prometheus.NewRegistry())
}

// clientOf asks an instance that runs on this machine, with the token in its folder: whoever may read that may do everything.
func clientOf(i app.Addresses, timeout time.Duration) *http.Client {
	return httpapi.NewClient(i.Token, userName(), timeout, i.API, i.Edge, i.Admin)
}

// userName is the user of this machine, "" where nobody knows.
func userName() string {
	u, err := user.Current()
	if err != nil {
		return ""
	}
	return u.Username
}
