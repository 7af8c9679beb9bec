package kafkatest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"sync"

	"ctrloop/internal/stream"
)

// Cluster is several brokers that replicate to one another, each of them a controller too. With three or more,
// everything has three copies, a write waits for two (min.insync.replicas), and any one broker may be lost.
type Cluster struct {
	// Brokers by node id - 1. A test stops, kills and starts them one by one.
	Brokers []*Broker
}

// NewCluster prepares n brokers; Start starts them. Of the options, Dir holds a folder for each and Port must be 0. It
// fails with ErrMissing where Java or the jars are not there.
func NewCluster(ctx context.Context, opt Options, n int) (*Cluster, error) {
	if opt.Port != 0 {
		return nil, fmt.Errorf("port %d: the brokers of a cluster take free ones", opt.Port)
	}
	c := &Cluster{}
	controllers := make([]string, n)
	for i := range n {
		one := opt
		one.Dir = filepath.Join(opt.Dir, strconv.Itoa(i+1))
		b, err := prepare(one, i+1)
		if err != nil {
			return nil, err
		}
		c.Brokers, controllers[i] = append(c.Brokers, b), b.controller()
	}
	return c, c.each(func(b *Broker) error {
		b.peers = controllers
		return b.format(ctx)
	})
}

// Start starts the brokers that do not run, side by side: a majority must be there before any of them answers.
func (c *Cluster) Start(ctx context.Context) error {
	return c.each(func(b *Broker) error {
		if b.Running() {
			return nil
		}
		return b.Start(ctx)
	})
}

// Stop lets all of them end in order.
func (c *Cluster) Stop() error { return c.each((*Broker).Stop) }

// Kill is kill -9 of all of them.
func (c *Cluster) Kill() {
	_ = c.each(func(b *Broker) error {
		b.Kill()
		return nil
	})
}

// Config reaches the cluster as long as one of its brokers lives.
func (c *Cluster) Config() stream.Config {
	conf := stream.Default()
	conf.Brokers = nil
	for _, b := range c.Brokers {
		conf.Brokers = append(conf.Brokers, b.Config().Brokers...)
	}
	return conf
}

// each runs f for every broker, side by side.
func (c *Cluster) each(f func(*Broker) error) error {
	var all sync.WaitGroup
	errs := make([]error, len(c.Brokers))
	for i, b := range c.Brokers {
		all.Go(func() {
			if err := f(b); err != nil {
				errs[i] = fmt.Errorf("broker %d: %w", b.node, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
