package swap

import (
	"context"
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/controllog"
	"ctrloop/schemas/control"
	"ctrloop/serving/backend"
	"ctrloop/serving/backend/vllmfake"
	"ctrloop/serving/route"
	"ctrloop/serving/servingtest"
)

// another is a second serving process on the cluster's control log and store, with a server of its own. It runs when told.
func (c *cluster) another(t *testing.T, lead controllog.Leader) *Controller {
	t.Helper()
	s, err := vllmfake.Start(fakeConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	v, err := backend.NewVLLM(backend.DefaultVLLMConfig(s.Address()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	replicas := []*route.Replica{route.NewReplica(v, 16)}
	ctrl, err := New(c.ctrl.cfg, c.log, lead, c.store, replicas, &route.Table{}, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return ctrl
}

// follower never leads.
type follower struct{}

func (follower) Held() control.Log { return nil }

func (follower) Lead(ctx context.Context, _ func(context.Context, control.Log) error) error {
	<-ctx.Done()
	return nil
}

// Every command about a version is refused once, and then again its answer is lost once: the versions come into service
// and go all the same, and the log says so.
func TestLostAppendsAreMadeGood(t *testing.T) {
	for _, fault := range []string{"refused", "answer lost"} {
		t.Run(fault, func(t *testing.T) {
			c := newCluster(t, 1)
			c.awaitChampion(t, c.base)
			seen := map[string]bool{}
			once := func(e control.Event) error { // Append calls it for one command after the other: one controller writes
				key := e.Entity + string(e.Data)
				if e.Type != control.ModelStateChanged || seen[key] {
					return nil
				}
				seen[key] = true
				return errors.New("outcome unknown: produce timed out")
			}
			if fault == "refused" {
				c.log.Refuse(once)
			} else {
				c.log.Lose(once)
			}
			var versions []string
			for seed := range 3 {
				v := c.adapter(t, float32(seed))
				c.awaitState(t, v, control.ModelShadow)
				if err := c.ctrl.Promote(t.Context(), v, false, "test", ""); err != nil {
					t.Fatal(err)
				}
				versions = append(versions, v)
			}
			c.awaitState(t, versions[0], control.ModelUnloaded)
			dir := servingtest.Adapter(t, c.servers[0], servingtest.LoRA(9), "another base")
			bad := servingtest.Register(t, c.log, c.store, dir, "another base")
			c.awaitState(t, bad, control.ModelFailed)
			moves := map[string]int{}
			for _, e := range c.log.Applied() {
				if e.Type == control.ModelStateChanged {
					moves[e.Entity+string(e.Data)]++
				}
			}
			for move, n := range moves {
				if n != 1 {
					t.Errorf("%s is on the log %d times", move, n)
				}
			}
		})
	}
}

// A second serving process that read the state before a promotion and ends its slow load after it: the champion stays the
// champion, whether that process believes to lead or not.
func TestASecondServerLeavesAChampionAlone(t *testing.T) {
	for name, lead := range map[string]func(control.Log) controllog.Leader{
		"leads too": controllog.Alone,
		"follows":   func(control.Log) controllog.Leader { return follower{} },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 1)
			c.awaitChampion(t, c.base)
			slow := c.another(t, lead(c.log))
			v := c.adapter(t, 1)
			stale := c.log.State().Models[v] // what the slow process has read
			c.awaitState(t, v, control.ModelShadow)
			if err := c.ctrl.Promote(t.Context(), v, false, "ann", "after its test"); err != nil {
				t.Fatal(err)
			}
			slow.makeResident(t.Context(), stale, slow.replicas)
			slow.reportStates(t.Context())
			slow.Reconcile(t.Context())
			slow.applyRoutes()
			if got := c.log.State().Models[v].State; got != control.ModelChampion {
				t.Errorf("the champion is %q by the log", got)
			}
			if got := slow.table.Champion("prompt"); got != v {
				t.Errorf("the second process routes to %q", got)
			}
		})
	}
}

// What only a follower cannot load is not told as failed; it tries again, and routes when it can.
func TestAFollowersTroubleIsItsOwn(t *testing.T) {
	c := newCluster(t, 1)
	c.awaitChampion(t, c.base)
	v := c.adapter(t, 1)
	c.awaitState(t, v, control.ModelShadow)
	second := c.another(t, follower{})
	m := *c.log.State().Models[v]
	m.State = control.ModelFetched // as the follower saw it: its load failed while the version was a newcomer
	second.fail(t.Context(), &m, errors.New("no memory on this server"))
	second.Reconcile(t.Context())
	if got := c.log.State().Models[v].State; got != control.ModelShadow {
		t.Fatalf("the version is %s", got)
	}
	eventually(t, "the follower to have it", func() bool {
		second.Reconcile(t.Context())
		_, ok := second.table.Version(v)
		return ok
	})
}
