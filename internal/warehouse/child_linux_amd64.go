package warehouse

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/ebitengine/purego"
)

// platformError says why the engine cannot run here; nil: it can. libchdb with network handlers is
// published for linux-x64 only (arm64 and macOS are announced).
func platformError() error { return nil }

// runChild loads libchdb and runs clickhouse-local with the arguments of this process until it exits.
func runChild(lib string, args []string) error {
	if err := confine(os.Getenv("HOME"), lib); err != nil { // HOME is the engine's directory
		return err
	}
	libc, err := purego.Dlopen("libc.so.6", purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return fmt.Errorf("load libc: %w", err)
	}
	var sigaction func(sig int32, act, old unsafe.Pointer) int32
	purego.RegisterLibFunc(&sigaction, libc, "sigaction")
	h, err := purego.Dlopen(lib, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return fmt.Errorf("load %s: %w; run `ctrloop setup` to fetch it again", lib, err)
	}
	for _, name := range []string{"chdb_set_signal_handlers_enabled", "chdb_query_cmdline"} {
		if _, err := purego.Dlsym(h, name); err != nil {
			return fmt.Errorf("%s lacks %s, so it is not the pinned version; run `ctrloop setup`", lib, name)
		}
	}
	var setSignalHandlers func(enabled int32)
	var queryCmdline func(argc int32, argv unsafe.Pointer) unsafe.Pointer
	var resultError func(r unsafe.Pointer) string
	purego.RegisterLibFunc(&setSignalHandlers, h, "chdb_set_signal_handlers_enabled")
	purego.RegisterLibFunc(&queryCmdline, h, "chdb_query_cmdline")
	purego.RegisterLibFunc(&resultError, h, "chdb_result_error")
	keepSignals(sigaction, func() { setSignalHandlers(0) })

	var pins runtime.Pinner
	defer pins.Unpin()
	argv := cArgv(&pins, append([]string{"clickhouse"}, args...)) // without the word "local"
	r := queryCmdline(int32(len(args)+1), argv)
	if r == nil {
		return errors.New("the engine ended without a result")
	}
	if e := resultError(r); e != "" {
		return errors.New(e)
	}
	return nil
}

// keepSignals runs f and puts back every signal disposition that f changed: handlers of the library
// would run on Go's stacks and Go's would be gone.
func keepSignals(sigaction func(sig int32, act, old unsafe.Pointer) int32, f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	type action [256]byte // struct sigaction, generously; the handler is its first word
	var before, after [65]action
	for i := int32(1); i <= 64; i++ {
		sigaction(i, nil, unsafe.Pointer(&before[i]))
	}
	f()
	for i := int32(1); i <= 64; i++ {
		sigaction(i, nil, unsafe.Pointer(&after[i]))
		if *(*uintptr)(unsafe.Pointer(&before[i])) != *(*uintptr)(unsafe.Pointer(&after[i])) {
			sigaction(i, unsafe.Pointer(&before[i]), nil)
		}
	}
}

// cArgv is a NULL-terminated argv in pinned Go memory.
func cArgv(p *runtime.Pinner, args []string) unsafe.Pointer {
	v := make([]unsafe.Pointer, len(args)+1)
	for i, a := range args {
		b := append([]byte(a), 0)
		p.Pin(&b[0])
		v[i] = unsafe.Pointer(&b[0])
	}
	p.Pin(&v[0])
	return unsafe.Pointer(&v[0])
}
