package kafkatest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLockNamesTheBroker(t *testing.T) {
	pins := pinned()
	for name, sum := range pins {
		if len(sum) != 64 || filepath.Ext(name) != ".jar" {
			t.Errorf("%s: %q", name, sum)
		}
	}
	if _, ok := pins["kafka_2.13-"+Version+".jar"]; !ok || len(pins) < 20 {
		t.Errorf("%d jars, the broker's among them: %v", len(pins), ok)
	}
}

func TestMissingJarsSayHowToGetThem(t *testing.T) {
	_, err := Jars(t.TempDir())
	if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "make kafka-jars") {
		t.Error(err)
	}
}

func TestVerifyFindsEveryDifference(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"kafka_2.13-4.4.0.jar": "altered", "other.jar": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	err := Verify(dir)
	for _, want := range []string{"kafka_2.13-4.4.0.jar has sha256", "other.jar is not in", "kafka-clients-4.4.0.jar is missing"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
}

func TestOldJavaIsRefused(t *testing.T) {
	home := t.TempDir()
	if err := os.MkdirAll(filepath.Join(home, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\necho '    java.specification.version = 1.8' >&2\n"
	if err := os.WriteFile(filepath.Join(home, "bin", "java"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("JAVA_HOME", home)
	if _, err := Java(t.Context()); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "want 17") {
		t.Error(err)
	}
}
