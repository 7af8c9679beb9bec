package kafkatest

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed" // the pinned jars
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rs/zerolog"

	"ctrloop/internal/process"
)

//go:embed pom.xml
var pom []byte

// lock is what sha256sum prints for the jars of pom.
//
//go:embed jars.sha256
var lock []byte

// copyGoal is the Maven goal that resolves and copies, at a pinned version of its plugin.
const copyGoal = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"

// ErrMissing is wrapped by errors that say what a real broker needs and this machine lacks.
var ErrMissing = errors.New("a real Kafka broker cannot be started here")

// Jars returns the folder of the jars under home (see setup.Home), or an error that wraps ErrMissing. Files are
// checked by name; Fetch checks their content.
func Jars(home string) (string, error) {
	dir := jarsDir(home)
	for name := range pinned() {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return "", fmt.Errorf("%w: its jars are not in %s: run `make kafka-jars` (43 MB, once)", ErrMissing, dir)
		}
	}
	return dir, nil
}

// jarsDir is another folder for another lock, so that an update never changes jars in use.
func jarsDir(home string) string {
	sum := sha256.Sum256(lock)
	return filepath.Join(home, "kafka", hex.EncodeToString(sum[:])[:12])
}

// pinned returns the checksums by file name.
func pinned() map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(string(lock)) {
		if sum, name, ok := strings.Cut(strings.TrimSpace(line), "  "); ok {
			out[name] = sum
		}
	}
	return out
}

// Fetch makes sure that the jars are under home, whole, and returns their folder. What Maven says goes to progress.
func Fetch(ctx context.Context, home string, progress io.Writer) (string, error) {
	dir := jarsDir(home)
	if Verify(dir) == nil {
		return dir, nil
	}
	mvn, err := exec.LookPath("mvn")
	if err != nil {
		return "", fmt.Errorf(
			"%w: its jars are fetched with Maven, and there is no mvn on the PATH: install it, or copy %s from a machine that has it",
			ErrMissing,
			dir,
		)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", fmt.Errorf("folder of Kafka's jars: %w", err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".fetching-*")
	if err != nil {
		return "", fmt.Errorf("folder of Kafka's jars: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := os.WriteFile(filepath.Join(tmp, "pom.xml"), pom, 0o644); err != nil {
		return "", err
	}
	fmt.Fprintln(progress, "fetch  Apache Kafka's jars with Maven, 43 MB")
	libs := filepath.Join(tmp, "libs")
	err = process.Run(ctx, process.Spec{
		Name: "mvn", Path: mvn, Dir: tmp, Stdout: progress,
		Args: []string{
			"-q",
			"-B",
			"-Dstyle.color=never",
			"-f",
			filepath.Join(tmp, "pom.xml"),
			copyGoal,
			"-DincludeScope=runtime",
			"-DoutputDirectory=" + libs,
		},
	}, zerolog.Nop())
	if err != nil {
		return "", fmt.Errorf("fetch Kafka's jars: %w", err)
	}
	if err := Verify(libs); err != nil {
		return "", fmt.Errorf("fetched jars: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil { // incomplete or altered
		return "", fmt.Errorf("folder of Kafka's jars: %w", err)
	}
	if err := os.Rename(libs, dir); err != nil {
		return "", fmt.Errorf("folder of Kafka's jars: %w", err)
	}
	return dir, nil
}

// Verify holds every file of a folder against the lock: none missing, none altered, none more.
func Verify(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read the jars: %w", err)
	}
	want := pinned()
	var errs []error
	for _, e := range entries {
		raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return fmt.Errorf("read the jars: %w", err)
		}
		sum := sha256.Sum256(raw)
		switch pin, ok := want[e.Name()]; {
		case !ok:
			errs = append(errs, fmt.Errorf("%s is not in jars.sha256", e.Name()))
		case pin != hex.EncodeToString(sum[:]):
			errs = append(errs, fmt.Errorf("%s has sha256 %x, pinned is %s", e.Name(), sum, pin))
		}
		delete(want, e.Name())
	}
	missing := make([]string, 0, len(want))
	for name := range want {
		missing = append(missing, name)
	}
	slices.Sort(missing)
	for _, name := range missing {
		errs = append(errs, fmt.Errorf("%s is missing", name))
	}
	return errors.Join(errs...)
}

// minJava is the oldest Java that Kafka 4's broker runs on.
const minJava = 17

// Java returns the path of a Java that is new enough: JAVA_HOME's, or the one on the PATH.
func Java(ctx context.Context) (string, error) {
	path := filepath.Join(os.Getenv("JAVA_HOME"), "bin", "java")
	if os.Getenv("JAVA_HOME") == "" {
		var err error
		if path, err = exec.LookPath("java"); err != nil {
			return "", fmt.Errorf("%w: there is no java on the PATH: install a JDK or JRE %d or newer", ErrMissing, minJava)
		}
	}
	out, err := exec.CommandContext(ctx, path, "-XshowSettings:properties", "-version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s does not run: %w: %s", ErrMissing, path, err, bytes.TrimSpace(out))
	}
	version := 0
	for line := range strings.Lines(string(out)) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "java.specification.version = "); ok {
			_, _ = fmt.Sscanf(text, "%d", &version) // "1.8" reads as 1: too old, as it is
		}
	}
	if version < minJava {
		return "", fmt.Errorf("%w: %s is Java %d, want %d or newer", ErrMissing, path, version, minJava)
	}
	return path, nil
}
