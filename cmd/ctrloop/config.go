package main

import (
	"errors"
	"fmt"

	"ctrloop/app"
	"ctrloop/docs"
	"ctrloop/internal/config"
)

// ConfigCmd is `ctrloop config`.
type ConfigCmd struct {
	Check ConfigCheckCmd `cmd:"" help:"List every problem of a file; exit code 2 if there is one."`
	Show  ConfigShowCmd  `cmd:"" help:"Print the configuration in effect, without secrets."`
	Docs  ConfigDocsCmd  `cmd:"" help:"Print the reference of every key."`
}

// ConfigCheckCmd is `ctrloop config check`.
type ConfigCheckCmd struct {
	File string `arg:"" help:"The configuration file."`
	JSON bool   `name:"json" help:"Print JSON."`
}

// configCheck is what `config check --json` prints.
type configCheck struct {
	File     string           `json:"file"`
	OK       bool             `json:"ok"`
	Problems []config.Problem `json:"problems"`
}

// Run checks the file.
func (c *ConfigCheckCmd) Run(out *output) error {
	_, err := config.Load(c.File, app.Default())
	if c.JSON {
		result := configCheck{File: c.File, OK: err == nil, Problems: []config.Problem{}}
		if wrong, ok := errors.AsType[*config.Error](err); ok {
			result.Problems = wrong.Problems
		}
		if err := out.printJSON(result); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	if !c.JSON {
		_, err = fmt.Fprintf(out.stdout, "%s: ok\n", c.File)
	}
	return err
}

// ConfigShowCmd is `ctrloop config show`.
type ConfigShowCmd struct {
	File string `arg:"" optional:"" help:"The configuration file; without one, the defaults."`
}

// Run prints the configuration.
func (c *ConfigShowCmd) Run(out *output) error {
	tree, err := config.Load(c.File, app.Default())
	if err != nil {
		return err
	}
	shown, err := config.Show(tree)
	if err != nil {
		return fmt.Errorf("show the configuration: %w", err)
	}
	_, err = out.stdout.Write(shown)
	return err
}

// ConfigDocsCmd is `ctrloop config docs`.
type ConfigDocsCmd struct {
	Source string `help:"Generate the page from the source in this folder, for development." type:"existingdir" placeholder:"DIR"`
}

// Run prints the reference page.
func (c *ConfigDocsCmd) Run(out *output) error {
	page := []byte(docs.Config)
	if c.Source != "" {
		var err error
		if page, err = config.Docs(c.Source, "ctrloop", app.Default()); err != nil {
			return fmt.Errorf("generate the configuration reference: %w", err)
		}
	}
	_, err := out.stdout.Write(page)
	return err
}
