package stream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"ctrloop/internal/telemetry"
	"ctrloop/schemas"
)

// Record is one record of a topic.
type Record = kgo.Record

// RecordHeader is one header of a record.
type RecordHeader = kgo.RecordHeader

// Config says how to reach the brokers.
type Config struct {
	// Brokers are seed addresses, "host:port".
	Brokers []string `yaml:"brokers"`
	// ClientID names this process in the broker's logs and quotas.
	ClientID string `yaml:"client_id"`
	TLS      TLS    `yaml:"tls"`
	SASL     SASL   `yaml:"sasl"`
	// Dial replaces the network, for tests under virtual time. Nil dials TCP.
	Dial func(ctx context.Context, network, host string) (net.Conn, error) `yaml:"-"`
	// Log gets what the clients say, each kind of line at most as often as it lets through. Nil drops it.
	Log *telemetry.Throttle `yaml:"-"`
	// Metrics gets the figures of the clients that stay: ctrloop_kafka_*, with the label client. Nil: none.
	Metrics prometheus.Registerer `yaml:"-"`
}

// TLS of the connection to the brokers.
type TLS struct {
	// Enabled encrypts the connection; brokers listen on another port for it.
	Enabled bool `yaml:"enabled"`
	// CAFile holds the roots to trust, PEM; empty: those of the system.
	CAFile string `yaml:"ca_file"`
	// CertFile and KeyFile hold this client's certificate, PEM; both or neither.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// ServerName overrides the name that the broker's certificate must carry.
	ServerName string `yaml:"server_name"`
}

// SASL is how this client proves who it is.
type SASL struct {
	// Mechanism is "SCRAM-SHA-256" or "SCRAM-SHA-512"; empty: no authentication.
	Mechanism string `yaml:"mechanism"`
	// User to log in as; required with a mechanism.
	User string `yaml:"user"`
	// PasswordFile holds the password on its first line. It is read again at each connection, so that
	// a rotated password needs no restart.
	PasswordFile string `yaml:"password_file"`
}

// Default is a broker on this machine, without encryption.
func Default() Config { return Config{Brokers: []string{"127.0.0.1:9092"}, ClientID: "ctrloop"} }

// Validate returns every problem, joined.
func (c Config) Validate() error {
	var errs []error
	if len(c.Brokers) == 0 {
		errs = append(errs, errors.New("brokers: empty: name at least one host:port"))
	}
	for i, b := range c.Brokers {
		if _, _, err := net.SplitHostPort(b); err != nil {
			errs = append(errs, fmt.Errorf("brokers[%d]: %q is not host:port: %w", i, b, err))
		}
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		errs = append(errs, errors.New("tls: cert_file and key_file go together: set both or neither"))
	}
	switch c.SASL.Mechanism {
	case "":
	case "SCRAM-SHA-256", "SCRAM-SHA-512":
		if c.SASL.User == "" || c.SASL.PasswordFile == "" {
			errs = append(errs, errors.New("sasl: user and password_file are required with a mechanism"))
		}
	default:
		errs = append(errs, fmt.Errorf("sasl.mechanism: %q: want SCRAM-SHA-256 or SCRAM-SHA-512", c.SASL.Mechanism))
	}
	return errors.Join(errs...)
}

// options are the ones that every client shares.
func (c Config) options() ([]kgo.Opt, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("kafka configuration: %w", err)
	}
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		kgo.ClientID(c.ClientID),
		kgo.RecordPartitioner(newPartitioner()),
		// The default of 5 s between refreshes is how long a moved leader would stop a partition; a refresh is
		// one small request.
		kgo.MetadataMinAge(250 * time.Millisecond),
		// Snappy costs little of the two cores that an embedded run shares and halves what is stored;
		// clients that cannot read it do not exist any more.
		kgo.ProducerBatchCompression(kgo.SnappyCompression()),
	}
	if c.Log != nil {
		opts = append(opts, kgo.WithLogger(clientLog{c.Log}))
	}
	if c.Dial != nil {
		opts = append(opts, kgo.Dialer(c.Dial))
	} else if c.TLS.Enabled {
		t, err := c.TLS.load()
		if err != nil {
			return nil, err
		}
		opts = append(opts, kgo.DialTLSConfig(t))
	}
	if c.SASL.Mechanism != "" {
		opts = append(opts, c.SASL.option())
	}
	return opts, nil
}

func (t TLS) load() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("kafka tls.ca_file: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("kafka tls.ca_file: %s holds no PEM certificate", t.CAFile)
		}
	}
	if t.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("kafka tls.cert_file: %w", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}

func (s SASL) option() kgo.Opt {
	auth := func(context.Context) (scram.Auth, error) {
		raw, err := os.ReadFile(s.PasswordFile)
		if err != nil {
			return scram.Auth{}, fmt.Errorf("kafka sasl.password_file: %w", err)
		}
		pass, _, _ := strings.Cut(string(raw), "\n")
		return scram.Auth{User: s.User, Pass: strings.TrimSuffix(pass, "\r")}, nil
	}
	if s.Mechanism == "SCRAM-SHA-512" {
		return kgo.SASL(scram.Sha512(auth))
	}
	return kgo.SASL(scram.Sha256(auth))
}

// partitioner: keyed records by hash, others where they say, and so all records of topics that are placed.
type partitioner struct {
	keyed  kgo.Partitioner
	placed map[string]bool
}

type topicPartitioner struct {
	keyed  kgo.TopicPartitioner
	placed bool
}

func newPartitioner() kgo.Partitioner {
	p := partitioner{keyed: kgo.StickyKeyPartitioner(nil), placed: map[string]bool{}}
	for _, t := range schemas.Topics() {
		p.placed[t.Name] = t.Placed
	}
	return p
}

func (p partitioner) ForTopic(t string) kgo.TopicPartitioner {
	return topicPartitioner{p.keyed.ForTopic(t), p.placed[t]}
}

// RequiresConsistency: the choice is never moved to another partition because one is down; a key's
// partition is a promise to the join.
func (topicPartitioner) RequiresConsistency(*kgo.Record) bool { return true }

func (p topicPartitioner) Partition(r *kgo.Record, n int) int {
	if r.Key == nil || p.placed {
		return int(r.Partition)
	}
	return p.keyed.Partition(r, n)
}

// PartitionOf is the partition of n to which every client of this package sends a record with this key.
func PartitionOf(key []byte, n int32) int32 {
	return int32(kgo.StickyKeyPartitioner(nil).ForTopic("").Partition(&kgo.Record{Key: key}, int(n)))
}

// TopicPartition names one partition.
type TopicPartition struct {
	Topic     string
	Partition int32
}

func (p TopicPartition) String() string { return fmt.Sprintf("%s/%d", p.Topic, p.Partition) }

const (
	// requestTimeout bounds administrative calls; the longest is a leader election.
	requestTimeout = 30 * time.Second
)
