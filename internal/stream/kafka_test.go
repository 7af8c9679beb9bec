package stream_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/kafkatest"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

// secured is a real broker with TLS and SASL/SCRAM, and a configuration that reaches it.
func secured(t *testing.T) stream.Config {
	t.Helper()
	streamtest.NeedProcess(t)
	dir := t.TempDir()
	ca, server, err := kafkatest.WriteCertificates(dir)
	if err != nil {
		t.Fatal(err)
	}
	b := streamtest.StartReal(t, &kafkatest.Secure{PEMFile: server, Users: map[string]string{"ingest": "s3cret"}})
	c := stream.Default()
	c.Brokers = []string{b.SecureAddress()}
	c.TLS = stream.TLS{Enabled: true, CAFile: ca}
	c.SASL = stream.SASL{Mechanism: "SCRAM-SHA-256", User: "ingest", PasswordFile: password(t, "s3cret\n")}
	return c
}

func password(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestSecuredBroker copies exactly once over TLS as a user with a password, and meets every way to be refused: each
// must end soon, with words that name the cause.
func TestSecuredBroker(t *testing.T) {
	c := secured(t)
	const n = 500
	for _, mechanism := range []string{"SCRAM-SHA-256", "SCRAM-SHA-512"} {
		c := c
		c.SASL.Mechanism = mechanism
		if err := stream.CheckBroker(testContext(t), c); err != nil {
			t.Errorf("%s: %v", mechanism, err)
		}
	}
	ctx := testContext(t)
	if err := stream.EnsureTopics(ctx, c, []schemas.Topic{{Name: "in"}, {Name: "out"}}, 2, -1); err != nil {
		t.Fatal(err)
	}
	streamtest.Produce(t, c, inputs("in", 0, n)...)
	if _, _, err := (copier{conf: c, id: "t", max: 200}).run(ctx, n); err != nil {
		t.Fatal(err)
	}
	checkCopied(t, c, n)

	otherCA, _, err := kafkatest.WriteCertificates(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		change func(*stream.Config)
		want   string
	}{
		{"wrong password", func(c *stream.Config) { c.SASL.PasswordFile = password(t, "guess") }, "SASL_AUTHENTICATION_FAILED"},
		{"unknown user", func(c *stream.Config) { c.SASL.User = "nobody" }, "SASL_AUTHENTICATION_FAILED"},
		{"no password file", func(c *stream.Config) { c.SASL.PasswordFile = filepath.Join(t.TempDir(), "gone") }, "sasl.password_file"},
		{"wrong CA", func(c *stream.Config) { c.TLS.CAFile = otherCA }, "signed by unknown authority"},
		{"another server's name", func(c *stream.Config) { c.TLS.ServerName = "kafka.example" }, "not kafka.example"},
		{"no TLS", func(c *stream.Config) { c.TLS = stream.TLS{} }, "tls"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := c
			test.change(&c)
			ctx, cancel := context.WithTimeout(testContext(t), 20*time.Second)
			defer cancel()
			err := stream.CheckBroker(ctx, c)
			if err == nil || !strings.Contains(err.Error(), test.want) || ctx.Err() != nil {
				t.Errorf("%v: want soon an error that says %q", err, test.want)
			}
		})
	}
}

// TestFirstQuestionOfAFreshCluster: no group has ever existed, so the broker must make the topic of their offsets.
func TestFirstQuestionOfAFreshCluster(t *testing.T) {
	b := streamtest.StartReal(t, nil)
	if at, err := stream.CommittedOffsets(testContext(t), b.Config(), "nobody"); err != nil || len(at) != 0 {
		t.Errorf("%v, %v", at, err)
	}
}

// TestBrokerFaultsInsideATransaction stops, kills and stalls the real broker while a transaction is open, its
// outputs written or on their way: what was read is copied once all the same. On one node each restart is also one
// of the coordinators of groups and transactions.
func TestBrokerFaultsInsideATransaction(t *testing.T) {
	for _, test := range []struct {
		name  string
		fault func(context.Context, *kafkatest.Broker) error
	}{
		{"stopped in order", func(ctx context.Context, b *kafkatest.Broker) error {
			if err := b.Stop(); err != nil {
				return err
			}
			return b.Start(ctx)
		}},
		{"kill -9", func(ctx context.Context, b *kafkatest.Broker) error {
			b.Kill()
			return b.Start(ctx)
		}},
		{"stalled", func(ctx context.Context, b *kafkatest.Broker) error {
			if err := b.Signal(syscall.SIGSTOP); err != nil {
				return err
			}
			select { // longer than the linger, so that writes hang; the broker's own timers stand still too
			case <-time.After(2 * time.Second):
			case <-ctx.Done():
			}
			return b.Signal(syscall.SIGCONT)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := streamtest.StartReal(t, nil)
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
			defer cancel()
			const n = 6000
			if err := stream.EnsureTopics(ctx, b.Config(), []schemas.Topic{{Name: "in"}, {Name: "out"}}, 3, -1); err != nil {
				t.Fatal(err)
			}
			streamtest.Produce(t, b.Config(), inputs("in", 0, n)...)
			faults := 0
			for {
				left := remainingQuiet(ctx, b.Config(), n)
				if left == 0 {
					break
				}
				// As the joiner does: an end that takes too long is given up, and a new life fences this one.
				life, cancel := context.WithTimeout(ctx, 30*time.Second)
				_, _, err := copier{conf: b.Config(), id: "t", max: 500, beforeCommit: func() bool {
					if faults < 2 {
						faults++
						if err := test.fault(ctx, b); err != nil {
							t.Fatal(err)
						}
					}
					return true
				}}.run(life, left)
				cancel()
				if err != nil {
					t.Logf("ended with %v", err)
				}
			}
			if ctx.Err() != nil || faults != 2 {
				t.Fatalf("%d faults, %v", faults, ctx.Err())
			}
			checkCopied(t, b.Config(), n)
		})
	}
}
