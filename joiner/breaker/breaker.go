// Package breaker decides when the labels of the join are not to be learned from: it is pure, all times are event times.
//
// It watches slices of the traffic: all of it, and each department of the catalogue. A minute is judged once the watermark
// has passed it, so that a backlog which drains unevenly is not taken for an outage. Then the recent minutes are held
// against the trailing ones:
//
//   - stale: no clicks at all, where the trailing click rate makes that impossible by chance.
//   - rate: clicks per impression less than Drop or more than Rise times the trailing rate.
//   - coverage: of the clicks, the share that found their impression has fallen by more than Cover.
//   - orphans: of the clicks that were settled, the share whose impression never came has grown by more than Orphan.
//   - ctr: of the impressions, the share with a click is off like rate. For departments, whose clicks are known only by
//     their labels, it is the only rule.
//
// Everything is counted in the minute in which it happened, never in the one in which the join found out: an impression
// is labelled at once if there is a click and a window later if there is none, so a rate by the time of labels is 1 at
// the start of the traffic, and wrong by as much as the traffic grows within a window. That is why no label without a
// click is counted at all: impressions are, when they are read. Whether a click is an orphan is known a window later; the
// minutes of the orphan rule are older by Settle.
//
// What is late or repeated counts nowhere: somebody who sends a log again changes no rate.
//
// Clicks come after their impressions. So those of the recent minutes are held against the impressions of these minutes
// and of as many before, whichever explains them better: the traffic may stop, begin again and multiply.
//
// Every rule needs a deviation that is both large and far outside of chance. A slice that has tripped closes again after Hold
// minutes without one. Minutes while it is open are kept out of its trailing baseline, and those of before it tripped
// are its measure, so that an outage does not become the norm. What is trailing is forgotten in a restart: until Warm
// minutes have been seen nothing trips.
package breaker

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
)

// All is the slice of all traffic.
const All = "all"

// maxSlices bounds the departments that are watched one by one; those beyond are in All only.
const maxSlices = 64

const minuteMS = 60_000

// few clicks say nothing, whatever the statistics.
const few = 30

// Config of the rules.
type Config struct {
	Recent   int     // minutes that are judged together
	Baseline int     // trailing minutes they are held against
	Warm     int     // trailing minutes without which nothing is judged
	Hold     int     // good minutes after which an open slice closes
	Settle   int     // minutes after which it is known whether a click is an orphan: the window of the join
	Drop     float64 // trips below this times the trailing rate, in (0, 1)
	Rise     float64 // trips above this times the trailing rate, more than 1
	Cover    float64 // trips when coverage has fallen by more than this, in (0, 1)
	Orphan   float64 // trips when the orphan rate has grown by more than this, in (0, 1)
	Sigma    float64 // and only beyond so many standard deviations
}

// Default trips on halves and triples, and hardly ever by chance: at 6 standard deviations once in a billion looks.
func Default() Config {
	return Config{Recent: 5, Baseline: 360, Warm: 30, Hold: 10, Settle: 31, Drop: 0.5, Rise: 3, Cover: 0.3, Orphan: 0.3, Sigma: 6}
}

// Validate returns every problem.
func (cfg Config) Validate() error {
	var errs []error
	bad := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(cfg.Recent >= 1 && cfg.Hold >= 1, "recent %d and hold %d: want 1 minute or more", cfg.Recent, cfg.Hold)
	bad(cfg.Settle >= 0, "settle %d: want 0 minutes or more", cfg.Settle)
	bad(cfg.Warm >= 1 && cfg.Warm <= cfg.Baseline, "warm %d: want 1 to the baseline of %d minutes", cfg.Warm, cfg.Baseline)
	bad(cfg.Drop > 0 && cfg.Drop < 1 && cfg.Rise > 1, "drop %g and rise %g: want them on both sides of 1", cfg.Drop, cfg.Rise)
	bad(cfg.Cover > 0 && cfg.Cover < 1 && cfg.Orphan > 0 && cfg.Orphan < 1, "cover %g and orphan %g: want 0 to 1", cfg.Cover, cfg.Orphan)
	bad(cfg.Sigma > 0, "sigma %g: want more than 0", cfg.Sigma)
	return errors.Join(errs...)
}

// Counts of a minute of event time: of what happened in it, whenever that became known.
type Counts struct {
	Impressions uint64 // read, in time and not before
	Clicks      uint64 // read, in time and the first of an impression that is known; none for a department
	Joined      uint64 // clicks that found their impression
	Orphans     uint64 // clicks that did not
	Positive    uint64 // clicks that were the first of their impression
	// Settled are the clicks that Orphans are held against, in sums over minutes. Judge fills it in.
	Settled uint64
}

// Add sums.
func (c Counts) Add(o Counts) Counts {
	return Counts{
		c.Impressions + o.Impressions,
		c.Clicks + o.Clicks,
		c.Joined + o.Joined,
		c.Orphans + o.Orphans,
		c.Positive + o.Positive,
		c.Settled + o.Settled,
	}
}

// List is the counts in the order of their fields, for a log.
func (c Counts) List() []uint64 {
	return []uint64{c.Impressions, c.Clicks, c.Joined, c.Orphans, c.Positive, c.Settled}
}

// CountsOf reads List's form; anything else is no counts.
func CountsOf(l []uint64) Counts {
	if len(l) != 6 {
		return Counts{}
	}
	return Counts{l[0], l[1], l[2], l[3], l[4], l[5]}
}

// Change of a slice's state.
type Change struct {
	Slice  string
	Open   bool
	Reason string  // what is wrong, in words; of the last trip when it closes
	Value  float64 // the figure that tripped it, relative to the trailing one
	// Trailing are the counts that it was held against, and is until it closes.
	Trailing Counts
}

// Breaker watches. It is not safe for concurrent use.
type Breaker struct {
	cfg    Config
	slices map[string]*slice
	judged int64 // the last minute that was, by number; 0: none yet
}

type slice struct {
	minutes map[int64]Counts // by number; judged ones that belong to the baseline, and those to come
	bad     map[int64]bool   // minutes while it was open
	open    bool
	norm    Counts // the trailing counts when it tripped: while it is open they are the measure, however long that takes
	good    int    // minutes in a row, while open
	last    Change
}

// New returns a breaker whose slices are closed, but for those that were open before a restart.
func New(cfg Config, tripped []Change) *Breaker {
	b := &Breaker{cfg: cfg, slices: map[string]*slice{}}
	for _, c := range tripped {
		if s := b.slice(c.Slice); s != nil {
			s.open, s.norm, s.last = true, c.Trailing, c
		}
	}
	return b
}

func (b *Breaker) slice(name string) *slice {
	s := b.slices[name]
	if s == nil && (name == All || len(b.slices) <= maxSlices) {
		s = &slice{minutes: map[int64]Counts{}, bad: map[int64]bool{}}
		b.slices[name] = s
	}
	return s
}

// Add counts what happened in a minute, given by any time in it. What comes after its minute was judged goes into the
// baseline only.
func (b *Breaker) Add(name string, ms int64, c Counts) {
	if s := b.slice(name); s != nil {
		s.minutes[ms/minuteMS] = s.minutes[ms/minuteMS].Add(c)
	}
}

// Open says whether a slice, or all traffic, is.
func (b *Breaker) Open(name string) bool {
	if s := b.slices[All]; s != nil && s.open {
		return true
	}
	s := b.slices[name]
	return s != nil && s.open
}

// Tripped lists the open slices with the reason, by name.
func (b *Breaker) Tripped() (out []Change) {
	for _, name := range slices.Sorted(maps.Keys(b.slices)) {
		if s := b.slices[name]; s.open {
			out = append(out, s.last)
		}
	}
	return out
}

// Judge looks at the minutes that the watermark has passed since the last call.
func (b *Breaker) Judge(watermarkMS int64) (changes []Change) {
	end := watermarkMS/minuteMS - 1 // the last whole minute
	if end <= b.judged {
		return nil
	}
	// After a jump over a long silence only what can be in a baseline is looked at.
	from := max(b.judged+1, end-int64(b.cfg.Baseline))
	if b.judged == 0 {
		from = end
	}
	for m := from; m <= end; m++ {
		for _, name := range slices.Sorted(maps.Keys(b.slices)) {
			if c, ok := b.slices[name].judge(b.cfg, name, m); ok {
				changes = append(changes, c)
			}
		}
	}
	b.judged = end
	return changes
}

// judge looks at one slice at the end of minute m.
func (s *slice) judge(cfg Config, name string, m int64) (Change, bool) {
	oldest := m - int64(cfg.Baseline+cfg.Recent+cfg.Settle)
	maps.DeleteFunc(s.minutes, func(k int64, _ Counts) bool { return k < oldest })
	maps.DeleteFunc(s.bad, func(k int64, _ bool) bool { return k < oldest })
	recent, trailing, earlier, seen := s.sums(cfg, m)
	if s.open {
		s.bad[m] = true
		if s.norm != (Counts{}) {
			trailing, seen = s.norm, cfg.Warm
		}
	}
	if trailing.Settled == 0 {
		recent.Orphans, recent.Settled = 0, 0 // there is nothing to hold them against
	}
	reason, value := "", 0.0
	if seen >= cfg.Warm {
		reason, value = cfg.wrong(recent, trailing, earlier)
	}
	switch {
	case reason != "" && !s.open:
		s.open, s.good, s.norm = true, 0, trailing
		for k := m - int64(cfg.Recent) + 1; k <= m; k++ {
			s.bad[k] = true
		}
		s.last = Change{name, true, reason, value, trailing}
		return s.last, true
	case reason != "":
		s.good = 0
	case s.open:
		if s.good++; s.good >= cfg.Hold {
			s.open, s.norm = false, Counts{}
			return Change{name, false, s.last.Reason, s.last.Value, s.last.Trailing}, true
		}
	}
	return Change{}, false
}

// sums of the minutes that are judged at the end of minute m, and of those that they are held against, of which seen had
// impressions. earlier are the impressions of as many minutes as the recent ones, before them.
func (s *slice) sums(cfg Config, m int64) (recent, trailing Counts, earlier uint64, seen int) {
	last := m - int64(cfg.Settle) // the last minute whose clicks are settled
	settled := 0
	var before Counts
	for k, c := range s.minutes {
		if k > m-2*int64(cfg.Recent) && k <= m-int64(cfg.Recent) {
			earlier += c.Impressions
		}
		now := Counts{Impressions: c.Impressions, Clicks: c.Clicks, Joined: c.Joined, Positive: c.Positive}
		switch {
		case k > m || k <= m-int64(cfg.Recent+cfg.Baseline):
		case k > m-int64(cfg.Recent):
			recent = recent.Add(now)
		// Minutes without impressions are those before the start, of which only the orphans are heard.
		case !s.bad[k] && c.Impressions > 0:
			trailing = trailing.Add(now)
			seen++
		}
		then := Counts{Orphans: c.Orphans, Settled: c.Joined + c.Orphans}
		switch {
		case k > last || s.bad[k] || c.Clicks == 0:
		case k > last-int64(cfg.Recent):
			recent = recent.Add(then)
		default:
			before = before.Add(then)
			settled++
		}
	}
	if settled >= cfg.Warm {
		trailing = trailing.Add(before)
	}
	return recent, trailing, earlier, seen
}

// wrong is the first rule that is broken, and by how much.
func (cfg Config) wrong(recent, trailing Counts, earlier uint64) (reason string, value float64) {
	low, high := float64(min(recent.Impressions, earlier)), float64(max(recent.Impressions, earlier))
	clickRate := share(trailing.Clicks, trailing.Impressions)
	if recent.Clicks == 0 && clickRate*low > cfg.Sigma*cfg.Sigma { // e^-36 by chance
		return fmt.Sprintf("the click stream is stale: no click in %d minutes, %.0f were to be expected", cfg.Recent, clickRate*low), 0
	}
	if r, off := cfg.off(recent.Clicks, clickRate*low, clickRate*high); off {
		return fmt.Sprintf("clicks per impression are %.2f times the trailing %.4f", r, clickRate), r
	}
	was, is := share(trailing.Joined, trailing.Clicks), share(recent.Joined, recent.Clicks)
	if was-is > cfg.Cover && cfg.farther(is, was, recent.Clicks) {
		return fmt.Sprintf("%.0f %% of the clicks find their impression, %.0f %% in the trailing minutes", 100*is, 100*was), is - was
	}
	was, is = share(trailing.Orphans, trailing.Settled), share(recent.Orphans, recent.Settled)
	if is-was > cfg.Orphan && cfg.farther(is, was, recent.Settled) {
		return fmt.Sprintf("%.0f %% of the clicks have no impression, %.0f %% in the trailing minutes", 100*is, 100*was), is - was
	}
	ctr := share(trailing.Positive, trailing.Impressions)
	if r, off := cfg.off(recent.Positive, ctr*low, ctr*high); off {
		return fmt.Sprintf("the click-through rate is %.2f times the trailing %.4f", r, ctr), r
	}
	return "", 0
}

func share(a, b uint64) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

// off holds a count against the nearer end of its expectation: Poisson, so the variance is the expectation.
func (cfg Config) off(n uint64, low, high float64) (ratio float64, off bool) {
	expected := min(max(float64(n), low), high)
	if expected == 0 {
		return 0, false
	}
	ratio = float64(n) / expected
	if max(float64(n), expected) < few {
		return ratio, false
	}
	far := math.Abs(float64(n)-expected) > cfg.Sigma*math.Sqrt(expected)
	return ratio, far && (ratio < cfg.Drop || ratio > cfg.Rise)
}

// farther says whether a share of n lies beyond chance from what it was.
func (cfg Config) farther(is, was float64, n uint64) bool {
	if n < few {
		return false
	}
	p := min(max(was, 0.01), 0.99)
	return math.Abs(is-was)*math.Sqrt(float64(n)) > cfg.Sigma*math.Sqrt(p*(1-p))
}
