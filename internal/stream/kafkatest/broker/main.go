// Command broker runs a real Kafka broker for development until it is interrupted; see package kafkatest.
//
//	go run ./internal/stream/kafkatest/broker --dir bin/kafka --port 9092
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"ctrloop/internal/setup"
	"ctrloop/internal/stream/kafkatest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	var opt kafkatest.Options
	flag.StringVar(&opt.Dir, "dir", "", "folder of data and logs; empty: a temporary one, removed at the end")
	flag.IntVar(&opt.Port, "port", 0, "port on 127.0.0.1; 0 takes a free one")
	flag.StringVar(&opt.Heap, "heap", "1g", "heap of the JVM")
	fetch := flag.Bool("fetch", false, "fetch the jars and stop")
	flag.Parse()
	if opt.Home, err = setup.Home(""); err != nil {
		return err
	}
	if err := setup.Run(ctx, setup.Options{Home: opt.Home, NoEngine: true, Progress: os.Stderr}); err != nil {
		return err
	}
	if *fetch {
		program, err := setup.Kafka(opt.Home)
		if err == nil {
			_, err = fmt.Println(program.Jars)
		}
		return err
	}
	if opt.Dir == "" {
		if opt.Dir, err = os.MkdirTemp("", "ctrloop-kafka-*"); err != nil {
			return err
		}
		defer os.RemoveAll(opt.Dir)
	} else if opt.Dir, err = filepath.Abs(opt.Dir); err != nil {
		return err
	}
	b, err := kafkatest.New(ctx, opt)
	if err != nil {
		return err
	}
	if err := b.Start(ctx); err != nil {
		return err
	}
	// The process id lets a benchmark account for the broker's share of the processor.
	fmt.Printf("kafka %s pid %d\n", b.Config().Brokers[0], b.PID())
	<-ctx.Done()
	return b.Stop()
}
