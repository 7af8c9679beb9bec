//go:build invariants || race

package invariant

import "fmt"

// Enabled says whether checks run in this build. Guard with it the computation of what is checked.
const Enabled = true

// NoError panics when err is not nil. The caller says what was being held, e.g. "ledger of partition 3".
func NoError(what string, err error) {
	if err != nil {
		panic(fmt.Sprintf("invariant violated: %s: %v", what, err))
	}
}

// True panics with the formatted message when ok is false.
func True(ok bool, format string, args ...any) {
	if !ok {
		panic("invariant violated: " + fmt.Sprintf(format, args...))
	}
}
