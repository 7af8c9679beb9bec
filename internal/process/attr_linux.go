package process

import "syscall"

// sysProcAttr starts children in a group of their own, killed when the thread that started them ends.
func sysProcAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
