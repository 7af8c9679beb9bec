//go:build unix && !linux

package process

import "syscall"

// sysProcAttr starts children in a group of their own. Only Linux has a parent-death signal: elsewhere children
// survive a parent killed with -9.
func sysProcAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
