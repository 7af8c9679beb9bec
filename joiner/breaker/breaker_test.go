package breaker

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const start = 1_790_000_000_000 / minuteMS * minuteMS

// traffic is a minute of healthy traffic: 1000 impressions, 5 % clicks, all of them joined but 2 %.
func traffic(r *rand.Rand) (c Counts) {
	c.Impressions = uint64(900 + r.IntN(200))
	for range c.Impressions {
		if r.IntN(20) == 0 {
			c.Clicks++
			if r.IntN(50) == 0 {
				c.Orphans++
			} else {
				c.Joined++
			}
		}
	}
	c.Positive = c.Joined
	return c
}

// run feeds minutes, each changed by change, and returns what the breaker says, with the minute.
func run(t *testing.T, b *Breaker, r *rand.Rand, name string, from, to int, change func(m int, c *Counts)) (out []Change, at []int) {
	t.Helper()
	for m := from; m < to; m++ {
		c := traffic(r)
		if name != All {
			c = Counts{Impressions: c.Impressions, Positive: c.Positive}
		}
		if change != nil {
			change(m, &c)
		}
		b.Add(name, start+int64(m)*minuteMS+17, c)
		for _, x := range b.Judge(start + int64(m+1)*minuteMS + minuteMS/2) {
			out, at = append(out, x), append(at, m)
		}
	}
	return out, at
}

func TestTripsAndHeals(t *testing.T) {
	for _, c := range []struct {
		name   string
		slice  string
		change func(*Counts)
		reason string
		within int // minutes until it must have tripped
	}{
		{"the click stream stops", All, func(c *Counts) { c.Clicks, c.Joined, c.Orphans, c.Positive = 0, 0, 0, 0 },
			"clicks per impression are", 5},
		{"half of the clicks get lost", All, func(c *Counts) { c.Clicks, c.Joined = c.Clicks/4, c.Joined/4 }, "clicks per impression are", 5},
		{"a click farm", All, func(c *Counts) { c.Clicks, c.Joined = c.Clicks*6, c.Joined*6 }, "clicks per impression are", 3},
		{"impressions get lost", All, func(c *Counts) { c.Orphans, c.Joined = c.Joined, c.Orphans }, "find their impression", 5},
		{"clicks wait", All, func(c *Counts) { c.Joined /= 3 }, "find their impression", 5},
		{"one department", "home", func(c *Counts) {
			c.Positive /= 5
		}, "the click-through rate is", 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, r := New(Default(), nil), rand.New(rand.NewPCG(1, 1))
			if got, _ := run(t, b, r, c.slice, 0, 100, nil); got != nil {
				t.Fatalf("healthy traffic: %+v", got)
			}
			got, at := run(t, b, r, c.slice, 100, 180, func(m int, x *Counts) { c.change(x) })
			if len(got) != 1 || !got[0].Open || got[0].Slice != c.slice || !strings.Contains(got[0].Reason, c.reason) || at[0] >= 100+c.within {
				t.Fatalf("%+v at %v", got, at)
			}
			if !b.Open(c.slice) || b.Open("garden") != (c.slice == All) || len(b.Tripped()) != 1 {
				t.Errorf("open: %v", b.Tripped())
			}
			got, at = run(t, b, r, c.slice, 180, 260, nil)
			if len(got) != 1 || got[0].Open || at[0] < 180+Default().Hold-1 || at[0] > 180+Default().Hold+Default().Recent {
				t.Fatalf("healed: %+v at %v", got, at)
			}
			if b.Open(c.slice) {
				t.Error("still open")
			}
		})
	}
}

// TestStaleClickStream: with the clicks gone for the whole of the recent minutes the reason names the stream.
func TestStaleClickStream(t *testing.T) {
	reason, _ := Default().wrong(Counts{Impressions: 5000}, Counts{Impressions: 100_000, Clicks: 5000}, 5000)
	if !strings.Contains(reason, "stale: no click in 5 minutes, 250 were to be expected") {
		t.Error(reason)
	}
}

// TestOrphans: the rule of its own, with that of coverage as good as off. It sees a minute a window later, and does not
// open again for minutes that another rule has stood open for.
func TestOrphans(t *testing.T) {
	cfg := Default()
	cfg.Cover = 0.99
	b, r := New(cfg, nil), rand.New(rand.NewPCG(5, 1))
	if got, _ := run(t, b, r, All, 0, 100, nil); got != nil {
		t.Fatalf("healthy traffic: %+v", got)
	}
	lost := func(m int, c *Counts) {
		if m < 120 {
			c.Orphans, c.Joined = c.Joined, c.Orphans
		}
	}
	got, at := run(t, b, r, All, 100, 200, lost)
	if len(got) != 2 || !strings.Contains(got[0].Reason, "of the clicks have no impression") || at[0] < 100+cfg.Settle ||
		at[0] > 105+cfg.Settle ||
		got[1].Open {
		t.Fatalf("%+v at %v", got, at)
	}
	cfg.Cover = Default().Cover
	b = New(cfg, nil)
	run(t, b, r, All, 0, 100, nil)
	if got, at := run(t, b, r, All, 100, 200, lost); len(got) != 2 || at[0] > 105 || at[1] > 135 {
		t.Errorf("%+v at %v", got, at)
	}
}

// TestLongOutageIsNotTheNorm: after ten hours without clicks the trailing rate is still that of before.
func TestLongOutageIsNotTheNorm(t *testing.T) {
	cfg := Default()
	cfg.Baseline = 60
	b, r := New(cfg, nil), rand.New(rand.NewPCG(2, 1))
	run(t, b, r, All, 0, 60, nil)
	got, _ := run(t, b, r, All, 60, 660, func(_ int, c *Counts) { *c = Counts{Impressions: c.Impressions} })
	if len(got) != 1 || !got[0].Open {
		t.Fatalf("%+v", got)
	}
}

// TestNothingTripsByChance: neither at low volume, nor before there is a baseline, nor on slow drifts.
func TestNothingTripsByChance(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		per := rapid.IntRange(0, 300).Draw(t, "impressions a minute")
		b := New(Default(), nil)
		for m := range 200 {
			var c Counts
			for range per {
				c.Impressions++
				if r.IntN(1000) < 20+m/10 {
					c.Clicks++
					c.Joined++
					c.Positive++
				}
			}
			b.Add(All, start+int64(m)*minuteMS, c)
			if x := b.Judge(start + int64(m+1)*minuteMS); x != nil {
				t.Fatalf("minute %d: %+v", m, x)
			}
		}
	})
	b, r := New(Default(), nil), rand.New(rand.NewPCG(3, 1))
	if got, _ := run(t, b, r, All, 0, 29, func(m int, c *Counts) { c.Clicks *= uint64(1 + 9*(m%2)) }); got != nil {
		t.Errorf("without a baseline: %+v", got)
	}
}

func TestKnownToBeOpen(t *testing.T) {
	b, r := New(
		Default(),
		[]Change{{Slice: All, Open: true, Reason: "as it was", Trailing: CountsOf(Counts{}.List())}},
	), rand.New(
		rand.NewPCG(4, 1),
	)
	if !b.Open("anything") {
		t.Error("forgotten")
	}
	got, _ := run(t, b, r, All, 0, 30, nil)
	if d := cmp.Diff([]Change{{Slice: All, Reason: "as it was"}}, got); d != "" {
		t.Error(d)
	}
}

// TestOutageOverARestart: an outage that goes on is held against the rates of before it.
func TestOutageOverARestart(t *testing.T) {
	norm := Counts{Impressions: 100_000, Clicks: 5000, Joined: 4900, Orphans: 100, Positive: 4900, Settled: 5000}
	b, r := New(Default(), []Change{{Slice: All, Open: true, Trailing: CountsOf(norm.List())}}), rand.New(rand.NewPCG(4, 1))
	got, _ := run(t, b, r, All, 0, 60, func(_ int, c *Counts) { *c = Counts{Impressions: c.Impressions} })
	if got != nil {
		t.Errorf("during the outage: %+v", got)
	}
	if got, _ = run(t, b, r, All, 60, 90, nil); len(got) != 1 || got[0].Open {
		t.Errorf("after it: %+v", got)
	}
}

// TestBounded: departments without end, and minutes of tomorrow.
func TestBounded(t *testing.T) {
	b := New(Default(), nil)
	for i := range int64(3000) {
		b.Add(string(rune('a'+i%5000)), start+i*minuteMS, Counts{Positive: 1})
		b.Add(All, start+i*minuteMS, Counts{Impressions: 1})
		b.Judge(start + i*minuteMS)
	}
	if n := len(b.slices); n > maxSlices+1 {
		t.Errorf("%d slices", n)
	}
	if n := len(b.slices[All].minutes); n > Default().Baseline+Default().Recent+Default().Settle+3 {
		t.Errorf("%d minutes are kept", n)
	}
	b.Judge(start + 1e12) // 30 years at once must not take long
}

func TestValidate(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Error(err)
	}
	err := Config{Drop: 2, Rise: 0.5}.Validate()
	for _, want := range []string{"recent", "warm", "drop", "cover", "sigma"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %s", err, want)
		}
	}
}
