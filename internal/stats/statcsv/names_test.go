package statcsv

import (
	"errors"
	"math"
	"strings"
	"testing"

	"ctrloop/internal/stats"
)

func TestNamesJoinALogAndAPolicy(t *testing.T) {
	n := NewNames()
	p, err := n.ReadPolicy(strings.NewReader("product,creative,probability\ntea,a,0.25\ntea,b,0.75\nbag,c,1\n"))
	if err != nil {
		t.Fatal(err)
	}
	var l Log
	for _, r := range []struct {
		product, creative string
		clicked           bool
	}{{"tea", "a", true}, {"tea", "b", false}, {"bag", "c", true}, {"bag", "retired", true}} {
		if err := n.Add(&l, r.product, r.creative, r.clicked, 0.5); err != nil {
			t.Fatal(err)
		}
	}
	samples, err := l.Samples(p, obpPrior)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []float64{0.5, 1.5, 2, 0} { // what the policy never shows has weight 0
		if samples[i].Weight != want {
			t.Errorf("row %d: weight %g, want %g", i+1, samples[i].Weight, want)
		}
	}
	eval, err := stats.EvaluatePolicy(samples, stats.DefaultOPEParams())
	est := eval.Estimates
	if err != nil || math.Abs(est[stats.IPS].Value-2.5/4) > 1e-12 {
		t.Errorf("ips %g, %v", est[stats.IPS].Value, err)
	}
	for want, err := range map[string]error{
		`product "hat"`: n.Add(&l, "hat", "a", true, 0.5),
		"propensity 0":  n.Add(&l, "tea", "a", true, 0),
		"propensity 2":  n.Add(&l, "tea", "a", true, 2),
	} {
		if !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %s", err, want)
		}
	}
	for in, want := range map[string]string{
		"product,creative,probability\ntea,a,0.5\n":            "product tea add up to 0.5",
		"product,creative,probability\ntea,,1\n":               "line 2",
		"product,creative,probability\ntea,a,1\ntea,a,0\n":     "comes twice",
		"product,creative,probability\ntea,a,-1\n":             "not a probability",
		"item_id,position,probability\n1,1,1\n":                `no column "creative"`,
		"product,creative,probability\ntea,a,0.5\ntea,b,0.6\n": "add up to 1.1",
	} {
		if _, err := NewNames().ReadPolicy(strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}
