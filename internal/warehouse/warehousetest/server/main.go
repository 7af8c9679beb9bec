// Command server stands for a ClickHouse server in a container where no image of one can be had: it is the embedded engine
// behind the two ports of a server, so that another container can be told its address. It is for tests: the engine is
// clickhouse-local made to listen, and has no users, clusters or keeper beyond what ctrloop needs.
//
//	server                                                       run until SIGTERM, on ports 9000 and 8123 of every address
//	clickhouse-client --user U --password P --query SQL          ask the one that runs here (the same program by another name)
//
// The environment is that of the image clickhouse/clickhouse-server: CLICKHOUSE_USER, CLICKHOUSE_DB and CLICKHOUSE_PASSWORD.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"ctrloop/internal/telemetry"
	"ctrloop/internal/warehouse"
)

// Where things are in the image that deploy/local/images.sh makes.
const (
	library = "/usr/local/lib/libchdb.so"
	folder  = "/var/lib/clickhouse"
)

// user is the only one of the engine that may write.
const user = "ctrloop"

// Ports of a ClickHouse server.
const (
	nativePort = "9000"
	httpPort   = "8123"
)

// Bounds of the start and the stop of the engine.
const (
	startTimeout = time.Minute
	stopGrace    = 8 * time.Second // a container has 10 s
)

func main() {
	warehouse.MaybeChild() // the engine's process is this program again
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := serve
	if filepath.Base(os.Args[0]) == "clickhouse-client" {
		run = ask
	}
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serve runs the engine and passes connections on to it.
func serve(ctx context.Context) (err error) {
	for name, only := range map[string]string{"CLICKHOUSE_USER": user, "CLICKHOUSE_DB": warehouse.Database} {
		if given := os.Getenv(name); given != only {
			return fmt.Errorf("%s is %q: the embedded engine knows %q only", name, given, only)
		}
	}
	password := os.Getenv("CLICKHOUSE_PASSWORD")
	if password == "" {
		return errors.New("CLICKHOUSE_PASSWORD is not set: everything that reaches the ports would be let in")
	}
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	log := telemetry.NewLogger(telemetry.DefaultLogConfig(), os.Stderr)
	engine, err := warehouse.StartEngine(starting, warehouse.EngineConfig{Lib: library, Dir: folder, Password: password}, log)
	if err != nil {
		return err
	}
	defer func() {
		stopping, cancel := context.WithTimeout(context.Background(), stopGrace)
		defer cancel()
		err = errors.Join(err, engine.Stop(stopping))
	}()
	address, err := url.Parse(engine.DSN())
	if err != nil {
		return errors.New("the engine's own address does not parse") // the cause would quote the password
	}
	failed := make(chan error, 2)
	for port, to := range map[string]string{nativePort: address.Port(), httpPort: address.Query().Get("http_port")} {
		listener, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		defer func() { _ = listener.Close() }()
		go func() { failed <- pass(listener, net.JoinHostPort("127.0.0.1", to)) }()
	}
	fmt.Println("ready: native protocol on port", nativePort, "and HTTP on port", httpPort)
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// pass connects each client of the listener with the engine, until the listener is closed.
func pass(listener net.Listener, to string) error {
	for {
		client, err := listener.Accept()
		if err != nil {
			return fmt.Errorf("take a connection: %w", err)
		}
		go func() {
			defer func() { _ = client.Close() }()
			engine, err := net.Dial("tcp", to)
			if err != nil {
				fmt.Fprintln(os.Stderr, "the engine does not answer:", err)
				return
			}
			defer func() { _ = engine.Close() }()
			both := make(chan struct{}, 2)
			for _, way := range [][2]net.Conn{{client, engine}, {engine, client}} {
				go func() {
					_, _ = io.Copy(way[1], way[0]) // the other side sees the end
					both <- struct{}{}
				}()
			}
			<-both
		}()
	}
}

// ask prints the answer to one question, as far as health checks and people in a container need it.
func ask(ctx context.Context) error {
	as := flag.String("user", "", "user")
	password := flag.String("password", "", "password")
	query := flag.String("query", "", "question")
	flag.Parse()
	dsn := url.URL{
		Scheme: "clickhouse", User: url.UserPassword(*as, *password), Host: net.JoinHostPort("127.0.0.1", nativePort),
		Path: "/" + warehouse.Database, RawQuery: "http_port=" + httpPort,
	}
	return warehouse.SQL(ctx, dsn.String(), *query, warehouse.FormatTSV, os.Stdout, warehouse.Limits{})
}
