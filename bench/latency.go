package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// Latency is from a click on its way to the broker until a reader of committed records holds its positive label.
type Latency struct {
	Clicks int `json:"clicks"`
	// EventsPerSecond of the traffic, of which one in 21 is a click.
	EventsPerSecond int     `json:"events_per_second"`
	P50MS           float64 `json:"p50_ms"`
	P99MS           float64 `json:"p99_ms"`
	MaxMS           float64 `json:"max_ms"`
}

// Pace of the live traffic: every tick 210 impressions and clicks.
const (
	liveTick   = 10 * time.Millisecond
	livePerRun = 200 // impressions a tick
	liveClicks = 10  // clicks a tick, on impressions of two seconds before
	liveDelay  = 200 // ticks from impression to click
)

// Live joins traffic as it comes for a while, on the embedded broker, with the joiner's own pace of commits.
func Live(ctx context.Context, dir string, p Place, t Traffic, how time.Duration) (res Latency, err error) {
	b, err := p.Broker(ctx, dir)
	if err != nil {
		return res, err
	}
	defer b.Stop()
	p.Kafka, p.BrokerPID = b.Config(), b.PID()
	if err := stream.EnsureTopics(ctx, p.Kafka, benchTopics(), p.Partitions, -1); err != nil {
		return res, err
	}
	i, err := run(ctx, p, t, "bench-live")
	if err != nil {
		return res, err
	}
	defer i.end() //nolint:errcheck // its error shows in the labels that do not come
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := &live{sent: map[schemas.ImpressionID]time.Time{}}
	read := make(chan error, 1)
	go func() { read <- l.read(ctx, p.Kafka) }()
	p.say("%v of live traffic", how)
	if err := l.write(ctx, p.Kafka, int(how/liveTick)); err != nil {
		return res, err
	}
	// What is missing now is on its way: some transactions' worth of time.
	const patience = 30 * time.Second
	for end := time.Now().Add(patience); l.missing() > 0; {
		select {
		case err := <-read:
			return res, err
		case err := <-i.done:
			i.done <- err
			return res, fmt.Errorf("the joiner ended: %w", err)
		case <-time.After(liveTick):
		}
		if time.Now().After(end) {
			return res, fmt.Errorf("%d clicks have no label after %v", l.missing(), patience)
		}
	}
	return l.result(), nil
}

// live notes when clicks were sent and their labels came.
type live struct {
	mu   sync.Mutex
	sent map[schemas.ImpressionID]time.Time
	took []time.Duration
}

func (l *live) missing() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.sent)
}

// write sends so many ticks of traffic.
func (l *live) write(ctx context.Context, c stream.Config, ticks int) error {
	producer, err := stream.NewProducer(c, stream.ProducerConfig{})
	if err != nil {
		return err
	}
	defer producer.Close()
	tick := time.NewTicker(liveTick)
	defer tick.Stop()
	var clicked [][]schemas.ImpressionID // by tick
	for n := range ticks {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		now := time.Now()
		var rs []*stream.Record
		var ids []schemas.ImpressionID
		for k := range livePerRun {
			var random [10]byte
			binary.BigEndian.PutUint64(random[2:], uint64(n*livePerRun+k))
			id := schemas.NewImpressionID(now, random)
			rs = append(rs, impressionRecord(id, uint64(k)))
			if k < liveClicks {
				ids = append(ids, id)
			}
		}
		clicked = append(clicked, ids)
		if n >= liveDelay {
			l.mu.Lock()
			for _, id := range clicked[n-liveDelay] {
				rs = append(rs, clickRecord(id, now.UnixMilli()))
				l.sent[id] = now
			}
			l.mu.Unlock()
		}
		if err := producer.Produce(ctx, rs...); err != nil {
			return err
		}
	}
	return nil
}

// read takes labels until ctx is done.
func (l *live) read(ctx context.Context, c stream.Config) error {
	consumer, err := stream.NewConsumer(c, stream.ConsumerConfig{Group: "bench-live-reader", Topics: []string{schemas.TopicLabels}})
	if err != nil {
		return err
	}
	defer consumer.Close()
	for {
		batch, err := consumer.Poll(ctx, time.Minute)
		if err != nil {
			return err
		}
		now := time.Now()
		l.mu.Lock()
		for _, p := range batch.Partitions {
			for _, r := range p.Records {
				if labelKind(r.Value) != eventpb.LabelKind_LABEL_KIND_POSITIVE || len(r.Key) != 16 {
					continue
				}
				if at, ok := l.sent[schemas.ImpressionID(r.Key)]; ok {
					l.took = append(l.took, now.Sub(at))
					delete(l.sent, schemas.ImpressionID(r.Key))
				}
			}
		}
		l.mu.Unlock()
	}
}

func (l *live) result() Latency {
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.Sort(l.took)
	at := func(share float64) float64 {
		if len(l.took) == 0 {
			return 0
		}
		return float64(l.took[int(share*float64(len(l.took)-1))].Microseconds()) / 1000
	}
	return Latency{
		Clicks: len(l.took), EventsPerSecond: (livePerRun + liveClicks) * int(time.Second/liveTick),
		P50MS: at(0.5), P99MS: at(0.99), MaxMS: at(1),
	}
}
