package stream_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"ctrloop/internal/stream"
	"ctrloop/internal/stream/streamtest"
	"ctrloop/schemas"
)

// TestKillNineKeepsWhatWasAcknowledged runs a broker in a child process, kills it with SIGKILL while a
// transaction is open, and starts another on its directory.
func TestKillNineKeepsWhatWasAcknowledged(t *testing.T) {
	const dirEnv = "CTRLOOP_TEST_BROKER_DIR"
	if dir := os.Getenv(dirEnv); dir != "" { // the child
		e, err := stream.StartEmbedded(stream.EmbeddedConfig{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println(e.Brokers()[0])
		select {} // until it is killed
	}
	dir, ctx := t.TempDir(), testContext(t)
	child := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestKillNineKeepsWhatWasAcknowledged$", "-test.timeout=60s")
	child.Env = append(os.Environ(), dirEnv+"="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("the broker did not start")
	}
	conf := stream.Default()
	conf.Brokers = []string{lines.Text()}
	const n = 1000
	if err := stream.EnsureTopics(ctx, conf, []schemas.Topic{{Name: "in"}, {Name: "out"}}, 2, -1); err != nil {
		t.Fatal(err)
	}
	streamtest.Produce(t, conf, inputs("in", 0, n)...)
	if _, _, err := (copier{conf: conf, id: "t", max: 300}).run(ctx, 400); err != nil {
		t.Fatal(err)
	}
	_, _, err = copier{conf: conf, id: "t", max: 300, beforeCommit: func() bool {
		if err := child.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = child.Wait()
		return false
	}}.run(ctx, n)
	if err == nil {
		t.Fatal("the crash did not happen")
	}
	e, err := stream.StartEmbedded(stream.EmbeddedConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, _, err := (copier{conf: e.Config(), id: "t", max: 300}).run(ctx, remaining(t, ctx, e.Config(), n)); err != nil {
		t.Fatal(err)
	}
	checkCopied(t, e.Config(), n)
}

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
