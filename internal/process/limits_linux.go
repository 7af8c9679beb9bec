package process

import (
	"fmt"
	"os/exec"
	"strconv"

	"golang.org/x/sys/unix"
)

// confineThread binds this thread to as many processors as a child may use, which the child inherits; undo gives the thread its own
// back. No cgroup: making one needs rights that a service seldom has.
func (l Limits) confineThread() (undo func(), err error) {
	var own, some unix.CPUSet
	if l.CPUs <= 0 {
		return func() {}, nil
	}
	if err := unix.SchedGetaffinity(0, &own); err != nil {
		return nil, fmt.Errorf("processors of this process: %w", err)
	}
	for cpu, left := 0, l.CPUs; left > 0 && cpu < 64*len(own); cpu++ {
		if own.IsSet(cpu) {
			some.Set(cpu)
			left--
		}
	}
	if err := unix.SchedSetaffinity(0, &some); err != nil {
		return nil, fmt.Errorf("limit to %d processors: %w", l.CPUs, err)
	}
	return func() { _ = unix.SchedSetaffinity(0, &own) }, nil
}

// command is the program under its limit of memory. A shell sets it, because a limit that is set after the start comes too late for
// what the program does first, and one that is set before is this process's own.
func (l Limits) command(path string, args []string) *exec.Cmd {
	if l.MemoryBytes <= 0 {
		return exec.Command(path, args...)
	}
	kib := strconv.FormatInt(max(1, l.MemoryBytes>>10), 10)
	cmd := exec.Command("/bin/sh", append([]string{"-c", `ulimit -d "$0" && exec "$@"`, kib, path}, args...)...)
	if _, err := exec.LookPath(path); err != nil {
		cmd.Err = err // as it would be without the shell
	}
	return cmd
}
