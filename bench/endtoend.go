package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"ctrloop/internal/broker"
	"ctrloop/internal/stream"
	"ctrloop/joiner"
	"ctrloop/schemas"
)

// Place is where an end-to-end run takes place.
type Place struct {
	// Kafka of the run. Its topics must be empty: see Load.
	Kafka      stream.Config
	Partitions int32
	// Broker starts an embedded broker in a folder, for what runs on one.
	Broker func(ctx context.Context, dir string) (*broker.Broker, error)
	// BrokerPID is the broker's process where it is another one, to account for its processor time; 0: unknown.
	BrokerPID int
	Log       zerolog.Logger
	// Profile is a file for a CPU profile of the join; "": none.
	Profile string
	// Progress is called with what is being done; it may be nil.
	Progress func(what string)
}

func (p Place) say(format string, args ...any) {
	if p.Progress != nil {
		p.Progress(fmt.Sprintf(format, args...))
	}
}

// EndToEnd is a backlog drained exactly once: read, joined, written, committed.
type EndToEnd struct {
	Cost Cost `json:"cost"`
	// Labels that were written in the measured stretch; the open impressions get theirs after it.
	Labels uint64 `json:"labels"`
	// OpenImpressions when everything but the end of the log was joined.
	OpenImpressions uint64 `json:"open_impressions"`
	// Rebuild is how a second instance gets the state back from the topics: events of open windows, read again.
	Rebuild  Cost   `json:"rebuild"`
	GC       Pauses `json:"gc"`
	PeakRSS  int64  `json:"peak_rss_bytes"`
	Wrong    Wrong  `json:"wrong"`
	Balanced bool   `json:"balanced"`
}

// ErrNotEmpty means that somebody's events lie in the topics that a benchmark would write to.
var ErrNotEmpty = errors.New("the broker's topics are not empty")

var inputs = []string{schemas.TopicImpressions, schemas.TopicClicks}

// benchTopics are the ones that a run needs.
func benchTopics() (out []schemas.Topic) {
	for _, t := range schemas.Topics() {
		switch t.Name {
		case schemas.TopicImpressions, schemas.TopicClicks, schemas.TopicLabels, schemas.TopicAudit, schemas.TopicLate, schemas.TopicDeadLetters:
			out = append(out, t)
		}
	}
	return out
}

// Load makes the topics and writes the log of a traffic into them, without its end. It refuses topics that hold
// records.
func Load(ctx context.Context, p Place, t Traffic) error {
	if err := stream.CheckBroker(ctx, p.Kafka); err != nil {
		return err
	}
	if err := stream.EnsureTopics(ctx, p.Kafka, benchTopics(), p.Partitions, -1); err != nil {
		return err
	}
	for _, topic := range benchTopics() {
		ends, err := stream.EndOffsets(ctx, p.Kafka, topic.Name)
		if err != nil {
			return err
		}
		for tp, at := range ends {
			if at > 0 {
				return fmt.Errorf("%w: %s ends at offset %d: give a broker of its own to a benchmark (`make kafka` starts one)", ErrNotEmpty, tp, at)
			}
		}
	}
	producer, err := stream.NewProducer(p.Kafka, stream.ProducerConfig{Linger: 20 * time.Millisecond})
	if err != nil {
		return err
	}
	defer producer.Close()
	done := 0
	return t.chunks(chunk, func(imps, clks []*stream.Record) error {
		done += len(imps)
		p.say("load %3.0f %%", 100*float64(done)/float64(t.Impressions))
		if err := producer.Produce(ctx, imps...); err != nil {
			return err
		}
		return producer.Produce(ctx, clks...)
	})
}

// closeLog writes the end of the log: every window closes.
func closeLog(ctx context.Context, p Place, t Traffic) error {
	producer, err := stream.NewProducer(p.Kafka, stream.ProducerConfig{})
	if err != nil {
		return err
	}
	defer producer.Close()
	var rs []*stream.Record
	for i := range p.Partitions {
		for _, topic := range inputs {
			rs = append(rs, punctuation(topic, i, t.endMS()))
		}
	}
	return producer.Produce(ctx, rs...)
}

// instance is a joiner that runs.
type instance struct {
	*joiner.Service
	stop context.CancelFunc
	done chan error
}

func run(ctx context.Context, p Place, t Traffic, group string) (*instance, error) {
	cfg := joiner.Default()
	cfg.Kafka, cfg.Group, cfg.TransactionalID = p.Kafka, group, group+"-0"
	cfg.InstanceID = group + "-0" // static: the second instance need not wait for the session of the first
	cfg.Window, cfg.Lateness = t.Window, time.Second
	// The log ends without punctuation, up to a window of clicks behind its last impression: an input that is paused for
	// its lead would wait for the other one for ever.
	cfg.MaxLead = max(cfg.MaxLead, 2*t.Window)
	s, err := joiner.New(cfg, p.Log, prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	i := &instance{s, cancel, make(chan error, 1)}
	go func() { i.done <- s.Run(ctx) }()
	return i, nil
}

// end stops it and returns why it ended.
func (i *instance) end() error {
	i.stop()
	err := <-i.done
	i.done <- err
	return err
}

// await waits until ok, a failure of the instance, or the end of ctx.
func (i *instance) await(ctx context.Context, ok func(joiner.Ledger) bool) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok(i.Ledger()) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-i.done:
			i.done <- err
			return fmt.Errorf("the joiner ended: %w", err)
		case <-tick.C:
		}
	}
	return nil
}

// drained says that an account covers everything up to the ends, with all windows closed that can be.
func drained(l joiner.Ledger, ends map[stream.TopicPartition]int64) bool {
	left := len(ends)
	for _, p := range l.Partitions {
		if p.Closing {
			return false
		}
		for in, at := range []int64{p.ImpressionsAt, p.ClicksAt} {
			if at == ends[stream.TopicPartition{Topic: inputs[in], Partition: p.Partition}] {
				left--
			}
		}
	}
	return left == 0
}

func records(ends map[stream.TopicPartition]int64) (n int64) {
	for _, at := range ends {
		n += at
	}
	return n
}

// Join joins the loaded log as a consumer group of that name, measures it, takes the state over with a second
// instance, closes all windows and checks every label.
func Join(ctx context.Context, p Place, t Traffic, group string) (res EndToEnd, err error) {
	ends, err := stream.EndOffsets(ctx, p.Kafka, inputs...)
	if err != nil {
		return res, err
	}
	runtime.GC() // the garbage of loading is not the join's
	pauses := readPauses()
	p.say("join %d events", records(ends))
	stop, err := profile(p.Profile)
	if err != nil {
		return res, err
	}
	defer stop()
	w := startWatch(p.BrokerPID)
	first, err := run(ctx, p, t, group)
	if err != nil {
		return res, err
	}
	defer first.end() //nolint:errcheck // ended below, where its error counts
	if err := first.await(ctx, func(l joiner.Ledger) bool { return drained(l, ends) }); err != nil {
		return res, err
	}
	res.Cost = w.read(records(ends))
	stop()
	l := first.Ledger().Total
	res.OpenImpressions, res.Labels = l.Open, l.Positive+l.FinalNegative+l.Corrected
	res.GC = pausesSince(pauses)
	if err := first.end(); err != nil {
		return res, err
	}

	p.say("rebuild %d open impressions", res.OpenImpressions)
	runtime.GC()
	w = startWatch(p.BrokerPID)
	second, err := run(ctx, p, t, group)
	if err != nil {
		return res, err
	}
	defer second.end() //nolint:errcheck // ended below, where its error counts
	if err := second.await(ctx, func(l joiner.Ledger) bool { return len(l.Partitions) == int(p.Partitions) }); err != nil {
		return res, err
	}
	res.Rebuild = w.read(int64(res.OpenImpressions))

	p.say("close the windows")
	if err := closeLog(ctx, p, t); err != nil {
		return res, err
	}
	if ends, err = stream.EndOffsets(ctx, p.Kafka, inputs...); err != nil {
		return res, err
	}
	if err := second.await(ctx, func(l joiner.Ledger) bool { return drained(l, ends) }); err != nil {
		return res, err
	}
	res.PeakRSS = peakRSS()
	res.Balanced = second.Ledger().Balanced
	if err := second.end(); err != nil {
		return res, err
	}
	p.say("check every label")
	res.Wrong, err = checkTopic(ctx, p, t, schemas.TopicLabels, (*oracle).label)
	return res, err
}

// checkTopic holds everything committed in a topic against the oracle.
func checkTopic(ctx context.Context, p Place, t Traffic, topic string, take func(*oracle, *stream.Record)) (Wrong, error) {
	start, err := stream.StartOffsets(ctx, p.Kafka, topic)
	if err != nil {
		return Wrong{}, err
	}
	ends, err := settled(ctx, p, topic)
	if err != nil {
		return Wrong{}, err
	}
	o := newOracle(t)
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for tp, to := range ends {
		g.Go(func() error {
			return stream.ReadRange(ctx, p.Kafka, topic, tp.Partition, start[tp], to, func(r *stream.Record) error {
				mu.Lock()
				defer mu.Unlock()
				take(o, r)
				return nil
			})
		})
	}
	if err := g.Wait(); err != nil {
		return Wrong{}, err
	}
	return o.finish(), nil
}

// settled waits until no transaction is open on a topic and returns its ends. A broker answers the end of a transaction
// before it has written it into the partitions; on a busy machine that takes a while, and the labels of the last one
// would seem lost.
func settled(ctx context.Context, p Place, topic string) (map[stream.TopicPartition]int64, error) {
	const patience = 30 * time.Second // longer than a transaction lives
	for until := time.Now().Add(patience); ; {
		written, err := stream.WrittenOffsets(ctx, p.Kafka, topic)
		if err != nil {
			return nil, err
		}
		ends, err := stream.EndOffsets(ctx, p.Kafka, topic)
		if err != nil {
			return nil, err
		}
		if maps.Equal(written, ends) || time.Now().After(until) {
			return ends, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Embedded runs end to end on the embedded broker.
func Embedded(ctx context.Context, dir string, p Place, t Traffic) (EndToEnd, error) {
	b, err := p.Broker(ctx, dir)
	if err != nil {
		return EndToEnd{}, err
	}
	defer b.Stop()
	p.Kafka, p.BrokerPID = b.Config(), b.PID()
	if err := Load(ctx, p, t); err != nil {
		return EndToEnd{}, err
	}
	return Join(ctx, p, t, "bench-join")
}
