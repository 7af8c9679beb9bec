package warehouse

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// openPTY opens a pseudo terminal: what the parent holds, and what becomes the child's stdin.
func openPTY() (master, slave *os.File, err error) {
	m, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open a pseudo terminal for the engine: %w", err)
	}
	fail := func(err error) (*os.File, *os.File, error) {
		_ = m.Close()
		return nil, nil, fmt.Errorf("set up a pseudo terminal for the engine: %w", err)
	}
	raw, err := m.SyscallConn() // unlike Fd(), leaves the file non-blocking: Close ends a pending Read
	if err != nil {
		return fail(err)
	}
	var n int
	var ioctl error
	err = raw.Control(func(fd uintptr) {
		if ioctl = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); ioctl == nil {
			n, ioctl = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err == nil {
		err = ioctl
	}
	if err != nil {
		return fail(err)
	}
	s, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	return m, s, nil
}

// setChildAttributes gives the child its own process group, so that Ctrl-C reaches only the parent, and
// ties its life to the thread that starts it (see process.run).
func setChildAttributes(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// lockFile takes the directory's lock without waiting.
func lockFile(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }
