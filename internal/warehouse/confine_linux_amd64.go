package warehouse

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// confinedEnv is set in the engine's process once it has given up its rights.
const confinedEnv = "CTRLOOP_WAREHOUSE_CONFINED"

// Rights on files that ABI 3 of Landlock knows.
const (
	fsRead  = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	fsRun   = fsRead | unix.LANDLOCK_ACCESS_FS_EXECUTE
	fsWrite = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE |
		unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SYM | unix.LANDLOCK_ACCESS_FS_REFER
	fsAll = fsRun | fsWrite |
		unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO |
		unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK
	fsOnFile = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_READ_FILE |
		unix.LANDLOCK_ACCESS_FS_TRUNCATE
)

// confine gives up, with the kernel's help, what the engine must not have: files outside of its data (the
// passwords beside them too), and connections to anywhere. The engine alone does not see to that: as a
// clickhouse-local it lets the function file() of any user read any path. It starts this program again,
// because the kernel confines a thread, and a new program starts with one. Where the kernel has no Landlock
// of ABI 3 (Linux 6.2), it does nothing.
func confine(dir, lib string) error {
	if os.Getenv(confinedEnv) != "" {
		return nil
	}
	abi := landlockABI()
	if abi < confineABI {
		return nil
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program to start it confined: %w", err)
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: fsAll}
	size := unsafe.Sizeof(attr.Handled_access_fs)
	if abi >= 4 && os.Getenv(connectEnv) == "" {
		attr.Handled_access_net = unix.LANDLOCK_ACCESS_NET_CONNECT_TCP // no rule allows any
		size += unsafe.Sizeof(attr.Handled_access_net)
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return fmt.Errorf("confine the engine: %w", errno)
	}
	ruleset := int(fd)
	rules := []struct {
		access uint64
		paths  []string
	}{
		{fsAll, []string{filepath.Join(dir, "data"), filepath.Join(dir, "log")}},
		{fsRead, []string{filepath.Join(dir, "config.xml"), filepath.Join(dir, "users.xml")}},
		{fsRun, []string{exe, lib, "/lib", "/lib64", "/usr/lib", "/usr/lib64"}},
		// Figures of the machine and of the process itself: not the environments of other processes.
		{
			fsRead,
			[]string{
				fmt.Sprintf("/proc/%d", os.Getpid()),
				"/proc/meminfo",
				"/proc/cpuinfo",
				"/proc/stat",
				"/proc/loadavg",
				"/proc/uptime",
				"/proc/vmstat",
				"/proc/sys",
				"/sys",
			},
		},
		{
			fsRead,
			[]string{
				"/etc/ld.so.cache",
				"/etc/localtime",
				"/etc/hosts",
				"/etc/nsswitch.conf",
				"/usr/share/zoneinfo",
				"/dev/urandom",
				"/dev/random",
				"/dev/zero",
			},
		},
		{fsRead | unix.LANDLOCK_ACCESS_FS_WRITE_FILE, []string{"/dev/null", "/dev/tty"}},
	}
	for _, r := range rules {
		for _, path := range r.paths {
			if err := allow(ruleset, path, r.access); err != nil {
				return err
			}
		}
	}
	// The confinement is the thread's; exec leaves this thread alone.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("confine the engine: %w", err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(ruleset), 0, 0); errno != 0 {
		return fmt.Errorf("confine the engine: %w", errno)
	}
	_ = unix.Close(ruleset)
	return fmt.Errorf("start the engine confined: %w", unix.Exec(exe, os.Args, append(os.Environ(), confinedEnv+"=1")))
}

// confineABI is the oldest Landlock that knows all of fsAll.
const confineABI = 3

// landlockABI is 0 where the kernel has none.
func landlockABI() int {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(abi)
}

// confinable says whether confine does something here.
func confinable() bool { return landlockABI() >= confineABI }

// allow adds a rule; what is not there needs none.
func allow(ruleset int, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("confine the engine: %s: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("confine the engine: %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		access &= fsOnFile // the kernel refuses rights of folders on files
	}
	beneath := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(fd)}
	if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH,
		uintptr(unsafe.Pointer(&beneath)), 0, 0, 0); errno != 0 {
		return fmt.Errorf("confine the engine: %s: %w", path, errno)
	}
	return nil
}
