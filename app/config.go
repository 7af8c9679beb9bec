package app

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"ctrloop/ingest"
	"ctrloop/internal/admin"
	"ctrloop/internal/broker"
	"ctrloop/internal/httpapi"
	"ctrloop/internal/stream"
	"ctrloop/joiner"
	"ctrloop/joiner/sink"
	"ctrloop/pairer"
	"ctrloop/serving"
	"ctrloop/serving/backend"
	"ctrloop/serving/console"
	"ctrloop/serving/creatives"
	"ctrloop/serving/experiment"
	"ctrloop/serving/experiment/webhook"
	"ctrloop/serving/rollout"
	trainerbridge "ctrloop/trainer-bridge"
)

// Config is the whole configuration. Everything has a default: an empty file is an embedded run.
type Config struct {
	// Kafka: where the topics are. Without brokers, an embedded broker runs in this process.
	Kafka Kafka `yaml:"kafka"`
	// ClickHouse: where the warehouse is. Without a DSN, an embedded engine runs as a child process.
	ClickHouse ClickHouse `yaml:"clickhouse"`
	// Models: where prompt models are served. Without addresses, an embedded server runs as a child process.
	Models Models `yaml:"models"`
	// Images: what draws creatives. Without a server's address, the painting one runs as a child process.
	Images Images `yaml:"images"`
	// Products is a folder with a catalogue (products.jsonl and images); empty: the built-in one.
	Products string `yaml:"products"`
	// Listen: the addresses of the HTTP listeners.
	Listen Listen `yaml:"listen"`
	// Admin is the listener for operators.
	Admin admin.Config `yaml:"admin"`
	// Auth: who may come in at the listeners.
	Auth httpapi.Auth `yaml:"auth"`
	// Limits: what clients may take of the listeners.
	Limits httpapi.Limits `yaml:"limits"`
	// Ingest: the HTTP edge and the way into the stream.
	Ingest ingest.Config `yaml:"ingest"`
	// Joiner: the join of impressions and clicks.
	Joiner joiner.Config `yaml:"joiner" derived:"kafka"`
	// Sink: labels into the warehouse.
	Sink sink.Config `yaml:"sink" derived:"kafka"`
	// Pairer: preference pairs and the trigger of training.
	Pairer pairer.Config `yaml:"pairer"`
	// Trainer: training jobs.
	Trainer trainerbridge.Config `yaml:"trainer"`
	// Serving: gateway, hot swap, creatives, decisions.
	Serving serving.Config `yaml:"serving" derived:"replicas,swap.base_dir,creatives.dir"`
	// Rollout: from a probed version to its experiment.
	Rollout rollout.Config `yaml:"rollout"`
	// Experiment: looks, guards and decisions of A/B tests.
	Experiment experiment.Config `yaml:"experiment"`
	// Webhooks: other systems that are told of what happens to experiments.
	Webhooks webhook.Config `yaml:"webhooks"`
	// Console: the web page.
	Console console.Config `yaml:"console"`
}

// outageAllowance is how long everything may stand still without a record being deleted before it was read.
const outageAllowance = time.Hour

// Validate returns the problems that no section sees alone: a retention shorter than the window, a public salt on topics of
// others, listeners beyond loopback without authentication.
func (c Config) Validate() error {
	var errs []error
	for _, l := range []struct{ key, address string }{
		{"listen.api", c.Listen.API}, {"listen.edge", c.Listen.Edge}, {"admin.address", c.Admin.Address},
	} {
		if l.address == "" && l.key == "admin.address" {
			continue
		}
		if err := c.Auth.CheckAddress(l.address); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.key, err))
		}
	}
	if need := c.Joiner.Remembered() + outageAllowance; c.Kafka.Retention > 0 && c.Kafka.Retention < need {
		errs = append(errs, fmt.Errorf("kafka.retention: %s: want at least %s, joiner.window, joiner.correction (as long as the window "+
			"by default), joiner.lateness and %s for an outage: a restart of the join reads the impressions that it remembers from the "+
			"topics", c.Kafka.Retention, need, outageAllowance))
	}
	if len(c.Kafka.Brokers) > 0 && c.Ingest.UserSalt == "" {
		errs = append(errs, errors.New("ingest.user_salt: is not set, and kafka.brokers is: users would be hashed under a public salt, "+
			"which hides nobody. Draw one (openssl rand -hex 32), give it to every process and keep it: ${CTRLOOP_USER_SALT} or "+
			"${file:/run/secrets/user-salt}. An instance that has run without one goes on with \""+ingest.Default().UserSalt.Reveal()+"\""))
	}
	return errors.Join(errs...)
}

// Salt is ingest.user_salt, or the public one of embedded runs.
func (c Config) Salt() string { return cmp.Or(c.Ingest.UserSalt, ingest.Default().UserSalt).Reveal() }

// Kafka says where the topics are.
type Kafka struct {
	stream.Config `yaml:",inline"`
	// Partitions of the topics that the join is partitioned by; cannot be changed over existing state.
	Partitions int32 `yaml:"partitions"`
	// Retention of topics, set when they are made: change it with your broker's tools later. It must exceed window,
	// correction, lateness and the longest outage: the join rebuilds its state from the topics. Records are gone a day later at the
	// latest, because brokers delete whole segments. Negative keeps everything, the hashes of erased users too; virtual
	// time needs it: brokers judge age by record time.
	Retention time.Duration `yaml:"retention"`
	// Embedded is what runs where no brokers are named: kafka (Apache Kafka as a child of this process, its state in the folder), or
	// memory (kfake, a stand-in in this process that keeps nothing on disk): for replays into a temporary folder and for tests.
	Embedded Embedded `yaml:"embedded"`
	// EmbeddedPort of the embedded broker on loopback; 0 takes the one that it had in this folder, or a free one.
	EmbeddedPort int `yaml:"embedded_port"`
	// EmbeddedHeapBytes bounds the heap of the embedded broker; its process takes some 100 MB more.
	EmbeddedHeapBytes int64 `yaml:"embedded_heap_bytes"`
}

// Embedded is a kind of broker that ctrloop starts itself.
type Embedded string

// The kinds.
const (
	EmbeddedKafka  Embedded = "kafka"
	EmbeddedMemory Embedded = "memory"
)

// minHeap is the least that Kafka starts and works with.
const minHeap = 96 << 20

// Validate returns every problem of the section. No brokers mean the embedded one.
func (k Kafka) Validate() error {
	var errs []error
	if len(k.Brokers) > 0 {
		errs = append(errs, k.Config.Validate())
	}
	if k.Partitions < 1 {
		errs = append(errs, fmt.Errorf("partitions: %d: want at least 1", k.Partitions))
	}
	if k.Retention == 0 {
		errs = append(errs, errors.New("retention: 0: want a duration, or a negative one to keep everything"))
	}
	if k.Embedded != EmbeddedKafka && k.Embedded != EmbeddedMemory {
		errs = append(errs, fmt.Errorf("embedded: %q: want %s or %s", k.Embedded, EmbeddedKafka, EmbeddedMemory))
	}
	if k.EmbeddedHeapBytes < minHeap {
		errs = append(errs, fmt.Errorf("embedded_heap_bytes: %d: want at least %d", k.EmbeddedHeapBytes, int64(minHeap)))
	}
	return errors.Join(errs...)
}

// ClickHouse says where the warehouse is.
type ClickHouse struct {
	// DSN of a ClickHouse server (25.8 or newer), clickhouse://user:password@host:9000/ctrloop; empty: embedded.
	DSN string `yaml:"dsn"`
	// ReadOnlyDSN is for questions of people; empty: DSN.
	ReadOnlyDSN string `yaml:"read_only_dsn"`
	// Cluster in remote_servers: tables become replicated with a distributed one in front. Empty: one server.
	Cluster string `yaml:"cluster"`
	// MaxMemoryBytes of the embedded engine.
	MaxMemoryBytes int64 `yaml:"max_memory_bytes"`
	// EmbeddedPort and EmbeddedHTTPPort of the embedded engine on loopback; 0 takes the ones that it had in this folder, so
	// that other processes find it again, or free ones.
	EmbeddedPort     int `yaml:"embedded_port"`
	EmbeddedHTTPPort int `yaml:"embedded_http_port"`
}

// Models says where prompt models are served.
type Models struct {
	// Servers that speak vLLM's API, as URLs; each is a replica. Empty: one embedded server.
	Servers []string `yaml:"servers"`
	// Base is the folder of the base model that the servers run; empty: the built-in one.
	Base string `yaml:"base"`
	// Threads of the embedded server.
	Threads int `yaml:"threads"`
}

// Validate returns every problem of the section.
func (m Models) Validate() error {
	var errs []error
	if m.Threads < 1 {
		errs = append(errs, fmt.Errorf("threads: %d: want at least 1", m.Threads))
	}
	for i, server := range m.Servers {
		if err := backend.CheckAddress(server); err != nil {
			errs = append(errs, fmt.Errorf("servers[%d]: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

// ImageBackend names what draws creatives. The list is closed.
type ImageBackend string

// Image backends.
const (
	// ImagesScene is the scene renderer in this process. It is no diffusion model.
	ImagesScene ImageBackend = "scene"
	// ImagesDiffusion is Stable Diffusion with a ControlNet behind an image server.
	ImagesDiffusion ImageBackend = "diffusion"
)

// Images says what draws creatives.
type Images struct {
	// Backend is scene (drawn in this process) or diffusion (painted by an image server).
	Backend ImageBackend `yaml:"backend"`
	// Server that answers POST /v1/images/edits, as a URL. Empty: an embedded one. Training draws with Model in any case.
	Server string `yaml:"server"`
	// Model is a diffusers folder, such as Stable Diffusion 1.5's; empty: the small one that ships.
	Model string `yaml:"model"`
	// ControlNet is the folder of a canny ControlNet, where Model has none inside.
	ControlNet string `yaml:"controlnet"`
	// Device of the embedded server and of training's painter: cpu, cuda, cuda:1.
	Device string `yaml:"device"`
	// Threads of the embedded server on the CPU.
	Threads int `yaml:"threads"`
	// Timeout of one picture, waiting for others included.
	Timeout time.Duration `yaml:"timeout"`
	// Patience with a server that is full or starting, per picture.
	Patience time.Duration `yaml:"patience"`
}

// Validate returns every problem of the section.
func (i Images) Validate() error {
	var errs []error
	if i.Backend != ImagesScene && i.Backend != ImagesDiffusion {
		errs = append(errs, fmt.Errorf("backend: %q: want %s or %s", i.Backend, ImagesScene, ImagesDiffusion))
	}
	if i.Server != "" {
		if err := backend.CheckAddress(i.Server); err != nil {
			errs = append(errs, fmt.Errorf("server: %w", err))
		}
	}
	if i.Device == "" {
		errs = append(errs, errors.New("device: want cpu, cuda or cuda:N"))
	}
	if i.Threads < 1 {
		errs = append(errs, fmt.Errorf("threads: %d: want at least 1", i.Threads))
	}
	for key, d := range map[string]time.Duration{"timeout": i.Timeout, "patience": i.Patience} {
		if d <= 0 {
			errs = append(errs, fmt.Errorf("%s: %v: want more than 0", key, d))
		}
	}
	return errors.Join(errs...)
}

func defaultImages() Images {
	d := creatives.DefaultDiffusionConfig("")
	return Images{Backend: ImagesScene, Device: "cpu", Threads: 1, Timeout: d.Timeout, Patience: d.Patience}
}

// Listen has the addresses of the HTTP listeners, host:port; port 0 takes a free one. Beyond loopback they want
// auth.required.
type Listen struct {
	// API of serving, experiments and the console.
	API string `yaml:"api"`
	// Edge takes events.
	Edge string `yaml:"edge"`
}

// Default is an embedded run on live traffic.
func Default() Config {
	edge := ingest.Default()
	edge.UserSalt = "" // of embedded runs alone: see Config.Salt
	return Config{
		// A week: the longest window is a day, and an outage must be survivable.
		Kafka: Kafka{
			Config: stream.Config{ClientID: "ctrloop"}, Partitions: 4, Retention: 7 * 24 * time.Hour,
			Embedded: EmbeddedKafka, EmbeddedHeapBytes: broker.DefaultHeap,
		},
		ClickHouse: ClickHouse{MaxMemoryBytes: 2 << 30},
		Models:     Models{Threads: 1},
		Images:     defaultImages(),
		Listen:     Listen{API: "127.0.0.1:0", Edge: "127.0.0.1:0"},
		Admin:      admin.Default(),
		Auth:       httpapi.DefaultAuth(),
		Limits:     httpapi.DefaultLimits(),
		Ingest:     edge,
		Joiner:     joiner.Default(),
		Sink:       sink.Default(),
		Pairer:     pairer.Default(),
		Trainer:    trainerbridge.Default(),
		Serving:    serving.Default(),
		Rollout:    rollout.Default(),
		Experiment: experiment.Default(),
		Webhooks:   webhook.Default(),
		Console:    console.Default(),
	}
}
