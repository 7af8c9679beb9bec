package app

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/internal/setup"
	"ctrloop/internal/warehouse"
	"ctrloop/internal/warehouse/warehousetest"
	"ctrloop/serving/backend/vllmfake"
)

func TestMain(m *testing.M) {
	warehouse.MaybeChild()
	os.Exit(m.Run())
}

// inMemory are the options of an instance that is thrown away and has nothing set up: its broker is the stand-in.
func inMemory(t *testing.T, cfg Config, targets ...Target) Options {
	cfg.Kafka.Embedded = EmbeddedMemory
	return Options{
		Config: cfg, Targets: targets, Dir: t.TempDir(), Home: t.TempDir(), Throwaway: true, Version: "test", Log: zerolog.Nop(),
	}
}

// TestTargetsNeedOnlyWhatTheyUse starts each service alone on a machine where nothing is set up. What is given by address is
// not looked for there, and what is missing is named.
func TestTargetsNeedOnlyWhatTheyUse(t *testing.T) {
	const engine, python = "ClickHouse engine", "Python environment"
	server, err := vllmfake.Start(vllmfake.Config{Base: "prompt-base"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Kill)
	given, _ := warehousetest.Start(t, warehouse.Options{})

	everything := func(c *Config) {
		c.ClickHouse.DSN = given.DSN()
		c.Models.Servers = []string{server.Address()}
	}
	but := func(less func(*Config)) func(*Config) {
		return func(c *Config) { everything(c); less(c) }
	}
	noWarehouse := but(func(c *Config) { c.ClickHouse.DSN = "" })
	noModels := but(func(c *Config) { c.Models.Servers = nil })
	painted := but(func(c *Config) { c.Images.Backend, c.Images.Server = ImagesDiffusion, "http://127.0.0.1:1" })
	paintedElsewhere := but(func(c *Config) {
		c.Images.Backend, c.Images.Server, c.Images.Model = ImagesDiffusion, "http://127.0.0.1:1", "a folder of the server's machine"
	})
	paintedHere := but(func(c *Config) { c.Images.Backend = ImagesDiffusion })
	for name, test := range map[string]struct {
		target  Target
		change  func(*Config)
		missing string
	}{
		"ingest":                          {Ingest, func(*Config) {}, ""},
		"joiner":                          {Joiner, func(*Config) {}, ""},
		"sink":                            {Sink, everything, ""},
		"sink, no warehouse":              {Sink, noWarehouse, engine},
		"pairer":                          {Pairer, noModels, ""},
		"pairer, no warehouse":            {Pairer, noWarehouse, engine},
		"serving":                         {Serving, everything, ""},
		"serving, no warehouse":           {Serving, noWarehouse, engine},
		"serving, no models":              {Serving, noModels, python},
		"serving, an image server":        {Serving, painted, ""},
		"serving, one with its own model": {Serving, paintedElsewhere, ""},
		"serving, no image server":        {Serving, paintedHere, python},
		"trainer":                         {Trainer, everything, python},
		"trainer, no warehouse":           {Trainer, noWarehouse, python},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("LIBCHDB", "")
			cfg := Default()
			test.change(&cfg)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			a, err := Start(ctx, inMemory(t, cfg, test.target))
			if err == nil {
				a.Stop()
			}
			wanted := ""
			if lacks, ok := errors.AsType[*setup.MissingError](err); ok {
				wanted, err = lacks.What, nil
			}
			if err != nil || wanted != test.missing {
				t.Errorf("wants %q, error %v; it uses %q", wanted, err, test.missing)
			}
		})
	}
}
