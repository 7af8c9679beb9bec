package two

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ctrloop/internal/broker/brokertest"
	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse"
	"ctrloop/internal/warehouse/warehousetest"
	"ctrloop/serving/backend/vllmfake"
	"ctrloop/serving/servingtest"
)

// roles are the services of `ctrloop up`; each runs in two processes of its own. With serving come the gateway, the console,
// swap, rollout and the experiment controller, with sink the audit and the rollups.
var roles = []string{"ingest", "joiner", "sink", "pairer", "trainer", "serving"}

// servers is the seventh role: the model servers, which are fakes in this process and can only be killed.
const servers = "model server"

// cluster is everything that runs.
type cluster struct {
	t       *testing.T
	dir     string
	kafka   stream.Config
	db      *warehouse.DB
	nodes   []*node
	models  []*vllmfake.Server
	journal string
	client  *http.Client
}

// startCluster starts broker, warehouse, model servers and two processes of each role, and returns when all are ready.
func startCluster(t *testing.T, f form) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), client: &http.Client{Timeout: 2 * time.Second}}
	c.journal = filepath.Join(c.dir, "jobs.jsonl")
	c.startBroker()
	engine, db := warehousetest.Start(t, warehouse.Options{})
	c.db = db
	var addresses []string
	for range 2 {
		s, err := vllmfake.Start(model())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Kill)
		c.models, addresses = append(c.models, s), append(addresses, s.Address())
	}
	base := servingtest.Base(t)
	servingtest.WriteJSON(t, filepath.Join(base, "prompting.json"), map[string]any{
		"instructions": []string{"describe a background"}, "view_px": 16, "temperature": 1, "max_tokens": 32,
	})
	config := fmt.Sprintf(f.config(), c.kafka.Brokers[0], engine.DSN(), addresses[0], addresses[1], base, writeProducts(t))
	env := append(os.Environ(), "CTRLOOP_HOME="+fakeHome(t), journalEnv+"="+c.journal, workEnv+"="+f.work.String())
	artifacts := filepath.Join(c.dir, "artifacts")
	if err := os.Mkdir(artifacts, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.stop)
	for _, role := range roles {
		for i := range 2 {
			n := &node{c: c, role: role, name: fmt.Sprintf("%s-%d", role, i), env: env}
			n.dir = filepath.Join(c.dir, n.name)
			n.config = filepath.Join(c.dir, n.name+".yaml")
			err := errFirst(os.Mkdir(n.dir, 0o755), os.Symlink(artifacts, filepath.Join(n.dir, "artifacts")),
				os.WriteFile(n.config, []byte(strings.ReplaceAll(config, "INSTANCE", fmt.Sprint(i))), 0o644))
			if err != nil {
				t.Fatal(err)
			}
			c.nodes = append(c.nodes, n)
			n.supervise()
		}
	}
	c.wait(3*time.Minute, "every process to be ready", c.allReady)
	return c
}

// startBroker starts Apache Kafka.
func (c *cluster) startBroker() {
	c.kafka = brokertest.Start(c.t, filepath.Join(c.dir, "kafka")).Config()
}

// wait asks again and again whether something has happened, and fails with what was missing last.
func (c *cluster) wait(most time.Duration, what string, happened func() (missing string)) {
	c.t.Helper()
	end := time.Now().Add(most)
	for {
		missing := happened()
		if missing == "" {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("waited %v for %s: %s\n%s", most, what, missing, c.lastWords())
		}
		<-time.After(100 * time.Millisecond)
	}
}

// of lists the processes of a role.
func (c *cluster) of(role string) []*node {
	return slices.DeleteFunc(slices.Clone(c.nodes), func(n *node) bool { return n.role != role })
}

func (c *cluster) allReady() (missing string) {
	for _, n := range c.nodes {
		if err := n.get("admin", "/readyz", nil); err != nil {
			return n.name + ": " + err.Error()
		}
	}
	return ""
}

// stop ends all processes in order, from the outside in.
func (c *cluster) stop() {
	for _, role := range []string{"ingest", "serving", "trainer", "pairer", "joiner", "sink"} {
		var all sync.WaitGroup
		for _, n := range c.of(role) {
			all.Go(n.end)
		}
		all.Wait()
	}
	if c.t.Failed() {
		c.t.Log(c.lastWords())
	}
}

// lastWords are the last warnings and errors of every process.
func (c *cluster) lastWords() string {
	var b strings.Builder
	for _, n := range c.nodes {
		fmt.Fprintf(&b, "== %s\n%s\n", n.name, n.lastWords())
	}
	return b.String()
}

// node is a process of `ctrloop up` that is started again whenever it ends.
type node struct {
	c                       *cluster
	role, name, dir, config string
	env                     []string

	mu      sync.Mutex
	pid     int           // 0: it does not run
	hold    time.Duration // how long it stays down after the kill that is on its way
	killed  bool
	ending  bool
	ended   chan struct{}
	crashes []string // ends that nobody asked for
}

// supervise runs the process until end.
func (n *node) supervise() {
	n.ended = make(chan struct{})
	go func() {
		runtime.LockOSThread() // the parent-death signal is sent when this thread ends
		defer runtime.UnlockOSThread()
		defer close(n.ended)
		for n.run() {
		}
	}()
}

// run starts the process, waits for its end, and says whether to start it again.
func (n *node) run() (again bool) {
	log, err := os.OpenFile(filepath.Join(n.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		n.crash(err.Error())
		return false
	}
	defer log.Close()
	cmd := exec.Command(program, "--log-format", "json", "up", "--target", n.role, "--dir", n.dir, "--config", n.config)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr, cmd.Env = log, log, childAttr(), n.env
	n.mu.Lock()
	if n.ending {
		n.mu.Unlock()
		return false
	}
	if err := cmd.Start(); err != nil {
		n.mu.Unlock()
		n.crash(err.Error())
		return false
	}
	n.pid, n.killed = cmd.Process.Pid, false
	n.mu.Unlock()
	err = cmd.Wait()
	n.mu.Lock()
	n.pid = 0
	killed, hold, ending := n.killed, n.hold, n.ending
	n.mu.Unlock()
	switch {
	case ending && err != nil:
		n.crash(fmt.Sprintf("it did not stop in order: %v", err))
		return false
	case ending:
		return false
	case !killed:
		n.crash(fmt.Sprintf("it ended by itself: %v; its last words:\n%s", err, n.lastWords()))
		hold = time.Second // as an orchestrator would
	}
	<-time.After(hold)
	return true
}

func (n *node) crash(why string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.crashes = append(n.crashes, why)
}

// kill is kill -9; it is started again after the given time.
func (n *node) kill(down time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pid != 0 {
		n.killed, n.hold = true, down
		_ = syscall.Kill(n.pid, syscall.SIGKILL)
	}
}

// signal sends one to the process, 0 if there is none now, and returns its number.
func (n *node) signal(s syscall.Signal) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pid != 0 {
		_ = syscall.Kill(n.pid, s)
	}
	return n.pid
}

// end stops the process in order and waits; one that does not end is killed, which is a failure.
func (n *node) end() {
	n.mu.Lock()
	n.ending = true
	n.mu.Unlock()
	n.signal(syscall.SIGCONT)
	n.signal(syscall.SIGTERM)
	select {
	case <-n.ended:
	case <-time.After(time.Minute):
		n.signal(syscall.SIGKILL)
		<-n.ended
	}
}

// address of a listener of the process that runs now.
func (n *node) address(listener string) (string, error) {
	var run map[string]any
	if err := read(filepath.Join(n.dir, "run.json"), &run); err != nil {
		return "", err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if pid, _ := run["pid"].(float64); n.pid == 0 || int(pid) != n.pid {
		return "", errors.New("it is starting")
	}
	address, _ := run[listener].(string)
	return address, nil
}

// errRefused is wrapped by the error of a call that was answered with a status of 4xx.
var errRefused = errors.New("refused")

// errUnreached is wrapped by the error of a call that was never sent.
var errUnreached = errors.New("not reached")

func (n *node) get(listener, path string, into any) error {
	return n.call(http.MethodGet, listener, path, nil, into)
}

// call makes a request and decodes a 2xx answer. Any other error than errRefused and errUnreached leaves its outcome unknown.
func (n *node) call(method, listener, path string, body []byte, into any) error {
	address, err := n.address(listener)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnreached, err)
	}
	req, err := http.NewRequestWithContext(n.c.t.Context(), method, "http://"+address+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := n.c.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	switch {
	case resp.StatusCode >= 500:
		return fmt.Errorf("%s: %.300s", resp.Status, raw)
	case resp.StatusCode >= 400:
		return fmt.Errorf("%w: %s: %.300s", errRefused, resp.Status, raw)
	case into == nil:
		return nil
	}
	return json.Unmarshal(raw, into)
}

// lastWords are its last lines above info.
func (n *node) lastWords() string {
	raw, err := os.ReadFile(filepath.Join(n.dir, "log"))
	if err != nil {
		return err.Error()
	}
	var loud []string
	for line := range strings.Lines(string(raw)) {
		if !strings.Contains(line, `"level":"info"`) && !strings.Contains(line, `"level":"debug"`) {
			loud = append(loud, strings.TrimSpace(line))
		}
	}
	return strings.Join(loud[max(0, len(loud)-12):], "\n")
}

// crashes of all processes, by name.
func (c *cluster) crashes() string {
	all := map[string][]string{}
	for _, n := range c.nodes {
		n.mu.Lock()
		if len(n.crashes) > 0 {
			all[n.name] = n.crashes
		}
		n.mu.Unlock()
	}
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		lines = append(lines, fmt.Sprintf("%s: %s", name, strings.Join(all[name], "; ")))
	}
	return strings.Join(lines, "\n")
}
