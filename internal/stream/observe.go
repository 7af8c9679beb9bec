package stream

import (
	"errors"
	"fmt"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/plugin/kprom"

	"ctrloop/internal/telemetry"
)

// clientLog writes what the client says. It retries by itself what it reports as errors, so these are warnings here; the life of
// the group, which it tells as information, is for debugging.
type clientLog struct{ *telemetry.Throttle }

// Level implements kgo.Logger: what is below it need not be made.
func (clientLog) Level() kgo.LogLevel { return kgo.LogLevelInfo }

// Log implements kgo.Logger.
func (l clientLog) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	to := zerolog.WarnLevel
	if level > kgo.LogLevelWarn {
		to = zerolog.DebugLevel
	}
	e := l.Event(to, msg)
	for i := 0; i+1 < len(keyvals); i += 2 {
		key := fmt.Sprint(keyvals[i])
		if err, ok := keyvals[i+1].(error); ok {
			e = e.AnErr(key, err)
		} else {
			e = e.Str(key, fmt.Sprint(keyvals[i+1]))
		}
	}
	e.Str("component", "kafka client").Msg(msg)
}

// clientNames are the labels of the clients that are there now: two of one kind need two.
var clientNames = struct {
	sync.Mutex
	taken map[string]bool
}{taken: map[string]bool{}}

// observed gives the metrics of one client a name while it lives.
type observed struct {
	*kprom.Metrics
	name string
}

// observe returns the option that exports the figures of a client, none without a registry.
func (c Config) observe(name string) []kgo.Opt {
	if c.Metrics == nil {
		return nil
	}
	clientNames.Lock()
	defer clientNames.Unlock()
	unique := name
	for n := 2; clientNames.taken[unique]; n++ {
		unique = fmt.Sprintf("%s-%d", name, n)
	}
	clientNames.taken[unique] = true
	return []kgo.Opt{kgo.WithHooks(&observed{name: unique, Metrics: kprom.NewMetrics("ctrloop",
		kprom.Subsystem("kafka"), kprom.Registerer(c.Metrics), kprom.WithStaticLabel(prometheus.Labels{"client": unique}),
	)})}
}

// OnClientClosed implements kgo.HookClientClosed.
func (o *observed) OnClientClosed(cl *kgo.Client) {
	o.Metrics.OnClientClosed(cl)
	clientNames.Lock()
	defer clientNames.Unlock()
	delete(clientNames.taken, o.name)
}

// readings are the figures of all readers of one process together: each lives for a rebuild or a look, and a series for each would be
// gone before it is asked for.
type readings struct {
	open               prometheus.Gauge
	records, bytes, no prometheus.Counter
}

// readings returns the figures of the registry of c, made by whoever is first; without a registry nobody sees them.
func (c Config) readings() readings {
	r := readings{
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ctrloop_kafka_readers",
			Help: "Readers of single partitions beside any group that are at work: rebuilds of the join's state, copies of logs.",
		}),
		records: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ctrloop_kafka_reader_records_total", Help: "Records that readers of single partitions have fetched.",
		}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ctrloop_kafka_reader_bytes_total", Help: "Their keys and values, in bytes, after decompression.",
		}),
		no: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ctrloop_kafka_reader_failures_total", Help: "Readers of single partitions that ended with an error of the broker or the connection.",
		}),
	}
	if c.Metrics == nil {
		return r
	}
	r.open = shared(c.Metrics, r.open)
	r.records, r.bytes, r.no = shared(c.Metrics, r.records), shared(c.Metrics, r.bytes), shared(c.Metrics, r.no)
	return r
}

// shared registers a figure, or returns the one that is registered.
func shared[M prometheus.Collector](to prometheus.Registerer, m M) M {
	var there prometheus.AlreadyRegisteredError
	if err := to.Register(m); errors.As(err, &there) {
		if was, ok := there.ExistingCollector.(M); ok {
			return was
		}
	}
	return m
}
