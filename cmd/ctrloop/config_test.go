package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ctrloop/app"
	"ctrloop/docs"
	"ctrloop/internal/config"

	"github.com/google/go-cmp/cmp"
)

func TestDefaultsAreValid(t *testing.T) {
	if _, err := config.Load("", app.Default()); err != nil {
		t.Error(err)
	}
}

// TestExampleConfigurations loads what deploy ships with the product's own parser.
func TestExampleConfigurations(t *testing.T) {
	files, err := filepath.Glob("../../deploy/config/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for name, value := range map[string]string{
		"KAFKA_BROKER_1": "kafka-1.example:9093", "KAFKA_BROKER_2": "kafka-2.example:9093", "KAFKA_BROKER_3": "kafka-3.example:9093",
		"CLICKHOUSE_DSN":           "clickhouse://ctrloop:s3cret@clickhouse.example:9440/ctrloop?secure=true",
		"CTRLOOP_USER_SALT":        "a salt of the test's own",
		"CLICKHOUSE_READ_ONLY_DSN": "clickhouse://reader:s3cret@clickhouse.example:9440/ctrloop?secure=true",
	} {
		t.Setenv(name, value)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			code, stdout, stderr := cli(t, "config", "check", file)
			if code != exitOK || !strings.Contains(stdout, "ok") {
				t.Errorf("exit %d: %s", code, stderr)
			}
			code, stdout, stderr = cli(t, "config", "show", file)
			if code != exitOK || strings.Contains(stdout, "s3cret") {
				t.Errorf("exit %d, a secret is shown, or: %s\n%s", code, stderr, stdout)
			}
		})
	}
	tree, err := config.Load("../../deploy/config/production.yaml", app.Default())
	if err != nil {
		t.Fatal(err)
	}
	if got := tree.Kafka.Brokers; len(got) != 3 || got[2] != "kafka-3.example:9093" || !tree.Kafka.TLS.Enabled ||
		len(tree.Models.Servers) != 2 {
		t.Errorf("production: %+v", tree.Kafka)
	}
}

func TestConfigCheckListsProblems(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("kafka:\n  partition: 3\njoiner:\n  window: 30\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := cli(t, "config", "check", file)
	want := "ctrloop: " + file + `: 2 problems
  line 2: kafka.partition: unknown key; did you mean "partitions"?
  line 4: joiner.window: "30" is not a duration; write a number with a unit: 500ms, 30s, 15m, 12h, 7d
  do: ctrloop config docs lists every key with its default
`
	if diff := cmp.Diff(want, stderr); diff != "" || code != exitUsage {
		t.Errorf("exit %d, stderr (-want +got):\n%s", code, diff)
	}
	code, stdout, _ := cli(t, "config", "check", file, "--json")
	var result configCheck
	if err := json.Unmarshal([]byte(stdout), &result); err != nil || code != exitUsage || result.OK || len(result.Problems) != 2 ||
		result.Problems[0].Line != 2 {
		t.Errorf("exit %d, %v: %s", code, err, stdout)
	}
}

// TestRetentionCoversTheJoin: topics that forget sooner than the join needs them fail the check, not a start weeks later.
func TestRetentionCoversTheJoin(t *testing.T) {
	for yaml, want := range map[string]string{
		"kafka:\n  retention: 1h\njoiner:\n  window: 2h\n": "kafka.retention: 1h0m0s: want at least 5h0m30s",
		// S27: what is corrected after the window is read from the topics too; by default that is as long as the window.
		"kafka:\n  retention: 4h\njoiner:\n  window: 2h\n":                     "joiner.correction",
		"kafka:\n  retention: 6h\njoiner:\n  window: 2h\n":                     "",
		"kafka:\n  retention: 24h\njoiner:\n  window: 2h\n  correction: 24h\n": "kafka.retention: 24h0m0s: want at least 27h0m30s",
		"kafka:\n  retention: 28h\njoiner:\n  window: 2h\n  correction: 24h\n": "",
		"kafka:\n  retention: -1s\njoiner:\n  window: 2h\n":                    "",
	} {
		file := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		code, _, stderr := cli(t, "config", "check", file)
		if (code == exitOK) != (want == "") || !strings.Contains(stderr, want) {
			t.Errorf("%q: exit %d: %s", yaml, code, stderr)
		}
	}
}

// TestConfigReferenceIsCurrent fails where a field, a default or a comment has changed since `make docs`.
func TestConfigReferenceIsCurrent(t *testing.T) {
	page, err := config.Docs("../..", "ctrloop", app.Default())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(docs.Config, string(page)); diff != "" {
		t.Errorf("docs/reference/config.md is old: run `make docs` (-committed +current):\n%s", diff)
	}
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "| `") && strings.HasSuffix(strings.TrimSpace(line), "|  |") {
			t.Errorf("a key without a doc comment: %s", strings.TrimSpace(line))
		}
	}
}

// V9: the public salt hides nobody, so an instance with brokers of its own must have one of its own.
func TestASaltIsRequiredOutsideOfEmbeddedRuns(t *testing.T) {
	check := func(text string) (int, string) {
		file := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		code, _, stderr := cli(t, "config", "check", file)
		return code, stderr
	}
	if code, said := check("kafka: {brokers: [k:9092]}\n"); code != exitUsage || !strings.Contains(said, "ingest.user_salt") ||
		!strings.Contains(said, "openssl rand") {
		t.Errorf("exit %d: %s", code, said)
	}
	if code, said := check("kafka: {brokers: [k:9092]}\ningest: {user_salt: ours}\n"); code != exitOK {
		t.Errorf("exit %d: %s", code, said)
	}
	cfg := app.Default()
	cfg.Ingest.UserSalt = "ours"
	if shown, err := config.Show(cfg); err != nil || strings.Contains(string(shown), "ours") || !strings.Contains(string(shown), "user_salt: '[set]'") {
		t.Errorf("the salt is shown, or not that there is one: %v\n%s", err, shown)
	}
	if code, said := check("joiner: {window: 31m}\n"); code != exitOK {
		t.Errorf("embedded: exit %d: %s", code, said)
	}
}
