package feature

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"ctrloop/schemas/control"
	"ctrloop/serving/experiment/assign"
	"ctrloop/serving/experiment/client"
	"ctrloop/serving/experiment/exposure"

	of "github.com/open-feature/go-sdk/openfeature"
)

func state() *control.State {
	st := control.NewState()
	st.Routes["prompt"] = control.Route{Champion: "prompt-a"}
	st.Experiments["e1"] = &control.ExperimentStatus{
		Experiment: control.Experiment{
			ID:        "e1",
			Logical:   "prompt",
			Unit:      "user",
			Seed:      "s",
			Control:   "prompt-a",
			Treatment: "prompt-b",
			Steps:     []float64{0.5},
			Targeting: []control.Condition{
				{Attribute: "country", Op: control.OpIn, Values: []string{"de"}},
				{Attribute: "age", Op: control.OpAtLeast, Values: []string{"18"}},
			},
		},
		Step: control.Step{Share: 0.5}, Forced: map[string]string{"tester": assign.Treatment},
	}
	return st
}

type fixed struct{ a *assign.Assigner }

func (f *fixed) Assigner() *assign.Assigner { return f.a }

type recorder struct{ got []exposure.Exposure }

func (r *recorder) Expose(e exposure.Exposure) { r.got = append(r.got, e) }

// client registers the provider with the SDK, under a domain of the test's own.
func sdk(t *testing.T, p *Provider) *of.Client {
	t.Helper()
	if err := of.SetNamedProviderAndWait(t.Name(), p); err != nil {
		t.Fatal(err)
	}
	return of.NewClient(t.Name())
}

func german(user string) of.EvaluationContext {
	return of.NewEvaluationContext(user, map[string]any{"country": "de", "age": 30})
}

// Through the SDK: the same arms as serving gives, with reason and metadata; each is exposed as what it was.
func TestThroughTheSDK(t *testing.T) {
	src, exposed := &fixed{assign.New(state())}, &recorder{}
	c := sdk(t, NewProvider(src, exposed))
	arms := map[string]int{}
	for i := range 200 {
		user := fmt.Sprint("u", i)
		want, _ := src.a.Assign("prompt", assign.Unit{User: user, Attributes: map[string]string{"country": "de", "age": "30"}})
		d, err := c.StringValueDetails(t.Context(), "prompt", "none", german(user))
		if err != nil || d.Value != want.Version || d.Variant != want.Variant || d.Reason != of.SplitReason {
			t.Fatalf("%s: %+v, %v; want %+v", user, d, err, want)
		}
		if x, _ := d.FlagMetadata.GetString("experiment"); x != "e1" {
			t.Fatalf("metadata %v", d.FlagMetadata)
		}
		variant, err := c.StringValue(t.Context(), "e1", "none", german(user))
		is, err2 := c.BooleanValue(t.Context(), "e1", false, german(user))
		if err != nil || err2 != nil || variant != want.Variant || is != (variant == assign.Treatment) {
			t.Fatalf("%s: variant %s, treatment %v, %v, %v; want %s", user, variant, is, err, err2, want.Variant)
		}
		arms[variant]++
	}
	if arms[assign.Control] < 60 || arms[assign.Treatment] < 60 || len(exposed.got) != 600 {
		t.Errorf("arms %v, %d exposures", arms, len(exposed.got))
	}
	if e := exposed.got[0]; e.Unit != "u0" || e.Experiment != "e1" || e.Variant == "" || e.Time.IsZero() {
		t.Errorf("exposure %+v", e)
	}
}

func TestWhoIsNotInTheExperiment(t *testing.T) {
	src, exposed := &fixed{assign.New(state())}, &recorder{}
	c := sdk(t, NewProvider(src, exposed))
	french := of.NewEvaluationContext("u", map[string]any{"country": "fr", "age": 30})
	if d, err := c.StringValueDetails(t.Context(), "prompt", "none", french); err != nil || d.Value != "prompt-a" ||
		d.Reason != of.StaticReason {
		t.Errorf("outside of the targeting: %+v, %v", d, err)
	}
	if d, err := c.BooleanValueDetails(t.Context(), "e1", true, french); err != nil || !d.Value || d.Reason != of.DefaultReason {
		t.Errorf("the default is not kept: %+v, %v", d, err)
	}
	for _, ctx := range []of.EvaluationContext{german("tester"), of.NewEvaluationContext("u", map[string]any{AttrForce: "e1:treatment"})} {
		d, err := c.StringValueDetails(t.Context(), "prompt", "none", ctx)
		is, err2 := c.BooleanValue(t.Context(), "e1", false, ctx)
		if err != nil || err2 != nil || d.Value != "prompt-b" || d.Variant != assign.Forced || d.Reason != of.TargetingMatchReason || !is {
			t.Errorf("forced: %+v, %v, %v, %v", d, is, err, err2)
		}
	}
	if len(exposed.got) != 0 {
		t.Errorf("exposed %+v", exposed.got)
	}
	for _, bad := range []struct {
		what, code string
		ask        func() error
	}{
		{"an unknown flag", string(of.FlagNotFoundCode),
			func() error { _, err := c.StringValue(t.Context(), "nothing", "", german("u")); return err }},
		{"a number", string(of.TypeMismatchCode), func() error { _, err := c.IntValue(t.Context(), "e1", 0, german("u")); return err }},
		{"a model as a boolean", string(of.TypeMismatchCode),
			func() error { _, err := c.BooleanValue(t.Context(), "prompt", true, german("u")); return err }},
		{"no targeting key", string(of.TargetingKeyMissingCode), func() error {
			_, err := c.BooleanValue(t.Context(), "e1", true, of.NewTargetlessEvaluationContext(map[string]any{"country": "de", "age": 30}))
			return err
		}},
	} {
		if err := bad.ask(); err == nil || !strings.Contains(err.Error(), bad.code) {
			t.Errorf("%s: %v, want %s", bad.what, err, bad.code)
		}
	}
	src.a = nil
	if v, err := c.StringValue(t.Context(), "prompt", "fallback", german("u")); err == nil || v != "fallback" {
		t.Errorf("before the first state: %q, %v", v, err)
	}
}

// A service elsewhere: the state comes over HTTP, only when it has changed; a failing instance leaves what was known.
func TestRemote(t *testing.T) {
	st, status, sent, fresh := state(), http.StatusOK, 0, 0
	var exposures []exposure.Exposure
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status != http.StatusOK {
			w.WriteHeader(status)
			return
		}
		if r.Method == http.MethodPost {
			var body struct{ Exposures []exposure.Exposure }
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
				t.Error(err)
			}
			exposures = append(exposures, body.Exposures...)
			w.WriteHeader(http.StatusAccepted)
			return
		}
		sent++
		etag := fmt.Sprintf(`"%d"`, st.Offset)
		w.Header().Set("ETag", etag)
		if r.Header.Get("If-None-Match") == etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		fresh++
		_ = json.NewEncoder(w).Encode(st)
	}))
	defer srv.Close()
	r := NewRemote(client.New(srv.URL+"/", "", ""))
	c := sdk(t, NewProvider(r, nil))
	if _, err := c.StringValue(t.Context(), "prompt", "", german("u")); err == nil {
		t.Error("an answer before the first state")
	}
	for range 3 {
		if err := r.Fetch(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if sent != 3 || fresh != 1 {
		t.Errorf("%d requests, %d with the state", sent, fresh)
	}
	before, err := c.StringValue(t.Context(), "prompt", "", german("u"))
	if err != nil || before == "" {
		t.Fatal(before, err)
	}
	status = http.StatusBadGateway
	if err := r.Fetch(t.Context()); err == nil {
		t.Error("no error from a broken instance")
	}
	if after, err := c.StringValue(t.Context(), "prompt", "", german("u")); err != nil || after != before {
		t.Errorf("a broken instance changed %q to %q, %v", before, after, err)
	}
	if err := r.Expose(t.Context(), nil); err == nil {
		t.Error("a refusal was not reported")
	}
	status, st.Offset, st.Experiments["e1"].Decision = http.StatusOK, 7, &control.Decision{Outcome: control.RollBack}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.Poll(ctx, time.Hour, nil) // with no time left it asks in vain and returns
	if err := r.Fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d, err := c.StringValueDetails(t.Context(), "prompt", "", german("u")); err != nil || d.Value != "prompt-a" ||
		d.Reason != of.StaticReason {
		t.Errorf("after the end: %+v, %v", d, err)
	}
	if err := r.Expose(t.Context(),
		[]exposure.Exposure{{Experiment: "e1", Unit: "u", Variant: "control", Time: time.Unix(5, 0).UTC()}}); err != nil ||
		len(exposures) != 1 ||
		exposures[0].Unit != "u" {
		t.Errorf("%v, %+v", err, exposures)
	}
}
