package setup

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestPinsOfOneKafka(t *testing.T) {
	jars := kafkaJars()
	for name, j := range jars {
		if len(j.sum) != 64 || filepath.Ext(name) != ".jar" {
			t.Errorf("%s: %+v", name, j)
		}
	}
	if _, ok := jars["kafka_2.13-"+KafkaVersion+".jar"]; !ok || len(jars) < 20 {
		t.Errorf("%d jars, the broker's among them: %v", len(jars), ok)
	}
	if !strings.Contains(string(kafkaPOM), "<artifactId>kafka_2.13</artifactId>\n      <version>"+KafkaVersion+"</version>") {
		t.Errorf("what Maven resolves is not of version %s", KafkaVersion)
	}
}

func TestJarsAreHeldAgainstTheirSums(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"kafka_2.13-4.4.0.jar": "altered", "other.jar": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	err := verifyJars(dir)
	for _, want := range []string{"kafka_2.13-4.4.0.jar has sha256", "other.jar is not pinned", "kafka-clients-4.4.0.jar is missing"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
}

// A Java and jars of one's own are taken by path, and a path that leads nowhere is told.
func TestKafkaOfOnesOwn(t *testing.T) {
	home, own := t.TempDir(), t.TempDir()
	java := filepath.Join(own, "java")
	var missing *MissingError
	if _, err := Kafka(home); !errors.As(err, &missing) || missing.What != javaName {
		t.Errorf("nothing is there: %v", err)
	}
	t.Setenv(javaEnv, java)
	if _, err := Kafka(home); err == nil || !strings.Contains(err.Error(), javaEnv) {
		t.Errorf("a Java that is not there: %v", err)
	}
	if err := os.WriteFile(java, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Kafka(home); !errors.As(err, &missing) || missing.What != kafkaName {
		t.Errorf("no jars are there: %v", err)
	}
	t.Setenv(jarsEnv, own)
	if _, err := Kafka(home); err == nil || !strings.Contains(err.Error(), jarsEnv) {
		t.Errorf("a folder without Kafka: %v", err)
	}
	if err := os.WriteFile(filepath.Join(own, "kafka_2.13-9.jar"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if p, err := Kafka(home); err != nil || p.Java != java || p.Jars != own || p.Cache != "" {
		t.Errorf("%+v, %v", p, err)
	}
}

// TestTheResolverSortsJarsByKind: jgo lays what it calls modules apart from the class path, which with a Java at hand is nearly all.
func TestTheResolverSortsJarsByKind(t *testing.T) {
	home, tmp := t.TempDir(), t.TempDir()
	folder := pythonFolder(home, resolverLock)
	jgo := `#!/bin/sh
while [ "$1" != --cache-dir ]; do shift; done
for kind in jars modules; do mkdir -p "$2/envs/org/x/$kind"; done
echo a > "$2/envs/org/x/jars/argparse4j-0.7.0.jar"
echo b > "$2/envs/org/x/modules/re2j-1.8.jar"
echo c > "$2/envs/org/x/modules/annotations-13.0.jar"
echo "$2/envs/org/x/jars/argparse4j-0.7.0.jar"
`
	if err := os.MkdirAll(filepath.Join(folder, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"bin/jgo": jgo, marker: ""} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	libs := filepath.Join(tmp, "libs")
	if err := jarsByResolver(t.Context(), Options{Home: home, Progress: io.Discard}, tmp, libs); err != nil {
		t.Fatal(err)
	}
	var got []string
	entries, err := os.ReadDir(libs)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if want := []string{"argparse4j-0.7.0.jar", "re2j-1.8.jar"}; !slices.Equal(got, want) {
		t.Errorf("taken: %v, want those that are pinned: %v", got, want)
	}
}
