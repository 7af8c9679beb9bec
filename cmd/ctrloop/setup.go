package main

import "errors"

// SetupCmd is being written.
type SetupCmd struct{}

// Run reports that the command is not there yet.
func (c *SetupCmd) Run() error { return errors.New("not there yet") }
