package main

import (
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

	"ctrloop/app"
	"ctrloop/internal/httpapi"
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
func brokersAt(dir string, conf stream.Config) (_ stream.Config, stop func(), err error) {
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
	e, err := stream.StartEmbedded(stream.EmbeddedConfig{Dir: data})
	switch {
	case errors.Is(err, stream.ErrInUse) && len(conf.Brokers) > 0:
		return conf, func() {}, nil
	case errors.Is(err, stream.ErrInUse):
		return conf, nil, withHint(err, "another ctrloop works on this folder; wait for it to start or to end")
	case err != nil:
		return conf, nil, err
	}
	conf.Brokers = e.Brokers()
	return conf, e.Close, nil
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
