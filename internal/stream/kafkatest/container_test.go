package kafkatest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// script stands for the starter.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "starter")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestNoContainerEngineIsMissing(t *testing.T) {
	t.Setenv("CTRLOOP_TEST_KAFKA_IMAGE", "")
	_, err := StartContainer(t.Context(), script(t, "echo no engine for $1 >&2; exit 3\n"))
	if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "no engine for "+Image) {
		t.Error(err)
	}
}

func TestAnotherImage(t *testing.T) {
	t.Setenv("CTRLOOP_TEST_KAFKA_IMAGE", "built-here/kafka:1")
	_, err := StartContainer(t.Context(), script(t, "echo no engine for $1 >&2; exit 3\n"))
	if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "no engine for built-here/kafka:1") {
		t.Error(err)
	}
}

func TestContainerThatFailsIsNoReasonToSkip(t *testing.T) {
	_, err := StartContainer(t.Context(), script(t, "echo the port is taken >&2; exit 1\n"))
	if err == nil || errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "the port is taken") {
		t.Error(err)
	}
}
