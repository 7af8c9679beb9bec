package kfake

// This file is not part of upstream: README.md in this folder says what it adds and why.

import "errors"

// Still calls fn while the broker changes nothing on disk: what is there is
// what kill -9 at this moment would leave. All of the broker waits meanwhile.
// Files that fn finds are appended to afterwards, or replaced by rename, and
// never written over: a hard link and the size keep their state.
func (c *Cluster) Still(fn func()) error {
	done := make(chan struct{})
	select {
	case c.adminCh <- func() { defer close(done); fn() }:
		<-done
		return nil
	case <-c.die:
		return errors.New("the broker is closed")
	}
}
