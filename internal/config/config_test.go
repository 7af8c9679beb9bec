package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// tree is a configuration as the services have it.
type tree struct {
	// Dir holds all state.
	Dir string `yaml:"dir"`
	// Join is about the window.
	Join    joinConfig        `yaml:"join"`
	Brokers []broker          `yaml:"brokers"`
	Labels  map[string]string `yaml:"labels"`
	// Ramp lists the steps of a rollout, in percent | of traffic.
	Ramp []int `yaml:"ramp"`
	Off  *bool `yaml:"off"`
}

type joinConfig struct {
	// Window is how long clicks are waited for, in event time.
	Window time.Duration `yaml:"window"`
	// MaxKeys bounds memory, in impressions.
	MaxKeys int `yaml:"max_keys"`
}

func (c joinConfig) Validate() error {
	var problems []error
	if c.Window <= 0 {
		problems = append(problems, errors.New("window: must be positive"))
	}
	if c.MaxKeys <= 0 {
		problems = append(problems, fmt.Errorf("max_keys: %d must be positive", c.MaxKeys))
	}
	return errors.Join(problems...)
}

type broker struct {
	Address  string `yaml:"address"`
	Password Secret `yaml:"password"`
}

func (c *broker) Validate() error {
	if c.Address == "" {
		return errors.New("address: must not be empty")
	}
	return nil
}

func defaults() tree {
	return tree{Dir: "data", Join: joinConfig{Window: 24 * time.Hour, MaxKeys: 1000}, Ramp: []int{1, 5, 100}}
}

func TestLoadOverlaysTheDefaults(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CTRLOOP_TEST_KEYS", "77")
	file := filepath.Join(dir, "config.yaml")
	text := `
join:
  window: 7d
  max_keys: ${CTRLOOP_TEST_KEYS}
brokers:
  - address: ${CTRLOOP_TEST_UNSET:-localhost:9092}
    password: ${file:token}
labels: {price: $$5}
off: true
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Load(file, defaults())
	if err != nil {
		t.Fatal(err)
	}
	yes := true
	want := tree{
		Dir: "data", Join: joinConfig{Window: 7 * 24 * time.Hour, MaxKeys: 77},
		Brokers: []broker{{Address: "localhost:9092", Password: "s3cret"}},
		Labels:  map[string]string{"price": "$5"}, Ramp: []int{1, 5, 100}, Off: &yes,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

func TestLoadWithoutAFileValidatesTheDefaults(t *testing.T) {
	if got, err := Load("", defaults()); err != nil || got.Dir != "data" {
		t.Errorf("%+v, %v", got, err)
	}
	broken := defaults()
	broken.Join.Window = 0
	if _, err := Load("", broken); err == nil || err.Error() != "configuration: join.window: must be positive" {
		t.Errorf("broken defaults: %v", err)
	}
}

// TestProblems holds the messages a user sees.
func TestProblems(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"unknown keys, all of them", "dri: x\njoin:\n  windows: 1h\nbrokers:\n- adress: a\nzzz: 1\n", `f.yaml: 4 problems
line 1: dri: unknown key; did you mean "dir"?
line 3: join.windows: unknown key; did you mean "window"?
line 5: brokers[0].adress: unknown key; did you mean "address"?
line 6: zzz: unknown key`},
		{"duration without a unit", "join: {window: 30}",
			`f.yaml: line 1: join.window: "30" is not a duration; write a number with a unit: 500ms, 30s, 15m, 12h, 7d`},
		{"wrong type", "dir: x\njoin:\n  max_keys: many\n", "f.yaml: line 3: cannot unmarshal !!str `many` into int"},
		{"list for a section", "join: [1]", "f.yaml: line 1: cannot unmarshal !!seq into config.joinConfig"},
		{"validation of every section", "join: {window: 0s, max_keys: -1}\nbrokers: [{password: x}]", `f.yaml: 3 problems
line 1: join.window: must be positive
line 1: join.max_keys: -1 must be positive
line 2: brokers[0].address: must not be empty`},
		{"no problem hides another", "dri: x\njoin:\n  window: -1h\n  max_keys: many\nbrokers:\n- address: a\n- password: x\n",
			`f.yaml: 4 problems
line 1: dri: unknown key; did you mean "dir"?
line 3: join.window: must be positive
line 4: cannot unmarshal !!str ` + "`many`" + ` into int
line 7: brokers[1].address: must not be empty`},
		{"unset variable", "dir: ${CTRLOOP_TEST_UNSET}",
			"f.yaml: line 1: dir: the environment variable CTRLOOP_TEST_UNSET is not set; set it, or write ${CTRLOOP_TEST_UNSET:-default}"},
		{"missing file", "dir: ${file:nothing}",
			"f.yaml: line 1: dir: the file of ${file:nothing} cannot be read: open nothing: no such file or directory"},
		{"open reference", "dir: ${X", "f.yaml: line 1: dir: the reference ${X has no closing brace; write $$ for a dollar sign"},
		{"empty value", "dir:\n", "f.yaml: line 1: dir: has no value; leave the key out for the default"},
		{"duplicate key", "dir: a\ndir: b\n", "f.yaml: line 2: mapping key \"dir\" already defined at line 1"},
		{"two documents", "dir: a\n---\ndir: b\n", "f.yaml: has more than one YAML document; give one"},
		{"alias", "labels: &a {x: y}\ndir: *a\n", "f.yaml: line 2: dir: anchors and aliases are not supported; write the value out"},
		{"no YAML", "dir: [", "f.yaml: is not YAML: yaml: line 1: did not find expected node content"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Parse([]byte(test.text), "f.yaml", defaults())
			if err == nil {
				t.Fatal("no problem was found")
			}
			if diff := cmp.Diff(test.want, err.Error()); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	c := defaults()
	c.Brokers = []broker{{Address: "clickhouse://user:s3cret@a:1/db", Password: "s3cret"}}
	shown, err := Show(c)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(shown), "clickhouse://user:[set]@a:1/db") {
		t.Errorf("the address is not shown without its password:\n%s", shown)
	}
	c.Brokers[0].Address = ""
	all := string(shown) + fmt.Sprintf("%v %+v %#v %s", c, c, c, c.Brokers[0].Password)
	if strings.Contains(all, "s3cret") || !strings.Contains(string(shown), "password: '[set]'") {
		t.Errorf("shown:\n%s", all)
	}
	if c.Brokers[0].Password.Reveal() != "s3cret" {
		t.Error("the secret itself is lost")
	}
}

func TestShowLoadsAgain(t *testing.T) {
	shown, err := Show(defaults())
	if err != nil {
		t.Fatal(err)
	}
	var plain map[string]any
	if err := yaml.Unmarshal(shown, &plain); err != nil || len(plain) == 0 {
		t.Fatalf("%v in:\n%s", err, shown)
	}
	if !strings.Contains(string(shown), "window: 24h0m0s") {
		t.Errorf("durations are not readable:\n%s", shown)
	}
}

func TestDocsTakeTheDocComments(t *testing.T) {
	// The tree of this test is declared in a _test.go file of this package, two folders below the root.
	page, err := Docs(filepath.Join("..", ".."), "ctrloop", defaults())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| `dir` | text | `data` | Dir holds all state. |",
		"| `ramp` | list of whole number | `[1, 5, 100]` | Ramp lists the steps of a rollout, in percent \\| of traffic. |",
		"## `join`\n\nJoin is about the window.\n",
		"| `window` | duration | `24h0m0s` | Window is how long clicks are waited for, in event time. |",
		"| `brokers` | list of section | none |",
		"## `brokers[]`\n\n| key | type | default | meaning |\n|---|---|---|---|\n| `address` | text | empty |",
		"| `password` | secret text | empty |",
	} {
		if !strings.Contains(string(page), want) {
			t.Errorf("no %q in:\n%s", want, page)
		}
	}
}

// TestDerivedKeysAreNotTheUsers covers the keys that the program sets itself.
func TestDerivedKeysAreNotTheUsers(t *testing.T) {
	type root struct {
		// Join is filled from elsewhere in part.
		Join joinConfig `yaml:"join" derived:"max_keys"`
	}
	def := root{Join: joinConfig{Window: time.Hour}} // max_keys 0 is a problem to joinConfig
	if _, err := Load("", def); err != nil {
		t.Errorf("the problem of a derived key is reported: %v", err)
	}
	_, err := Parse([]byte("join: {max_keys: 5}"), "f.yaml", def)
	if want := "f.yaml: line 1: join.max_keys: is set by ctrloop itself; remove the key"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if _, err := Parse([]byte("join: {window: -1s}"), "f.yaml", def); err == nil {
		t.Error("problems of other keys are lost")
	}
	shown, err := Show(def)
	if err != nil || string(shown) != "join:\n  window: 1h0m0s\n" {
		t.Errorf("%v, shown:\n%s", err, shown)
	}
	page, err := Docs(filepath.Join("..", ".."), "ctrloop", def)
	if err != nil || strings.Contains(string(page), "max_keys") {
		t.Errorf("%v, documented:\n%s", err, page)
	}
}
