package serving

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving/decide"
	"ctrloop/serving/servingtest"
)

// A creative that somebody blocks serves nowhere any more: no replica decides for it, and its picture is not handed out.
func TestABlockedCreativeStopsServing(t *testing.T) {
	_, addresses := fakes(t, 2)
	baseDir := promptingBase(t)
	i := start(t, baseDir, addresses[0])
	products := i.makeCreatives(1, 3, "prompt")
	other := i.beside(baseDir, addresses[1])
	shown := func(i *instance) map[string]int {
		n := map[string]int{}
		for _, d := range i.decideAll(products, 100) {
			if d.Error != "" {
				t.Fatalf("%+v", d)
			}
			n[d.Creative]++
		}
		return n
	}
	other.eventually("the creatives", func() bool { return len(shown(other)) == 3 })
	var bad string
	for id := range shown(i) {
		bad = id
	}
	picture := "/v1/creatives/" + bad + ".png"
	i.call("GET", picture, nil, 200, nil)
	path := "/v1/creatives/" + bad
	i.call("POST", path+"/block", map[string]any{}, 422, nil)                                               // no note
	i.call("POST", path+"/block", map[string]any{"note": strings.Repeat("x", control.MaxText+1)}, 422, nil) // no novel
	i.call("POST", "/v1/creatives/c-none/block", map[string]any{"note": "n"}, 404, nil)
	i.call("POST", path+"/unblock", map[string]any{"note": "n"}, 409, nil) // it is not blocked

	var got schemas.Creative
	i.call("POST", path+"/block", map[string]any{"note": "a competitor's logo", "expect": 0}, 200, &got)
	if got.ID != bad || !strings.Contains(got.Blocked, "a competitor's logo") {
		t.Errorf("%+v", got)
	}
	if n := shown(i); n[bad] != 0 || len(n) != 2 { // at once, where it was asked for
		t.Errorf("shown after it was blocked: %v", n)
	}
	i.call("GET", picture, nil, 410, nil)
	other.eventually("the other replica stops too", func() bool { return shown(other)[bad] == 0 })
	other.call("GET", picture, nil, 410, nil)
	i.call("POST", path+"/block", map[string]any{"note": "n"}, 409, nil) // blocked already
	// A judge's score does not write the block into the topic, where nobody could take it back.
	i.call("PUT", path+"/matching", map[string]any{"score": 0.5, "judge": "people"}, 200, nil)
	for _, c := range i.topic.All() {
		if c.Blocked != "" {
			t.Errorf("in the topic: %+v", c)
		}
	}
	var list struct{ Creatives []schemas.Creative }
	i.call("GET", "/v1/creatives?product="+products[0], nil, 200, &list)
	blocked := 0
	for _, c := range list.Creatives {
		if c.Blocked != "" {
			blocked++
		}
	}
	if blocked != 1 {
		t.Errorf("%d of %d are listed as blocked", blocked, len(list.Creatives))
	}
	events := i.log.Applied()
	if e := events[len(events)-1]; e.Type != control.CreativeBlocked || e.Entity != control.CreativeEntity(bad) || e.Actor == "" ||
		e.Note != "a competitor's logo" {
		t.Errorf("on the log: %+v", e)
	}

	i.call("POST", path+"/unblock", map[string]any{"note": "ours after all"}, 200, nil)
	i.call("GET", picture, nil, 200, nil)
	other.eventually("it serves again", func() bool { return shown(other)[bad] > 0 })
	// With all of them blocked a slot says so instead of showing one.
	for _, c := range list.Creatives {
		i.call("POST", "/v1/creatives/"+c.ID+"/block", map[string]any{"note": "all"}, 200, nil)
	}
	if d := i.decideAll(products, 1)[0]; d.Creative != "" || !strings.Contains(d.Error, "no creative that may serve") {
		t.Errorf("%+v", d)
	}
	if resp, err := http.Get(i.url + picture); err != nil || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%v: the refusal may be cached: %v", err, resp.Header)
	} else {
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
}

// One call goes back to the champion before, and says no where there is none.
func TestRollBackInOneCall(t *testing.T) {
	servers, addresses := fakes(t, 1)
	i := start(t, promptingBase(t), addresses[0])
	products := i.makeCreatives(1, 2, "prompt")
	rollback := "/v1/models/prompt/rollback"
	i.call("POST", rollback, map[string]any{}, 422, nil)
	i.call("POST", rollback, map[string]any{"note": "n"}, 409, nil) // the only champion so far
	i.call("POST", "/v1/models/none/rollback", map[string]any{"note": "n"}, 404, nil)
	v := servingtest.Register(t, i.log, i.store, servingtest.Adapter(t, servers[0], servingtest.LoRA(1), i.BaseDigest()), i.BaseDigest())
	i.log.Await(t, "the new version in shadow", func(st *control.State) bool { return st.Models[v].State == control.ModelShadow })
	i.makeCreatives(1, 2, v)
	if err := i.Promote(t.Context(), v, false, "test", ""); err != nil {
		t.Fatal(err)
	}
	i.eventually("decisions by the new champion", func() bool { return i.decideAll(products, 1)[0].ModelVersion == v })
	i.call("POST", rollback, map[string]any{"note": "n", "expect": 7}, 409, nil)
	var route control.Route
	i.call("POST", rollback, map[string]any{"note": "ugly pictures"}, 200, &route)
	if route.Champion != i.base || route.Previous != v {
		t.Errorf("%+v", route)
	}
	if d := i.decideAll(products, 1)[0]; d.ModelVersion != i.base || d.Policy != decide.PolicyUniform { // when the call returns
		t.Errorf("%+v", d)
	}
	if e := i.log.Applied(); e[len(e)-1].Type != control.ModelRolledBack || e[len(e)-1].Note != "ugly pictures" {
		t.Errorf("%+v", e[len(e)-1])
	}
	var list struct{ Versions []VersionRow }
	i.call("GET", "/v1/models/versions", nil, 200, &list)
	if len(list.Versions) != 2 || list.Versions[0].Logical != "prompt" {
		t.Fatalf("%+v", list)
	}
	for _, row := range list.Versions {
		if row.Champion != (row.Version == i.base) || row.Previous != (row.Version == v) || row.Replicas != 1 {
			t.Errorf("%+v", row)
		}
	}
}
