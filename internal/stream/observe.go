package stream

import (
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
