package main

import "errors"

// ConfigCmd is being written.
type ConfigCmd struct{}

// Run reports that the command is not there yet.
func (c *ConfigCmd) Run() error { return errors.New("not there yet") }
