//go:build unix && !linux

package two

import "syscall"

// childAttr: a group of its own. Only Linux has a parent-death signal.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
