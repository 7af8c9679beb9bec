package swap

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"ctrloop/internal/artifact"
	"ctrloop/schemas/control"
	"ctrloop/serving/backend"
	"ctrloop/serving/backend/vllmfake"
	"ctrloop/serving/gateway"
	"ctrloop/serving/route"
	"ctrloop/serving/servingtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is a control log, a store, n fake replicas and a controller over them.
type cluster struct {
	log      *servingtest.Log
	store    *artifact.Store
	servers  []*vllmfake.Server
	replicas []*route.Replica
	table    *route.Table
	ctrl     *Controller
	base     string // version
	digest   string // of the base
}

func fakeConfig() vllmfake.Config {
	return vllmfake.Config{Base: "prompt-base", BaseWeights: "base-weights", Layers: servingtest.Layers}
}

func newCluster(t *testing.T, n int) *cluster {
	t.Helper()
	c := &cluster{log: servingtest.NewLog(), table: &route.Table{}}
	var err error
	if c.store, err = artifact.Open(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	for range n {
		s, err := vllmfake.Start(fakeConfig())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Kill)
		how := backend.DefaultVLLMConfig(s.Address())
		how.ReadTimeout = 200 * time.Millisecond
		v, err := backend.NewVLLM(how)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(v.Close)
		c.servers = append(c.servers, s)
		c.replicas = append(c.replicas, route.NewReplica(v, 256))
	}
	cfg := Default()
	cfg.BaseDir, cfg.CheckInterval, cfg.Quarantine = servingtest.Base(t), 20*time.Millisecond, 50*time.Millisecond
	log := zerolog.Nop()
	if testing.Verbose() {
		log = zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)
	}
	if c.ctrl, err = New(cfg, c.log, c.store, c.replicas, c.table, log, prometheus.NewRegistry()); err != nil {
		t.Fatal(err)
	}
	c.digest = c.ctrl.BaseDigest()
	c.base = servingtest.Register(t, c.log, c.store, cfg.BaseDir, "")
	servingtest.Promote(t, c.log, c.base)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.ctrl.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *cluster) adapter(t *testing.T, seed float32) string {
	t.Helper()
	return servingtest.Register(t, c.log, c.store, servingtest.Adapter(t, c.servers[0], servingtest.LoRA(seed), c.digest), c.digest)
}

func (c *cluster) awaitState(t *testing.T, version string, want control.ModelState) {
	t.Helper()
	c.log.Await(t, fmt.Sprintf("%s to be %s", version, want), func(st *control.State) bool { return st.Models[version].State == want })
}

func (c *cluster) awaitChampion(t *testing.T, version string) {
	t.Helper()
	eventually(t, "champion "+version, func() bool { return c.table.Champion("prompt") == version })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

func TestAVersionComesIntoServiceAndGoes(t *testing.T) {
	c := newCluster(t, 2)
	c.awaitChampion(t, c.base)
	v1 := c.adapter(t, 1)
	c.awaitState(t, v1, control.ModelShadow)
	if got := c.table.Champion("prompt"); got != c.base {
		t.Fatalf("a loaded version took traffic before it was promoted: %s", got)
	}
	if v, ok := c.table.Version(v1); !ok || len(v.Replicas) != 2 || v.Model != v1 {
		t.Fatalf("version is not routed by its own name on both replicas: %+v", v)
	}
	if err := c.ctrl.Promote(t.Context(), v1, false, "test", ""); err != nil {
		t.Fatal(err)
	}
	if got := c.table.Champion("prompt"); got != v1 {
		t.Fatalf("champion is %s when Promote returns", got)
	}
	v2, v3 := c.adapter(t, 2), c.adapter(t, 3)
	for _, v := range []string{v2, v3} {
		c.awaitState(t, v, control.ModelShadow)
		if err := c.ctrl.Promote(t.Context(), v, false, "test", ""); err != nil {
			t.Fatal(err)
		}
	}
	c.awaitState(t, v1, control.ModelUnloaded) // neither champion nor previous
	for i, s := range c.servers {
		got := s.Adapters()
		if len(got) != 2 || strings.Contains(strings.Join(got, " "), v1) {
			t.Errorf("replica %d holds %v, want v2 and v3", i, got)
		}
	}
	if err := c.ctrl.Promote(t.Context(), v2, true, "test", "rollback"); err != nil {
		t.Fatal(err)
	}
	if got := c.table.Champion("prompt"); got != v2 {
		t.Fatalf("rollback left %s", got)
	}
	if err := c.ctrl.Promote(t.Context(), v1, false, "test", ""); err == nil {
		t.Fatal("an unloaded version was promoted")
	}
	if s := c.ctrl.Stats(); s.Flips != 4 {
		t.Fatalf("%d flips counted, want 4", s.Flips)
	}
}

// TestAVersionThatMustNotServe goes through what can be wrong with an artifact or a server. In every case the
// version must end as failed, with the reason, and the champion must be the one from before.
func TestAVersionThatMustNotServe(t *testing.T) {
	rename := func(from, to string) func(map[string]servingtest.Tensor) {
		return func(m map[string]servingtest.Tensor) {
			for k, v := range maps.Clone(m) {
				delete(m, k)
				m[strings.Replace(k, from, to, 1)] = v
			}
		}
	}
	const q = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_"
	cases := []struct {
		name   string
		change func(map[string]servingtest.Tensor)
		fault  vllmfake.Fault
		mangle func(t *testing.T, dir string)
		base   string
		want   string
	}{
		{name: "wrong prefix", change: rename("model.language_model.", ""), want: "names no linear layer"},
		{name: "other layers", change: rename("layers.0", "layers.7"), want: "names no linear layer"},
		{name: "not a LoRA key", change: rename(".weight", ".bias"), want: "is not of the form"},
		{name: "vision tower", change: func(m map[string]servingtest.Tensor) {
			m["base_model.model.model.vision_tower.encoder.layers.0.mlp.fc1.lora_A.weight"] = servingtest.Tensor{Shape: []int64{2, 4}}
		}, want: "vision tower"},
		{
			name:   "wrong shape",
			change: func(m map[string]servingtest.Tensor) { m[q+"A.weight"] = servingtest.Tensor{Shape: []int64{2, 9}} },
			want:   "has shape [2 9]",
		},
		{name: "half a pair", change: func(m map[string]servingtest.Tensor) { delete(m, q+"B.weight") }, want: "has no"},
		{
			name:   "ranks differ",
			change: func(m map[string]servingtest.Tensor) { m[q+"B.weight"] = servingtest.Tensor{Shape: []int64{8, 3}} },
			want:   "of rank",
		},
		{name: "other base", base: strings.Repeat("0", 64), want: "registered for the base"},
		{name: "truncated", mangle: func(t *testing.T, dir string) {
			f := filepath.Join(dir, "adapter_model.safetensors")
			raw, err := os.ReadFile(f)
			if err == nil {
				err = os.WriteFile(f, raw[:len(raw)-9], 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, want: "safetensors"},
		{
			name:   "no probe",
			mangle: func(t *testing.T, dir string) { _ = os.Remove(filepath.Join(dir, "probe.json")) },
			want:   "without a golden answer",
		},
		{name: "probe that tells nothing", mangle: func(t *testing.T, dir string) {
			servingtest.WriteJSON(
				t,
				filepath.Join(dir, "probe.json"),
				map[string]any{
					"text":          "x",
					"max_tokens":    3,
					"answer":        "a",
					"logprobs":      []float64{-1},
					"base_answer":   "a",
					"base_logprobs": []float64{-1.001},
				},
			)
		}, want: string(Undecidable)},
		{name: "DoRA", mangle: func(t *testing.T, dir string) {
			servingtest.WriteJSON(t, filepath.Join(dir, "adapter_config.json"), map[string]any{"peft_type": "LORA", "use_dora": true})
		}, want: "plain LoRA"},
		{name: "load applies nothing", fault: vllmfake.NoOp, want: string(AppliesNothing)},
		{name: "load applies garbage", fault: vllmfake.Garbage, want: string(NotAsTrained)},
		{name: "stale weights", fault: vllmfake.Stale, want: string(NotAsTrained)},
		{name: "load fails", fault: vllmfake.LoadFails, want: "injected"},
		{name: "not listed", fault: vllmfake.NotListed, want: "read back"},
		{name: "another model answers", fault: vllmfake.WrongModel, want: "answered"},
	}
	c := newCluster(t, 2)
	good := c.adapter(t, 1000)
	c.awaitState(t, good, control.ModelShadow)
	if err := c.ctrl.Promote(t.Context(), good, false, "test", ""); err != nil {
		t.Fatal(err)
	}
	for i, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			tensors := servingtest.LoRA(float32(i + 1))
			if tc.change != nil {
				tc.change(tensors)
			}
			dir := servingtest.Adapter(t, c.servers[0], tensors, c.digest)
			if tc.mangle != nil {
				tc.mangle(t, dir)
			}
			if tc.fault != "" {
				for _, s := range c.servers {
					s.Set(tc.fault, true)
				}
			}
			base := tc.base
			if base == "" {
				base = c.digest
			}
			v := servingtest.Register(t, c.log, c.store, dir, base)
			c.awaitState(t, v, control.ModelFailed)
			if got := c.log.State().Models[v].Reason; !strings.Contains(got, tc.want) {
				t.Errorf("reason %q, want one with %q", got, tc.want)
			}
			if _, routed := c.table.Version(v); routed {
				t.Error("the version is routed")
			}
			for _, s := range c.servers {
				if strings.Contains(strings.Join(s.Adapters(), " "), v) {
					t.Error("the failed adapter stayed on a replica")
				}
				if tc.fault != "" {
					s.Set(tc.fault, false)
				}
			}
			if got := c.table.Champion("prompt"); got != good {
				t.Errorf("champion is %s", got)
			}
			eventually(t, "the champion to be on both replicas again", func() bool {
				g, ok := c.table.Version(good)
				return ok && len(g.Replicas) == 2
			})
		})
	}
}

// TestWrongBaseUnderTheServers: a fleet whose servers run another base than the trainer's.
func TestWrongBaseUnderTheServers(t *testing.T) {
	c := newCluster(t, 1)
	c.awaitChampion(t, c.base)
	cfg := fakeConfig()
	cfg.BaseWeights = "another"
	trainer, err := vllmfake.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer trainer.Kill()
	v := servingtest.Register(t, c.log, c.store, servingtest.Adapter(t, trainer, servingtest.LoRA(1), c.digest), c.digest)
	c.awaitState(t, v, control.ModelFailed)
	if got := c.log.State().Models[v].Reason; !strings.Contains(got, string(WrongBase)) {
		t.Errorf("reason %q", got)
	}
}

func TestAReplicaThatRestartsIsMended(t *testing.T) {
	c := newCluster(t, 2)
	v := c.adapter(t, 1)
	c.awaitState(t, v, control.ModelShadow)
	routed := func() int {
		x, _ := c.table.Version(v)
		return len(x.Replicas)
	}
	c.servers[1].Kill()
	eventually(t, "the dead replica to leave the routes", func() bool { return routed() == 1 })
	c.servers[1].Set(vllmfake.NoOp, true) // it comes back, and loads apply nothing
	if err := c.servers[1].Restart(); err != nil {
		t.Fatal(err)
	}
	loads := c.servers[1].Loads.Load()
	eventually(t, "two attempts to load", func() bool { return c.servers[1].Loads.Load() >= loads+2 })
	if got := routed(); got != 1 {
		t.Fatalf("routed to %d replicas although one fails its probe", got)
	}
	if got := c.log.State().Models[v].State; got != control.ModelShadow {
		t.Fatalf("a broken replica failed the version: %s", got)
	}
	c.servers[1].Set(vllmfake.NoOp, false)
	eventually(t, "the mended replica to be routed to", func() bool { return routed() == 2 })
}

// TestASlowReplicaIsNotADeadOne: while it answers requests, however slow its list of models is, it stays routed to; when
// it answers nothing at all, it goes (review V7).
func TestASlowReplicaIsNotADeadOne(t *testing.T) {
	c := newCluster(t, 1)
	c.awaitChampion(t, c.base)
	c.servers[0].Set(vllmfake.SlowModels, true)
	r := c.replicas[0]
	r.TryAcquire() // a request is being answered all the time
	for range 2 * maxStrikes {
		c.ctrl.survey(t.Context())
	}
	if v, ok := c.table.Version(c.base); !ok || len(v.Replicas) != 1 {
		t.Fatal("a replica at work was taken for a dead one")
	}
	r.Release()
	eventually(t, "the replica that answers nothing to go", func() bool {
		v, ok := c.table.Version(c.base)
		return ok && len(v.Replicas) == 0
	})
	c.servers[0].Set(vllmfake.SlowModels, false)
	eventually(t, "the replica to come back", func() bool {
		v, _ := c.table.Version(c.base)
		return len(v.Replicas) == 1
	})
}

// TestItsOwnUnloadIsNoRestart: a list of models that was made while a version was being unloaded says nothing about the
// versions beside it (review E8).
func TestItsOwnUnloadIsNoRestart(t *testing.T) {
	c := newCluster(t, 1)
	v := c.adapter(t, 1)
	c.awaitState(t, v, control.ModelShadow)
	r := c.replicas[0]
	before := c.ctrl.residentOn(r)
	if !before[v] || !before[c.base] {
		t.Fatalf("resident: %v", before)
	}
	cards, err := r.Models(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	without := slices.DeleteFunc(cards, func(m backend.ModelCard) bool { return m.ID == v })
	c.ctrl.mu.Lock()
	c.ctrl.retiring[v] = true
	c.ctrl.mu.Unlock()
	c.ctrl.dropLost(r, before, without)
	c.ctrl.mu.Lock()
	delete(c.ctrl.retiring, v)
	delete(c.ctrl.resident[r], v)
	c.ctrl.mu.Unlock()
	c.ctrl.dropLost(r, before, without) // it has gone since the replica was asked
	if got := c.ctrl.residentOn(r); !got[c.base] {
		t.Errorf("resident after an unload: %v", got)
	}
	c.ctrl.mu.Lock()
	c.ctrl.resident[r] = map[string]bool{c.base: true, v: true}
	c.ctrl.mu.Unlock()
	c.ctrl.dropLost(r, before, without) // a restart
	if got := c.ctrl.residentOn(r); len(got) != 0 {
		t.Errorf("resident after a restart: %v", got)
	}
}

func TestARestartOfTheControllerFindsEverything(t *testing.T) {
	c := newCluster(t, 1)
	v := c.adapter(t, 1)
	c.awaitState(t, v, control.ModelShadow)
	servingtest.Promote(t, c.log, v)
	c.awaitChampion(t, v)
	table := &route.Table{}
	again, err := New(c.ctrl.cfg, c.log, c.store, c.replicas, table, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	again.Reconcile(t.Context())
	again.applyRoutes()
	if got := table.Champion("prompt"); got != v {
		t.Fatalf("champion after a restart is %q, want %s", got, v)
	}
	if _, ok := table.Version(c.base); !ok {
		t.Fatal("the previous version is not resident: no way back")
	}
}

// TestSwapsUnderLoadWithKills is the promise of this package: requests flow without a break while champions
// change and replicas are killed; none fails, none is answered by another version than the admitted one.
func TestSwapsUnderLoadWithKills(t *testing.T) {
	const swaps, clients = 220, 8
	c := newCluster(t, 3)
	gw, err := gateway.New(gateway.Default(), c.table, nil, c.ctrl.Suspect, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	versions := []string{c.base, c.adapter(t, 1), c.adapter(t, 2)}
	for _, v := range versions[1:] {
		c.awaitState(t, v, control.ModelShadow)
	}
	// Kept from being retired while other versions hold the two places of champion and previous.
	c.log.Put(
		t,
		control.ExperimentCreated,
		control.ExperimentEntity("x"),
		control.Experiment{
			ID:        "x",
			Logical:   "prompt",
			Unit:      "user",
			Control:   versions[1],
			Treatment: versions[2],
			Steps:     []float64{0.5},
			Created:   time.Now(),
		},
	)
	c.awaitChampion(t, c.base)
	// What each version says, so that an answer proves who gave it.
	says := map[string]string{}
	req := backend.ChatRequest{
		Model:    "prompt",
		Messages: []backend.Message{{Role: "user", Content: []backend.Part{{Type: "text", Text: "hello"}}}},
	}
	for _, v := range versions {
		r := req
		r.Model = v
		resp, _, err := gw.Chat(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		says[v] = resp.Choices[0].Message.Content
	}
	if says[versions[0]] == says[versions[1]] || says[versions[1]] == says[versions[2]] {
		t.Fatal("versions cannot be told apart")
	}

	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var answered, bad atomic.Int64
	for range clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				resp, version, err := gw.Chat(t.Context(), req)
				switch {
				case err != nil:
					bad.Add(1)
					t.Errorf("request to %s failed: %v", version, err)
				case resp.Choices[0].Message.Content != says[version]:
					bad.Add(1)
					t.Errorf("admitted to %s, answered by another", version)
				}
				answered.Add(1)
				if bad.Load() > 20 {
					return
				}
			}
		})
	}
	for i := range swaps {
		if i%20 == 10 { // one replica dies, and comes back empty some swaps later
			c.servers[i/20%3].Kill()
		}
		if i%20 == 14 {
			if err := c.servers[i/20%3].Restart(); err != nil {
				t.Fatal(err)
			}
		}
		if i%20 == 9 { // the others must carry the load while one is down
			for _, v := range versions {
				eventually(t, "all replicas to be whole again", func() bool { x, ok := c.table.Version(v); return ok && len(x.Replicas) == 3 })
			}
		}
		at := answered.Load()
		if err := c.ctrl.Promote(t.Context(), versions[(i+1)%3], i%2 == 1, "test", ""); err != nil {
			t.Fatal(err)
		}
		eventually(t, "requests on the new champion", func() bool { return answered.Load() >= at+2*clients || bad.Load() > 20 })
	}
	stop()
	wg.Wait()
	s := gw.Stats()
	if s.Failed != 0 || s.WrongVersion != 0 || bad.Load() != 0 {
		t.Errorf("%d of %d requests failed, %d by another version (%d seen)", s.Failed, s.Requests, s.WrongVersion, bad.Load())
	}
	f := c.ctrl.Stats()
	if f.Flips != swaps {
		t.Errorf("%d flips counted, %d made", f.Flips, swaps)
	}
	t.Logf("%d swaps, %d requests; flip p50 %v, p99 %v, worst %v", f.Flips, s.Requests, f.FlipP50, f.FlipP99, f.FlipWorst)
}

// TestDrainWaitsForAdmittedRequests: a version is unloaded only after its last answer.
func TestDrainWaitsForAdmittedRequests(t *testing.T) {
	c := newCluster(t, 1)
	v1 := c.adapter(t, 1)
	c.awaitState(t, v1, control.ModelShadow)
	servingtest.Promote(t, c.log, v1)
	c.awaitChampion(t, v1)
	lease, err := c.table.Admit("prompt")
	if err != nil || lease.Name != v1 {
		t.Fatal(lease, err)
	}
	v2, v3 := c.adapter(t, 2), c.adapter(t, 3)
	for _, v := range []string{v2, v3} {
		c.awaitState(t, v, control.ModelShadow)
		servingtest.Promote(t, c.log, v)
		c.awaitChampion(t, v)
	}
	eventually(t, "the old version to leave the routes", func() bool { _, ok := c.table.Version(v1); return !ok })
	if !strings.Contains(strings.Join(c.servers[0].Adapters(), " "), v1) {
		t.Fatal("unloaded under a request")
	}
	lease.Release()
	c.awaitState(t, v1, control.ModelUnloaded)
}

func TestProbeToleratesTheEndToken(t *testing.T) {
	if !same("a b", []float64{-1, -2}, " a b ", []float64{-1.001, -2, -0.1}, 0.01) {
		t.Error("an end token more or a space made a difference")
	}
	for name, ok := range map[string]bool{
		"text":     same("a", []float64{-1}, "b", []float64{-1}, 1),
		"logprob":  same("a", []float64{-1}, "a", []float64{-1.5}, 0.1),
		"length":   same("a", []float64{-1}, "a", []float64{-1, -1, -1}, 0.1),
		"no proof": same("a", nil, "a", nil, 0.1),
	} {
		if ok {
			t.Errorf("%s: taken for the same", name)
		}
	}
}
