package overview

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ctrloop/internal/catalogue"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving/console"
)

func TestFreshness(t *testing.T) {
	base := registered(t, control.Model{Version: "prompt-base", Logical: "prompt"})
	trained := control.Model{Version: "prompt-1", Logical: "prompt", Base: "b", Dataset: "d", LabelsTo: ms(60)}
	data := event(t, control.DatasetBuilt, control.DatasetEntity("d"), "", control.Dataset{Digest: "d", Pairs: 7, ToMS: ms(50)})
	undated := trained
	undated.LabelsTo = 0
	for name, c := range map[string]struct {
		st     *control.State
		newest int64
		age    float64 // < 0: none
		why    string
	}{
		"no champion":           {folded(t, base), ms(900), -1, "No model"},
		"base":                  {folded(t, base, promoted(t, "prompt-base", "")), ms(900), -1, "base model"},
		"trained":               {folded(t, data, registered(t, trained), promoted(t, "prompt-1", "")), ms(900), 840, ""},
		"by its data":           {folded(t, data, registered(t, undated), promoted(t, "prompt-1", "")), ms(900), 850, ""},
		"does not say":          {folded(t, registered(t, undated), promoted(t, "prompt-1", "")), ms(900), -1, "does not say"},
		"no event yet":          {folded(t, data, registered(t, trained), promoted(t, "prompt-1", "")), 0, -1, "not known"},
		"never from the future": {folded(t, data, registered(t, trained), promoted(t, "prompt-1", "")), ms(10), 0, ""},
	} {
		f := freshness(c.st, c.newest)
		switch {
		case c.age < 0 && (f.AgeSeconds != nil || f.NewestClick != nil || !strings.Contains(f.Why, c.why)):
			t.Errorf("%s: %+v, want no age and a reason with %q", name, f, c.why)
		case c.age >= 0 && (f.AgeSeconds == nil || *f.AgeSeconds != c.age || f.NewestClick == nil || f.Why != ""):
			t.Errorf("%s: %+v, want the age %v", name, f, c.age)
		}
	}
}

func TestChampionHasItsOwnFigures(t *testing.T) {
	st := folded(t, registered(t, control.Model{Version: "prompt-base", Logical: "prompt"}), promoted(t, "prompt-base", "first"),
		event(t, control.DatasetBuilt, control.DatasetEntity("d"), "", control.Dataset{Digest: "d", Pairs: 7}),
		registered(t, control.Model{Version: "prompt-1", Logical: "prompt", Base: "b", Dataset: "d"}), promoted(t, "prompt-1", "better"))
	want := &console.Champion{Version: "prompt-1", Since: at(4), Previous: "prompt-base", Note: "better", Pairs: 7, Impressions: 90, Clicks: 4}
	if diff := cmp.Diff(want, champion(st, traffic{champion: "prompt-1", championImpressions: 90, championClicks: 4})); diff != "" {
		t.Errorf("champion (-want +got):\n%s", diff)
	}
	if c := champion(st, traffic{champion: "prompt-base", championImpressions: 90, championClicks: 4}); c.Impressions != 0 {
		t.Errorf("the new champion is shown with %d impressions of the old one", c.Impressions)
	}
	if c := champion(control.NewState(), traffic{}); c != nil {
		t.Errorf("champion %+v of an empty log", c)
	}
}

func TestExperimentCreativesAndMarks(t *testing.T) {
	create := func(id string) control.Event {
		return event(t, control.ExperimentCreated, control.ExperimentEntity(id), "", control.Experiment{
			ID: id, Logical: "prompt", Control: "prompt-aaaaaaaaaaaa", Treatment: "prompt-bbbbbbbbbbbb", Steps: []float64{0.005, 0.5},
			Created: at(map[string]float64{"x1": 1, "x2": 2}[id])})
	}
	step := event(t, control.ExperimentStepped, control.ExperimentEntity("x2"), "", control.Step{Index: 1, Share: 0.5, AtMS: ms(77)})
	end := func(id string) control.Event {
		return event(t, control.ExperimentDecided, control.ExperimentEntity(id), "", control.Decision{Outcome: control.RollBack})
	}
	if x := latestExperiment(control.NewState()); x != nil {
		t.Errorf("experiment %s of an empty log", x.ID)
	}
	if x := latestExperiment(folded(t, create("x1"), create("x2"), end("x2"))); x.ID != "x1" {
		t.Errorf("experiment %s, want the running one", x.ID)
	}
	st := folded(t, create("x1"), end("x1"), create("x2"), step)
	x := latestExperiment(st)
	if x.ID != "x2" {
		t.Errorf("experiment %s, want the newest", x.ID)
	}
	for version, want := range map[string]string{x.Control: "control", x.Treatment: "treatment", "prompt-c": "", "": ""} {
		if got := variant(*x, version); got != want {
			t.Errorf("variant of %q is %q, want %q", version, got, want)
		}
	}
	if got := variant(control.ExperimentStatus{}, ""); got != "" {
		t.Errorf("variant without an experiment is %q", got)
	}
	var got []console.Mark
	for _, m := range append(stepMarks(folded(t, create("x2"), step)), undated{"promoted", x.Treatment, at(9), 0},
		undated{"rolled_back", x.Control, at(9), 0}) {
		got = append(got, m.mark(max(m.atMS, ms(9))))
	}
	want := []console.Mark{{Time: at(9), Kind: "step", Label: "bbbbbbbb at 0.5 %"}, {Time: at(77), Kind: "step", Label: "50 %"},
		{Time: at(9), Kind: "promoted", Label: "bbbbbbbb promoted"}, {Time: at(9), Kind: "rolled_back", Label: "back to aaaaaaaa"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("marks (-want +got):\n%s", diff)
	}
	r := (&Page{}).rollout(background{verdict: unknown(*x)})
	if r == nil || r.Lift != nil || r.P != nil || r.Control.CTR != nil || !r.Running || r.Index != 1 {
		t.Errorf("before the first look the rollout is %+v, want it without figures", r)
	}
}

func TestNewestCreatives(t *testing.T) {
	all := []schemas.Creative{
		{ID: "c1", Created: at(1)},
		{ID: "c4", Created: at(4)},
		{ID: "c3", Created: at(3)},
		{ID: "c2", Created: at(3)},
		{ID: "c9", Created: at(9), Blocked: "wrong size"},
	}
	var ids []string
	for _, c := range newestCreatives(all, 3) {
		ids = append(ids, c.ID)
	}
	if diff := cmp.Diff([]string{"c4", "c2", "c3"}, ids); diff != "" {
		t.Errorf("newest (-want +got):\n%s", diff)
	}
	if all[0].ID != "c1" || len(all) != 5 {
		t.Error("the list of the creative log was changed")
	}
}

// A creative that a person has blocked is shown as blocked as soon as the control log says so, although its own record, which the page
// reads at a pace of its own, does not.
func TestABlockedCreativeIsShownAsSuch(t *testing.T) {
	block := func(typ control.Type) control.Event {
		return event(t, typ, control.CreativeEntity("c1"), "the logo is wrong", control.CreativeBlock{Creative: "c1"})
	}
	o := &Page{p: Parts{Catalogue: catalogue.Embedded()}}
	bg := background{latest: []schemas.Creative{{ID: "c1", Product: "p", Created: at(1)}, {ID: "c2", Product: "p", Created: at(2)}}}
	for _, c := range []struct {
		name string
		st   *control.State
		want [2]string
	}{
		{"before", control.NewState(), [2]string{}},
		{"blocked", folded(t, block(control.CreativeBlocked)), [2]string{"by test: the logo is wrong"}},
		{"taken back", folded(t, block(control.CreativeBlocked), block(control.CreativeUnblocked)), [2]string{}},
	} {
		raw, err := json.Marshal(o.creatives(c.st, bg))
		if err != nil {
			t.Fatal(err)
		}
		var shown [2]struct {
			Blocked string `json:"blocked"`
		}
		if err := json.Unmarshal(raw, &shown); err != nil {
			t.Fatal(err)
		}
		for i, want := range c.want {
			if got := shown[i].Blocked; got != want {
				t.Errorf("%s: creative %d is blocked %q, want %q", c.name, i+1, got, want)
			}
		}
	}
}
