package main

import "errors"

// StatusCmd is being written.
type StatusCmd struct{}

// Run reports that the command is not there yet.
func (c *StatusCmd) Run() error { return errors.New("not there yet") }
