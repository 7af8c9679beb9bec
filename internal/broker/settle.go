package broker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"ctrloop/internal/artifact"
	"ctrloop/internal/process"
	"ctrloop/internal/stream"

	"github.com/rs/zerolog"
)

// settleTimeout bounds the controller's part of a start: a second, on a busy machine ten.
const settleTimeout = time.Minute

// settle takes the broker that did not stop in order off the controller's books, before the next one starts.
//
// The books say otherwise that it leads every partition and where it listens, and the new broker believes them until it has registered: it
// goes on with the transactions of the moment and writes their markers to the old address. Where another broker answers
// there (a folder was copied, and the one that it was copied from is running) the markers are refused, and the transactions
// stand for ever. The registration also waits for the old broker's session to time out, 9 s. After an ordered stop the books
// say that nothing has a leader.
func (b *Broker) settle(ctx context.Context) error {
	needed, err := unsettled(filepath.Join(b.cfg.Dir, dataFolder))
	if err != nil || !needed {
		return err
	}
	file := filepath.Join(b.cfg.Dir, controllerFile)
	if err := artifact.WriteFile(file, []byte(controllerProperties(b.control)), 0o644); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		ended <- process.Run(running, process.Spec{
			Name: "kafka-controller", Path: b.cfg.Program.Java, Dir: b.cfg.Dir, Args: jvm(b.cfg, "kafka.Kafka", file),
			Grace: time.Millisecond, // what it has answered is written
		}, zerolog.Nop())
		stop() // nobody answers any more
	}()
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(b.control))
	asked := b.unregister(running, address)
	stop()
	err = <-ended
	if asked != nil {
		return fmt.Errorf("the controller of %s, alone: %w", b.cfg.Dir, errors.Join(asked, err))
	}
	return nil
}

// unregister asks until the controller answers.
func (b *Broker) unregister(ctx context.Context, controller string) error {
	for {
		err := answers(ctx, controller)
		if err == nil {
			err = stream.UnregisterBroker(ctx, controller, nodeID)
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(b.cfg.Server.ProbeInterval):
		}
	}
}

// answers is a look at a port: a client that is refused logs and waits.
func answers(ctx context.Context, address string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// unsettled says whether a broker has worked on the data and left without Kafka's mark of an ordered stop.
func unsettled(data string) (bool, error) {
	worked, err := exists(filepath.Join(data, "__cluster_metadata-0", "quorum-state"))
	if err != nil || !worked {
		return false, err
	}
	ordered, err := exists(filepath.Join(data, ".kafka_cleanshutdown"))
	return !ordered, err
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
