// Command container runs Apache Kafka in a container until its standard input ends; package kafkatest starts it. It is a
// module of its own so that the one above it does not get the fifty modules of a container engine's client.
//
//	container IMAGE PORT [PROPERTY=VALUE]...
//
// It takes the port on the engine's host, sets the broker's properties, and prints "kafka HOST:PORT" when the broker has
// started. The exit code is 3 where no container engine answers or the image can neither be found nor pulled.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

// exitMissing says that the machine lacks what it takes.
const exitMissing = 3

// startTimeout bounds the start, without the pull: a broker beside much other work has taken more than a minute.
const startTimeout = 4 * time.Minute

var errMissing = errors.New("no container can be started here")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		if errors.Is(err, errMissing) {
			os.Exit(exitMissing)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	if len(args) < 2 {
		return errors.New("usage: container IMAGE PORT [PROPERTY=VALUE]... (want an image and a port)")
	}
	image, properties := args[0], args[2:]
	port, err := network.ParsePort(args[1] + "/tcp")
	if err != nil {
		return fmt.Errorf("port %q: %w", args[1], err)
	}
	host, err := engine(ctx, image)
	if err != nil {
		return err
	}
	address := fmt.Sprintf("%s:%d", host, port.Num())
	env := environment(append(properties,
		// The port inside is the one outside: clients go to the address that the broker names.
		fmt.Sprintf("listeners=PLAINTEXT://:%d,CTL://:%d", port.Num(), port.Num()+1),
		"advertised.listeners=PLAINTEXT://"+address,
		"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CTL:PLAINTEXT", "controller.listener.names=CTL",
		fmt.Sprintf("controller.quorum.voters=1@localhost:%d", port.Num()+1),
		"process.roles=broker,controller", "node.id=1",
	))
	broker, err := testcontainers.Run(ctx, image,
		testcontainers.WithEnv(env),
		testcontainers.WithExposedPorts(port.String()),
		testcontainers.WithHostConfigModifier(func(c *container.HostConfig) {
			c.PortBindings = network.PortMap{port: {{HostIP: publishedOn(host), HostPort: fmt.Sprint(port.Num())}}}
		}),
		// The strategy has a bound of its own, a minute unless it is told.
		testcontainers.WithWaitStrategyAndDeadline(startTimeout, wait.ForLog("Kafka Server started").WithStartupTimeout(startTimeout)),
	)
	defer func() { // a container that did not start is there too
		err = errors.Join(err, testcontainers.TerminateContainer(broker))
	}()
	if err != nil {
		return fmt.Errorf("start %s: %w", image, err)
	}
	fmt.Printf("kafka %s\n", address)
	ended := make(chan struct{})
	go func() { // the parent may die without a word: its end of the pipe is closed then
		defer close(ended)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	select {
	case <-ctx.Done():
	case <-ended:
	}
	return nil
}

// engine makes sure that there is one and that it has the image, and returns the host where ports of containers are.
func engine(ctx context.Context, image string) (string, error) {
	p, err := testcontainers.NewDockerProvider()
	if err != nil {
		return "", fmt.Errorf("%w: no container engine is found, start one or set DOCKER_HOST: %w", errMissing, err)
	}
	defer func() { _ = p.Close() }()
	if err := p.Health(ctx); err != nil {
		return "", fmt.Errorf("%w: the container engine does not answer: %w", errMissing, err)
	}
	images, err := p.ListImages(ctx)
	if err != nil {
		return "", err
	}
	if !slices.ContainsFunc(images, func(i testcontainers.ImageInfo) bool { return i.Name == image }) {
		if err := p.PullImage(ctx, image); err != nil {
			return "", fmt.Errorf("%w: pull %s: %w", errMissing, image, err)
		}
	}
	host, err := p.DaemonHost(ctx)
	if err != nil {
		return "", fmt.Errorf("host of the container engine: %w", err)
	}
	return host, nil
}

// publishedOn is loopback where the engine is on this machine, and every address of its host where it is not.
func publishedOn(host string) netip.Addr {
	if address, err := netip.ParseAddr(host); host == "localhost" || err == nil && address.IsLoopback() {
		return netip.MustParseAddr("127.0.0.1")
	}
	return netip.Addr{}
}

// environment says properties of a broker as the image wants them: KAFKA_NODE_ID for node.id.
func environment(properties []string) map[string]string {
	out := map[string]string{}
	for _, p := range properties {
		name, value, _ := strings.Cut(p, "=")
		out["KAFKA_"+strings.ToUpper(strings.ReplaceAll(name, ".", "_"))] = value
	}
	return out
}
