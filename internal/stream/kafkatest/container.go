package kafkatest

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"ctrloop/internal/setup"
	"ctrloop/internal/stream"
)

// Image of the broker in a container.
const Image = "apache/kafka:" + setup.KafkaVersion

// image is the one of CTRLOOP_TEST_KAFKA_IMAGE, where one that was built on this machine stands for the public one.
func image() string { return cmp.Or(os.Getenv("CTRLOOP_TEST_KAFKA_IMAGE"), Image) }

// starterExit is the exit code with which the starter says that no container can be started on this machine.
const starterExit = 3

// pullTimeout bounds the start of a container whose image is not there yet.
const pullTimeout = 10 * time.Minute

// BuildStarter builds the program that starts containers, at path. It is a module of its own, see its doc: the client of
// a container engine would otherwise be in the list of what ctrloop depends on.
func BuildStarter(ctx context.Context, path string) error {
	list := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", "ctrloop/internal/stream/kafkatest")
	dir, err := list.Output()
	if err != nil {
		return fmt.Errorf("find the starter of containers: %w", err)
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", path, ".")
	build.Dir = filepath.Join(strings.TrimSpace(string(dir)), "container")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the starter of containers: %w: %s", err, out)
	}
	return nil
}

// Container is a broker in a container. It can only be stopped; one goroutine at a time uses it.
type Container struct {
	cmd     *exec.Cmd
	stdin   io.Closer // closed: the starter takes the container away and ends
	address string
}

// StartContainer starts a broker with a starter that BuildStarter has built, and returns when it answers. It fails with
// ErrMissing where there is no container engine, or no image and no way to pull it.
func StartContainer(ctx context.Context, starter string) (*Container, error) {
	port, err := freePort() // of this machine: on another engine's host it is a guess
	if err != nil {
		return nil, err
	}
	properties := slices.Concat(replication(1), tuning)
	c := &Container{cmd: exec.Command(starter, append([]string{image(), strconv.Itoa(port)}, properties...)...)}
	var said bytes.Buffer
	c.cmd.Stderr = &said
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the starter of containers: %w", err)
	}
	late := time.AfterFunc(pullTimeout, func() { _ = c.cmd.Process.Signal(os.Interrupt) }) // it cleans up and ends
	lines := bufio.NewScanner(out)
	for c.address == "" && lines.Scan() {
		c.address, _ = strings.CutPrefix(lines.Text(), "kafka ")
	}
	late.Stop()
	if c.address == "" {
		err := c.cmd.Wait()
		if c.cmd.ProcessState.ExitCode() == starterExit {
			return nil, fmt.Errorf("%w: %s", ErrMissing, bytes.TrimSpace(said.Bytes()))
		}
		return nil, fmt.Errorf("start a container: %w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	if err := await(ctx, c.Config(), nil); err != nil {
		c.Kill()
		return nil, fmt.Errorf("the broker in a container does not answer: %w", err)
	}
	return c, nil
}

// Config reaches the broker.
func (c *Container) Config() stream.Config {
	conf := stream.Default()
	conf.Brokers = []string{c.address}
	return conf
}

// Stop takes the container away.
func (c *Container) Stop() error {
	err := c.stdin.Close()
	return errors.Join(err, c.cmd.Wait())
}

// Kill is Stop, without a word about how it went.
func (c *Container) Kill() { _ = c.Stop() }
