package serving

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ctrloop/internal/loopback"
	"ctrloop/internal/setup"
	"ctrloop/schemas/control"
	"ctrloop/serving/servingtest"
)

const trainer = "../trainer-bridge/trainer"

// python finds an interpreter with the packages of the trainer: the environment that `ctrloop setup` makes, or
// CTRLOOP_PYTHON if that has them.
func python(t *testing.T) string {
	t.Helper()
	lock, err := os.ReadFile(filepath.Join(trainer, "requirements.txt"))
	if err != nil {
		t.Fatal(err)
	}
	home, err := setup.Home("")
	if err != nil {
		t.Fatal(err)
	}
	found, missing := setup.Python(home, lock)
	if given := os.Getenv("CTRLOOP_PYTHON"); missing != nil && given != "" {
		if err := exec.CommandContext(t.Context(), given, "-c", "import peft, starlette, uvicorn").Run(); err == nil {
			return given
		}
	}
	if missing != nil && os.Getenv("CTRLOOP_TEST_ALLOW_MISSING") == "1" {
		t.Skipf("the model server cannot run: %v", missing)
	}
	if missing != nil {
		t.Fatalf("%v (run `ctrloop setup`; CTRLOOP_TEST_ALLOW_MISSING=1 skips)", missing)
	}
	return found
}

// run runs a Python program with the trainer's package.
func command(ctx context.Context, python string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, python, args...)
	c.Env = append(os.Environ(), "PYTHONPATH="+trainer, "PYTHONDONTWRITEBYTECODE=1", "OMP_NUM_THREADS=1")
	return c
}

// modelServer is the real model server on a port of its own.
type modelServer struct {
	t      *testing.T
	python string
	base   string
	port   int
	cmd    *exec.Cmd
	out    strings.Builder
}

func (m *modelServer) address() string { return fmt.Sprintf("http://127.0.0.1:%d", m.port) }

func (m *modelServer) start() {
	m.t.Helper()
	m.cmd = command(
		context.Background(),
		m.python,
		"-m",
		"ctrloop_trainer.serve",
		"--model",
		m.base,
		"--port",
		fmt.Sprint(m.port),
		"--served-model-name",
		"prompt-base",
		"--threads",
		"1",
	)
	m.cmd.Stdout, m.cmd.Stderr = &m.out, &m.out
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		resp, err := http.Get(m.address() + "/health")
		if err == nil {
			_ = resp.Body.Close()
			return
		}
		if time.Now().After(end) || m.cmd.ProcessState != nil {
			m.kill()
			m.t.Fatalf("the model server does not come up: %v\n%s", err, m.out.String())
		}
	}
}

func (m *modelServer) kill() {
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
}

// TestTheModelServer takes the shipped base through swap, gateway and creatives on the real model server: what the
// fakes claim about the protocol, the probe and the adapter check holds for a real model.
func TestTheModelServer(t *testing.T) {
	py := python(t)
	base, err := filepath.Abs(filepath.Join(trainer, "weights", "prompt-base"))
	if err != nil {
		t.Fatal(err)
	}
	port, err := loopback.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	m := &modelServer{t: t, python: py, base: base, port: port}
	m.start()
	t.Cleanup(func() { m.kill() })
	i := start(t, base, m.address())

	dir := t.TempDir()
	if out, err := command(t.Context(), py, "testdata/make_adapters.py", base, dir, i.BaseDigest()).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	v := servingtest.Register(t, i.log, i.store, filepath.Join(dir, "good"), i.BaseDigest())
	i.log.Await(t, "the adapter in shadow", func(st *control.State) bool {
		s := st.Models[v].State
		return s == control.ModelShadow || s == control.ModelFailed
	})
	if got := i.log.State().Models[v]; got.State != control.ModelShadow {
		t.Fatalf("%s: %s", got.State, got.Reason)
	}

	// Another adapter's weights under this adapter's golden answer, and weights that apply nothing.
	for name, want := range map[string]string{"other": "not_as_trained", "zero": "applies_nothing"} {
		b := servingtest.Register(t, i.log, i.store, filepath.Join(dir, name), i.BaseDigest())
		i.log.Await(t, name+" to fail", func(st *control.State) bool { return st.Models[b].State == control.ModelFailed })
		if got := i.log.State().Models[b].Reason; !strings.Contains(got, want) {
			t.Errorf("reason %q, want %s", got, want)
		}
	}

	// Requests flow while the champion changes.
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var asked atomic.Int64
	versions := map[string]bool{}
	var mu sync.Mutex
	for k := range 3 {
		wg.Go(func() {
			for seed := k * 1000; ctx.Err() == nil; seed++ {
				h := i.call(
					"POST",
					"/v1/chat/completions",
					map[string]any{
						"model":      "prompt",
						"seed":       seed,
						"max_tokens": 8,
						"messages":   []any{map[string]any{"role": "user", "content": "red shoe. describe a background for this product"}},
					},
					200,
					nil,
				)
				mu.Lock()
				versions[h.Get("X-Model-Version")] = true
				mu.Unlock()
				asked.Add(1)
			}
		})
	}
	i.eventually("requests on the base", func() bool { return asked.Load() > 6 })
	if err := i.Promote(t.Context(), v, false, "test", ""); err != nil {
		t.Error(err)
	}
	at := asked.Load()
	i.eventually("requests on the adapter", func() bool { return asked.Load() > at+12 })
	stop()
	wg.Wait()
	if !versions[i.base] || !versions[v] {
		t.Errorf("versions that answered: %v", versions)
	}

	for _, version := range []string{i.base, v} {
		products := i.makeCreatives(3, 4, version)
		for _, p := range products {
			if n := len(i.lib.Now().Shelf(p).ByVersion[version]); n < 3 {
				t.Errorf("%s: %d creatives of %s", p, n, version)
			}
		}
	}
	for _, d := range i.decideAll(i.makeCreatives(3, 4, v), 5) {
		if d.Error != "" || d.ModelVersion != v {
			t.Errorf("%+v", d)
		}
	}

	// The server dies and comes back without its adapter: nothing is routed to it before its probe has passed again.
	m.kill()
	i.eventually("the dead server to leave the routes", func() bool { x, _ := i.table.Version(v); return len(x.Replicas) == 0 })
	m.start()
	i.eventually("the adapter to be back", func() bool { x, _ := i.table.Version(v); return len(x.Replicas) == 1 })
	h := i.call(
		"POST",
		"/v1/chat/completions",
		map[string]any{"model": "prompt", "messages": []any{map[string]any{"role": "user", "content": "hello"}}},
		200,
		nil,
	)
	if h.Get("X-Model-Version") != v {
		t.Errorf("after the restart %s answers", h.Get("X-Model-Version"))
	}
	if s := i.Stats(); s.Gateway.Failed != 0 || s.Gateway.WrongVersion != 0 || s.Creatives.PixelError != 0 {
		t.Errorf("%+v", s)
	}
}
