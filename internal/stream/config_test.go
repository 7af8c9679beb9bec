package stream_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"ctrloop/internal/stream"
	"ctrloop/schemas"
)

func TestSCRAM(t *testing.T) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-512", "u", "secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := stream.Default()
	conf.Brokers = c.ListenAddrs()
	conf.SASL = stream.SASL{Mechanism: "SCRAM-SHA-512", User: "u", PasswordFile: file}
	if err := stream.EnsureTopics(testContext(t), conf, []schemas.Topic{{Name: "a"}}, 1, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := stream.CheckBroker(testContext(t), conf); err == nil {
		t.Fatal("a wrong password was accepted")
	}
}

func TestValidateNamesEveryProblem(t *testing.T) {
	conf := stream.Config{
		Brokers: []string{"host"}, TLS: stream.TLS{CertFile: "x"}, SASL: stream.SASL{Mechanism: "PLAIN"},
	}
	err := conf.Validate()
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 3 {
		t.Fatalf("want three problems, got %v", err)
	}
	if err := stream.Default().Validate(); err != nil {
		t.Fatal(err)
	}
}
