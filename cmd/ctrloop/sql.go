package main

import "errors"

// SQLCmd is being written.
type SQLCmd struct{}

// Run reports that the command is not there yet.
func (c *SQLCmd) Run() error { return errors.New("not there yet") }
