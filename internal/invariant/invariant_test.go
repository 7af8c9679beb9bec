package invariant

import (
	"errors"
	"testing"
)

func panics(f func()) (did bool) {
	defer func() { did = recover() != nil }()
	f()
	return false
}

func TestChecksPanicOnlyWhenEnabled(t *testing.T) {
	if got := panics(func() { NoError("x", errors.New("broken")) }); got != Enabled {
		t.Errorf("NoError(error) panicked = %v, want %v", got, Enabled)
	}
	if got := panics(func() { True(false, "%d", 1) }); got != Enabled {
		t.Errorf("True(false) panicked = %v, want %v", got, Enabled)
	}
	if panics(func() { NoError("x", nil); True(true, "") }) {
		t.Error("a check that holds panicked")
	}
}
